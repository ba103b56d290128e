"""What a run decides before it learns: threads, precision, what cannot be split over processes."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

import perdure.run
from perdure.config import RunConfig
from perdure.errors import ConfigError
from perdure.run import check_shards, choose_precision
from tests.contract.runs import short_run


def test_the_recorded_threads_are_set_before_tasks_are_prepared(tmp_path, small_tasks, encoder_folder, monkeypatch):
    """What a backbone measures then rounds as it did when the run began."""
    found, real = [], perdure.run.load_learner

    def load(*given: Any) -> Any:
        found.append(torch.get_num_threads())
        return real(*given)

    monkeypatch.setattr(perdure.run, "load_learner", load)
    before = torch.get_num_threads()
    try:
        for threads in (2, 1):
            torch.set_num_threads(threads)
            short_run(tmp_path / "run", small_tasks[:1], encoder_folder, "inc-lora", threads=None)
    finally:
        torch.set_num_threads(before)
    assert found == [2, 2]


def test_precision_is_measured_where_the_model_is(monkeypatch):
    seen = []

    def mm(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        seen.append(left.device.type)
        return torch.zeros(1, 1)

    monkeypatch.setattr(torch, "mm", mm)
    assert choose_precision("auto", torch.device("meta")) in ("fp32", "bf16")
    assert set(seen) == {"meta"}


def test_a_split_base_that_must_answer_while_it_is_written_is_refused():
    vision: Any = SimpleNamespace(answers_from_examples=True)
    text: Any = SimpleNamespace(answers_from_examples=False)
    check_shards(RunConfig(), vision)
    check_shards(RunConfig(shard=True), text)
    with pytest.raises(ConfigError, match="shard=true does not go with a vision backbone"):
        check_shards(RunConfig(shard=True), vision)
