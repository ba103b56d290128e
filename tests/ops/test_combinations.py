"""Random combinations of scores: by hand, and their gradients' outer products in expectation."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from perdure.ops.combinations import ROWS, draw, drawn_tokens, signed_scores


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_tokens_are_drawn_from_the_softmax() -> None:
    """Logits 0 and log 3: a quarter and three quarters. 40,000 draws have a standard error of .0022."""
    drawn = draw(torch.tensor([[0.0, math.log(3.0)]]).expand(40_000, 2), seeded())
    assert abs(float(drawn.double().mean()) - 0.75) < 0.009


def test_a_token_without_probability_is_never_drawn() -> None:
    impossible = torch.tensor([[-math.inf, 0.0, -math.inf, 0.0, -math.inf]]).expand(5 * ROWS, 5)
    assert set(draw(impossible, seeded()).tolist()) == {1, 3}
    certain = torch.tensor([[-200.0, 100.0, -200.0]]).expand(ROWS + 1, 3)
    assert set(draw(certain, seeded()).tolist()) == {1}
    assert draw(torch.zeros(0, 5), seeded()).shape == (0,)


def test_a_draw_does_not_depend_on_what_is_drawn_beside() -> None:
    logits = torch.randn(ROWS + 7, 11, generator=seeded(1))
    whole = draw(logits, seeded())
    first, last = seeded(), seeded()
    assert torch.equal(whole[:100], draw(logits[:100], first))
    torch.rand(100, generator=last, dtype=torch.float64)
    assert torch.equal(whole[100:], draw(logits[100:], last))


def test_next_tokens_by_hand() -> None:
    """Certain tokens (100 and 0 against 0): log p is 0. Two even ones: log 1/2 each, over sqrt 2 for an answer of two."""
    even = torch.zeros(3, 2)
    found = drawn_tokens(even, torch.tensor([2, 0, 1]), seeded())
    torch.testing.assert_close(float(found), (2 / math.sqrt(2) + 1) * math.log(0.5), rtol=1e-6, atol=0.0)
    certain = torch.tensor([[100.0, 0.0], [0.0, 100.0]])
    assert float(drawn_tokens(certain, torch.tensor([1, 1]), seeded())) == 0.0


def gradients(logits_TV: Tensor, targets_N: Tensor, seed: int) -> Tensor:
    logits = logits_TV.clone().requires_grad_()
    return torch.autograd.grad(drawn_tokens(logits, targets_N, seeded(seed)), logits)[0]


def test_the_gradient_is_drawn_minus_probability() -> None:
    """d log p(y) / d logits = e_y - p, over the root of the answer's tokens; float64, row by row."""
    logits, targets = torch.randn(5, 4, generator=seeded(1), dtype=torch.float64), torch.tensor([3, 2])
    drawn, found = draw(logits, seeded(2)), gradients(logits, targets, 2)
    for row, share in enumerate((3, 3, 3, 2, 2)):
        wanted = -logits[row].softmax(dim=0)
        wanted[drawn[row]] += 1
        torch.testing.assert_close(found[row], wanted / math.sqrt(share), rtol=1e-10, atol=1e-12)


def test_the_outer_product_is_the_fisher_matrix_on_average() -> None:
    """diag p - p p^T, of 20,000 independent draws: every entry within 5 standard errors (at most .5 / sqrt 20,000)."""
    row = torch.tensor([0.0, 1.0, -1.0, 2.0], dtype=torch.float64)
    g = gradients(row.expand(20_000, 4), torch.ones(20_000, dtype=torch.long), 3)
    p = row.softmax(dim=0)
    assert float((g.mT @ g / 20_000 - (p.diag() - p.outer(p))).abs().max()) < 5 * 0.5 / math.sqrt(20_000)


def test_labels_by_hand() -> None:
    """Two labels: equal signs give 0; opposite ones their difference over sqrt 2."""
    score = torch.tensor([[3.0, 1.0]], dtype=torch.float64)
    found = {round(float(signed_scores(score, seeded(seed))), 6) for seed in range(20)}
    assert found == {0.0, round(2 / math.sqrt(2), 6), round(-2 / math.sqrt(2), 6)}
