"""bf16 products by fp32 kernels are torch's own bf16 products, up to the order of sums."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from perdure.backbones import rounded
from perdure.backbones.device import autocast
from perdure.backbones.rounded import RoundedProducts, rounded_autocast

ULP = 2**-8  # of bf16, relative


def both(function, *tensors):
    """The function's result and its gradients under torch's autocast, and with rounded operands."""
    found = []
    for context in (torch.autocast("cpu", torch.bfloat16), rounded_autocast()):
        leaves = [tensor.clone().requires_grad_() for tensor in tensors]
        with context:
            result = function(*leaves)
        result.float().square().sum().backward()
        found.append((result, *(leaf.grad for leaf in leaves)))
    return found


@pytest.mark.parametrize(
    ("function", "shapes"),
    [
        (functional.linear, [(5, 7, 16), (12, 16), (12,)]),
        (torch.matmul, [(2, 3, 4, 8), (2, 3, 8, 4)]),
        (lambda x, y: x @ y, [(6, 8), (8, 3)]),
        (torch.bmm, [(2, 4, 8), (2, 8, 5)]),
        (torch.addmm, [(4,), (3, 8), (8, 4)]),
        (functional.conv2d, [(2, 3, 8, 8), (4, 3, 2, 2), (4,)]),
        (lambda x, w: functional.linear(functional.linear(x, w), w), [(5, 8), (8, 8)]),  # bf16 goes into the second
    ],
)
def test_products_and_gradients_are_those_of_bf16(function, shapes):
    generator = torch.Generator().manual_seed(0)
    own, ours = both(function, *(torch.randn(shape, generator=generator) for shape in shapes))
    assert ours[0].dtype == own[0].dtype == torch.bfloat16
    for a, b in zip(own, ours, strict=True):
        assert a.dtype == b.dtype
        torch.testing.assert_close(a.float(), b.float(), rtol=2 * ULP, atol=2 * ULP * a.float().abs().max().item())


def test_by_hand_operands_lose_what_bf16_cannot_hold():
    x, w = torch.tensor([[1.0 + 2**-10, 1.0]]), torch.tensor([[1.0, 1.0 + 2**-6]])
    with rounded_autocast():
        y = functional.linear(x, w)  # 1 * 1 + 1 * (1 + 2^-6) = 2 + 2^-6, which bf16 holds
    assert y.item() == 2 + 2**-6
    with rounded_autocast():
        y = functional.linear(
            x, torch.tensor([[1.0, 1.0 + 2**-7]])
        )  # 2 + 2^-7 lies between two of its numbers: to even
    assert y.item() == 2.0


def test_attention_is_close_and_takes_a_mask():
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, 2, 6, 8, generator=generator) for _ in range(3))
    mask = torch.zeros(1, 1, 6, 6).masked_fill(torch.ones(6, 6).triu(1).bool(), -torch.inf)
    for given in (mask, mask == 0):
        own, ours = both(
            lambda q, k, v, m=given: functional.scaled_dot_product_attention(q, k, v, attn_mask=m), q, k, v
        )
        torch.testing.assert_close(own[0].float(), ours[0].float(), rtol=4 * ULP, atol=4 * ULP)


def test_what_autocast_leaves_alone_stays():
    x = torch.randn(3, 4, dtype=torch.float64)
    with rounded_autocast():
        with torch.autocast("cpu", enabled=False):
            assert functional.linear(torch.ones(1, 2), torch.ones(1, 2)).dtype == torch.float32
        assert (torch.ones(2) + 2**-10).dtype == torch.float32
        assert torch.equal(x @ x.T, x.mm(x.T)), "float64 is nothing autocast touches"
        assert (x @ x.T).dtype == torch.float64
    with RoundedProducts():
        assert functional.linear(torch.ones(1, 2), torch.ones(1, 2)).dtype == torch.float32


def test_a_torch_without_onednn_has_no_fast_bf16(monkeypatch):
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    monkeypatch.setattr(torch.ops, "mkldnn", None)
    assert rounded.has_fast_bf16.__wrapped__() is False


@pytest.mark.parametrize(("fast", "expected"), [(True, False), (False, True)])
def test_the_faster_way_is_taken(monkeypatch, fast, expected):
    used = []
    monkeypatch.setattr(rounded, "has_fast_bf16", lambda: fast)
    monkeypatch.setattr(rounded, "_rounded", lambda tensor: used.append(tensor) or tensor)
    with autocast(nn.Linear(2, 2), "bf16"):
        assert functional.linear(torch.ones(1, 2), torch.ones(1, 2)).dtype == torch.bfloat16
    assert bool(used) == expected
