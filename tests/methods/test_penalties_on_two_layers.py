"""Whole runs on the two-layer net: every penalty and consolidation, killed and resumed, ends in the same bits."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from perdure.methods.contract.parts import Consolidate, Method, WeightPenalty
from perdure.methods.contract.past import Past, PerTask
from perdure.methods.covariance_gain import CovarianceGain
from perdure.methods.ella import PastEnergy
from perdure.methods.ewc import FisherPenalty
from perdure.methods.l2 import SquaredNorm
from perdure.methods.merge_rules import Average, Dare, MagMax, Ties
from perdure.methods.n_lora import ProximalRows, Sparsity
from perdure.methods.o_lora import FactorNorm, InputOverlap
from perdure.methods.output_drift import OutputDrift
from perdure.methods.plain import Continue, Kaiming, Latest, Sum
from perdure.methods.ps_lora import MaxMagnitude, SignMagnitude
from perdure.ops.lowrank import dense
from tests.methods.two_layers import RESUMED, killed_and_resumed, learn_toy, toy_tasks


def penalised(*penalties: WeightPenalty, consolidate: Consolidate | None = None) -> Method:
    return Method("custom", Kaiming(), consolidate or Sum(), {str(i): part for i, part in enumerate(penalties)})


METHODS: dict[str, Callable[[], Method]] = {
    "l2": lambda: penalised(SquaredNorm(weight=0.1)),
    "seq-lora": lambda: Method("seq-lora", Continue(), Latest()),
    "ps-lora-end": lambda: penalised(SignMagnitude(gradient_share=0.5), consolidate=MaxMagnitude(when="end")),
    "ps-lora-scalar": lambda: penalised(SignMagnitude(weight=0.1, reading="scalar", history="merged")),
    "o-lora": lambda: penalised(InputOverlap(weight=0.5)),
    "o-lora-released": lambda: penalised(InputOverlap(weight=0.5, form="absolute"), FactorNorm(weight=0.1)),
    "n-lora": lambda: penalised(Sparsity(gradient_share=0.5)),
    "n-lora-proximal": lambda: Method("n-lora", Kaiming(), Sum(), step_rule=ProximalRows(sparsity=0.3)),
    "o-lora+n-lora": lambda: penalised(InputOverlap(weight=0.5), Sparsity(weight=0.01)),
    "ella": lambda: penalised(PastEnergy(weight=1.0)),
    "ewc": lambda: penalised(FisherPenalty(weight=100.0, examples=16)),
    "output-drift": lambda: penalised(OutputDrift(weight=1.0)),
    "average": lambda: penalised(consolidate=Average()),
    "ties": lambda: penalised(consolidate=Ties()),
    "dare": lambda: penalised(consolidate=Dare()),
    "magmax": lambda: penalised(consolidate=MagMax()),
    "covariance-gain": lambda: penalised(consolidate=CovarianceGain()),
}


def bits(past: Past) -> list[torch.Tensor]:
    assert not isinstance(past.deployed, PerTask)
    assert len(past.deployed) == 2
    factors = [tensor for pair in past.factors.values() for tensor in (pair.A, pair.B)]
    return [dense(delta) for delta in past.deployed.values()] + factors


@RESUMED
@pytest.mark.parametrize("name", METHODS)
def test_killed_and_resumed_gives_the_same_bits(name: str, minutes: float | None, tmp_path: Path) -> None:
    whole = learn_toy(METHODS[name](), tmp_path / "whole", toy_tasks())
    killed_and_resumed(METHODS[name], tmp_path / "killed", toy_tasks(), minutes)
    resumed = learn_toy(METHODS[name](), tmp_path / "killed", toy_tasks())
    assert all(torch.equal(one, other) for one, other in zip(bits(whole), bits(resumed), strict=True))
    assert max(float(tensor.abs().max()) for tensor in bits(whole)[:2]) > 1e-3


@pytest.mark.parametrize("name", ["sign-magnitude", "o-lora", "ella", "ewc", "output-drift"])
def test_it_changes_the_second_task_and_not_the_first_where_it_has_no_past(name: str, tmp_path: Path) -> None:
    strong = {
        "sign-magnitude": SignMagnitude(weight=1.0),
        "o-lora": InputOverlap(weight=1.0),
        "ella": PastEnergy(weight=100.0),
        "ewc": FisherPenalty(weight=1000.0, examples=16),
        "output-drift": OutputDrift(weight=10.0),
    }[name]
    plain = [learn_toy(penalised(), tmp_path / f"plain{n}", toy_tasks(n)) for n in (1, 2)]
    held = learn_toy(penalised(strong), tmp_path / "held", toy_tasks(2))
    first = held.updates()[0]
    changed = any(not torch.equal(dense(first[m]), dense(plain[0].total[m])) for m in first)
    assert changed == (name == "sign-magnitude")  # which is L2 on the first task
    assert any(not torch.equal(held.factors[m].B, plain[1].factors[m].B) for m in held.factors)
