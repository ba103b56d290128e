"""Answers in bf16 whose two best labels lie closer than bf16 rounds: decided in fp32.

Rounding depends on what else is in a batch and on how labels are ranked, so without this the same text could be answered
otherwise alone. Weights stored in bf16 have no fp32 to ask; their near ties stay.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from perdure.backbones.base import Backbone, Prediction
from perdure.backbones.ranking import NOISE, model_dtype
from perdure.tasks.task import Example


def settled(
    backbone: Backbone, examples: Sequence[Example], labels: Sequence[str], predictions: Sequence[Prediction]
) -> list[Prediction]:
    """The predictions, those that are near ties in bf16 asked again in fp32."""
    answers = list(predictions)
    if backbone.precision != "bf16" or model_dtype(backbone.model) != torch.float32:
        return answers
    near = [i for i, prediction in enumerate(answers) if near_tie(prediction)]
    if not near:
        return answers
    backbone.precision = "fp32"
    try:
        for i, answer in zip(near, backbone.predict([examples[i] for i in near], labels), strict=True):
            answers[i] = answer
    finally:
        backbone.precision = "bf16"
    return answers


def near_tie(prediction: Prediction) -> bool:
    """Whether two ways of computing in bf16 can exchange the two most probable labels.

    Each way moves each log p by NOISE (1 + |log p|) from the exact one, so their difference by twice the sum of both.
    """
    if len(prediction.probabilities) < 2:
        return False
    logs = [math.log(p) if p > 0 else -math.inf for p in sorted(prediction.probabilities)[-2:]]
    second, best = logs
    return best - second < 2 * NOISE[torch.bfloat16] * (2 + abs(best) + abs(second))
