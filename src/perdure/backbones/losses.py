"""The loss of a batch: cross-entropy over classes or next tokens, with label smoothing and with weights of its terms.

    loss = sum_t w_t [ (1 - e) (-log p_t(target)) + e mean over answers of (-log p_t(answer)) ] / sum_t w_t

e is `Batch.smoothing`, w `Batch.weights`; the answers are an example's own classes, or the vocabulary. With one weight for
all terms it is torch's `cross_entropy(..., label_smoothing=e)`; without smoothing torch's with weights of classes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from perdure.backbones.base import Batch
from perdure.backbones.packing import Packed
from perdure.tasks.task import Example


def class_loss(score_NC: Tensor, batch: Batch) -> Tensor:
    """Loss of each example against its own task's classes; `batch.extra` has `class_targets`."""
    allowed_NC, target_N = batch.extra["allowed"], batch.extra["targets"]
    own_NC = score_NC.masked_fill(~allowed_NC, -torch.inf)
    if not batch.smoothing:
        return _mean(own_NC, target_N, batch)
    log_p_NC = own_NC.log_softmax(dim=1)
    spread_N = -log_p_NC.masked_fill(~allowed_NC, 0.0).sum(dim=1) / allowed_NC.sum(dim=1)
    right_N = functional.nll_loss(log_p_NC, target_N, reduction="none")
    return _weighed((1 - batch.smoothing) * right_N + batch.smoothing * spread_N, batch)


def token_loss(logits_TV: Tensor, target_T: Tensor, batch: Batch) -> Tensor:
    """Loss of the batch's target tokens, in the order of its rows (packed ones, where it has those)."""
    return _mean(logits_TV, target_T, batch, batch.smoothing)


def with_objective(batch: Batch, smoothing: float, weight_of: Callable[[Example], float] | None) -> Batch:
    """The batch with label smoothing, and with a weight for each example's terms."""
    if weight_of is None:
        return dataclasses.replace(batch, smoothing=smoothing) if smoothing else batch
    packed: Packed | None = batch.extra.get("packed")
    predicting = batch.extra.get("predicting")  # of a language model: where each example's target tokens are predicted
    device = next(iter(batch.inputs.values())).device
    weights = torch.tensor([weight_of(example) for example in batch.examples], device=device)
    if packed is not None:
        weights = weights[packed.learners()]
    elif predicting is not None:
        weights = weights.repeat_interleave(predicting.sum(dim=1))
    return dataclasses.replace(batch, smoothing=smoothing, weights=weights, count=float(weights.double().sum()))


def _mean(logits: Tensor, targets: Tensor, batch: Batch, smoothing: float = 0.0) -> Tensor:
    if batch.weights is None:
        return functional.cross_entropy(logits, targets, label_smoothing=smoothing)
    return _weighed(functional.cross_entropy(logits, targets, reduction="none", label_smoothing=smoothing), batch)


def _weighed(losses: Tensor, batch: Batch) -> Tensor:
    if batch.weights is None:
        return losses.mean()
    weights = batch.weights.to(losses.dtype)
    return (weights * losses).sum() / weights.sum()
