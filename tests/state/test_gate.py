"""The quality gate: what a stage may cost earlier tasks and must gain itself, from scores one can check in the head."""

from __future__ import annotations

from pathlib import Path

import pytest

from perdure.errors import ConfigError
from perdure.files.durable import write_json
from perdure.state.answers import write_answers
from perdure.state.gate import Gate
from perdure.state.store import Store
from tests.report.run_folders import LABELS, ROWS, write_run


def refusal(tmp_path: Path, gate: Gate, spam: tuple[str, str] = ("spam", "ham")) -> str | None:
    """mood: 50 points when it was learnt, 100 after topic, 50 after spam. topic: 50 when learnt, 50 now. spam: two texts."""
    untrained, learnt, later = {**ROWS[0], "topic": LABELS["topic"]}, ROWS[0], ROWS[1]
    store = Store(write_run(tmp_path / "run", rows=[untrained, learnt, later], stages=["mood", "topic"]))
    now = {"mood": ROWS[0]["mood"], "topic": ROWS[1]["topic"], "spam": spam}
    shares = {task: [a == b for a, b in zip(LABELS[task], answers, strict=True)] for task, answers in now.items()}
    cells = {task: {"score": sum(right) / len(right), "examples": len(right)} for task, right in shares.items()}
    write_json(tmp_path / "spam/scores.json", cells)
    pairs = {task: zip(LABELS[task], answers, strict=True) for task, answers in now.items()}
    rows = {task: [{"label": a, "predicted": b} for a, b in both] for task, both in pairs.items()}
    write_answers(tmp_path / "spam", rows.items())
    return gate.accept(store, "spam", tmp_path / "spam") if gate.accept else None


@pytest.mark.parametrize(("points", "refused"), [(20, True), (49, True), (50, False), (None, False)])
def test_a_task_is_compared_with_its_best_after_any_earlier_stage(
    points: float | None, refused: bool, tmp_path: Path
) -> None:
    reason = refusal(tmp_path, Gate(max_forgetting=points))
    assert (reason is not None) == refused
    if reason is not None:
        assert "After 'spam', more than" in reason
        assert "'mood' is at 50.0, 50.0 below its best (100.0 after 'topic'), all of it by this stage" in reason
        assert "(2 of 4 answers became worse, 0 better; 95 % interval -" in reason
        assert "'topic' is at" not in reason  # it never changed; its 100 points were the untrained model's


def test_what_was_lost_before_is_not_blamed_on_the_stage(tmp_path: Path) -> None:
    """mood: 100 when learnt, 50 after topic, 50 after spam: forgotten, but not by spam."""
    store = Store(write_run(tmp_path / "run", rows=[ROWS[0], ROWS[1], ROWS[3]], stages=["mood", "topic"]))
    write_json(tmp_path / "spam/scores.json", {"mood": {"score": 0.5, "examples": 4}})
    gate = Gate(max_forgetting=10, max_drop=10)
    assert gate.accept is not None
    reason = gate.accept(store, "spam", tmp_path / "spam")
    assert reason is not None
    assert "'mood' is at 50.0, 50.0 below its best (100.0 after 'mood'), none of it by this stage" in reason
    assert "Learning 'spam' costs" not in reason
    by_stage = Gate(max_drop=10).accept
    assert by_stage is not None
    assert by_stage(store, "spam", tmp_path / "spam") is None


def test_the_stage_alone_is_bounded(tmp_path: Path) -> None:
    reason = refusal(tmp_path, Gate(max_drop=49.9))
    assert reason is not None
    assert reason.startswith("Learning 'spam' costs more than 49.9 points: 'mood' is at 50.0")
    assert refusal(tmp_path / "more", Gate(max_drop=50)) is None


@pytest.mark.parametrize(("points", "refused"), [(50, False), (50.1, True)])
def test_a_new_task_must_gain_over_doing_nothing(points: float, refused: bool, tmp_path: Path) -> None:
    """spam: the untouched model and either constant answer have 50 points; now both texts are right."""
    reason = refusal(tmp_path, Gate(min_gain=points))
    assert (reason is not None) == refused
    if reason is not None:
        assert "'spam' gained less than 50.1 points: it scores 100.0, the untouched model 50.0." in reason


def test_a_bound_is_a_number_of_points() -> None:
    for bounds in ({"max_forgetting": -1.0}, {"max_drop": float("nan")}, {"min_gain": -0.1}):
        with pytest.raises(ConfigError, match="give points, 0 or more"):
            Gate(**bounds)
