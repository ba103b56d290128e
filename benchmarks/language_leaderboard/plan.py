"""The sweeps of the language leaderboard, written from sequences.yaml, spaces.yaml and the records so far.

    python benchmarks/language_leaderboard/plan.py first     -> first.yaml: every trial of every method on the first round
    python benchmarks/language_leaderboard/plan.py second    -> second.yaml: the best of them on the second round
    python benchmarks/language_leaderboard/plan.py finals    -> labels.yaml and texts.yaml: finalists and bounds, held back

Each step refuses to run on an incomplete step before it. What a step chose is in the file it wrote; no number is typed.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parents[1]))

from benchmarks.leaderboard.plan import complete, trials  # noqa: E402

BOUNDS = ("joint", "per-task", "seq-lora")
NEEDS_LABELS = ("lwf", "frozen-head", "perdure+head")
"""Refused without labels, or then the same as another row."""
FINALISTS = 5
STEPS = ("first", "second")

Trial = dict[str, Any]
Sweep = dict[str, Any]


def read(name: str) -> dict[str, Any]:
    """A YAML file of this folder."""
    return yaml.safe_load((HERE / name).read_text(encoding="utf-8"))


def first() -> Iterator[tuple[str, str, Sweep]]:
    """Every trial of every method on the first round's sequence."""
    about = "Every method's trials on the first round's sequence, scored on validation examples."
    yield "first", about, _round(0, trials(read("spaces.yaml")))


def second() -> Iterator[tuple[str, str, Sweep]]:
    """The best trials of every method on the second: more of those methods that did better."""
    ranked = best_trials(complete("first", HERE))
    half, kept = (len(ranked) + 1) // 2, read("spaces.yaml")["kept"]
    chosen = {method: own[: kept if place < half else 1] for place, (method, own) in enumerate(ranked.items())}
    about = "Each method's best trials on the second round's sequence, scored on validation examples."
    yield "second", about, _round(1, chosen)


def finals() -> Iterator[tuple[str, str, Sweep]]:
    """The finalists and the bounds on the held-back sequences."""
    chosen = {method: own[0] for method, own in best_trials(complete("second", HERE)).items()}
    rivals = [method for method in chosen if method not in BOUNDS][:FINALISTS]
    sequences = read("sequences.yaml")
    held = sequences["held_back"]
    fixed = {
        **sequences["settings"],
        "data_seed": held["data_seed"],
        "budget.train": held["train"],
        "budget.test": held["test"],
        "evaluation.every_stage": held["every_stage"],
    }
    names = [*dict.fromkeys((*rivals, *held["always"], *BOUNDS))]
    for name in ("labels", "texts"):
        rows = {method: _row(method, [chosen[method]]) for method in names}
        if name == "texts":
            rows = {method: row for method, row in rows.items() if method not in NEEDS_LABELS}
        about = "Finalists and bounds on held-back sequences, scored on test examples."
        yield name, about, {"name": name, "keep_runs": True, "settings": fixed, **held[name], "methods": rows}


def best_trials(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[Trial]]:
    """Method -> its trials, best first; methods in the order of their best. By average accuracy; a tie goes to the earlier."""
    found: dict[str, list[tuple[float, Trial]]] = {}
    for method, own in trials(read("spaces.yaml")).items():
        scored = [
            (statistics.mean(scores), trial)
            for trial in own
            if (scores := [_score(row) for row in rows if row["method"] == method and row["varied"] == trial])
        ]
        if scored:
            found[method] = sorted(scored, key=lambda each: -each[0])
    ranked = sorted(found.items(), key=lambda each: -each[1][0][0])
    return {method: [trial for _, trial in own] for method, own in ranked}


def _score(row: Mapping[str, Any]) -> float:
    return row["scores"]["average_accuracy"]


def _round(number: int, chosen: Mapping[str, list[Trial]]) -> Sweep:
    """A sweep on one tuning sequence, of which only the final average accuracy counts."""
    sequences = read("sequences.yaml")
    of_round = sequences["tuning"]["rounds"][number]
    settings = {
        **sequences["settings"],
        "suite": of_round["suite"],
        "order": of_round["order"],
        "budget.train": of_round["train"],
        "budget.validation": of_round["validation"],
        "budget.test": 1,
        "evaluation.split": "validation",
        "evaluation.every_stage": False,
    }
    rows = {method: _row(method, own) for method, own in chosen.items()}
    return {"name": STEPS[number], "settings": settings, "seeds": [of_round["seed"]], "methods": rows}


def _row(method: str, own: Sequence[Trial]) -> dict[str, Any]:
    return {**read("spaces.yaml")["fixed"].get(method, {}), "trials": list(own)}


def main() -> None:
    for name, about, sweep in {"first": first, "second": second, "finals": finals}[sys.argv[1]]():
        head = f"# {about} Written by plan.py; do not edit.\n"
        (HERE / f"{name}.yaml").write_text(head + yaml.safe_dump(sweep, sort_keys=False, width=120), encoding="utf-8")


if __name__ == "__main__":
    main()
