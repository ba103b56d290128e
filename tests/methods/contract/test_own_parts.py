"""What parts of your own may get wrong: each mistake ends the run with the part's name, its method and what it should give."""

from __future__ import annotations

from typing import Any, ClassVar

import pytest
import torch
from pydantic import PrivateAttr
from torch import Tensor

from perdure.errors import Diverged, PartError
from perdure.files.durable import read_lines
from perdure.methods.contract.parts import (
    BatchPenalty,
    Consolidate,
    Init,
    Method,
    Part,
    Penalty,
    Replay,
    Start,
    StepRule,
    WeightPenalty,
)
from perdure.methods.contract.past import Folded, PerTask
from perdure.methods.plain import Kaiming, Sum
from perdure.ops.factors import Factors
from perdure.ops.lowrank import LowRank, dense
from tests.methods.two_layers import learn_toy, toy_tasks

zeros = torch.zeros_like


def method_with(part: Part) -> Method:
    parts: dict[str, Any] = {"init": Kaiming(), "consolidate": Sum()}
    match part:
        case Penalty():
            parts["penalties"] = {"mine": part}
        case Init():
            parts["init"] = part
        case StepRule():
            parts["step_rule"] = part
        case Replay():
            parts["replay"] = part
        case _:
            parts["consolidate"] = part
    return Method("custom", **parts)


class Weighted(WeightPenalty):
    """A penalty of weight 1 unless something else is said."""

    weight: float | None = 1.0


def giving(name: str, give: Any, base: type[WeightPenalty] = Weighted) -> Part:
    """A weight penalty whose `value_and_grad` is `give(factors)`."""
    return type(
        name, (base,), {"value_and_grad": lambda self, module, factors, past: give(factors), "__module__": __name__}
    )()


def folding(name: str, give: Any) -> Part:
    return type(name, (Consolidate,), {"fold": lambda self, ctx, past, update: give(update), "__module__": __name__})()


def starting(name: str, give: Any) -> Part:
    def start(self, ctx):
        return give(Kaiming().start(ctx))

    return type(name, (Init,), {"start": start, "__module__": __name__})()


def stepping(name: str, give: Any) -> Part:
    return type(name, (StepRule,), {"gradients": lambda self, ctx, grads: give(grads), "__module__": __name__})()


class BatchValue(BatchPenalty):
    weight: float | None = 1.0
    vector: bool = False

    def loss(self, ctx, batch, outputs) -> Any:
        return outputs.features.mean(1) if self.vector else 0.0


class Returned(StepRule):
    def stepped(self, ctx, factors, learning_rate) -> Any:
        return {module: pair.B * 2 for module, pair in factors.items()}


class Written(StepRule):
    def stepped(self, ctx, factors, learning_rate):
        self.old = factors  # pyright: ignore[reportAttributeAccessIssue]


class Numbers(Weighted):
    def value_and_grad(self, module, factors, past):
        return factors.B.sum(), zeros(factors.A), zeros(factors.B)

    def state(self) -> Any:
        return {"n": 3}

    def load(self, state):
        pass


class NoBatch(Replay):
    def mix(self, ctx, batch) -> Any:
        return None


def first(mapping):
    return dict(list(mapping.items())[:1])


def with_a(start: Start, change: Any) -> Start:
    return Start({module: Factors(change(p.A), p.B, p.scaling) for module, p in start.factors.items()})


WRONG = [
    (giving("Exchanged", lambda f: (f.A.sum(), zeros(f.B), zeros(f.A))),
     r"Exchanged\.value_and_grad returned a tensor of shape \[10, 2\] as a gradient at 'first' instead of shape \[2, 12\]"),
    (giving("Broadcast", lambda f: (f.B.sum(), zeros(f.A), torch.ones(1, 2))), r"shape \[1, 2\].*instead of shape \[10, 2\]"),
    (giving("Two", lambda f: (f.B.sum(), zeros(f.A))),
     r"Two\.value_and_grad failed: ValueError: not enough values.*Expected: the value"),
    (giving("NoGradient", lambda f: (f.B.sum(), None, zeros(f.B))),
     r"returned None as a gradient at 'first' instead of shape \[2, 12\]"),
    (giving("Vector", lambda f: (f.B.sum(0), zeros(f.A), zeros(f.B))), r"Vector\.value_and_grad failed.*a tensor of one number"),
    (giving("Number", lambda f: (float(f.B.sum()), zeros(f.A), zeros(f.B))), r"Number\.value_and_grad failed.*a tensor"),
    (giving("Key", lambda f: {}["mine"]), r"Key\.value_and_grad failed \(test_own_parts\.py, line \d+\): KeyError: 'mine'"),
    (BatchValue(), r"BatchValue\.loss returned 0\.0\. Expected: a tensor of one number"),
    (BatchValue(vector=True), r"BatchValue\.loss returned a tensor of shape \[8\]"),
    (stepping("Forgot", lambda grads: None), r"Forgot\.gradients returned None\. Expected: a dict"),
    (stepping("First", first), r"First\.gradients returned nothing for 'second'"),
    (stepping("More", lambda grads: {**grads, "x": (None, None)}),
     r"More\.gradients returned something for 'x', which is not a module"),
    (stepping("Swapped", lambda grads: {m: (B, A) for m, (A, B) in grads.items()}), r"as the gradient of A at 'first'"),
    (stepping("Alone", lambda grads: {m: A for m, (A, _) in grads.items()}), r"Alone\.gradients returned a tensor of shape"),
    (Returned(), r"Returned\.stepped returned a dict, which is not used"),
    (Written(), r"Written\.stepped failed .*settings are frozen"),
    (Numbers(), r"Numbers\.state returned 3 for 'n'\. Expected: a dict: name -> tensor"),
    (NoBatch(), r"NoBatch\.mix returned None"),
    (folding("Pair", lambda update: (update, update)), r"Pair\.fold returned a tuple\. Expected: Folded"),
    (folding("Unknown", lambda update: Folded({}, {f"x.{m}": d for m, d in update.items()})),
     r"Unknown\.fold returned in deployed a module 'x\.first', which the adapter does not have"),
    (folding("Rows", lambda update: Folded({m: dense(d)[:5] for m, d in update.items()}, {})),
     r"Rows\.fold returned in carry a tensor of shape \[5, 12\] for 'first', whose weight is \(10, 12\)"),
    (folding("NanFactor", lambda update: Folded({}, {m: LowRank(d.A, d.B * torch.nan) for m, d in update.items()})),
     r"NanFactor\.fold returned numbers that are not finite in deployed of 'first'"),
    (folding("InfDense", lambda update: Folded({m: dense(d) / 0 for m, d in update.items()}, {})), r"not finite in carry"),
    (folding("NanTask", lambda update: Folded({}, PerTask({"task0": {m: dense(d) / 0 for m, d in update.items()}}))),
     r"not finite in deployed for 'task0' of 'first'"),
    (starting("OneModule", lambda start: Start(first(start.factors))), r"OneModule\.start returned nothing for 'second'"),
    (starting("Narrow", lambda start: with_a(start, lambda A: A[:1])), r"\[1, 12\] as A of 'first' instead of shape \[2, 12\]"),
    (starting("NanStart", lambda start: with_a(start, lambda A: A / 0)), r"NanStart\.start returned numbers that are not"),
    (starting("Scaled", lambda start: Start({m: Factors(p.A, p.B, 7.0) for m, p in start.factors.items()})), r"the scaling 7\.0"),
    (starting("Frozen", lambda start: Start(start.factors, "B")), r"trainable='B', .*trains = 'AB'"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("part", "message"), WRONG, ids=lambda value: type(value).__name__ if isinstance(value, Part) else ""
)
def test_what_a_part_must_not_give(part, message, tmp_path):
    with pytest.raises(PartError, match=message) as refused:
        learn_toy(method_with(part), tmp_path / "run", toy_tasks(1))
    assert f"tests.methods.contract.test_own_parts:{type(part).__name__}" in str(refused.value)


def by_autograd(factors):
    A, B = factors.A.clone().requires_grad_(), factors.B.clone().requires_grad_()
    value = (B @ A).square().sum()
    return value, *torch.autograd.grad(value, (A, B))


class SumsAsNumber(Weighted):
    def values_and_grads(self, factors, past):
        return 0.5, {module: (zeros(pair.A), zeros(pair.B)) for module, pair in factors.items()}


def test_a_total_may_be_a_number(tmp_path):
    learn_toy(method_with(SumsAsNumber()), tmp_path / "run", toy_tasks(1))
    assert read_lines(next((tmp_path / "run" / "stages").glob("01-*")) / "log.jsonl")[0]["penalties"] == {"mine": 0.5}


def test_a_value_may_come_from_autograd(tmp_path, recwarn):
    learn_toy(method_with(giving("Autograd", by_autograd)), tmp_path / "run", toy_tasks(1))
    assert not [warning for warning in recwarn if "requires_grad" in str(warning.message)]


class NanStep(StepRule):
    def stepped(self, ctx, factors, learning_rate):
        factors["first"].B.fill_(torch.nan)


@pytest.mark.parametrize(
    ("part", "message"),
    [
        (
            giving("NanValue", lambda f: (f.B.sum() * torch.nan, zeros(f.A), f.B)),
            r"step 1 of 12: penalty 'mine' is nan",
        ),
        (
            giving("NanGradient", lambda f: (f.B.sum(), zeros(f.A), f.B / 0)),
            "the gradient's norm of penalty 'mine' is nan",
        ),
        (
            stepping("NanRule", lambda g: {m: (A, B * torch.nan) for m, (A, B) in g.items()}),
            r"NanRule\.gradients is nan",
        ),
        (NanStep(), r"the factors' norm after .*NanStep\.stepped is nan"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Part) else "",
)
def test_the_first_that_is_not_finite_is_named(part, message, tmp_path):
    with pytest.raises(Diverged, match=rf"Task 'task0', .*{message}.*It began in that part"):
        learn_toy(method_with(part), tmp_path / "run", toy_tasks(1))


class Remembers(Weighted):
    _old: dict[str, Tensor] = PrivateAttr(default_factory=dict)

    def after_task(self, ctx, update):
        self._old = {module: dense(delta) for module, delta in update.items()}

    def value_and_grad(self, module, factors, past):
        return factors.B.sum(), zeros(factors.A), zeros(factors.B)


class InPlace(Remembers):
    _old: dict[str, Tensor] = PrivateAttr(default_factory=lambda: {"sum": torch.zeros(1)})

    def after_task(self, ctx, update):
        self._old["sum"] += 1


class Undeclared(Remembers):
    def after_task(self, ctx, update):
        self._seen = 1


class GivesNothing(Remembers):
    def state(self):
        return {}

    def load(self, state):
        self._old = dict(state)


class Helper:
    def __init__(self) -> None:
        self.seen: list[int] = []


class InAnObject(Remembers):
    _old: Any = PrivateAttr(default_factory=Helper)

    def after_task(self, ctx, update):
        self._old.seen.append(1)


@pytest.mark.parametrize("part", [Remembers, InPlace, GivesNothing, InAnObject])
def test_memory_without_state_is_refused_after_the_first_stage(part, tmp_path):
    with pytest.raises(
        PartError, match=rf"{part.__name__} changed its attribute '_old' while task 'task0' was learnt.*`load"
    ):
        learn_toy(method_with(part()), tmp_path / "run", toy_tasks(2))


def test_an_attribute_that_is_not_declared_counts_too(tmp_path):
    with pytest.raises(PartError, match=r"Undeclared changed its attribute '_seen'"):
        learn_toy(method_with(Undeclared()), tmp_path / "run", toy_tasks(1))


class Declared(Remembers):
    caches: ClassVar[frozenset[str]] = frozenset({"_old"})


class FromContext(Remembers):
    def before_task(self, ctx):
        self._old = {module: torch.ones(1) for module in ctx.factors}

    def after_task(self, ctx, update):
        pass


class HoldsTheContext(FromContext):
    _ctx: Any = PrivateAttr(default=None)

    def before_task(self, ctx):
        self._ctx, self._old = ctx, {"model": ctx.backbone.model}


@pytest.mark.parametrize("part", [Declared, FromContext, HoldsTheContext])
def test_what_is_computed_again_is_no_memory(part, tmp_path):
    assert len(learn_toy(method_with(part()), tmp_path / "run", toy_tasks(2))) == 2
