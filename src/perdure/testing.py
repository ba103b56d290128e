"""`check_part`: tests a custom part on a two-layer net (perdure.backbones.toy) before it meets a real model.

    from perdure.testing import check_part
    check_part("my_parts:MyPenalty", {"sharpness": 10})

It learns three tasks with the part, several times, and checks: hooks return what they must (perdure.methods.contract.calls);
the same seed gives the same bits; a stopped run ends like an uninterrupted one; a penalty of weight 0 changes nothing; a weight
penalty's gradient is that of its value.
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
from perdure.methods.contract.build import build_method, check_composition, own_part, part_class
from perdure.methods.contract.calls import calling, penalty_of
from perdure.methods.contract.context import Need
from perdure.methods.contract.parts import Method, Part, WeightPenalty
from perdure.methods.contract.past import Past, PerTask
from perdure.methods.replay import ExampleBuffer
from perdure.methods.table import PARTS, Role, kind_of
from perdure.ops.factors import Factors
from perdure.ops.lowrank import LowRank, Update
from perdure.settings.read import validate
from perdure.state.reopen import task_record
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
TESTED = "tested"
"""The name of the tested penalty and of its method."""
EVERY_STEP = 1e-9
"""Minutes between checkpoints."""
DISTANCE, TOLERANCE = 1e-6, 1e-3
"""Of a finite difference in float64: the distance to either side, and the relative error allowed."""


def check_part(
    part: str | type[Part], settings: Mapping[str, Any] | None = None, *, method: str | Mapping[str, Any] = "inc-lora"
) -> None:
    """Test a part (see the top of the file). Takes a few seconds, downloads nothing, leaves nothing behind.

    Args:
        part: `module:Class`, the kind of a built-in part, or the class.
        settings: the part's; a penalty has weight 1 if neither `weight` nor `gradient_share` is given.
        method: the method to put it in, in place of the part of its role (a penalty: beside the others).

    Raises:
        PartError: it breaks the contract; says what is wrong, and where.
        ConfigError: its class or its settings are wrong, or it cannot be used in that method.
    """
    builtin: list[Role] = [role for role, kinds in PARTS.items() if part in kinds]
    role, cls = (builtin[0], part_class(builtin[0], str(part))) if builtin else own_part(part)
    given = dict(settings or {})
    if role == "penalty" and not given.keys() & {"weight", "gradient_share"}:
        given["weight"] = 1.0

    def made(**changed: Any) -> Method:
        return _with(method, role, validate(cls, {**given, **changed}, str(part)))

    name = f"{cls.__module__}:{cls.__qualname__}"
    with tempfile.TemporaryDirectory() as folder, torch.random.fork_rng(devices=[]):
        learnt, once = made(), Path(folder) / "once"
        past = _learn(learnt, once)
        _learn(made(), again := Path(folder) / "again")
        _check_equal(
            once,
            again,
            f"{name}: the same seed gave different bits the second time. Draw random numbers from ctx.generator(purpose), "
            "and keep nothing in the class or the module.",
        )
        _check_resumed(name, made, once)
        if role == "penalty":
            _check_weight_0(name, made(weight=0.0, gradient_share=None), build_method(resolve_method(method)), once)
        if issubclass(cls, WeightPenalty):
            _check_gradients(learnt.penalties[TESTED], made().penalties[TESTED], past)


def _with(method: str | Mapping[str, Any], role: Role, part: Any) -> Method:
    """The method with the part in it, and with a buffer of old examples if the part needs one."""
    base = build_method(resolve_method(method))
    changed = {"penalties": {**base.penalties, TESTED: part}} if role == "penalty" else {role: part}
    made = dataclasses.replace(base, name=TESTED, **changed)
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
    """Learn the tasks on a fresh net, or resume what is in the folder; `stop`: at that step of that task."""
    ctx = _context(0, Past())
    config = CONFIG.model_copy(update={"training": CONFIG.training.model_copy(update={"checkpoint_minutes": minutes})})
    store = Store(folder)
    with store.writing():
        about = {"config": CONFIG.model_dump(mode="json"), "precision": "fp32", "threads": torch.get_num_threads()}
        store.create({**about, **task_record(TASKS)})
        return run_sequence(TASKS, method, ctx.model, ctx.backbone, config, store, _Stopping(stop))


class _Stopped(Exception):
    """Stands for a killed process."""


class _Stopping(Quiet):
    def __init__(self, at: tuple[str, int] | None) -> None:
        self._at = at

    def step(self, stage: str, step: Step, total: int) -> None:
        if (stage, step.step) == self._at:
            raise _Stopped


def _files(folder: Path, *patterns: str) -> dict[str, str]:
    """A run's files as sha256; by default all that was learnt: adapters, state and log of every stage."""
    stages = folder / "stages"
    paths = [path for pattern in patterns or ("adapter/*", STATE, "log.jsonl") for path in stages.glob(f"*/{pattern}")]
    return {path.relative_to(stages).as_posix(): sha256(path) for path in sorted(paths)}


def _check_equal(one: Path, other: Path, problem: str) -> None:
    left, right = _files(one), _files(other)
    if differs := [name for name in {**left, **right} if left.get(name) != right.get(name)]:
        raise PartError(f"{problem} (first different: {differs[0]})")


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
            f"{name}: a run stopped {where} tasks ended differently from an uninterrupted one. Return everything it remembers "
            "from `state`, after any step, and restore it in `load`.",
        )


def _check_weight_0(name: str, switched_off: Method, without: Method, once: Path) -> None:
    zero, absent = once.with_name("zero"), once.with_name("without")
    _learn(switched_off, zero)
    _learn(without, absent)
    if _files(zero, "adapter/*") != _files(absent, "adapter/*"):
        raise PartError(
            f"{name}: at weight 0 it still changes what is learnt. It must not write to the model or the factors, nor draw "
            "from torch's global random state."
        )


def _check_gradients(learnt: Part, penalty: Part, past: Past) -> None:
    """At random factors, with what the `learnt` penalty remembers of three tasks, in float64."""
    assert isinstance(penalty, WeightPenalty)
    penalty.before_task(_context(0, past))
    with calling(penalty, "load"):
        penalty.load({name: t.double() if t.is_floating_point() else t for name, t in learnt.state().items()})
    generator = torch.Generator().manual_seed(0)

    def drawn(like: Tensor) -> Tensor:
        return torch.randn(like.shape, generator=generator, dtype=torch.float64) / like.shape[1] ** 0.5

    deployed = past.deployed if isinstance(past.deployed, PerTask) else _double(past.deployed)
    exact = dataclasses.replace(past, total=_double(past.total), carry=_double(past.carry), deployed=deployed)
    factors = {m: Factors(drawn(pair.A), drawn(pair.B), pair.scaling) for m, pair in past.factors.items()}
    _, grads = penalty_of(penalty, factors, exact)
    for module, pair in factors.items():
        for name, grad in zip("AB", grads[module], strict=True):
            along = drawn(getattr(pair, name))
            values = []
            for sign in (1, -1):
                moved = dataclasses.replace(pair, **{name: getattr(pair, name) + sign * DISTANCE * along})
                values.append(penalty_of(penalty, {**factors, module: moved}, exact)[0])
            measured, claimed = (values[0] - values[1]) / (2 * DISTANCE), float((grad * along).sum())
            if not abs(measured - claimed) <= TOLERANCE * max(abs(measured), abs(claimed)) + 1e-7:
                raise PartError(
                    f"{kind_of(penalty)}.value_and_grad: along a random direction of {name} at '{module}' the gradient says "
                    f"{claimed:.6g}, but the value changes by {measured:.6g}: it is not the gradient of the value."
                )


def _double(update: Update) -> Update:
    return {
        module: LowRank(delta.A.double(), delta.B.double()) if isinstance(delta, LowRank) else delta.double()
        for module, delta in update.items()
    }
