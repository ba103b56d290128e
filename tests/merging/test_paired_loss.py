"""Losses over pairs, and their bound against exact ones."""

import math
import random

import pytest
from scipy.stats import beta

from perdure.merging.paired_loss import PairedLoss


def test_by_hand():
    loss = PairedLoss.of([1, 1, 0, 1], [1, 0, 1, 0])  # losses 0, 1, -1, 1
    assert (loss.mean, loss.examples) == (0.25, 4)
    assert loss.deviation == pytest.approx(math.sqrt(3 / 4 - 1 / 16))
    assert loss.standard_error == pytest.approx(loss.deviation / 2)
    assert loss.bound(None) == 0.25
    # with one more lost: 0, 1, -1, 1, 1: mean 0.4, variance 0.8 - 0.16
    assert loss.bound(0.5) == pytest.approx(0.4)
    assert loss.bound(0.95) == pytest.approx(0.4 + 1.6449 * math.sqrt(0.64 / 5), abs=1e-4)


@pytest.mark.parametrize("examples", [50, 256, 1000])
@pytest.mark.parametrize("lost", [0, 1, 5, 20])
def test_near_the_exact_bound_where_examples_can_only_be_lost(examples, lost):
    exact = beta.ppf(0.95, lost + 1, examples - lost)  # Clopper and Pearson
    found = PairedLoss.of([1.0] * examples, [0.0] * lost + [1.0] * (examples - lost)).bound(0.95)
    assert 0.8 * exact <= found <= exact


def test_the_bound_covers_as_often_as_it_says():
    """1000 samples of 300 examples of which 6 % are lost and 4 % gained: the true loss of 2 % is exceeded in about 95 %."""
    draw = random.Random(0)
    covered = 0
    for _ in range(1000):
        losses = draw.choices([1, -1, 0], weights=[6, 4, 90], k=300)
        covered += PairedLoss.of(losses, [0] * 300).bound(0.95) >= 0.02
    assert 0.93 <= covered / 1000 <= 0.98


def test_examples_needed_are_the_fewest_that_hold():
    for loss in (
        PairedLoss.of([1.0] * 90, [0.0] * 1 + [1.0] * 89),
        PairedLoss(-0.01, 0.3, 40),
        PairedLoss(0.019, 0.1, 9),
    ):
        needed = loss.needed(0.02, 0.95)
        assert needed is not None
        assert loss.bound(0.95, needed) <= 0.02 < loss.bound(0.95, needed - 1)
    stated = {
        (0.01, 0.0): 260,
        (0.02, 0.0): 130,
        (0.02, 0.1): 800,
    }  # docs/merging.md: tolerance, share of answers changed
    for (tolerance, changed), examples in stated.items():
        assert PairedLoss(0, math.sqrt(changed), 1).needed(tolerance, 0.95) == pytest.approx(examples, rel=0.03)
    assert PairedLoss(0.02, 0.1, 9).needed(0.02, 0.95) is None, "no number shows what is not so"
    assert PairedLoss(0.01, 0.1, 9).needed(0.02, None) == 1
