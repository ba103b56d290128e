"""The loop's calls of a method's parts: what a part gives is checked before it is used, and its errors say which part it was.

Everything here is told with a PartError: `module:Class.method`, what it gave, what it should give. At every step types, names and
shapes are checked; whether numbers are finite is asked here where a stage begins and ends, and by perdure.training.train at
every step.
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
    Init,
    Method,
    Part,
    Replay,
    Start,
    StepRule,
    WeightPenalty,
)
from perdure.methods.contract.past import Folded, PerTask
from perdure.methods.table import kind_of
from perdure.ops.factors import Factors
from perdure.ops.lowrank import LowRank, Update

if TYPE_CHECKING:
    from perdure.backbones.base import Batch, Outputs
    from perdure.methods.contract.past import Past
    from perdure.tasks.task import Example

GIVES = {
    "start": "a Start with factors A [R, I], B [O, R] and the scaling of every module in ctx.factors",
    "value_and_grad": "the value (a tensor of one number), and the gradients of A [R, I] and of B [O, R], tensors too",
    "loss": "a tensor of one number, differentiable",
    "gradients": "a dict: every module of `grads` -> (gradient of A [R, I], gradient of B [O, R]), None for a frozen factor",
    "stepped": "nothing: it changes the factors' tensors in place (B.mul_(0.9))",
    "fold": "Folded(carry=..., deployed=...): module -> LowRank, or a dense tensor [O, I]; for `deployed` also PerTask",
    "mix": "the examples to train on, at least one",
    "state": "a dict: name -> tensor (torch.tensor(3) for a number)",
}
"""Point of the contract -> what a part gives there."""
FROZEN = "A part's settings are frozen: what it remembers stands in attributes whose names begin with '_'."


@contextmanager
def calling(part: Part, point: str) -> Iterator[None]:
    """Within: what a part of your own raises becomes a PartError that says where; perdure's errors and lost memory pass.

    Errors of perdure's own parts pass too: they are nobody's mistake but ours, and want their traceback.
    """
    try:
        yield
    except PerdureError:
        raise
    except Exception as error:
        if type(part).__module__.startswith("perdure.") or out_of_memory(error):
            raise
        said = FROZEN if "Instance is frozen" in str(error) else f"{type(error).__name__}: {error}"
        gives = f". It gives {GIVES[point]}" if point in GIVES else ""
        where = f"{kind_of(part)}.{point} failed{_line(part, error)}"
        raise PartError(f"{where}: {said.rstrip('.')}{gives}. PERDURE_TRACEBACK=1 shows the traceback.") from error


def _line(part: Part, error: Exception) -> str:
    """Where in the part's own file that was."""
    file = inspect.getsourcefile(type(part))
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == file]
    return f" ({Path(file).name}, line {lines[-1]})" if file and lines else ""


def _refuse(part: Part, point: str, gave: str) -> NoReturn:
    raise PartError(f"{kind_of(part)}.{point} gave {gave}. It gives {GIVES[point]}.")


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


def started(init: Init, ctx: Context) -> Start:
    """How the adapter starts: every module once, in the adapter's shapes, finite."""
    with calling(init, "start"):
        start = init.start(ctx)
    if not isinstance(start, Start):
        _refuse(init, "start", _called(start))
    if start.trainable != init.trains:
        _refuse(init, "start", f"trainable={start.trainable!r}, but the class says trains = {init.trains!r}")
    wanted = ctx.factors
    _same_modules(init, "start", start.factors, wanted)
    for module, own in wanted.items():
        _fits_adapter(init, module, start.factors[module], own)
    return start


def _fits_adapter(init: Init, module: str, pair: Factors, own: Factors) -> None:
    if (pair.A0 is None) != (pair.B0 is None):
        _refuse(init, "start", f"one of A0 and B0 at '{module}', which belong together")
    if pair.scaling != own.scaling:
        _refuse(init, "start", f"the scaling {pair.scaling} at '{module}', where the adapter has {own.scaling}")
    for name, tensor, like in (
        ("A", pair.A, own.A),
        ("B", pair.B, own.B),
        ("A0", pair.A0, own.A),
        ("B0", pair.B0, own.B),
    ):
        if tensor is None and name in ("A0", "B0"):
            continue
        if not _finite(_same_shape(init, "start", f"{name} of '{module}'", tensor, like)):
            _refuse(init, "start", f"numbers that are not finite in {name} of '{module}'")


def penalty_of(penalty: WeightPenalty, factors: Mapping[str, Factors], past: Past) -> tuple[float, Mapping[str, Any]]:
    """The unweighted value and every module's gradients, whose shapes `fitting` checks."""
    with calling(penalty, "value_and_grad"):
        value, grads = penalty.values_and_grads(factors, past)
        number = float(value.detach() if isinstance(value, Tensor) else value)
    _same_modules(penalty, "value_and_grad", grads, factors)
    return number, grads


def fitting(penalty: WeightPenalty, module: str, grad: Any, factor: Tensor) -> Tensor:
    """A penalty's gradient of a trained factor, of exactly its shape: another one would be broadcast."""
    return _same_shape(penalty, "value_and_grad", f"a gradient at '{module}'", grad, factor)


def batch_loss(penalty: BatchPenalty, ctx: Context, batch: Batch, outputs: Outputs) -> Tensor:
    """The unweighted penalty on a batch."""
    with calling(penalty, "loss"):
        loss = penalty.loss(ctx, batch, outputs)
    if not isinstance(loss, Tensor) or loss.numel() != 1:
        _refuse(penalty, "loss", _called(loss))
    return loss


def stepping(rule: StepRule, ctx: Context, grads: Gradients) -> Gradients:
    """The gradients to step with: for the modules of `grads`, in the factors' shapes."""
    if type(rule).gradients is StepRule.gradients:
        return grads
    with calling(rule, "gradients"):
        changed = rule.gradients(ctx, grads)
    _same_modules(rule, "gradients", changed, grads)
    for module, own in ctx.factors.items():
        pair = changed[module]
        if not isinstance(pair, tuple | list) or len(pair) != 2:
            _refuse(rule, "gradients", f"{_called(pair)} for '{module}'")
        for name, grad, like in (("A", pair[0], own.A), ("B", pair[1], own.B)):
            if grad is not None:
                _same_shape(rule, "gradients", f"the gradient of {name} at '{module}'", grad, like)
    return changed


def stepped(rule: StepRule, ctx: Context, factors: Mapping[str, Factors], learning_rate: float) -> None:
    """The optimiser has stepped; the rule may change the factors in place."""
    with calling(rule, "stepped"), torch.no_grad():
        given: Any = rule.stepped(ctx, factors, learning_rate)
    if given is not None:
        _refuse(rule, "stepped", f"{_called(given)}, which nobody reads")


def mixed(replay: Replay, ctx: Context, batch: Sequence[Example]) -> Sequence[Example]:
    """The batch to train on."""
    with calling(replay, "mix"):
        found = replay.mix(ctx, batch)
    if not isinstance(found, Sequence) or not len(found):
        _refuse(replay, "mix", _called(found))
    return found


def consolidated(rule: Consolidate, ctx: Context, past: Past, update: Update) -> Folded:
    """Carry and deployed after a stage: of modules that the adapter has, in their shapes, finite.

    Raises:
        Diverged: the update itself is not finite.
    """
    for module, delta in update.items():
        if not _finite_delta(delta):
            raise Diverged(
                f"Task '{ctx.stage.name}': the trained factors of '{module}' are not finite numbers. Finished tasks are kept. "
                "Lower training.learning_rate, in a new folder."
            )
    with calling(rule, "fold"):
        folded = rule.fold(ctx, past, update)
    if not isinstance(folded, Folded):
        _refuse(rule, "fold", _called(folded))
    shapes = {module: pair.shape for module, pair in ctx.factors.items()}
    for what, found in _updates(folded).items():
        _check_update(rule, what, found, shapes)
    return folded


def state_of(part: Part) -> Mapping[str, Tensor]:
    """What a part remembers, as tensors."""
    with calling(part, "state"):
        state = part.state()
    if not isinstance(state, Mapping):
        _refuse(part, "state", _called(state))
    for key, tensor in state.items():
        if not isinstance(key, str) or not isinstance(tensor, Tensor):
            _refuse(part, "state", f"{_called(tensor)} for {key!r}")
    return state


def _updates(folded: Folded) -> dict[str, Any]:
    """Every update once, under what it is called."""
    if isinstance(folded.deployed, PerTask):
        each = {f"deployed for '{task}'": update for task, update in folded.deployed.updates.items()}
        return {"carry": folded.carry, **each}
    return {"carry": folded.carry} | ({} if folded.deployed is folded.carry else {"deployed": folded.deployed})


def _check_update(rule: Consolidate, what: str, found: Any, shapes: Mapping[str, tuple[int, int]]) -> None:
    if not isinstance(found, Mapping):
        _refuse(rule, "fold", f"{_called(found)} as {what}")
    for module, delta in found.items():
        if module not in shapes:
            _refuse(rule, "fold", f"in {what} a module '{module}', which the adapter does not have")
        if not isinstance(delta, LowRank | Tensor) or tuple(delta.shape) != shapes[module]:
            _refuse(rule, "fold", f"in {what} {_called(delta)} for '{module}', whose weight is {shapes[module]}")
        if not _finite_delta(delta):
            _refuse(rule, "fold", f"numbers that are not finite in {what} of '{module}'")


def _finite_delta(delta: LowRank | Tensor) -> bool:
    return _finite(delta.A) and _finite(delta.B) if isinstance(delta, LowRank) else _finite(delta)


def _finite(tensor: Tensor) -> bool:
    return bool(tensor.isfinite().all())


def _same_modules(part: Part, point: str, found: Any, wanted: Mapping[str, Any]) -> None:
    if not isinstance(found, Mapping):
        _refuse(part, point, _called(found))
    if found.keys() != wanted.keys():
        missing, unknown = [*(wanted.keys() - found.keys())], [*(found.keys() - wanted.keys())]
        _refuse(
            part,
            point,
            f"nothing for '{min(missing)}'" if missing else f"something for {min(unknown, key=str)!r}, no module",
        )


def _same_shape(part: Part, point: str, what: str, found: Any, like: Tensor) -> Tensor:
    if not isinstance(found, Tensor) or found.shape != like.shape:
        _refuse(part, point, f"{_called(found)} as {what}, where {list(like.shape)} belongs")
    return found


def _called(value: Any) -> str:
    """A value in words."""
    if isinstance(value, LowRank | Tensor):
        return f"{'an update' if isinstance(value, LowRank) else 'a tensor'} of shape {list(value.shape)}"
    if value is None or isinstance(value, int | float | str):
        return repr(value)
    return f"a {type(value).__name__}"
