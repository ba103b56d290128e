"""Random combinations of scores: one backward pass each, and in expectation the Gauss-Newton matrix of all scores.

Legend: N examples, L labels, T target tokens of all examples, V vocabulary. J the derivative of an example's scores.

    labels       sum_l e_l (s_l - mean s) / sqrt(L),  e_l = +-1         E g g^T = 1/L sum_l J_l^T J_l, s centred
    next tokens  1/sqrt(T_n) sum_{i of n} log p_i(y_i),  y_i ~ p_i      E g g^T = 1/T_n sum_i J_i^T (diag p_i - p_i p_i^T) J_i

The second is the Fisher matrix of the model itself at given texts (Martens, arXiv 1412.1193, section 5): tokens are drawn from
the model's own softmax, so no answer has to be right, and the draws of different positions do not mix in expectation.
"""

from __future__ import annotations

import torch
from torch import Tensor

ROWS = 256
"""Rows of a softmax that are summed up in float64 at a time."""


def signed_scores(score_NL: Tensor, generator: torch.Generator) -> Tensor:
    """The combination of labels' scores, summed over examples; a scalar."""
    sign_NL = torch.randint(2, score_NL.shape, generator=generator).to(score_NL) * 2 - 1
    centred = sign_NL - sign_NL.mean(dim=1, keepdim=True)
    return (score_NL * centred).sum() / score_NL.shape[1] ** 0.5


def drawn_tokens(logits_TV: Tensor, targets_N: Tensor, generator: torch.Generator) -> Tensor:
    """The combination of next tokens' scores, summed over examples, which have `targets_N` rows each, in order; a scalar."""
    targets_N = targets_N.to(logits_TV.device)
    share_T = targets_N.clamp(min=1).to(logits_TV.dtype).rsqrt().repeat_interleave(targets_N)
    tokens_T = draw(logits_TV.detach(), generator)
    log_p_T = logits_TV.gather(1, tokens_T[:, None]).squeeze(1) - logits_TV.logsumexp(dim=1)
    return (log_p_T * share_T).sum()


def draw(logits_TV: Tensor, generator: torch.Generator) -> Tensor:
    """A token for each row from its softmax, [T], by a CPU generator whatever the device."""
    uniform_T = torch.rand(len(logits_TV), generator=generator, dtype=torch.float64).to(logits_TV.device)
    drawn = []
    for logits, uniform in zip(logits_TV.split(ROWS), uniform_T.split(ROWS), strict=True):
        upto = logits.double().softmax(dim=1).cumsum(dim=1)
        # strictly below the sum and to the right of equals: a token of probability 0 is never drawn
        place = uniform[:, None] * (upto[:, -1:] * (1 - 1e-12))
        drawn.append(torch.searchsorted(upto, place, right=True).squeeze(1))
    return torch.cat(drawn) if drawn else torch.zeros(0, dtype=torch.long, device=logits_TV.device)
