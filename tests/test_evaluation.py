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


def test_a_gate_needs_every_stage(tmp_path, small_tasks, encoder_folder):
    with pytest.raises(ConfigError, match="every_stage"):
        short_run(
            tmp_path, small_tasks, encoder_folder, "inc-lora", evaluation={"every_stage": False}, max_forgetting=1.0
        )
