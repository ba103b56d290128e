"""A vision transformer as a learner, without a head: an image is matched to its classes' mean features.

Legend: N images, C classes, D features.

    score(class c | image x) = cos(f(x) - m, m_c - m) / temperature,   m_c the class's mean feature, m the mean of all m_c

Training moves f towards the means of the PRETRAINED features, which never change: tasks learnt at any time share one
frame. Prediction uses the means of the features of the model AS DEPLOYED, measured anew on each task's first training
images. That needs those images at evaluation; `classifier="linear"` does not: a ridge regression on the pretrained
features is kept as the head and used in both places.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional
from transformers import AutoModel, PreTrainedModel

from perdure.backbones.base import Batch, Outputs, Prediction
from perdure.backbones.device import autocast, model_device
from perdure.backbones.images import pixels
from perdure.backbones.pretrained import ModelSettings, answering, load_image_processor, load_model, query_value_targets
from perdure.errors import ConfigError, DataError
from perdure.tasks.task import Example, Task, without_labels

Class = tuple[str, str]
"""A class is a task's name and a label of it."""

HEADS = 64  # kept: mixed batches (joint training, replay) hold many different sets of tasks
RIDGE = 1.0  # of the mean variance of the features


class VisionSettings(ModelSettings):
    """How a vision transformer sees and answers; see `ModelSettings` for the rest."""

    kind: Literal["vision"] = "vision"
    model: str = "dinov2-small"
    image_size: int | None = Field(default=None, ge=1)
    """images are resized to this many pixels a side; None = as the model's image processor does."""
    pooling: Literal["cls", "mean"] = "cls"
    """an image's feature is the class token's, or the mean over the patches' (of a model without a class token, such
    as Swin, only that)."""
    classifier: Literal["class-mean", "linear"] = "class-mean"
    """'class-mean' needs each task's training images when answering; 'linear' keeps a head instead."""
    images_per_class: int = Field(default=32, ge=1)
    """how many training images of a class its mean (or the head) is measured on, the first ones."""
    temperature: float = Field(default=0.1, gt=0)
    """cosines (or the head's outputs) are divided by it before the softmax."""


@dataclass(frozen=True, eq=False)
class Classifier:
    """What turns features into scores: `weight` [D, C] of unit columns for class means, and the `centre` [D]."""

    classes: tuple[Class, ...]
    centre: Tensor
    weight: Tensor
    cosine: bool

    def scores(self, feature_ND: Tensor, temperature: float) -> Tensor:
        """[N, C]."""
        centred = feature_ND - self.centre
        return (functional.normalize(centred, dim=1) if self.cosine else centred) @ self.weight / temperature


class Vision:
    """ViT or DINOv2 behind the `Backbone` protocol; an example's text is an image's path or data URI. Use `Vision.load`."""

    answers_from_examples = True

    def __init__(self, model: PreTrainedModel, processor: Any, settings: VisionSettings) -> None:
        takes = inspect.signature(model.forward).parameters
        if "input_ids" in takes:
            raise ConfigError(
                f"'{settings.model}' ({type(model).__name__}) reads texts beside images. Save the part that reads images, such "
                "as CLIPVisionModel or SiglipVisionModel, in a folder with its image processor, and give that."
            )
        self.model: nn.Module = model if settings.gradient_checkpointing else model.eval()
        self.processor = processor
        self.settings = settings
        self._before_patches = tokens_before_patches(model)
        if settings.pooling == "cls" and not self._before_patches:
            raise ConfigError(
                f"'{settings.model}' ({type(model).__name__}) has no class token: its first token is a corner of the image. Set "
                "backbone.pooling to mean."
            )
        self.precision: Literal["fp32", "bf16"] = "fp32"
        self.truncated = 0
        self._tasks: dict[str, Task] = {}
        self._pretrained: dict[Class, Tensor] = {}
        self._heads: dict[tuple[str, ...], Classifier] = {}
        self._options = {"interpolate_pos_encoding": True} if "interpolate_pos_encoding" in takes else {}

    @property
    def default_targets(self) -> tuple[str, ...]:
        """The query and value projections.

        Raises:
            ConfigError: it is not known how they are called.
        """
        return query_value_targets(self.model)

    @classmethod
    def load(cls, settings: VisionSettings) -> Vision:
        """The pretrained model and its image processor; for errors see `perdure.backbones.pretrained`.

        Raises:
            ConfigError: also a model that reads texts too (CLIP, SigLIP), an image size that is no multiple of the model's
                patches, or a class token it has not.
        """
        model = load_model(AutoModel, settings, "vision transformer")
        options: dict[str, Any] = {}
        if (side := settings.image_size) is not None:
            patch = getattr(model.config, "patch_size", 1)
            if isinstance(patch, int) and side % patch:
                raise ConfigError(
                    f"backbone.image_size={side} is no multiple of {patch}, the side of the model's patches."
                )
            options = {"size": {"height": side, "width": side}, "do_resize": True, "do_center_crop": False}
        return cls(model, load_image_processor(settings, **options), settings)

    def prepare(self, tasks: Iterable[Task]) -> None:
        """Know the tasks, and measure their classes' pretrained features: call it with the pretrained weights in place.

        Raises:
            DataError: a task without labels, a class without training images, an image that cannot be read.
        """
        for task in tasks:
            if not task.labels:
                raise DataError(
                    f"Task '{task.name}' has no labels; an image task needs classes to tell apart"
                    f"{f': {cure}' if (cure := without_labels(task)) else ''}."
                )
            self._tasks[task.name] = task
            # also where they are measured anew on a run that computes in bf16
            given, self.precision = self.precision, "fp32"
            try:
                with answering(self.model):
                    features = self._class_features(task)
            finally:
                self.precision = given
            # cloned outside: training may not save tensors made in inference mode
            self._pretrained |= {(task.name, label): feature_ND.clone() for label, feature_ND in features.items()}
            self._heads.clear()

    def length(self, example: Example) -> int:
        """The same for all: images are resized."""
        return 1

    def collate(self, examples: Sequence[Example]) -> Batch:
        """Pixels, and each image's class among those of all tasks in the batch."""
        within = {example.task for example in examples}
        names = tuple(name for name in self._tasks if name in within)  # in one order, so that equal sets share a head
        classes = self._classes(names)
        index = {one: i for i, one in enumerate(classes)}
        extra = {
            "names": names,
            "targets": torch.tensor([index[example.task, example.label] for example in examples]),
            "allowed": torch.tensor([[task == example.task for task, _ in classes] for example in examples]),
        }
        batch = Batch(examples, {"pixel_values": self._pixels(examples)}, len(examples), extra=extra)
        return batch.to(model_device(self.model))

    def forward(self, batch: Batch) -> Outputs:
        """Mean cross-entropy of each image against its own task's classes, on the pretrained means (or head)."""
        feature_ND = self.features(batch)
        score_NC = self._head(batch.extra["names"]).scores(feature_ND, self.settings.temperature)
        score_NC = score_NC.masked_fill(~batch.extra["allowed"], -torch.inf)
        return Outputs(functional.cross_entropy(score_NC, batch.extra["targets"]), feature_ND)

    def features(self, batch: Batch) -> Tensor:
        """Pooled features of the images, [N, D] in fp32."""
        return self._encode(batch.inputs["pixel_values"])

    def scores(self, batch: Batch, outputs: Outputs | None, task: str) -> Tensor:
        """Scores [N, classes] of the batch's images under the pretrained means (or head) of `task`."""
        feature_ND = self.features(batch) if outputs is None else outputs.features
        return self._head((task,)).scores(feature_ND, self.settings.temperature)

    def predict(self, examples: Sequence[Example], labels: Sequence[str]) -> list[Prediction]:
        """The best class of the tasks in `labels`, with probabilities, for each example in order."""
        with answering(self.model):
            classifier = (
                self._deployed(labels) if self.settings.classifier == "class-mean" else self._head(tuple(labels))
            )
            features = self._features_of(examples)
            probability_NC = classifier.scores(features, self.settings.temperature).softmax(dim=1)
        best = probability_NC.argmax(dim=1).tolist()
        return [
            Prediction(classifier.classes[at][1], tuple(row), classifier.classes[at][0])
            for at, row in zip(best, probability_NC.tolist(), strict=True)
        ]

    def save(self, folder: Path, state_dict: dict[str, Tensor]) -> None:
        """The bare model with these weights and its image processor, as transformers loads them.

        `classes.safetensors` holds what scores are made of, for every task known: centre and weight.
        """
        self.model.save_pretrained(folder, state_dict=state_dict)  # pyright: ignore[reportCallIssue]
        self.processor.save_pretrained(folder)
        tensors: dict[str, Tensor] = {}
        for name in self._tasks:
            with answering(self.model):
                mean = self.settings.classifier == "class-mean"
                classifier = self._deployed([name]) if mean else self._head((name,))
            tensors[f"{name}.centre"] = classifier.centre.clone()
            tensors[f"{name}.weight"] = classifier.weight.contiguous().clone()
        if tensors:
            save_file(tensors, folder / "classes.safetensors")

    def _head(self, names: tuple[str, ...]) -> Classifier:
        """The classifier on pretrained features over the classes of these tasks."""
        if names not in self._heads:
            if len(self._heads) >= HEADS:
                del self._heads[next(iter(self._heads))]  # the oldest
            found = {one: self._pretrained[one] for one in self._classes(names)}
            make = class_means if self.settings.classifier == "class-mean" else ridge_head
            with torch.inference_mode(False):  # training may not save tensors made in inference mode
                self._heads[names] = make(found)
        return self._heads[names]

    def _deployed(self, names: Sequence[str]) -> Classifier:
        """The class means of the features of the weights now in place."""
        return class_means({
            (name, label): feature_ND
            for name in names
            for label, feature_ND in self._class_features(self._tasks[name]).items()
        })  # fmt: skip

    def _class_features(self, task: Task) -> dict[str, Tensor]:
        """Label -> features [n, D] of the class's first training images."""
        chosen: dict[str, list[Example]] = {label: [] for label in task.labels}
        for example in task.train:
            if len(chosen[example.label]) < self.settings.images_per_class:
                chosen[example.label].append(example)
        empty = [label for label, examples in chosen.items() if not examples]
        if empty:
            raise DataError(
                f"Task '{task.name}': no training image of class {', '.join(empty)}. Raise budget.train, or remove the class."
            )
        feature_ND = self._features_of([example for examples in chosen.values() for example in examples])
        parts = feature_ND.split([len(examples) for examples in chosen.values()])
        return dict(zip(chosen, parts, strict=True))

    def _features_of(self, examples: Sequence[Example]) -> Tensor:
        size = self.settings.predict_batch_size
        parts = [examples[start : start + size] for start in range(0, len(examples), size)]
        return torch.cat([self._encode(self._pixels(part)) for part in parts])

    def _encode(self, pixel_values: Tensor) -> Tensor:
        with autocast(self.model, self.precision):
            hidden_NPD = self.model(pixel_values=pixel_values, **self._options).last_hidden_state
        patches_NPD = hidden_NPD[:, self._before_patches :]
        pooled = hidden_NPD[:, 0] if self.settings.pooling == "cls" else patches_NPD.mean(dim=1)
        return pooled.float()

    def _pixels(self, examples: Sequence[Example]) -> Tensor:
        return pixels([example.text for example in examples], self.processor).to(model_device(self.model))

    def _classes(self, names: Iterable[str]) -> tuple[Class, ...]:
        return tuple((name, label) for name in names for label in self._tasks[name].labels)


def tokens_before_patches(model: PreTrainedModel) -> int:
    """How many tokens stand before the patches: class token, DeiT's for distillation, registers; 0 without a class token.

    The first two are told by their parameters' names (cls_token, class_embedding, distillation_token): no configuration says it.
    """
    names = {name.rpartition(".")[2] for name, _ in model.named_parameters()}
    if not any(name.startswith(("cls_", "class_")) for name in names):
        return 0
    return 1 + ("distillation_token" in names) + getattr(model.config, "num_register_tokens", 0)


def class_means(features: dict[Class, Tensor]) -> Classifier:
    """Cosine to the centred class means."""
    mean_CD = torch.stack([feature_ND.mean(dim=0) for feature_ND in features.values()])
    centre = mean_CD.mean(dim=0)
    weight = functional.normalize(mean_CD - centre, dim=1).T
    return Classifier(tuple(features), centre, weight, cosine=True)


def ridge_head(features: dict[Class, Tensor]) -> Classifier:
    """Least squares from centred features to +-1 targets, every class weighing the same, ridge `RIDGE` x mean variance."""
    centre = torch.stack([feature_ND.mean(dim=0) for feature_ND in features.values()]).mean(dim=0)
    gram_DD, cross_DC = torch.zeros(len(centre), len(centre)), torch.zeros(len(centre), len(features))
    for c, feature_ND in enumerate(features.values()):
        centred = feature_ND.cpu() - centre.cpu()
        gram_DD += centred.T @ centred / len(centred)
        sign_C = torch.full((len(features),), -1.0)
        sign_C[c] = 1.0
        cross_DC += torch.outer(centred.mean(dim=0), sign_C)
    ridge = RIDGE * gram_DD.diagonal().mean()
    weight = torch.linalg.solve(gram_DD + ridge * torch.eye(len(centre)), cross_DC)
    return Classifier(tuple(features), centre, weight.to(centre.device), cosine=False)
