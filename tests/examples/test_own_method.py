"""The example penalty is short, right, and keeps the contract."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from perdure.errors import ConfigError
from perdure.methods.contract.past import Past
from perdure.ops.factors import Factors
from perdure.ops.lowrank import LowRank, dense
from perdure.testing import check_part
from tests.contract.runs import short_run

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


@pytest.fixture(autouse=True)
def _importable(monkeypatch):
    monkeypatch.syspath_prepend(str(EXAMPLES))


def test_it_has_at_most_forty_lines():
    source = (EXAMPLES / "own_method.py").read_text()
    assert len(source.split("if __name__")[0].splitlines()) <= 40


def test_its_gradient_is_the_gradient_of_its_value():
    from own_method import SignAlignment  # pyright: ignore[reportMissingImports]

    generator = torch.Generator().manual_seed(0)
    A, B = (torch.randn(*s, generator=generator, dtype=torch.float64, requires_grad=True) for s in ((2, 5), (4, 2)))
    H = LowRank(*(torch.randn(*s, generator=generator, dtype=torch.float64) for s in ((3, 5), (4, 3))))
    past, part = Past(stages=("old",), total={"m": H}), SignAlignment(weight=1.0, sharpness=2.0)
    value, grad_A, grad_B = part.value_and_grad("m", Factors(A.detach(), B.detach(), 0.5), past)
    W = 0.5 * B @ A
    wanted = (dense(H).abs() * W.abs() * torch.sigmoid(-2.0 * W * dense(H).sign())).sum()
    wanted.backward()
    assert value.item() == pytest.approx(wanted.item())
    assert torch.allclose(grad_A, A.grad)
    assert torch.allclose(grad_B, B.grad)


def test_it_keeps_the_contract():
    check_part("own_method:SignAlignment")


@pytest.mark.parametrize(
    "kind,message",
    [("own_method:Missing", "importable module:Class"), ("no_such:Thing", "importable module:Class"),
     ("pathlib:Path", "subclass of Penalty")],
)  # fmt: skip
def test_what_is_no_penalty_is_refused(kind, message, tmp_path, small_tasks, encoder_folder):
    with pytest.raises(ConfigError, match=message):
        short_run(tmp_path / "run", small_tasks[:1], encoder_folder, {"penalties": {kind: {"weight": 1.0}}})
