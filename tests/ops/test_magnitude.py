"""The threshold of the largest share of entries: by hand, and equal to sorting everything."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from perdure.ops import magnitude
from perdure.ops.lowrank import LowRank, dense
from perdure.ops.magnitude import magnitude_threshold


def test_by_hand():
    delta = torch.tensor([[1.0, -5.0, 2.0], [4.0, 0.0, -3.0]])
    assert magnitude_threshold([delta], 0.5) == 3
    assert magnitude_threshold([delta], 0.2) == 5
    assert magnitude_threshold([delta], 0.01) == 5, "at least one entry stays"
    assert magnitude_threshold([delta], 1.0) == 0


def test_over_several_modules_together():
    small, large = torch.tensor([[1.0, 2.0]]), torch.tensor([[10.0], [20.0]])
    assert magnitude_threshold([small, large], 0.5) == 10
    assert magnitude_threshold([], 0.5) == 0


@pytest.mark.parametrize("density", [0, -0.1, 1.1])
def test_refuses_a_density_that_is_no_share(density):
    with pytest.raises(ValueError, match=r"\(0, 1\]"):
        magnitude_threshold([torch.ones(2, 2)], density)


@settings(max_examples=30, deadline=None)
@given(density=st.floats(0.001, 1), seed=st.integers(0, 99), low_rank=st.booleans())
def test_equals_sorting_everything_also_when_sampled(density, seed, low_rank):
    generator = torch.Generator().manual_seed(seed)
    deltas = [
        LowRank(torch.randn(3, 40, generator=generator), torch.randn(90, 3, generator=generator) * scale)
        for scale in (0.1, 1, 5)
    ]
    everything = torch.cat([dense(delta).abs().view(-1) for delta in deltas]).sort(descending=True).values
    expected = everything[max(1, int(density * everything.numel())) - 1] if density < 1 else torch.tensor(0.0)
    kept, magnitude.SAMPLE = magnitude.SAMPLE, 200
    try:
        found = magnitude_threshold(deltas if low_rank else [dense(delta) for delta in deltas], density)
    finally:
        magnitude.SAMPLE = kept
    assert found == pytest.approx(expected.item(), rel=1e-5)


def test_a_bracket_that_misses_is_widened(monkeypatch):
    brackets = iter([(100.0, 200.0), (-1.0, float("inf"))])
    monkeypatch.setattr(magnitude, "_bracket", lambda *_: next(brackets))
    assert magnitude_threshold([torch.tensor([[1.0, 2.0, 3.0, 4.0]])], 0.5) == 3


def test_a_mass_of_equal_entries_is_counted_and_not_collected(monkeypatch):
    monkeypatch.setattr(magnitude, "SAMPLE", 200)
    sparse = torch.zeros(100, 100)
    sparse[:5] = 1 + torch.arange(500.0).view(5, 100)
    assert magnitude_threshold([sparse], 0.2) == 0
    above, inside = magnitude._count_and_collect([sparse], 0.0, 600.0)
    assert (above, inside.numel(), magnitude._count_at([sparse], 0.0)) == (0, 500, 9500)
