"""`check_part` passes parts of perdure's own, and finds in a wrong one what is wrong."""

from __future__ import annotations

from typing import Any, ClassVar

import pytest
import torch
from pydantic import PrivateAttr

from perdure.errors import ConfigError, PartError
from perdure.methods.contract.parts import StepRule, WeightPenalty
from perdure.methods.table import PARTS
from perdure.testing import check_part

NEEDS_SMOOTH = {"sign-magnitude": {"weight": 0.01, "alpha": 2.0}}
"""Penalties whose usual settings are too sharp for finite differences."""


@pytest.mark.parametrize("kind", PARTS["penalty"])
def test_every_penalty_of_the_table(kind):
    """Also one that is added later: it needs no line here."""
    check_part(kind, NEEDS_SMOOTH.get(kind))


@pytest.mark.parametrize(
    ("kind", "method"),
    [
        ("a-gem", "inc-lora"),
        ("proximal-rows", "inc-lora"),
        ("max-magnitude", "ps-lora"),
        ("loram", "inc-lora"),
        ("slao", "slao"),
    ],
)
def test_parts_of_other_roles(kind, method):
    check_part(kind, method=method)


class Right(WeightPenalty):
    """sum_ij (B_old^T B)^2_ij."""

    needs_past: ClassVar[bool] = True
    _old: dict[str, torch.Tensor] = PrivateAttr(default_factory=dict)

    def value_and_grad(self, module, factors, past):
        old = self._old.get(module)
        if old is None:
            return factors.B.new_zeros(()), torch.zeros_like(factors.A), torch.zeros_like(factors.B)
        shared = old.mT @ factors.B
        return shared.square().sum(), torch.zeros_like(factors.A), 2 * old @ shared

    def after_task(self, ctx, update):
        for module, pair in ctx.factors.items():
            B = pair.B.clone()
            self._old[module] = torch.cat([self._old[module], B], dim=1) if module in self._old else B

    def state(self):
        return dict(self._old)

    def load(self, state):
        self._old = dict(state)


def test_a_right_one_passes_by_its_name_and_as_a_class():
    check_part(Right)
    check_part("tests.test_testing:Right", {"gradient_share": 0.1})


class WrongSign(Right):
    def value_and_grad(self, module, factors, past):
        value, grad_A, grad_B = super().value_and_grad(module, factors, past)
        return value, grad_A, -grad_B


class HalfAState(Right):
    _tasks: int = PrivateAttr(default=1)

    def after_task(self, ctx, update):
        super().after_task(ctx, update)
        self._tasks += 1

    def value_and_grad(self, module, factors, past):
        return tuple(self._tasks * one for one in super().value_and_grad(module, factors, past))


class InTheClass(Right):
    calls: ClassVar[list[int]] = []

    def value_and_grad(self, module, factors, past):
        self.calls.append(1)
        value, grad_A, grad_B = super().value_and_grad(module, factors, past)
        return value, grad_A, grad_B + len(self.calls)


class Writes(Right):
    def before_task(self, ctx):
        torch.manual_seed(3)
        ctx.model.model.second.bias.data.fill_(1)


class CountsSteps(StepRule):
    """Turns the gradient around every third step, and forgets at which it is."""

    caches: ClassVar[frozenset[str]] = frozenset({"_step"})
    _step: int = PrivateAttr(default=0)

    def gradients(self, ctx, grads):
        self._step += 1
        return {m: (A, B) if self._step % 3 else (-A, -B) for m, (A, B) in grads.items()}


class Multiplies(WeightPenalty):
    def value_and_grad(self, module, factors, past):
        return factors.B.sum(), factors.A, factors.A


@pytest.mark.parametrize(
    ("part", "message"),
    [
        (WrongSign, r"WrongSign\.value_and_grad: along a random direction of B at 'first' the gradient says -?[\d.]+, but"),
        (HalfAState, r"HalfAState: a run stopped between tasks ended differently.*\(first different: 02-task1/"),
        (InTheClass, r"InTheClass: the same seed gave different bits"),
        (Writes, r"Writes: at weight 0 it still changes what is learnt"),
        (CountsSteps, r"CountsSteps: a run stopped inside tasks ended differently"),
        (Multiplies, r"Multiplies\.value_and_grad returned a tensor of shape \[2, 12\] as a gradient at 'first'.*\[10, 2\]"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_found(part: Any, message: str):
    with pytest.raises(PartError, match=message):
        check_part(part)


def test_what_is_no_part_is_refused():
    for part in (dict, "tests.test_testing:pytest"):
        with pytest.raises(ConfigError, match=r"is not a part: make it a subclass of Init, Penalty"):
            check_part(part)  # pyright: ignore[reportArgumentType]


def test_nothing_of_it_is_left(monkeypatch, tmp_path):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    state = torch.get_rng_state()
    check_part(Right)
    assert torch.equal(torch.get_rng_state(), state)
    assert not list(tmp_path.iterdir())
