"""What became of each task, and the words for it, from a run folder whose numbers one can check in the head."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from perdure.state.outcomes import TaskOutcome, task_outcomes
from perdure.state.store import Store
from perdure.state.words import _some, next_steps, standing, state_sentence
from tests.report.run_folders import write_run

LABELS = {"colour": ("red", "blue") * 50, "shape": ("round",) * 80 + ("flat",) * 20}


def outcomes(folder: Path, *rows: Mapping[str, Sequence[str]]) -> dict[str, TaskOutcome]:
    """colour is learnt, then shape; the untouched model always answers red and round."""
    untrained = {"colour": ("red",) * 100, "shape": ("round",) * 100}
    run = write_run(folder, labels=LABELS, rows=[untrained, *rows], stages=["colour", "shape"][: len(rows)])
    return {outcome.task: outcome for outcome in task_outcomes(Store(run))}


def wrong(task: str, places: Sequence[int]) -> tuple[str, ...]:
    """The right answers, but at these places the other label."""
    other = dict(zip(dict.fromkeys(LABELS[task]), reversed(dict.fromkeys(LABELS[task])), strict=True))
    return tuple(other[label] if place in places else label for place, label in enumerate(LABELS[task]))


def test_then_now_best_and_baseline(tmp_path: Path) -> None:
    found = outcomes(
        tmp_path / "run",
        {"colour": wrong("colour", range(10)), "shape": LABELS["shape"]},
        {"colour": wrong("colour", range(30)), "shape": wrong("shape", range(80, 90))},
    )
    colour, shape = found["colour"], found["shape"]
    assert colour.then is not None
    assert colour.best is not None
    assert (colour.then.score, colour.now.score, colour.best.stage) == (0.9, 0.7, "colour")
    change = colour.since_learnt
    assert change is not None
    assert (change.worse, change.better, change.examples) == (20, 0, 100)
    assert colour.baseline == ("the untouched model", 0.5)
    assert shape.since_learnt is None  # it was learnt last
    assert shape.baseline == ("the untouched model", 0.8)
    assert (standing(colour), standing(shape)) == ("lost", "")
    assert state_sentence([colour, shape]) == "1 of 1 earlier tasks lost more than noise explains (colour -20.0)."
    [step] = next_steps([colour, shape], "runs/mine")
    assert step.startswith("colour (from 90.0) lost most by shape: `perdure show runs/mine --texts` lists the answers")


def test_a_task_that_is_not_learnt_is_named(tmp_path: Path) -> None:
    """shape: 81 of 100 right, and always answering 'round' has 80."""
    found = outcomes(
        tmp_path / "run",
        {"colour": LABELS["colour"], "shape": LABELS["shape"]},
        {"colour": wrong("colour", [0]), "shape": wrong("shape", range(81, 100))},
    )
    every = list(found.values())
    assert [standing(outcome) for outcome in every] == ["within noise", "not above the baseline"]
    assert state_sentence(every) == (
        "No earlier task lost more than noise explains; shape cannot be told from doing nothing."
    )
    [step] = next_steps(every, "run")
    assert step.startswith("shape scores 81.0 and the untouched model 80.0: give more rows")


def test_the_first_task_alone(tmp_path: Path) -> None:
    found = outcomes(tmp_path / "run", {"colour": LABELS["colour"], "shape": LABELS["shape"]})
    assert list(found) == ["colour"]
    assert state_sentence(list(found.values())) == "colour was learnt: 100.0."
    assert state_sentence([]) == "No task was learnt and scored yet."


def test_of_many_tasks_a_sentence_names_three() -> None:
    assert _some(["a", "b", "c", "d"]) == "a, b, c, d", "one more name is as short as its count"
    assert _some(["a", "b", "c", "d", "e"], "; ") == "a; b; c and 2 more"
