"""The language leaderboard's plan: held-back sequences as hashed, tuned on other sets, every method alike."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from benchmarks.language_leaderboard import plan, table
from benchmarks.leaderboard import table as encoder

from perdure.tasks.suites import describe
from tests.benchmarks.test_leaderboard import check_trials
from tests.benchmarks.test_leaderboard_tables import run

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "benchmarks" / "language_leaderboard"


def test_the_held_back_sequences_are_those_of_the_hash() -> None:
    sequences = plan.read("sequences.yaml")
    kept = {key: sequences[key] for key in ("settings", "held_back")}
    found = hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()
    assert f"    {found}\n" in (ROOT / "docs" / "language-protocol.md").read_text(encoding="utf-8")


def _tasks(sequence: dict[str, Any]) -> set[str]:
    orders = {str(name): order for name, order in describe(sequence["suite"])["orders"].items()}
    return {*orders.get(sequence["order"], sequence["order"].split(","))}


def test_tuning_and_results_share_no_set_and_no_seed() -> None:
    sequences = plan.read("sequences.yaml")
    rounds, held = sequences["tuning"]["rounds"], sequences["held_back"]
    tuned = set[str]().union(*(_tasks(each) for each in rounds))
    kept = set[str]().union(*(_tasks(each) for name in ("labels", "texts") for each in held[name]["sequences"]))
    assert len(tuned) == 7
    assert len(kept) == 9
    assert not tuned & (kept | {"bbc", "rotten-tomatoes", "questions"})  # ability's sets, and the source of ni-mini's
    assert not {each["seed"] for each in rounds} & {*held["labels"]["seeds"], *held["texts"]["seeds"]}


def test_every_method_has_the_same_number_of_trials() -> None:
    check_trials(FOLDER / "first.yaml", 4)


@pytest.mark.parametrize("step", [plan.first, plan.second, plan.finals], ids=lambda step: step.__name__)
def test_a_steps_file_is_what_the_records_before_it_say(step: Any) -> None:
    """No file of a step is there before the records it is made from, and none says anything else than they do."""
    first_file = {"finals": "labels"}.get(step.__name__, step.__name__)
    if not (FOLDER / f"{first_file}.yaml").is_file():
        return
    for name, _, made in step():
        assert yaml.safe_load((FOLDER / f"{name}.yaml").read_text()) == made


def test_methods_and_their_trials_in_the_order_of_their_best(monkeypatch: pytest.MonkeyPatch) -> None:
    one, two = ({"training.learning_rate": rate} for rate in (0.1, 0.2))
    monkeypatch.setattr(plan, "trials", lambda _: {"m": [one, two], "n": [one, two], "failed": [one]})

    def row(method: str, trial: dict[str, float], score: float) -> dict[str, Any]:
        return {"method": method, "varied": trial, "scores": {"average_accuracy": score}}

    rows = [row("m", one, 0.5), row("m", two, 0.6), row("n", one, 0.7), row("n", two, 0.7)]
    found = plan.best_trials(rows)
    assert list(found.items()) == [("n", [one, two]), ("m", [two, one])]  # a tie goes to the earlier trial


def test_the_better_half_keeps_more_trials(monkeypatch: pytest.MonkeyPatch) -> None:
    trials = [{"training.learning_rate": rate} for rate in (0.1, 0.2, 0.3)]
    monkeypatch.setattr(plan, "complete", lambda _step, _folder: [])
    monkeypatch.setattr(plan, "best_trials", lambda _: {"inc-lora": trials, "l2": trials, "ewc": trials})
    ((_, _, sweep),) = plan.second()
    assert [len(row["trials"]) for row in sweep["methods"].values()] == [2, 2, 1]


@pytest.fixture
def finals(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Two methods, two seeds; general ability afterwards: 60 without examples, 70 with, perplexity 20 -> 25."""
    made = [run(method, seed, share) for method, share in (("perdure", 0.9), ("joint", 0.8)) for seed in (10, 11)]
    asked = [
        {
            "task": "news",
            "shots": shots,
            "metric": "accuracy",
            "before": 0.6,
            "after": 0.1 * (6 + shots),
            "is_share": True,
        }
        for shots in (0, 1)
    ]
    asked.append({"metric": "inverse-perplexity", "shots": 0, "before": 1 / 20, "after": 1 / 25, "is_share": False})
    ability = [{"method": "perdure", "rows": asked}] * 2

    def found(folder: str) -> list[dict[str, Any]]:
        return {"records": made, "ability": ability}.get(folder.rpartition("/")[2], []) if "labels" in folder else []

    monkeypatch.setattr(encoder, "records", found)
    monkeypatch.setattr(table, "records", found)
    ids = {row["id"]: row["method"] for row in made}
    monkeypatch.setattr(encoder, "runs_of", lambda step, _board: ids if step == "labels" else {})
    monkeypatch.setattr(table, "_abilities", lambda: iter(found("labels/ability")))
    return made


def test_everything_at_a_glance(finals: list[dict[str, Any]]) -> None:
    lines = table.summary().splitlines()
    assert [line.split(" | ")[0] for line in lines[2:4]] == ["| perdure", "| joint"]
    assert lines[2].endswith("| - | 60.0 | 70.0 | 25.00 |")  # no free text yet
    assert lines[3].endswith("| - | - | - | - |")
    finals.pop()
    assert "Incomplete: 1 of the 4 runs of `labels` are missing." in table.summary()


def test_general_ability_beside_the_untouched_model(finals: list[dict[str, Any]]) -> None:
    lines = table.ability().splitlines()
    assert lines[2:4] == ["| untouched | 60.0 | 60.0 | 20.00 |", "| perdure | 60.0 | 70.0 | 25.00 |"]
    assert lines[-1].startswith("2 runs")
