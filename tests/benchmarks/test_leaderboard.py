"""The leaderboard's plan: held-back sequences as hashed, the same number of trials for all."""

from __future__ import annotations

import hashlib
import json
import math
import random
from pathlib import Path

import pytest
import yaml
from benchmarks.leaderboard import plan

from perdure.methods.contract.build import build_method
from perdure.methods.table import PRESETS
from perdure.sweeps.plan import SweepConfig, cells, load_sweep
from perdure.tasks.suites import describe

ROOT = Path(__file__).resolve().parents[2]


def test_the_held_back_sequences_are_those_of_the_hash():
    sequences = plan.read("sequences.yaml")
    kept = {key: sequences[key] for key in ("settings", "held_back")}
    found = hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()
    assert f"    {found}\n" in (ROOT / "docs" / "protocol.md").read_text(encoding="utf-8")


def test_tuning_and_results_share_no_order_and_no_seed():
    sequences = plan.read("sequences.yaml")

    def tasks(sequence: dict) -> tuple[str, ...]:
        orders = {str(name): order for name, order in describe(sequence["suite"])["orders"].items()}
        return tuple(orders.get(sequence["order"], sequence["order"].split(",")))

    tuned = {tasks(s) for step in ("tuning", "screening") for s in sequences[step]["sequences"]}
    held = [tasks(s) for part in ("finals", "long") for s in sequences["held_back"][part]["sequences"]]
    assert len(set(held)) == len(held) == 11
    assert not tuned & set(held)
    seeds = {*sequences["tuning"]["seeds"], *sequences["screening"]["seeds"]}
    assert not seeds & {s for part in ("finals", "long") for s in sequences["held_back"][part]["seeds"]}


def test_every_method_has_the_same_number_of_trials_that_all_are_methods():
    """A preset added after the leaderboard was run is not on it; to put it there, see benchmarks/leaderboard/README.md."""
    check_trials(ROOT / "benchmarks" / "leaderboard" / "tune.yaml", 8)


def check_trials(path: Path, count: int) -> None:
    """Every method of the sweep is a preset and has `count` trials, all different runs scored on validation examples."""
    sweep = load_sweep(path)
    trials = {name: len(own["trials"]) for name, own in sweep.methods.items()}
    assert {number for name, number in trials.items() if name != "frozen-head"} == {
        count
    }  # which nothing of the space acts on
    assert set(sweep.methods) <= set(PRESETS)
    found = list(cells(sweep))
    assert len({cell.id for cell in found}) == len(found) == sum(trials.values())
    for cell in found:
        assert cell.config.evaluation.split == "validation"
        build_method(cell.config.method)


@pytest.mark.parametrize("step", [plan.tune, plan.runoff, plan.screen, plan.finals], ids=lambda step: step.__name__)
def test_a_steps_file_is_what_the_records_before_it_say(step):
    """No file of a step is there before the records it is made from, and none says anything else than they do."""
    folder = ROOT / "benchmarks" / "leaderboard"
    if not (folder / f"{step.__name__}.yaml").is_file():
        return
    for name, _, made in step():
        assert yaml.safe_load((folder / f"{name}.yaml").read_text()) == made


def test_points_are_stratified():
    points = plan.drawn({"w": {"log": [1e-3, 1e1]}, "c": {"choice": ["a", "b"]}}, 4, random.Random(0))
    assert sorted(int(3 + math.log10(p["w"])) for p in points) == [0, 1, 2, 3]
    assert sorted(p["c"] for p in points) == ["a", "a", "b", "b"]


def test_the_best_trial_is_that_of_both_sequences(monkeypatch):
    one, two = ({"training.learning_rate": rate} for rate in (0.1, 0.2))
    monkeypatch.setattr(plan, "trials", lambda _: {"m": [one, two], "n": [one]})
    rows = [
        {"method": "m", "varied": trial, "scores": {"average_accuracy": score}}
        for trial, score in ((one, 0.9), (one, 0.1), (two, 0.6), (two, 0.6))
    ]
    assert plan.best_trials(rows, 1) == {"m": [two]}
    assert plan.best_trials(rows, 2) == {"m": [two, one]}


def test_only_the_runoff_chooses(monkeypatch):
    one, two = ({"training.learning_rate": rate} for rate in (0.1, 0.2))
    steps = {"tune": ((one, 0.9), (two, 0.8)), "runoff": ((two, 0.5),)}
    rows = {
        step: [{"method": "m", "varied": trial, "scores": {"average_accuracy": score}} for trial, score in scored]
        for step, scored in steps.items()
    }
    monkeypatch.setattr(plan, "trials", lambda _: {"m": [one, two]})
    monkeypatch.setattr(plan, "complete", rows.__getitem__)
    assert plan.chosen_trials() == {"m": two}


def test_an_unfinished_step_is_not_built_on(monkeypatch):
    monkeypatch.setattr(plan, "records", lambda _: [])
    spaces = plan.read("spaces.yaml")
    runs = 8 * len(spaces["methods"]) - 7 * len(spaces["untrained"])
    with pytest.raises(SystemExit, match=f"{runs} of {runs} runs have no record"):
        next(plan.runoff())


def test_finalists_bounds_and_variants(monkeypatch):
    chosen = {name: {"training.learning_rate": 1e-3} for name in PRESETS}
    best = ["lwf", "ella", "joint", "ewc", "l2", "o-lora", "inc-lora"]
    rows = [{"method": m, "scores": {"average_accuracy": 0.9 - i / 100}} for i, m in enumerate(best)]
    monkeypatch.setattr(plan, "complete", lambda _: rows)
    monkeypatch.setattr(plan, "chosen_trials", lambda: chosen)
    variant = "perdure, 16 examples a task kept"
    for name, _, sweep in plan.finals():
        found = SweepConfig.model_validate(sweep)
        rivals = ["lwf", "ella", "ewc", "l2", "o-lora", "perdure"]
        added = ["inc-lora", "frozen-head", "perdure+head", *plan.read("spaces.yaml")["later_variants"]]
        assert list(found.methods) == (
            added if name == "later" else [*rivals, "joint", "per-task", "seq-lora", variant]
        )
        for cell in cells(found):
            build_method(cell.config.method)
            assert (cell.config.evaluation.split, cell.config.evaluation.every_stage) == ("test", "own")
        if name == "later":
            continue
        replay = next(cell for cell in cells(found) if cell.method == variant).config.method["replay"]
        assert (replay["per_task"], replay["use"]) == (16, "mixed")
