"""PS-LoRA's two parts: the penalty against its own reference engine, and the merge online and at the end."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from perdure.errors import ConfigError
from perdure.methods.contract.past import Past, PerTask
from perdure.methods.l2 import SquaredNorm
from perdure.methods.ps_lora import MaxMagnitude, SignMagnitude
from perdure.ops.factors import Factors
from perdure.ops.lowrank import LowRank, Update, add_updates, dense

SHAPES = {"q": (8, 6), "v": (5, 6)}


def random_factors(seed: int, dtype: torch.dtype = torch.float64) -> dict[str, Factors]:
    make = torch.Generator().manual_seed(seed)
    return {
        module: Factors(
            torch.randn(2, i, generator=make, dtype=torch.float64).to(dtype),
            torch.randn(o, 2, generator=make, dtype=torch.float64).mul(0.05).to(dtype),
            2.0,
        )
        for module, (o, i) in SHAPES.items()
    }


def update_of(factors: dict[str, Factors]) -> dict[str, LowRank]:
    return {module: pair.update() for module, pair in factors.items()}


def past_of(total: Update, deployed: Update | PerTask | None = None) -> Past:
    return Past(("one",), total, total, total if deployed is None else deployed)


def fold_all(part: MaxMagnitude, updates: list[dict[str, LowRank]]) -> Past:
    past, ctx = Past(), SimpleNamespace()
    for number, update in enumerate(updates):
        folded = part.fold(ctx, past, update)  # pyright: ignore[reportArgumentType]
        total = add_updates(past.total, update)
        past = Past((*past.stages, str(number)), total, folded.carry, folded.deployed)
    return past


FORMS: list[dict[str, Any]] = [
    *[
        {"alpha": 20.0, "history": history, **form}
        for history in ("sum", "merged")
        for form in ({}, {"reading": "scalar"}, {"terms": "sign-only"})
    ],
    {"terms": "magnitude-only"},
]


@pytest.mark.parametrize("reduction", ["sum", "mean"])
@pytest.mark.parametrize("form", FORMS, ids=str)
def test_every_setting_equals_its_reference_engine(form: dict[str, Any], reduction: Any) -> None:
    past = past_of(update_of(random_factors(1)), update_of(random_factors(2)))
    tile = {} if form.get("terms") == "magnitude-only" else {"tile": 3}
    for number in (3, 4):  # twice: the second time from the cache
        factors = random_factors(number)
        fast = SignMagnitude(weight=1.0, reduction=reduction, **form, **tile)
        slow = SignMagnitude(weight=1.0, reduction=reduction, **form, engine="reference")
        got, got_grads = fast.values_and_grads(factors, past)
        want, want_grads = slow.values_and_grads(factors, past)
        torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-12)
        for module in factors:
            torch.testing.assert_close(got_grads[module], want_grads[module], rtol=1e-10, atol=1e-12)


def test_first_task_is_the_l2_penalty() -> None:
    factors = random_factors(0)
    got = SignMagnitude(weight=1.0).values_and_grads(factors, Past())
    want = SquaredNorm(weight=1.0).values_and_grads(factors, Past())
    torch.testing.assert_close(got, want, rtol=0, atol=0)


def test_history_by_hand() -> None:
    # one entry: W = 0.5, H = +-1, alpha 1000: agreement is +-1
    pair = Factors(torch.tensor([[1.0]]), torch.tensor([[0.25]]), 2.0)
    for sign, value, slope in ((1.0, 0.0, 0.0), (-1.0, 0.5, 2.0)):
        past = past_of({"q": torch.tensor([[sign]])})
        got, grad_A, grad_B = SignMagnitude(weight=1.0).value_and_grad("q", pair, past)
        assert got == value  # W^2 (1 - T S)
        assert float(grad_A) == 2 * 0.25 * slope  # s B^T G with G = 2 W (1 - T S)
        assert float(grad_B) == 2 * 1.0 * slope


def test_signs_follow_the_past_and_not_the_first_one_seen() -> None:
    part, pair = SignMagnitude(weight=1.0), Factors(torch.tensor([[1.0]]), torch.tensor([[0.25]]), 2.0)
    agreeing, opposing = (past_of({"q": torch.tensor([[sign]])}) for sign in (1.0, -1.0))
    values = [float(part.value_and_grad("q", pair, past)[0]) for past in (agreeing, opposing, agreeing, Past())]
    assert values == [0.0, 0.5, 0.0, 0.25]


def test_offset_start_costs_nothing() -> None:
    pair = random_factors(0)["q"]
    offset = Factors(pair.A, pair.B, pair.scaling, pair.A.clone(), pair.B.clone())
    past = past_of(update_of(random_factors(1)))
    value, grad_A, grad_B = SignMagnitude(weight=1.0).value_and_grad("q", offset, past)
    for result in (value, grad_A, grad_B):
        assert not result.any()


def test_bf16_factors_get_bf16_gradients_near_the_exact_ones() -> None:
    past = past_of(update_of(random_factors(1)))
    half = random_factors(2, torch.bfloat16)["q"]
    exact = Factors(half.A.double(), half.B.double(), half.scaling)
    got = SignMagnitude(weight=1.0, alpha=20.0).value_and_grad("q", half, past)
    want = SignMagnitude(weight=1.0, alpha=20.0).value_and_grad("q", exact, past)
    assert got[1].dtype == torch.bfloat16
    torch.testing.assert_close(got[0], want[0], rtol=1e-5, atol=0)
    torch.testing.assert_close(got[1].double(), want[1], rtol=1e-2, atol=1e-3)


def test_settings_are_checked() -> None:
    with pytest.raises(ValidationError):
        SignMagnitude(weight=1.0, alpha=0.0)
    with pytest.raises(ValidationError):
        SignMagnitude(weight=1.0, reading="entrywise")  # pyright: ignore[reportArgumentType]
    per_task: Any = SimpleNamespace(past=past_of({}, PerTask({})))
    with pytest.raises(ConfigError, match="merged"):
        SignMagnitude(weight=1.0, history="merged").before_task(per_task)


@pytest.mark.parametrize(
    "settings, reason",
    [
        *[
            ({"terms": "magnitude-only", **ignored}, f"terms magnitude-only does not read {next(iter(ignored))}")
            for ignored in ({"alpha": 2.0}, {"history": "merged"}, {"reading": "scalar"}, {"tile": 4})
        ],
        ({"terms": "sign-only", "reading": "scalar"}, "terms sign-only does not read reading .only both"),
        ({"engine": "reference", "tile": 4}, "engine reference does not read tile .only tiled and compiled"),
        (
            {"engine": "compiled", "reading": "scalar"},
            "engine compiled has a kernel for terms both and reading elementwise",
        ),
        ({"engine": "compiled", "terms": "sign-only"}, "engine compiled has a kernel"),
        ({"engine": "compiled", "terms": "magnitude-only"}, "engine compiled has a kernel"),
    ],
)
def test_a_setting_that_is_not_read_is_refused(settings: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValidationError, match=reason):
        SignMagnitude(weight=1.0, **settings)


def test_merging_online_and_at_the_end_deploy_the_same_and_carry_different() -> None:
    updates = [update_of(random_factors(seed)) for seed in range(4)]
    online, end = fold_all(MaxMagnitude(when="online"), updates), fold_all(MaxMagnitude(when="end"), updates)
    everything = torch.stack([dense(update["q"]) for update in updates])
    largest = everything.gather(0, everything.abs().argmax(0, keepdim=True))[0]
    for past in (online, end):
        assert not isinstance(past.deployed, PerTask)
        assert torch.equal(dense(past.deployed["q"]), largest)
    assert torch.equal(dense(online.carry["q"]), largest)
    torch.testing.assert_close(dense(end.carry["q"]), everything.sum(0))


def test_first_update_is_deployed_as_it_is() -> None:
    update = update_of(random_factors(0))
    past = fold_all(MaxMagnitude(), [update])
    assert not isinstance(past.deployed, PerTask)
    assert past.deployed["q"] is update["q"]
