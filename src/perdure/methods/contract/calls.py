"""The loop's calls of a method's parts: checks what a hook returns before it is used, and names the part in every error.

Everything wrong is a PartError: `module:Class.hook`, what it returned, what is expected. Types, names and shapes are checked at
every step. Whether numbers are finite is checked here at the start and end of a stage, and by perdure.training.train at every
step.
"""

from __future__ import annotations

import inspect
import traceback
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import torch
from torch import Tensor

from perdure.backbones.memory import out_of_memory
from perdure.errors import Diverged, PartError, PerdureError
from perdure.methods.contract.context import Context, Gradients
from perdure.methods.contract.parts import (
    BatchPenalty,
    Consolidate,
    Head,
    Init,
    Method,
    Part,
    Replay,
    Start,
    StepRule,
    WeightPenalty,
)
from perdure.methods.contract.past import Folded, Past, PerTask
from perdure.methods.table import kind_of
from perdure.ops.factors import Factors
from perdure.ops.finite import finite
from perdure.ops.lowrank import LowRank, Update

if TYPE_CHECKING:
    from perdure.backbones.base import Batch, Outputs
    from perdure.tasks.task import Example

EXPECTED = {
    "start": "a Start with factors A [R, I], B [O, R] and the scaling of every module in ctx.factors",
    "value_and_grad": "the value (a tensor of one number), and the gradients of A [R, I] and of B [O, R], tensors too",
    "loss": "a tensor of one number, differentiable",
    "gradients": "a dict: every module of `grads` -> (gradient of A [R, I], gradient of B [O, R]), None for a frozen factor",
    "stepped": "None: it changes the factors' tensors in place (B.mul_(0.9))",
    "fold": "Folded(carry=..., deployed=...): module -> LowRank, or a dense tensor [O, I]; for `deployed` also PerTask",
    "combined": "a tensor [vectors, labels] of finite numbers",
    "mix": "the examples to train on, at least one",
    "state": "a dict: name -> tensor (torch.tensor(3) for a number)",
}
"""Hook -> what it must return."""
FROZEN = "A part's settings are frozen: keep what it remembers in attributes whose names begin with '_'."


@contextmanager
def calling(part: Part, hook: str) -> Iterator[None]:
    """Turns what a custom part raises into a PartError that says where. perdure's errors and out-of-memory pass through.

    Errors of perdure's own parts pass too: they are bugs in perdure, and need their traceback.
    """
    try:
        yield
    except PerdureError:
        raise
    except Exception as error:
        if type(part).__module__.startswith("perdure.") or out_of_memory(error):
            raise
        file = inspect.getsourcefile(type(part))
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == file]
        where = f" ({Path(file).name}, line {lines[-1]})" if file and lines else ""
        reason = FROZEN if "Instance is frozen" in str(error) else f"{type(error).__name__}: {error}"
        expected = f". Expected: {EXPECTED[hook]}" if hook in EXPECTED else ""
        raise PartError(
            f"{kind_of(part)}.{hook} failed{where}: {reason.rstrip('.')}{expected}. PERDURE_TRACEBACK=1 shows the traceback."
        ) from error


def _reject(part: Part, hook: str, returned: str) -> NoReturn:
    raise PartError(f"{kind_of(part)}.{hook} returned {returned}. Expected: {EXPECTED[hook]}.")


def before_task(method: Method, ctx: Context) -> None:
    """A stage begins."""
    for part in method.parts().values():
        with calling(part, "before_task"):
            part.before_task(ctx)


def after_task(parts: Iterable[Part], ctx: Context, update: Update) -> None:
    """A stage is trained."""
    for part in parts:
        with calling(part, "after_task"):
            part.after_task(ctx, update)


def start_adapter(init: Init, ctx: Context) -> Start:
    """How the adapter starts: every module once, in the adapter's shapes, finite."""
    with calling(init, "start"):
        start = init.start(ctx)
    if not isinstance(start, Start):
        _reject(init, "start", _described(start))
    if start.trainable != init.trains:
        _reject(init, "start", f"trainable={start.trainable!r}, but the class says trains = {init.trains!r}")
    _check_modules(init, "start", start.factors, ctx.factors)
    for module, own in ctx.factors.items():
        pair = start.factors[module]
        if (pair.A0 is None) != (pair.B0 is None):
            _reject(init, "start", f"only one of A0 and B0 at '{module}'; they belong together")
        if pair.scaling != own.scaling:
            _reject(init, "start", f"the scaling {pair.scaling} at '{module}', where the adapter has {own.scaling}")
        offset = {} if pair.A0 is None else {"A0": (pair.A0, own.A), "B0": (pair.B0, own.B)}
        for name, (tensor, like) in {"A": (pair.A, own.A), "B": (pair.B, own.B), **offset}.items():
            if not finite(_of_shape(init, "start", f"{name} of '{module}'", tensor, like)):
                _reject(init, "start", f"numbers that are not finite in {name} of '{module}'")
    return start


def penalty_of(penalty: WeightPenalty, factors: Mapping[str, Factors], past: Past) -> tuple[float, Mapping[str, Any]]:
    """The unweighted value, and every module's gradients; `fitting` checks their shapes."""
    with calling(penalty, "value_and_grad"):
        value, grads = penalty.values_and_grads(factors, past)
        number = float(value.detach() if isinstance(value, Tensor) else value)
    _check_modules(penalty, "value_and_grad", grads, factors)
    return number, grads


def checked_gradient(penalty: WeightPenalty, module: str, grad: Any, factor: Tensor) -> Tensor:
    """A penalty's gradient of a trained factor, of exactly its shape: any other would be broadcast."""
    return _of_shape(penalty, "value_and_grad", f"a gradient at '{module}'", grad, factor)


def batch_loss(penalty: BatchPenalty, ctx: Context, batch: Batch, outputs: Outputs) -> Tensor:
    """The unweighted penalty on a batch."""
    with calling(penalty, "loss"):
        loss = penalty.loss(ctx, batch, outputs)
    if not isinstance(loss, Tensor) or loss.numel() != 1:
        _reject(penalty, "loss", _described(loss))
    return loss


def step_gradients(rule: StepRule, ctx: Context, grads: Gradients) -> Gradients:
    """The gradients to step with: for the modules of `grads`, in the factors' shapes."""
    if type(rule).gradients is StepRule.gradients:
        return grads
    with calling(rule, "gradients"):
        changed = rule.gradients(ctx, grads)
    _check_modules(rule, "gradients", changed, grads)
    for module, own in ctx.factors.items():
        pair = changed[module]
        if not isinstance(pair, tuple | list) or len(pair) != 2:
            _reject(rule, "gradients", f"{_described(pair)} for '{module}'")
        for name, grad, like in (("A", pair[0], own.A), ("B", pair[1], own.B)):
            if grad is not None:
                _of_shape(rule, "gradients", f"the gradient of {name} at '{module}'", grad, like)
    return changed


def after_step(rule: StepRule, ctx: Context, factors: Mapping[str, Factors], learning_rate: float) -> None:
    """The optimiser has stepped; the rule may change the factors in place."""
    with calling(rule, "stepped"), torch.no_grad():
        returned: Any = rule.stepped(ctx, factors, learning_rate)
    if returned is not None:
        _reject(rule, "stepped", f"{_described(returned)}, which is not used")


def mixed(replay: Replay, ctx: Context, batch: Sequence[Example]) -> Sequence[Example]:
    """The batch to train on."""
    with calling(replay, "mix"):
        examples = replay.mix(ctx, batch)
    if not isinstance(examples, Sequence) or not len(examples):
        _reject(replay, "mix", _described(examples))
    return examples


def combined(head: Head, vectors: Tensor, probabilities: Tensor, labels: Sequence[tuple[str, str]]) -> Tensor:
    """Scores [n, labels] of adapter and head together."""
    with calling(head, "combined"):
        scores = head.combined(vectors, probabilities, labels)
    if not isinstance(scores, Tensor) or scores.shape != probabilities.shape:
        _reject(head, "combined", _described(scores))
    if not finite(scores):
        _reject(head, "combined", "numbers that are not finite")
    return scores


def consolidated(rule: Consolidate, ctx: Context, past: Past, update: Update) -> Folded:
    """Carry and deployed after a stage: of modules that the adapter has, in their shapes, finite.

    Raises:
        Diverged: the update itself is not finite.
    """
    for module, delta in update.items():
        if not finite(delta):
            raise Diverged(
                f"Task '{ctx.stage.name}': the trained factors of '{module}' are not finite numbers. Finished tasks are kept. "
                "Lower training.learning_rate, in a new folder."
            )
    with calling(rule, "fold"):
        folded = rule.fold(ctx, past, update)
    if not isinstance(folded, Folded):
        _reject(rule, "fold", _described(folded))
    if isinstance(folded.deployed, PerTask):
        deployed = {f"deployed for '{task}'": update for task, update in folded.deployed.updates.items()}
    else:
        deployed = {} if folded.deployed is folded.carry else {"deployed": folded.deployed}
    for what, folded_update in {"carry": folded.carry, **deployed}.items():
        _check_update(rule, what, folded_update, ctx.factors)
    return folded


def state_of(part: Part) -> Mapping[str, Tensor]:
    """What a part remembers, as tensors."""
    with calling(part, "state"):
        state = part.state()
    if not isinstance(state, Mapping):
        _reject(part, "state", _described(state))
    for key, tensor in state.items():
        if not isinstance(key, str) or not isinstance(tensor, Tensor):
            _reject(part, "state", f"{_described(tensor)} for {key!r}")
    return state


def _check_update(rule: Consolidate, what: str, update: Any, factors: Mapping[str, Factors]) -> None:
    if not isinstance(update, Mapping):
        _reject(rule, "fold", f"{_described(update)} as {what}")
    for module, delta in update.items():
        if module not in factors:
            _reject(rule, "fold", f"in {what} a module '{module}', which the adapter does not have")
        shape = factors[module].shape
        if not isinstance(delta, LowRank | Tensor) or tuple(delta.shape) != shape:
            _reject(rule, "fold", f"in {what} {_described(delta)} for '{module}', whose weight is {shape}")
        if not finite(delta):
            _reject(rule, "fold", f"numbers that are not finite in {what} of '{module}'")


def _check_modules(part: Part, hook: str, returned: Any, expected: Mapping[str, Any]) -> None:
    if not isinstance(returned, Mapping):
        _reject(part, hook, _described(returned))
    if missing := expected.keys() - returned.keys():
        _reject(part, hook, f"nothing for '{min(missing)}'")
    if unknown := returned.keys() - expected.keys():
        _reject(part, hook, f"something for {min(unknown, key=str)!r}, which is not a module")


def _of_shape(part: Part, hook: str, what: str, value: Any, like: Tensor) -> Tensor:
    if not isinstance(value, Tensor) or value.shape != like.shape:
        _reject(part, hook, f"{_described(value)} as {what} instead of shape {list(like.shape)}")
    return value


def _described(value: Any) -> str:
    if isinstance(value, LowRank | Tensor):
        return f"{'an update' if isinstance(value, LowRank) else 'a tensor'} of shape {list(value.shape)}"
    return repr(value) if value is None or isinstance(value, int | float | str) else f"a {type(value).__name__}"
