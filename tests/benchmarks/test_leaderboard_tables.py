"""The leaderboard's tables, on records made up in the form of real ones."""

from __future__ import annotations

import numpy as np
import pytest
from benchmarks.leaderboard import table
from benchmarks.leaderboard.calibration import answers
from benchmarks.leaderboard.choosing import CASES, fitting
from benchmarks.leaderboard.gap import columns
from benchmarks.leaderboard.honesty import calibration_table, overlap_table

from benchmarks import tables
from perdure.methods.table import PRESETS
from perdure.sweeps.record import outcome_values
from tests.benchmarks.test_claims import recorded


@pytest.fixture
def rows(monkeypatch):
    made = [
        run(method, seed, share)
        for method, share in (("perdure", 0.9), ("joint", 0.88), ("inc-lora", 0.6))
        for seed in (10, 11)
    ]
    monkeypatch.setattr(table, "records", lambda folder: made if folder.endswith("records") else failed)
    monkeypatch.setattr(table, "runs_of", lambda step, _board="": {f"{m}-{s}": m for m in METHODS for s in (10, 11)})
    failed.clear()
    return made


METHODS = ["perdure", "joint", "inc-lora"]
failed: list[dict] = []


def run(method: str, seed: int, share: float) -> dict:
    row = recorded(method, seed, share, 0.5)
    row["scores"] |= {"learning_accuracy": share, "backward_transfer": None}
    about = {"id": f"{method}-{seed}", "code": "c", "processor_seconds": 60.0, "bytes": {"state": 2e6, "deployed": 1e6}}
    return {**row, **about}


def test_the_best_comes_first(rows):
    lines = table.screening().splitlines()
    assert [line.split(" | ")[0] for line in lines[2:5]] == ["| perdure", "| joint", "| inc-lora"]
    assert lines[4].endswith("| - | 60 | 2.00 | 1.00 | 50.0% | 50.0% |")
    assert lines[-1].startswith("2 cells")


def test_all_are_compared_with_the_preset_of_the_house(rows):
    lines = table.finals().split("\n\n")[-1].splitlines()
    assert lines[0].split(" | ")[2] == "perdure is ahead by"
    assert [line.split(" | ")[0] for line in lines[2:]] == ["| perdure", "| joint", "| inc-lora"]
    assert "**quickstart**" in table.finals()


def test_everything_at_a_glance(rows, monkeypatch):
    finals = [*rows]
    long = [{**row, "config": {**row["config"], "suite": "long"}} for row in rows]
    monkeypatch.setattr(
        table, "records", lambda folder: {"finals/records": finals, "long/records": long}.get(folder[12:], [])
    )
    lines = table.summary().splitlines()
    assert lines[0] == "| method | average accuracy | quickstart | long | forgetting |"
    assert [line.split(" | ")[0] for line in lines[2:5]] == ["| perdure", "| joint", "| inc-lora"]
    assert "Not complete" not in lines[-1]
    del long[0]
    told = " Incomplete: 1 of the 6 runs of `long` are missing. Counted so far: seed 11: 1 sequences."
    assert lines[-1] + told == table.summary().splitlines()[-1]


def test_forgetting_at_a_glance_is_that_of_the_finals(rows, monkeypatch):
    long = [{**row, "scores": {**row["scores"], "forgetting": 0.5}} for row in rows]
    for row in long:
        row["config"] = {**row["config"], "suite": "long"}
    monkeypatch.setattr(
        table, "records", lambda folder: {"finals/records": rows, "long/records": long}.get(folder[12:], [])
    )
    assert table.summary().splitlines()[2].endswith("| 0.0 |")


def test_an_order_with_a_second_seed_counts_like_the_others(rows, monkeypatch):
    """Both seeds of quickstart, one of text-10: (mean of quickstart's two + text-10's) / 2."""
    alone = [row for row in rows if row["config"]["seed"] == 10]
    other = [{**row, "id": f"{row['id']}-10", "config": {**row["config"], "suite": "text-10"}} for row in alone]
    monkeypatch.setattr(table, "runs_of", lambda step, _board="": {row["id"]: row["method"] for row in (*rows, *other)})
    for row in (*rows, *other):
        row["scores"] = {**row["scores"], "learning_accuracy": 0.9 if row["config"]["suite"] == "text-10" else 0.5}
    monkeypatch.setattr(table, "records", lambda folder: [*rows, *other] if folder.endswith("finals/records") else [])
    first = table.finals().splitlines()[2].split(" | ")
    assert first[2] == "70.0"
    assert f"{table.SOME_ONE_SEED} (1 of 2)." in table.finals()


def test_a_method_with_a_failed_run_is_left_out_and_named(rows):
    failed.append({"id": "inc-lora-11"})
    del rows[-1]
    for told in (table.finals, table.summary, table.target, table.gap):
        assert "Left out because runs failed: inc-lora (1)." in told()
    assert "| inc-lora |" not in table.finals()


def test_cells_that_not_all_have_yet_do_not_count(rows):
    del rows[-1]
    assert "1 cells (order and seed) that every method has" in table.screening()
    assert table.ONE_SEED in table.long()
    del rows[-1]
    assert "no record yet" in table.finals()
    assert "no record yet" in table.target()


def test_the_target_is_held_to_the_records(rows, monkeypatch):
    for row in rows:
        row["scores"]["forgetting"] = 0.03 if row["method"] == "perdure" else 0.0
    for seed in (10, 11):
        rows.append(run("per-task", seed, 0.95))
        rows.append(run("perdure, 16 examples a task kept", seed, 0.99))
    monkeypatch.setattr(table, "runs_of", lambda step, _board="": {row["id"]: row["method"] for row in rows})
    average, lost, learnt, above = table.target().splitlines()[2:6]
    assert average.endswith("| yes |")
    assert lost.endswith("| 3.0 | no |")
    assert learnt.endswith("| 94.7% | no |")
    assert above.endswith("| 1 of 1 | yes |"), "the variant and the bounds are no finalists"
    missing = {"perdure-12": "perdure", **{row["id"]: row["method"] for row in rows}}
    monkeypatch.setattr(table, "runs_of", lambda step, _board="": missing)
    assert "Incomplete: 1 of the 11 runs of `finals` are missing." in table.target()


def test_points_are_not_learnt_or_lost_afterwards():
    bound = [[0.8, None, None], [None, 0.9, None], [None, None, 0.7]]
    scores = [[0.7, None, None], [None, 0.8, None], [0.5, 0.8, 0.9]]
    assert columns(scores, bound) == pytest.approx([-0.1, -0.1, 0.2, 0.0, -0.2 / 3, -0.2 / 3])


def test_the_gap_is_to_one_adapter_a_task_and_leaves_out_a_mixed_stage(rows, monkeypatch):
    rows += [run("per-task", seed, 0.95) for seed in (10, 11)]
    monkeypatch.setattr(table, "runs_of", lambda step, _board="": {row["id"]: row["method"] for row in rows})
    shares = {"perdure": 0.9, "joint": 0.88, "inc-lora": 0.6, "per-task": 0.95}
    for row in rows:
        stages = ["all"] if row["method"] == "joint" else ["a", "b", "c"]
        matrix = [[shares[row["method"]]] * 3 for _ in stages]
        row["scores"] |= {"tasks": ["a", "b", "c"], "stages": stages, "score_matrix": matrix}
    lines = table.gap().splitlines()
    assert lines[2] == "| perdure | -5.0 | -5.0 | -5.0 | -5.0 | +0.0 | -5.0 |"
    assert [line.split(" | ")[0] for line in lines[2:4]] == ["| perdure", "| inc-lora"]
    assert lines[4] == ""


def test_runs_of_an_earlier_plan_do_not_count(rows):
    """Neither what they reached nor that they failed."""
    before = table.screening(), table.progress()
    rows.append({**run("perdure", 12, 0.1), "id": "perdure-old"})
    failed.append({"id": "joint-old"})
    assert (table.screening(), table.progress()) == before
    assert "| screen | 6 of 6 | 0 |" in before[1]


def test_nothing_yet(monkeypatch):
    monkeypatch.setattr(table, "records", lambda folder: [])
    assert "no record yet" in table.screening()
    assert "no record yet" in table.finals()
    assert "no record yet" in table.long()
    assert "no record yet" in table.target()
    assert "no record yet" in table.gap()
    assert "no record yet" in table.choosing()
    assert "no record yet" in table.summary()


def test_a_case_leaves_the_methods_whose_parts_allow_it():
    assert fitting("no old example may be kept", ["replay", "a-gem", "slice", "ewc", "joint", "per-task"]) == ["ewc"]
    assert fitting("old tasks exist only as adapters, without data", ["ewc", "perdure", "ps-lora"]) == ["ps-lora"]
    assert fitting("adapters are trained separately and merged", ["ties", "magmax", "inc-lora"]) == ["ties"]
    assert fitting("every query names its task", list(PRESETS)) == ["per-task"]
    assert fitting("one adapter, trained on and on", list(PRESETS)) == ["seq-lora", "slao"]
    assert all(fitting(case, list(PRESETS)) for case in CASES)


def test_which_method_when(rows):
    lines = table.choosing().splitlines()
    assert lines[2].endswith("| joint 87.2 |"), "of the finals, which the fixture gives the same runs"
    assert [line.split(" | ")[:2] for line in lines[2:]] == [
        ["| all data is available at once", "joint"],
        ["| tasks come one by one, anything may be kept", "perdure"],
        ["| no old example may be kept", "perdure"],
        ["| old tasks exist only as adapters, without data", "inc-lora"],
    ]


def test_test_examples_that_tuning_has_read_are_left_out(rows):
    """Of 400 answers the first two are taken away: right answers among them no longer count."""
    found = {
        "quickstart": {"a": {"test": 400, "seen": [0, 1]}, "b": {"test": 10, "seen": []}},
        "long": {"c": {"test": 5, "seen": []}},
    }
    lines = overlap_table(found, rows).splitlines()
    assert lines[2] == "| quickstart | a | 2 of 400 |"
    own = [np.asarray(outcome_values(row)["a"]) for row in rows if row["method"] == "joint"]
    every, rest = (100 * np.mean([right[cut:].mean() for right in own]) for cut in (0, 2))
    assert f"| quickstart | joint | {every:.1f} | {rest:.1f} |" in lines
    assert not any("long" in line for line in lines)


def test_how_often_a_test_errs_is_a_table():
    made = {"orders": 3, "seeds": 2, "training": 0.4, "examples": 0.8, "false_positives": 0.031}
    lines = calibration_table(
        {"studies": 10, "rows": [made, {**made, "training": 1.0, "false_positives": 0.2}]}
    ).splitlines()
    assert lines[2] == "| 3 x 2 | 3.1% | 20.0% |"


def test_a_made_up_study_has_the_noise_it_is_asked_for():
    """Without noise of training, the paired difference in a cell has the standard error given, .8 points."""
    random = np.random.default_rng(0)
    differences = []
    for _ in range(300):
        first, second = (o.right for o in answers(random, ("a", 0), 0.0, 0.8))
        differences.append(100 * np.mean([first[t].mean() - second[t].mean() for t in first]))
    assert np.std(differences) == pytest.approx(0.8, rel=0.15)


@pytest.mark.parametrize("broken", ["<!--table: claims -->", "<!-- table:claims -->", "<!--end-->", "<!-- end -->"])
def test_a_broken_mark_is_noticed(broken):
    whole = "<!-- table: claims -->\n| a |\n<!-- end -->\n"
    assert tables.marks_are_whole("any.md", whole)
    assert not tables.marks_are_whole("any.md", whole + broken)
    assert not tables.marks_are_whole("README.md", "no table")
