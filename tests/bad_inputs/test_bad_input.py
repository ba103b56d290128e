"""What cannot work is refused before training, and the message says what to do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from perdure.errors import ConfigError, UnmetNeed
from perdure.state.store import Store
from perdure.training.lora import AdaptedModel
from tests.contract.runs import short_run


def refused(out: Path, error: type[Exception], message: str, *args: Any, **settings: Any) -> None:
    with pytest.raises(error, match=message):
        short_run(out, *args, **settings)
    assert not Store(out).exists, "a run was started"


def test_a_rank_above_a_layers(tmp_path, small_tasks, encoder_folder):
    lora = {"rank": 33}
    message = r"lora\.rank: 33 is above the rank of 'encoder.layer.0.attention.self.query' \(32\)"
    refused(tmp_path / "run", ConfigError, message, small_tasks, encoder_folder, "inc-lora", lora=lora)


def test_targets_that_match_no_module(tmp_path, small_tasks, encoder_folder):
    lora = {"rank": 2, "targets": ["query", "q_proj"]}
    message = r"lora\.targets: the model has no layer 'q_proj'\. Candidates: dense, key, query, value\."
    refused(tmp_path / "run", ConfigError, message, small_tasks, encoder_folder, "inc-lora", lora=lora)


@pytest.mark.parametrize("method", ["slice", "ps-lora", "ewc"])
def test_a_quantised_base_where_a_dense_one_is_needed(method, tmp_path, small_tasks, encoder_folder, monkeypatch):
    """Like a bitsandbytes base: no target has a dense weight."""
    monkeypatch.setattr(AdaptedModel, "dense_base", property(lambda self: False))
    message = "requires a base whose weights are stored dense"
    refused(tmp_path / "run", UnmetNeed, message, small_tasks, encoder_folder, method)


@pytest.mark.parametrize(
    ("method", "message"),
    [
        ({"preset": "ewc", "consolidate": "average"}, "fisher cannot be used here"),
        ({"preset": "slice", "replay": None}, "init: slice requires examples of earlier tasks: choose a replay part"),
        ({"preset": "a-gem", "replay": None}, "step_rule: a-gem requires examples of earlier tasks"),
        ({"preset": "l2", "penalties": {"l2": {"weight": -1}}}, r"l2\.weight"),
        ({"preset": "lora-ga", "init": {"gamma": float("inf")}}, r"init\.gamma: should be a finite number"),
        (
            {"preset": "lora-ga", "init": {"batch_size": 999}},
            r"init: task '\w+' has \d+ training examples, fewer than one batch",
        ),
    ],
    ids=str,
)
def test_parts_that_lack_something(method, message, tmp_path, small_tasks, encoder_folder):
    refused(tmp_path / "run", ConfigError, message, small_tasks, encoder_folder, method)


def test_statistics_a_checkpoint_should_hold_and_does_not(tmp_path, small_tasks, encoder_folder):
    """A checkpoint without this method's statistics is not used: the folder belongs to another configuration."""
    short_run(tmp_path / "run", small_tasks[:1], encoder_folder, "inc-lora")
    with pytest.raises(Exception, match=r"another configuration: config\.method"):
        short_run(tmp_path / "run", small_tasks[:1], encoder_folder, "ewc")
