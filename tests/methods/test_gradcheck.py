"""Weight penalties, in all their forms: their gradients are those of their values (gradcheck, float64), and memory survives.

That every penalty of the table has the gradient of its value as it is usually set, tests/test_testing.py says.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from perdure.methods.contract.parts import WeightPenalty
from perdure.methods.contract.past import Past
from perdure.methods.ella import PastEnergy
from perdure.methods.ewc import FisherPenalty
from perdure.methods.l2 import SquaredNorm
from perdure.methods.n_lora import Sparsity
from perdure.methods.o_lora import FactorNorm, InputOverlap
from perdure.methods.output_drift import OutputDrift
from perdure.methods.ps_lora import SignMagnitude
from perdure.methods.score_drift import ScoreDrift
from perdure.ops.factors import Factors

O, I, R = 5, 5, 2  # noqa: E741  square, for the form that needs it
GENERATOR = torch.Generator().manual_seed(0)


def drawn(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=GENERATOR, dtype=torch.float64)


def psd(size: int) -> Tensor:
    root = drawn(size, size)
    return root @ root.mT


PAST = Past(stages=("one",), total={"m": 0.3 * drawn(O, I)}, deployed={"m": 0.3 * drawn(O, I)})
FISHER, OLD_A, MOMENT, METRIC = drawn(O, I).square(), drawn(3 * R, I), psd(I), psd(O)
PENALTIES: dict[str, Callable[[], WeightPenalty]] = {
    "l2": lambda: SquaredNorm(weight=1.0),
    "l2 mean": lambda: SquaredNorm(weight=1.0, reduction="mean"),
    **{
        f"sign-magnitude {reading} {terms} {history}": lambda reading=reading, terms=terms, history=history: SignMagnitude(
            weight=1.0, alpha=2.0, reading=reading, terms=terms, history=history
        )
        for reading, terms in (("elementwise", "both"), ("scalar", "both"), ("elementwise", "sign-only"))
        for history in ("sum", "merged")
    },
    "sign-magnitude magnitude-only": lambda: SignMagnitude(weight=1.0, terms="magnitude-only"),
    "sparsity": lambda: Sparsity(weight=1.0),
    "sparsity factors": lambda: Sparsity(weight=1.0, target="factors"),
    "sparsity released-code": lambda: Sparsity(weight=1.0, target="released-code", reduction="mean"),
    "overlap square": lambda: InputOverlap(weight=1.0),
    "overlap absolute": lambda: InputOverlap(weight=1.0, form="absolute"),
    "factor-norm": lambda: FactorNorm(weight=1.0),
    "past-energy": lambda: PastEnergy(weight=1.0),
    "past-energy merged mean": lambda: PastEnergy(weight=1.0, history="merged", reduction="mean"),
    "fisher": lambda: FisherPenalty(weight=1.0),
    "output-drift": lambda: OutputDrift(weight=1.0),
    "output-drift plain": lambda: OutputDrift(weight=1.0, normalised=False),
    "score-drift": lambda: ScoreDrift(weight=1.0),
}  # fmt: skip
MEMORY = {
    FisherPenalty: {"m": FISHER},
    InputOverlap: {"m": OLD_A},
    ScoreDrift: {
        f"{name}.{use}.m": matrix for use in (0, 1) for name, matrix in (("inputs", MOMENT), ("outputs", METRIC))
    },
    OutputDrift: {"moment.m": MOMENT, "energy.m": torch.tensor(3.0, dtype=torch.float64)},
}
FACTORS_ONLY = ("sparsity factors", "sparsity released-code")


def with_a_past(name: str) -> WeightPenalty:
    part = PENALTIES[name]()
    part.load(MEMORY.get(type(part), {}))
    return part


def pair(offset: bool) -> Factors:
    A, B = drawn(R, I), drawn(O, R)
    return Factors(A, B, 0.5, drawn(R, I), drawn(O, R)) if offset else Factors(A, B, 0.5)


@pytest.mark.parametrize("offset", [False, True], ids=["plain", "offset"])
@pytest.mark.parametrize("name", PENALTIES)
def test_gradients_pass_gradcheck(name: str, offset: bool) -> None:
    if offset and name in FACTORS_ONLY:
        pytest.skip("refused with an offset (tests/methods/test_n_lora.py)")
    part, like = with_a_past(name), pair(offset)

    class Value(torch.autograd.Function):
        @staticmethod
        def forward(ctx, A, B):
            factors = Factors(A, B, like.scaling, like.A0, like.B0)
            value, grad_A, grad_B = part.value_and_grad("m", factors, PAST)
            ctx.save_for_backward(grad_A, grad_B)
            return value.clone()

        @staticmethod
        def backward(ctx, grad):  # type: ignore[override]
            grad_A, grad_B = ctx.saved_tensors
            return grad * grad_A, grad * grad_B

    A, B = like.A.requires_grad_(), like.B.requires_grad_()
    assert Value.apply(A, B).dtype == torch.float64
    assert torch.autograd.gradcheck(Value.apply, (A, B), eps=1e-7, atol=1e-6)


@pytest.mark.parametrize("name", PENALTIES)
def test_memory_survives(name: str) -> None:
    part, again, factors = with_a_past(name), PENALTIES[name](), pair(False)
    again.load({key: tensor.clone() for key, tensor in part.state().items()})
    for one, other in zip(
        part.value_and_grad("m", factors, PAST), again.value_and_grad("m", factors, PAST), strict=True
    ):
        assert torch.equal(one, other)
    fresh = PENALTIES[name]().value_and_grad("m", factors, PAST)[0]
    assert (float(fresh) == 0) == (type(part) in MEMORY)  # without its memory, what needs one has nothing to say
