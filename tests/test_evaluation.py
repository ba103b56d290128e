"""When tasks are scored: after every stage, or after the last only."""

from __future__ import annotations

import pytest

from perdure.errors import ConfigError
from perdure.report.page import write_report
from tests.contract.runs import bits_learnt, short_run


def test_scored_after_the_last_stage_only(tmp_path, small_tasks, encoder_folder):
    always = short_run(tmp_path / "always", small_tasks, encoder_folder, "inc-lora")
    once = short_run(tmp_path / "once", small_tasks, encoder_folder, "inc-lora", evaluation={"every_stage": False})
    assert once.score_matrix == [[None] * 3, [None] * 3, always.score_matrix[-1]]
    assert (once.average_accuracy, once.forgetting) == (always.average_accuracy, None)
    assert once.learning_accuracy is None
    assert bits_learnt(tmp_path / "once")[2] == bits_learnt(tmp_path / "always")[2]
    write_report([tmp_path / "once"], tmp_path / "report")


def test_scored_after_its_own_stage_and_the_last(tmp_path, small_tasks, encoder_folder):
    always = short_run(tmp_path / "always", small_tasks, encoder_folder, "inc-lora")
    own = short_run(tmp_path / "own", small_tasks, encoder_folder, "inc-lora", evaluation={"every_stage": "own"})
    (first, *_), (_, second, _), last = always.score_matrix
    assert own.score_matrix == [[first, None, None], [None, second, None], last]
    assert own.untrained_scores == [None] * 3
    assert own.learning_accuracy == always.learning_accuracy
    assert own.forgetting == -own.backward_transfer
    write_report([tmp_path / "own"], tmp_path / "report")


def test_a_gate_needs_every_stage(tmp_path, small_tasks, encoder_folder):
    with pytest.raises(ConfigError, match="every_stage"):
        short_run(
            tmp_path, small_tasks, encoder_folder, "inc-lora", evaluation={"every_stage": False}, max_forgetting=1.0
        )
