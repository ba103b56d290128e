"""Optimizers by transformers' names: first steps by hand, the same objects as transformers' Trainer makes, resumed to the bit."""

from __future__ import annotations

import importlib.util

import pytest
import torch
from transformers import Trainer, TrainingArguments

from perdure.config.training_settings import TrainingSettings
from perdure.errors import ConfigError
from perdure.training.optimizers import check_optimizer, load_state, optimizer, state_of

EIGHT_BITS = pytest.mark.skipif(importlib.util.find_spec("bitsandbytes") is None, reason="`make quantized` fetches it")
CPU = torch.device("cpu")


def drawn(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def stepped(chosen: torch.optim.Optimizer, parameters: list[torch.nn.Parameter], seeds: range) -> None:
    for seed in seeds:
        for i, parameter in enumerate(parameters):
            parameter.grad = drawn(100 * seed + i, *parameter.shape)
        chosen.step()


def fresh() -> list[torch.nn.Parameter]:
    return [torch.nn.Parameter(drawn(i, *shape)) for i, shape in enumerate([(2, 64), (128, 64)])]


NAMES = ["adamw", "adafactor", pytest.param("adamw_8bit", marks=[EIGHT_BITS, pytest.mark.quantized])]


@pytest.mark.parametrize("name", NAMES)
def test_continued_from_its_saved_state_to_the_bit(name):
    settings = TrainingSettings(optimizer=name, weight_decay=0.1)
    whole, parts = fresh(), fresh()
    stepped(optimizer(settings, whole, 0.01), whole, range(6))
    before = optimizer(settings, parts, 0.01)
    stepped(before, parts, range(3))
    copies = [torch.nn.Parameter(p.detach().clone()) for p in parts]
    after = optimizer(settings, copies, 0.01)
    load_state(after, state_of(before))
    stepped(before, parts, range(50, 53))  # the two share nothing
    stepped(after, copies, range(3, 6))
    assert all(torch.equal(one, other) for one, other in zip(whole, copies, strict=True))


def test_adafactors_first_step_by_hand():
    """At step 1 the decay is 1 - 1 ** -.8 = 0: the update is grad / |grad|, of RMS 1, so not clipped; times the rate."""
    parameter = torch.nn.Parameter(torch.tensor([1.0, 2.0]))
    parameter.grad = torch.tensor([4.0, -0.5])
    optimizer(TrainingSettings(optimizer="adafactor"), [parameter], 0.25).step()
    assert parameter.tolist() == [0.75, 2.25]


@pytest.mark.parametrize("name,theirs", [("adamw", "adamw_torch"), ("adafactor", "adafactor")])
def test_the_steps_of_transformers_trainer(name, theirs, tmp_path):
    args = TrainingArguments(str(tmp_path), optim=theirs, learning_rate=0.01, weight_decay=0.1, report_to=[])
    kind, options = Trainer.get_optimizer_cls_and_kwargs(args)
    own, other = fresh(), fresh()
    stepped(optimizer(TrainingSettings(optimizer=name, weight_decay=0.1), own, 0.01), own, range(3))
    stepped(kind(other, weight_decay=0.1, **options), other, range(3))
    assert all(torch.equal(one, two) for one, two in zip(own, other, strict=True))


@EIGHT_BITS
@pytest.mark.quantized
def test_eight_bits_are_near_32():
    """bitsandbytes keeps 32 bits for fewer than 4,096 numbers; more are near: within a rate after three steps."""
    own, other = fresh(), fresh()
    check_optimizer(TrainingSettings(optimizer="adamw_8bit"), CPU)
    stepped(optimizer(TrainingSettings(optimizer="adamw_8bit"), own, 0.01), own, range(3))
    stepped(optimizer(TrainingSettings(), other, 0.01), other, range(3))
    assert (own[0] - other[0]).abs().max() < 1e-6
    assert 0 < (own[1] - other[1]).abs().max() < 0.01


def test_what_does_not_run_here_is_refused(monkeypatch):
    found = [True]
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object() if found[0] else None)
    with pytest.raises(ConfigError, match=r"in the CPU's\. Take adamw_8bit"):
        check_optimizer(TrainingSettings(optimizer="paged_adamw_8bit"), CPU)
    found[0] = False
    with pytest.raises(ConfigError, match="quantized"):
        check_optimizer(TrainingSettings(optimizer="adamw_8bit"), CPU)
