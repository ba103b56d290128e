"""Which test examples of the finals are in the data that tuning, or the search for the preset perdure, has read.

    PERDURE_CL_BENCHMARK=PATH/CL_Benchmark python benchmarks/leaderboard/overlap.py
    make tables

Within a suite there are none: its test examples are the same for every `data_seed`, and are split off first. Two suites that
share a task may split it differently. Only positions are recorded, no text.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

from perdure.tasks.splits import normal
from perdure.tasks.suites import load_suite
from perdure.tasks.task import Example

HERE = Path(__file__).parent
RECIPE_VALIDATION = 500
"""Validation examples per task in the search for the preset perdure (benchmarks/recipe)."""


def texts(examples: tuple[Example, ...]) -> set[str]:
    return {normal(example.text) for example in examples}


def main() -> None:
    described = yaml.safe_load((HERE / "sequences.yaml").read_text(encoding="utf-8"))
    train, back = described["settings"]["budget.train"], described["held_back"]
    read: dict[str, set[str]] = {}
    for sequence in described["tuning"]["sequences"] + described["screening"]["sequences"]:
        for validation in (128, RECIPE_VALIDATION):
            for task in load_suite(
                sequence["suite"], order=sequence["order"], train=train, validation=validation
            ).tasks:
                read.setdefault(task.name, set()).update(texts(task.train) | texts(task.validation))
    found: dict[str, dict[str, Any]] = {}
    for sequence in back["finals"]["sequences"] + back["long"]["sequences"]:
        suite = load_suite(
            sequence["suite"],
            order=sequence["order"],
            train=train,
            validation=128,
            test=back["budget_test"],
            seed=back["data_seed"],
        )
        for task in suite.tasks:
            known = read.get(task.name, set())
            seen = [i for i, example in enumerate(task.test) if normal(example.text) in known]
            found.setdefault(sequence["suite"], {})[task.name] = {"test": len(task.test), "seen": seen}
    (HERE / "overlap.json").write_text(json.dumps(found) + "\n", encoding="utf-8")
    for name, tasks in found.items():
        print(name, {task: len(own["seen"]) for task, own in tasks.items() if own["seen"]})


if __name__ == "__main__":
    main()
