"""A method's head beside its adapter: vectors of the untouched base, and answers that both have given."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from perdure.backbones.base import Backbone, Prediction
from perdure.errors import TrainingError
from perdure.methods.contract import calls
from perdure.methods.contract.parts import Head
from perdure.tasks.task import Example
from perdure.training.lora import AdaptedModel


def base_vectors(model: AdaptedModel, backbone: Backbone, examples: Sequence[Example]) -> Tensor:
    """One vector for each example's input [N, D] fp32 on the CPU, by the pretrained weights."""
    with model.deployed({}):
        x_ND = backbone.vectors(examples).float().cpu()
    if not torch.isfinite(x_ND).all():
        raise TrainingError(
            f"Task '{examples[0].task}': the pretrained model's vectors are not finite numbers: no head can be learnt from them. "
            "Load the base in bf16 or fp32, or leave the head out (method.head=null)."
        )
    return x_ND


def with_head(
    head: Head | None,
    model: AdaptedModel,
    backbone: Backbone,
    examples: Sequence[Example],
    predictions: Sequence[Prediction],
    labels: Mapping[str, Sequence[str]],
) -> list[Prediction]:
    """The answers of adapter and head together; those of the adapter where it did not choose among labels.

    Args:
        labels: task -> its labels in order, for the tasks whose labels were asked for.
    """
    asked = [(task, label) for task, own in labels.items() for label in own]
    rows = [row for row, p in enumerate(predictions) if p.probabilities]
    answers = list(predictions)
    if head is None or not rows:
        return answers
    x_ND = base_vectors(model, backbone, [examples[row] for row in rows])
    groups: dict[tuple[tuple[str, str], ...], list[int]] = {}
    for i, row in enumerate(rows):
        groups.setdefault(predictions[row].options or tuple(asked), []).append(i)
    for options, places in groups.items():
        p_NL = torch.tensor([predictions[rows[place]].probabilities for place in places], dtype=torch.float64)
        for place, share in zip(places, calls.with_head(head, x_ND[places], p_NL, options).softmax(dim=1), strict=True):
            task, label = options[int(share.argmax())]
            answers[rows[place]] = dataclasses.replace(
                predictions[rows[place]], label=label, task=task, probabilities=tuple(share.tolist())
            )
    return answers
