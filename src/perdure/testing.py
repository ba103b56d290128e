"""`check_part`: a part of your own, tried on a two-layer net (perdure.backbones.toy) before it meets a real one.

    from perdure.testing import check_part
    check_part("my_parts:MyPenalty", {"sharpness": 10})

Three tasks are learnt with it, several times: it gives what it must (perdure.methods.contract.calls), the same seed gives the
same bits, a run that was stopped ends as one that was not, a penalty of weight 0 changes nothing, a weight penalty's gradient
is that of its value.
"""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from perdure.backbones.toy import Toy, toy_tasks
from perdure.config.composition import resolve_method
from perdure.config.run_config import RunConfig
from perdure.errors import PartError
from perdure.files.durable import sha256
from perdure.loop.sequence import run_sequence
from perdure.methods.contract.build import build_method, check_composition, own_part, part_class, role_of
from perdure.methods.contract.calls import calling, penalty_of
from perdure.methods.contract.context import Need
from perdure.methods.contract.own import check_written
from perdure.methods.contract.parts import Method, Part, WeightPenalty
from perdure.methods.contract.past import Past, PerTask
from perdure.methods.replay import ExampleBuffer
from perdure.methods.table import PARTS, Role, kind_of
from perdure.ops.factors import Factors
from perdure.ops.lowrank import LowRank, Update
from perdure.settings.read import validate
from perdure.state.store import STATE, Store
from perdure.tasks.task import Stage
from perdure.training.context import StageContext
from perdure.training.lora import AdaptedModel
from perdure.training.reporter import Quiet
from perdure.training.train import Step

CONFIG = RunConfig.model_validate(
    {
        "backbone": {"model": "toy"},
        "lora": {"rank": 2, "alpha": 2},
        "training": {"epochs": 2, "batch_size": 8, "learning_rate": 0.01},
    }
)
TASKS = toy_tasks(3)
TRIED = "tried"
"""What the penalty and its method are called."""
EVERY_STEP = 1e-9
"""Minutes between checkpoints."""
DISTANCE, TOLERANCE = 1e-6, 1e-3
"""Of a finite difference in float64: how far to both sides, and how much of the slope may be amiss."""


def check_part(
    part: str | type[Part], settings: Mapping[str, Any] | None = None, *, method: str | Mapping[str, Any] = "inc-lora"
) -> None:
    """Try a part; see the file's head. Takes a few seconds, downloads nothing, leaves nothing behind.

    Args:
        part: `module:Class`, a kind of perdure's own, or the class.
        settings: the part's; a penalty has weight 1 where neither `weight` nor `gradient_share` is given.
        method: in which it stands, in the place of the part of its role (a penalty: beside the others).

    Raises:
        PartError: it does not keep the contract; says what, and where.
        ConfigError: its class or its settings are wrong, or it has no meaning in that method.
    """
    role, found = _found(part)
    given = dict(settings or {})
    if role == "penalty" and not given.keys() & {"weight", "gradient_share"}:
        given["weight"] = 1.0

    def made(**changed: Any) -> Method:
        return _with(method, role, validate(found, {**given, **changed}, str(part)))

    name = f"{found.__module__}:{found.__qualname__}"
    with tempfile.TemporaryDirectory() as folder, torch.random.fork_rng(devices=[]):
        learnt, once = made(), Path(folder) / "once"
        past = _learn(learnt, once)
        _check_same_bits(name, made, once)
        _check_resumed(name, made, once)
        if role == "penalty":
            _check_weight_0(name, made(weight=0.0, gradient_share=None), build_method(resolve_method(method)), once)
        if issubclass(found, WeightPenalty):
            _check_gradients(learnt.penalties[TRIED], made().penalties[TRIED], past)


def _found(part: str | type[Part]) -> tuple[Role, type[Part]]:
    """A part's role and class."""
    if isinstance(part, type):
        role = role_of(part)
        check_written(part)
        return role, part
    roles: list[Role] = [role for role, kinds in PARTS.items() if part in kinds]
    return (roles[0], part_class(roles[0], part)) if roles else own_part(part)


def _with(method: str | Mapping[str, Any], role: Role, part: Any) -> Method:
    """The method with the part in it, and with a buffer of old examples where the part needs one."""
    base = build_method(resolve_method(method))
    changed = {"penalties": {**base.penalties, TRIED: part}} if role == "penalty" else {role: part}
    made = dataclasses.replace(base, name=TRIED, **changed)
    if Need.OLD_EXAMPLES in part.requires() and made.replay is None:
        made = dataclasses.replace(made, replay=ExampleBuffer(use="init-only"))
    check_composition(made)
    return made


def _context(index: int, past: Past) -> StageContext:
    """The context of a stage on a fresh net, before the adapter starts."""
    backbone = Toy()
    backbone.prepare(TASKS)
    model = AdaptedModel(backbone.model, CONFIG.lora, backbone.default_targets)
    stage = Stage(TASKS[index].name, (TASKS[index],))
    return StageContext(stage, index, past, {}, model, backbone, {task.name: task for task in TASKS}, CONFIG.seed)


def _learn(method: Method, folder: Path, stop: tuple[str, int] | None = None, minutes: float | None = None) -> Past:
    """Learn the tasks on a fresh net, or go on with what is in the folder; `stop`: at that step of that task."""
    ctx = _context(0, Past())
    config = CONFIG.model_copy(update={"training": CONFIG.training.model_copy(update={"checkpoint_minutes": minutes})})
    store = Store(folder)
    with store.writing():
        store.create(
            {"config": CONFIG.model_dump(mode="json"), "tasks": {task.name: task.fingerprint() for task in TASKS}}
        )
        return run_sequence(TASKS, method, ctx.model, ctx.backbone, config, store, _Stopping(stop))


class _Stopped(Exception):
    """As a process that was killed."""


class _Stopping(Quiet):
    def __init__(self, at: tuple[str, int] | None) -> None:
        self._at = at

    def step(self, stage: str, step: Step, total: int) -> None:
        if (stage, step.step) == self._at:
            raise _Stopped


def _files(folder: Path) -> dict[str, str]:
    """What a run has learnt, as sha256: adapters, state and log of every stage."""
    found = [*folder.glob("stages/*/adapter/*"), *folder.glob(f"stages/*/{STATE}"), *folder.glob("stages/*/log.jsonl")]
    return {path.relative_to(folder / "stages").as_posix(): sha256(path) for path in sorted(found)}


def _check_equal(one: Path, other: Path, said: str) -> None:
    left, right = _files(one), _files(other)
    if differs := [name for name in {**left, **right} if left.get(name) != right.get(name)]:
        raise PartError(f"{said} (first different: {differs[0]})")


def _check_same_bits(name: str, made: Callable[[], Method], once: Path) -> None:
    _learn(made(), again := once.with_name("again"))
    _check_equal(
        once,
        again,
        f"{name}: the same seed gave other bits the second time. Draw what is random from ctx.generator(purpose), and keep "
        "nothing in the class or the module.",
    )


def _check_resumed(name: str, made: Callable[[], Method], once: Path) -> None:
    for where, minutes in (("between", None), ("inside", EVERY_STEP)):
        stopped = once.with_name(where)
        for at in ((TASKS[1].name, 4), (TASKS[2].name, 2)):
            with suppress(_Stopped):
                _learn(made(), stopped, at, minutes)
        _learn(made(), stopped)
        _check_equal(
            once,
            stopped,
            f"{name}: a run that was stopped {where} tasks ended otherwise than one that was not. Give all that is remembered in "
            "`state`, also after any step, and take it back in `load`.",
        )


def _check_weight_0(name: str, switched_off: Method, without: Method, once: Path) -> None:
    learnt = []
    for method, folder in ((switched_off, once.with_name("zero")), (without, once.with_name("without"))):
        _learn(method, folder)
        learnt.append({file: digest for file, digest in _files(folder).items() if "/adapter/" in file})
    if learnt[0] != learnt[1]:
        raise PartError(
            f"{name}: at weight 0 it still changes what is learnt. It may not write to the model or the factors, nor draw from "
            "torch's own random state."
        )


def _check_gradients(learnt: Part, penalty: Part, past: Past) -> None:
    """At factors drawn at random, with what the `learnt` penalty remembers of three tasks, in float64."""
    assert isinstance(penalty, WeightPenalty)
    penalty.before_task(_context(0, past))
    with calling(penalty, "load"):
        penalty.load({name: _double(tensor) for name, tensor in learnt.state().items()})
    generator = torch.Generator().manual_seed(0)

    def drawn(like: Tensor) -> Tensor:
        return torch.randn(like.shape, generator=generator, dtype=torch.float64) / like.shape[1] ** 0.5

    exact = _past_in_double(past)
    factors = {m: Factors(drawn(pair.A), drawn(pair.B), pair.scaling) for m, pair in past.factors.items()}
    _, grads = penalty_of(penalty, factors, exact)
    for module, pair in factors.items():
        for name, grad in zip("AB", grads[module], strict=True):
            along = drawn(getattr(pair, name))
            values = []
            for sign in (1, -1):
                moved = dataclasses.replace(pair, **{name: getattr(pair, name) + sign * DISTANCE * along})
                values.append(penalty_of(penalty, {**factors, module: moved}, exact)[0])
            found, told = (values[0] - values[1]) / (2 * DISTANCE), float((grad * along).sum())
            if not abs(found - told) <= TOLERANCE * max(abs(found), abs(told)) + 1e-7:
                raise PartError(
                    f"{kind_of(penalty)}.value_and_grad: along a random direction of {name} at '{module}' the gradient says "
                    f"{told:.6g}, but the value changes by {found:.6g}. The gradient of {name} is not that of the value."
                )


def _double(tensor: Tensor) -> Tensor:
    return tensor.double() if tensor.is_floating_point() else tensor


def _past_in_double(past: Past) -> Past:
    deployed = past.deployed
    return dataclasses.replace(
        past,
        total=_update_in_double(past.total),
        carry=_update_in_double(past.carry),
        deployed=deployed if isinstance(deployed, PerTask) else _update_in_double(deployed),
    )


def _update_in_double(update: Update) -> Update:
    return {
        module: LowRank(delta.A.double(), delta.B.double()) if isinstance(delta, LowRank) else delta.double()
        for module, delta in update.items()
    }
