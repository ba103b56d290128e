"""The claims' plan and outcomes: rows are methods, and every verdict can come out."""

from __future__ import annotations

import base64
import random

import numpy as np
import pytest
from benchmarks.claims import plan, table
from benchmarks.leaderboard import plan as leaderboard

from perdure.config.run_config import load_config
from perdure.methods.contract.build import build_method
from perdure.methods.table import PRESETS
from perdure.report.sweeps import cell_of
from perdure.sweeps.plan import SweepConfig, cells


@pytest.fixture(scope="module")
def sweeps():
    trials = leaderboard.trials(leaderboard.read("spaces.yaml"))
    return plan.sweeps({method: own[0] for method, own in trials.items()})


def test_every_row_is_a_method_with_its_presets_tuned_settings(sweeps):
    for sweep in sweeps.values():
        found = list(cells(SweepConfig(**sweep)))
        assert {cell.method for cell in found} == set(sweep["methods"])
        assert len({cell.id for cell in found}) == len(found)
        for cell in found:
            build_method(cell.config.method)
    rates = {cell.config.training.learning_rate for cell in cells(SweepConfig(**sweeps["compare"]))}
    assert rates == {leaderboard.trials(leaderboard.read("spaces.yaml"))["inc-lora"][0]["training.learning_rate"]}


def test_what_a_row_changes(sweeps):
    found = {cell.method: cell.config.method for cell in cells(SweepConfig(**sweeps["compare"]))}
    assert found["ps-lora, merge only"]["penalties"] == {}
    assert found["ps-lora, loss only"]["consolidate"] == {"kind": "sum"}
    assert found["ps-lora, L2 part only"]["penalties"]["sign-magnitude"]["terms"] == "magnitude-only"


def test_grids_multiply_the_tuned_setting(sweeps):
    methods = sweeps["grids"]["methods"]
    key = "method.penalties.sparsity.weight"
    tuned = sweeps["compare"]["methods"]["n-lora"][key]
    assert [methods[f"n-lora, weight x {f:g}"][key] / tuned for f in (0.01, 0.1, 10)] == pytest.approx([0.01, 0.1, 10])


def test_every_claim_is_about_rows():
    claims = plan.read()
    assert {about["preset"] for about in claims["rows"].values()} <= PRESETS.keys()
    for claim in claims["claims"]:
        about = set(claim.get("better") or claim["smaller"])
        assert about <= (set(claims["many"]["rows"]) if "sweep" in claim else claims["rows"].keys())


def recorded(method: str, seed: int, share: float, size: float) -> dict:
    """A record of a run that gets `share` of 400 answers right."""
    right = np.array([random.Random(f"{seed} {i}").random() < share for i in range(400)])
    packed = f"400:{base64.b64encode(np.packbits(right).tobytes()).decode()}"
    scores = {
        "tasks": ["a"],
        "score_matrix": [[float(right.mean())]],
        "average_accuracy": right.mean(),
        "forgetting": 0.0,
    }
    names = ("opposite_signs", "opposite_signs_top", "opposite_signs_weighted", "flips", "collision_rate", "overlap")
    config = load_config({"suite": "quickstart", "seed": seed}).model_dump(mode="json")
    diagnostics = dict.fromkeys(names, size)
    return {
        "method": method,
        "varied": {},
        "scores": scores,
        "right": {"a": packed},
        "diagnostics": diagnostics,
        "config": config,
    }


@pytest.fixture
def two_seeds(monkeypatch):
    """The claims' runs are to be seeds 0 and 1 of one order."""
    monkeypatch.setattr(table, "planned", lambda _: {("quickstart default", 0), ("quickstart default", 1)})


def test_outcomes(two_seeds):
    shares = {
        "ps-lora": (0.9, 0.02),
        "inc-lora": (0.6, 0.5),
        "o-lora": (0.9, 1.0),
        "n-lora": (0.6, 0.5),
        "slice": (0.6, 1.0),
    }
    rows = [recorded(name, seed, *shares.get(name, (0.6, 1.0))) for name in plan.read()["rows"] for seed in (0, 1)]
    lines = table.table({"compare": rows, "many": []}).splitlines()[2:]
    outcome = {tuple(line.split(" | ")[:2]): line.split(" | ")[-1] for line in lines}
    assert outcome["| PS-LoRA", "better than incremental LoRA at 24 tasks"] == "not run yet |"
    assert outcome["| PS-LoRA", "better than incremental LoRA"] == "holds |"
    assert outcome["| N-LoRA", "better than O-LoRA"] == "the opposite |"
    assert outcome["| SLICE", "better than LoRA"] == "not shown |"
    assert outcome["| PS-LoRA", "opposite signs fall tenfold (plain)"] == "holds |"
    assert outcome["| N-LoRA", "fewer collisions than O-LoRA"] == "smaller, but less |"
    assert table.rows(rows).count("\n") == 1 + len(plan.read()["rows"])
    assert "quickstart: average accuracy" in table.rows(rows)


def test_no_verdict_before_all_pairs_are_run(two_seeds):
    """A pair that is missing, or has failed, could turn the verdict."""
    rows = [recorded(name, 0, share, 1.0) for name, share in (("ps-lora", 0.9), ("inc-lora", 0.6))]
    assert "| better than incremental LoRA | - | 1 of 2 pairs run |" in table.table({"compare": rows, "many": []})


def test_the_pairs_planned_are_those_of_the_sweeps(sweeps):
    """By the name a record's order has."""
    for name, claim in (("compare", {}), ("many", {"sweep": "many"})):
        found = {cell_of({"config": c.config.model_dump(), "scores": {}}) for c in cells(SweepConfig(**sweeps[name]))}
        assert table.planned(claim) == found


def test_a_row_without_a_run_and_a_sweep_of_one_seed(monkeypatch):
    monkeypatch.setattr(table, "planned", lambda _: {("quickstart default", 0)})
    rows = [recorded(name, 0, share, 1.0) for name, share in (("ps-lora", 0.9), ("inc-lora", 0.6), ("n-lora", 0.6))]
    lines = table.table({"compare": [], "many": rows}).splitlines()[2:]
    outcome = {tuple(line.split(" | ")[:2]): line.split(" | ")[-1] for line in lines}
    assert outcome["| PS-LoRA", "better than incremental LoRA at 24 tasks"] == "holds (one seed) |"
    assert outcome["| N-LoRA", "better than O-LoRA at 24 tasks"] == "not run yet |", "o-lora has no run"


def test_larger_by_far_is_the_opposite():
    rows = [recorded("n-lora", 0, 0.5, 1.0), recorded("o-lora", 0, 0.5, 0.5)]
    claim = {"smaller": ["n-lora", "o-lora"], "metric": "collision_rate", "times": 58.1}
    assert table.measured(rows, claim)[1] == "the opposite"


def test_a_grid_stands_below_the_row_as_tuned(monkeypatch):
    monkeypatch.setattr(table, "records", lambda _: [recorded("ps-lora", seed, 0.9, 0.5) for seed in (0, 1)])
    told = table.grids([recorded("ps-lora, alpha x 0.1", 0, 0.6, 0.5)])
    assert told.endswith("Incomplete: 17 of the 18 runs are missing.")
    lines = told.splitlines()[2:4]
    assert [line.split(" | ")[0] for line in lines] == ["| ps-lora", "| ps-lora, alpha x 0.1"]
    assert "±" not in lines[0], "of the tuned row only the grid's seed"
