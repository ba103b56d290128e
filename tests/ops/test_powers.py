"""perdure.ops.powers: by hand, and against a grid."""

import pytest
import torch

from perdure.ops.powers import fitted_powers


def test_fitted_powers_by_hand():
    """Odds of ln 3 that are right three times of four: at w = 1 their probability is 3/4, what they deserve."""
    odds_NL = torch.tensor([[1.0986122887, 0.0]] * 4, dtype=torch.float64)
    right_N = torch.tensor([0, 0, 0, 1])
    even = torch.full((4, 2), 0.5, dtype=torch.float64).log()
    assert fitted_powers(even, odds_NL, right_N)[1] == pytest.approx(1, abs=1e-6)
    assert fitted_powers(even, odds_NL, torch.tensor([0, 0, 0, 0]))[1] == 2
    assert fitted_powers(even, odds_NL, torch.tensor([0, 0, 1, 1]))[1] == 0
    assert fitted_powers(odds_NL, odds_NL.flip(1), right_N) == pytest.approx(
        (1, 0), abs=1e-6
    )  # the densities contradict
    sure = torch.tensor([[8.0, 0.0]] * 4, dtype=torch.float64).log_softmax(1)
    assert fitted_powers(sure, 0 * odds_NL, right_N)[0] == pytest.approx(
        1.0986122887 / 8, abs=1e-6
    )  # too sure of itself


def test_fitted_powers_are_the_best_of_a_grid():
    generator = torch.Generator().manual_seed(3)
    right_N = torch.randint(4, (60,), generator=generator)
    noisy = [torch.randn(60, 4, generator=generator).double() for _ in range(2)]
    log_p_NL, odds_NL = (rows + 1.5 * torch.nn.functional.one_hot(right_N, 4) for rows in noisy)
    log_p_NL = (2 * log_p_NL).log_softmax(1)

    def likelihood(a: float, w: float) -> float:
        return float((a * log_p_NL + w * odds_NL).log_softmax(1)[torch.arange(60), right_N].mean())

    grid = [(a / 50, w / 25) for a in range(51) for w in range(51)]
    assert likelihood(*fitted_powers(log_p_NL, odds_NL, right_N)) >= max(likelihood(*each) for each in grid)
