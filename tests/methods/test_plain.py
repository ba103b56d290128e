"""Kaiming, continue, sum, latest and per-task on two small modules."""

from types import SimpleNamespace
from typing import Any

import torch

from perdure.methods.contract.past import Past, PerTask
from perdure.methods.plain import Continue, Kaiming, Latest, PerTaskAdapters, Sum
from perdure.ops.factors import Factors
from perdure.ops.lowrank import LowRank, dense
from perdure.tasks.task import Stage, Task

SHAPES = {"q": (6, 4), "v": (3, 4)}


def blank(dtype: torch.dtype = torch.float32) -> dict[str, Factors]:
    return {
        m: Factors(torch.empty(2, i, dtype=dtype), torch.empty(o, 2, dtype=dtype), 2.0) for m, (o, i) in SHAPES.items()
    }


def context(past: Past | None = None, stage: str = "one", dtype: torch.dtype = torch.float32) -> Any:
    task = Task(stage, [("a", "x")], test=[("b", "x")])
    return SimpleNamespace(
        factors=blank(dtype),
        past=past or Past(),
        stage=Stage(stage, (task,)),
        generator=lambda purpose: torch.Generator().manual_seed(hash_of(purpose)),
    )


def hash_of(purpose: str) -> int:
    return sum(purpose.encode())


def update(value: float) -> dict[str, LowRank]:
    return {m: LowRank(torch.ones(1, i), torch.full((o, 1), value)) for m, (o, i) in SHAPES.items()}


def test_kaiming_starts_at_zero_with_a_in_its_bound_and_differs_by_module() -> None:
    start = Kaiming().start(context())
    q, v = start.factors["q"], start.factors["v"]
    for pair in (q, v):
        assert not pair.B.any()
        assert pair.A.abs().max() <= 0.5  # 1 / sqrt(4)
        assert pair.A.abs().max() > 0.25
        assert pair.A0 is None
        assert pair.scaling == 2.0
    assert not torch.equal(q.A, v.A)
    assert start.trainable == "AB"


def test_kaiming_repeats_and_does_not_depend_on_the_dtype() -> None:
    first, again = Kaiming().start(context()), Kaiming().start(context())
    assert torch.equal(first.factors["q"].A, again.factors["q"].A)
    half = Kaiming().start(context(dtype=torch.bfloat16)).factors["q"].A
    assert half.dtype == torch.bfloat16
    assert torch.equal(first.factors["q"].A.bfloat16(), half)


def test_continue_starts_like_kaiming_then_goes_on_from_copies() -> None:
    first = Continue().start(context())
    assert torch.equal(first.factors["q"].A, Kaiming().start(context()).factors["q"].A)
    trained = {m: Factors(torch.randn_like(f.A), torch.randn_like(f.B), f.scaling) for m, f in blank().items()}
    second = Continue().start(context(Past(("one",), update(1.0), {}, update(1.0), trained)))
    for module, pair in second.factors.items():
        assert torch.equal(pair.A, trained[module].A)
        assert torch.equal(pair.B, trained[module].B)
        assert pair.A.data_ptr() != trained[module].A.data_ptr()


def test_sum_carries_and_answers_with_the_sum() -> None:
    past = Past(("one",), update(1.0), update(1.0), update(1.0))
    folded = Sum().fold(context(past, "two"), past, update(2.0))
    for side in (folded.carry, folded.deployed):
        assert torch.equal(dense(side["q"]), torch.full((6, 4), 3.0))
    assert dense(past.carry["q"]).max() == 1.0  # the past is left as it was


def test_latest_folds_nothing_and_answers_with_the_new_one() -> None:
    past = Past(("one",), update(1.0), {}, update(1.0))
    folded = Latest().fold(context(past, "two"), past, update(2.0))
    assert folded.carry == {}
    assert torch.equal(dense(folded.deployed["v"]), torch.full((3, 4), 2.0))


def test_per_task_keeps_every_update_apart() -> None:
    past = Past()
    for number, name in enumerate(("one", "two", "three"), start=1):
        folded = PerTaskAdapters().fold(context(past, name), past, update(float(number)))
        past = Past((*past.stages, name), deployed=folded.deployed)
        assert folded.carry == {}
    assert isinstance(past.deployed, PerTask)
    values = {task: dense(own["q"])[0, 0].item() for task, own in past.deployed.updates.items()}
    assert values == {"one": 1.0, "two": 2.0, "three": 3.0}
