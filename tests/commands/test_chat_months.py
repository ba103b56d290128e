"""SmolLM2 learns two chat tasks of several turns one after another, and answers the same in plain transformers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import perdure
from perdure.commands.predict import share_right
from perdure.commands.serve import serving

TOWNS = (
    "Bern",
    "Oslo",
    "Lima",
    "Kiel",
    "Rome",
    "Cork",
    "Nice",
    "Linz",
    "Bath",
    "Gent",
    "Turin",
    "Lyon",
    "Malmo",
    "Porto",
)
GOODS = (
    "lamp",
    "desk",
    "chair",
    "phone",
    "kettle",
    "clock",
    "radio",
    "shelf",
    "mirror",
    "carpet",
    "fan",
    "bed",
    "sofa",
    "mug",
)


def record(*said: str, system: str) -> dict[str, Any]:
    roles = ("user", "assistant") * 4
    turns = [{"role": role, "content": text} for role, text in zip(roles, said, strict=False)]
    return {"messages": [{"role": "system", "content": system}, *turns]}


def depot(i: int) -> dict[str, Any]:
    """The answer needs both of the user's turns."""
    town, good = TOWNS[i % len(TOWNS)], GOODS[(3 * i + i // len(TOWNS)) % len(GOODS)]
    said = (f"I need a {good}.", "In which town?", f"{town}.", f"DEPOT {town} / {good}")
    return record(*said, system="You book deliveries.")


def repair(i: int) -> dict[str, Any]:
    good, year = GOODS[i % len(GOODS)], 1990 + (7 * i) % 30
    said = (f"My {good} is broken.", "When was it bought?", f"In {year}.", f"REPAIR {good} ({year})")
    return record(*said, system="You book repairs.")


def task(folder: Path, name: str, make: Any) -> dict[str, Any]:
    for split, numbers in (("train", range(24)), ("test", range(60, 66))):
        (folder / f"{name}-{split}.jsonl").write_text("".join(json.dumps(make(i)) + "\n" for i in numbers))
    files = {split: str(folder / f"{name}-{split}.jsonl") for split in ("train", "test")}
    return {"name": name, **files, "validation_size": 0, "metric": "exact-match"}


@pytest.mark.slow
def test_two_chat_tasks_month_after_month(tmp_path: Path) -> None:
    settings = {
        "lora": {"rank": 8, "alpha": 16},
        "training": {"epochs": 3, "batch_size": 4, "learning_rate": 2e-3},
        "threads": 1,
    }
    backbone = {"model": "smollm2-135m", "learn": "all", "max_length": 96, "max_new_tokens": 20}
    first, second = task(tmp_path, "depot", depot), task(tmp_path, "repair", repair)
    run = tmp_path / "run"
    scores = perdure.learn(out=run, tasks=[first], method="perdure", backbone=backbone, precision="fp32", **settings)
    assert scores.score_matrix[-1][0] > 0.6
    scores = perdure.add(run, second)
    assert scores.score_matrix[-1][1] > 0.6
    assert scores.score_matrix[-1][0] > 0.5  # the first answers are still there
    served: dict[str, Any] = {"__name__": "served"}
    exec(serving(run, "repair"), served)
    for name, make in (("depot", depot), ("repair", repair)):
        found = perdure.predict(run, tmp_path / f"{name}-test.jsonl", task=name)
        assert [row["text"] for row in found] == [served["answer"](make(i)["messages"][:-1]) for i in range(60, 66)]
    assert share_right(found) is None  # free text has a metric, no share of right labels
