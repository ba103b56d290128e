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
    groups: dict[tuple[tuple[str, str], ...], list[int]] = {}
    asked = tuple((task, label) for task, own in labels.items() for label in own)
    for row, p in enumerate(predictions):
        if p.probabilities:
            groups.setdefault(p.options or asked, []).append(row)
    groups = {options: rows for options, rows in groups.items() if head and head.has_say(options)}
    spoken = [row for rows in groups.values() for row in rows]
    answers = list(predictions)
    if head is None or not spoken:
        return answers
    vectors = dict(zip(spoken, base_vectors(model, backbone, [examples[row] for row in spoken]), strict=True))
    for options, rows in groups.items():
        x_ND = torch.stack([vectors[row] for row in rows])
        p_NL = torch.tensor([predictions[row].probabilities for row in rows], dtype=torch.float64)
        for row, share in zip(rows, calls.combined(head, x_ND, p_NL, options).softmax(dim=1), strict=True):
            task, label = options[int(share.argmax())]
            shares = tuple(share.tolist())
            answers[row] = dataclasses.replace(predictions[row], label=label, task=task, probabilities=shares)
    return answers
