"""SLAO: the QR start and the slowing merge by hand; one pair of factors however many tasks."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from perdure.errors import ConfigError
from perdure.methods.contract.parts import Method
from perdure.methods.contract.past import Past, PerTask
from perdure.methods.plain import Kaiming
from perdure.methods.slao import SlaoMerge, SlaoStart, orthonormal_rows
from perdure.ops.factors import Factors
from perdure.ops.lowrank import LowRank
from tests.methods.two_layers import context, learn_toy, toy_tasks

ANY: Any = None


def test_orthonormal_rows_by_hand() -> None:
    """Gram-Schmidt on (3, 4) and (0, 5): first (.6, .8); 5 e2 minus its part along it, normalised: (-.8, .6)."""
    assert torch.allclose(
        orthonormal_rows(torch.tensor([[3.0, 4.0], [0.0, 5.0]])), torch.tensor([[0.6, 0.8], [-0.8, 0.6]])
    )


def test_orthonormal_rows_span_the_same_and_stay_where_they_were() -> None:
    torch.manual_seed(0)
    A = torch.randn(4, 9)
    Q = orthonormal_rows(A)
    assert torch.allclose(Q @ Q.mT, torch.eye(4), atol=1e-6)
    assert torch.allclose(A @ Q.mT @ Q, A, atol=1e-5)
    assert ((Q * A).sum(dim=1) > 0).all()
    assert torch.allclose(orthonormal_rows(Q), Q, atol=1e-6)  # a second time changes nothing


def test_start_goes_on_from_the_last_factors() -> None:
    first = SlaoStart().start(context())
    assert torch.equal(first.factors["first"].A, Kaiming().start(context()).factors["first"].A)
    last = {m: Factors(torch.randn(f.A.shape), torch.randn(f.B.shape), f.scaling) for m, f in first.factors.items()}
    second = SlaoStart().start(context(1, Past(("task0",), factors=last)))
    for module, pair in second.factors.items():
        assert torch.equal(pair.A, orthonormal_rows(last[module].A))
        assert torch.equal(pair.B, last[module].B)
        assert pair.B.data_ptr() != last[module].B.data_ptr()
        assert pair.A0 is None


def test_merge_by_hand() -> None:
    """B: 1, then 1 + (3 - 1)/sqrt 2, then + (2 - that)/sqrt 3; A: always the newest."""
    part, past = SlaoMerge(), Past()
    expected = 0.0
    for t, (a, b) in enumerate([(1.0, 1.0), (5.0, 3.0), (7.0, 2.0)], start=1):
        folded = part.fold(ANY, past, {"m": LowRank(torch.tensor([[a]]), torch.tensor([[b]]))})
        merged = folded.deployed["m"]  # type: ignore[index]
        expected = b if t == 1 else expected + (b - expected) / math.sqrt(t)
        assert merged.A.item() == a
        assert merged.B.item() == pytest.approx(expected)
        assert folded.carry == {}
        past = Past(tuple("abc"[:t]), deployed=folded.deployed)


def test_memory_does_not_grow(tmp_path: Path) -> None:
    past = learn_toy(Method("slao", SlaoStart(), SlaoMerge()), tmp_path, toy_tasks(3))
    assert not isinstance(past.deployed, PerTask)
    assert [delta.rank for delta in past.deployed.values()] == [2, 2]  # type: ignore[union-attr]


def test_other_forms_are_refused() -> None:
    update = {"m": LowRank(torch.ones(2, 3), torch.ones(3, 2))}
    with pytest.raises(ConfigError, match="another form"):
        SlaoMerge().fold(ANY, Past(("a",), deployed={"m": torch.ones(3, 3)}), update)
    with pytest.raises(ConfigError, match="another form"):
        SlaoMerge().fold(ANY, Past(("a",), deployed={"m": LowRank(torch.ones(1, 3), torch.ones(3, 1))}), update)
    with pytest.raises(ConfigError, match="one update per task"):
        SlaoMerge().fold(ANY, Past(("a",), deployed=PerTask({})), update)
