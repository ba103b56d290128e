"""A Trainer on two processes (DistributedDataParallel): a penalty counts once, whatever the processes and the accumulation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from perdure.adapters.folder import open_adapter
from perdure.integrations import Continual
from tests.backbones.tiny import tiny_causal
from tests.integrations.trainers import peft_model, plain_trainer
from tests.processes.group import together

METHOD: dict[str, Any] = {"preset": "ps-lora", "penalties": {"sign-magnitude": {"weight": 3.0}, "l2": {"weight": 3.0}}}


def rows(seed: int, count: int = 18) -> list[dict[str, torch.Tensor]]:
    """Single texts of differing lengths: optimiser steps of eight, the last of two."""
    generator = torch.Generator().manual_seed(seed)
    found = []
    for index in range(count):
        ids = torch.randint(5, 250, (1, 4 + index % 5), generator=generator)
        found.append({"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids})
    return found


def train(model: Path, history: list[Path], out: Path, seed: int, accumulation: int) -> None:
    trainer = plain_trainer(
        peft_model(model), rows(seed), out.parent, gradient_accumulation_steps=accumulation, max_grad_norm=0.5
    )
    continual = Continual(METHOD, history=history)
    continual.attach(trainer)
    trainer.train()
    continual.save(out)


@pytest.mark.slow
def test_the_same_adapter_on_two_processes(tmp_path):
    model, errors = tiny_causal(tmp_path / "model"), tmp_path / "errors"
    train(model, [], tmp_path / "march", 0, 8)
    train(model, [tmp_path / "march"], tmp_path / "alone", 1, 8)
    codes = together(2, train, model, [tmp_path / "march"], tmp_path / "two", 1, 4, errors=errors)
    assert codes == [0, 0], (errors / "0").read_text()
    alone, two = open_adapter(tmp_path / "alone"), open_adapter(tmp_path / "two")
    for module, delta in alone.items():
        torch.testing.assert_close(two[module].A, delta.A, rtol=1e-8, atol=1e-11)
        torch.testing.assert_close(two[module].B, delta.B, rtol=1e-8, atol=1e-11)
