"""The quality gate: what a stage may cost the tasks learnt before it, from scores one can check in the head."""

from __future__ import annotations

from pathlib import Path

import pytest

from perdure.files.durable import write_json
from perdure.state.gate import forgetting_gate
from perdure.state.store import Store
from tests.report.run_folders import LABELS, ROWS, write_run


@pytest.mark.parametrize(("points", "refused"), [(20, True), (49, True), (50, False), (None, False)])
def test_a_task_is_compared_with_its_best_after_any_earlier_stage(
    points: float | None, refused: bool, tmp_path: Path
) -> None:
    """mood: 50 points when it was learnt, 100 after the next stage, 50 now. topic's 100 are the untrained model's."""
    untrained, learnt, later = {**ROWS[0], "topic": LABELS["topic"]}, ROWS[0], ROWS[1]
    store = Store(write_run(tmp_path / "run", rows=[untrained, learnt, later], stages=["mood", "topic"]))
    (tmp_path / "spam").mkdir()
    write_json(tmp_path / "spam/scores.json", {task: {"score": 0.5, "examples": 2} for task in ("mood", "topic")})
    gate = forgetting_gate(points)
    reason = gate(store, "spam", tmp_path / "spam") if gate else None
    assert (reason is not None) == refused
    if reason is not None:
        assert "'mood' fell from 100.0 to 50.0 (50.0 points)" in reason
        assert "topic" not in reason
