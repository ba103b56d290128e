"""A vision transformer as a learner, without a head: an image is matched to its classes' mean features.

Legend: N images, C classes, D features.

    score(class c | image x) = cos(f(x) - m, m_c - m) / temperature,   m_c the class's mean feature, m the mean of all m_c

Training moves f towards the means of the PRETRAINED features, which never change: tasks learnt at any time share one
frame. Prediction uses the means of the features of the model AS DEPLOYED, measured again on each task's first training
images, which are therefore needed at evaluation. `classifier="linear"` does not need them: a ridge regression on the
pretrained features is the head for both.
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
from torch import Tensor
from torch.nn import functional
from transformers import AutoModel, PreTrainedModel

from perdure.backbones.base import Batch, Outputs, Prediction, class_targets, most_probable, refuse_chats
from perdure.backbones.device import autocast, model_device
from perdure.backbones.images import pixels
from perdure.backbones.load_errors import reading_explained
from perdure.backbones.losses import class_loss
from perdure.backbones.pretrained import ModelSettings, PretrainedBackbone, answering, load_image_processor, load_model
from perdure.errors import ConfigError, DataError
from perdure.tasks.task import Example, Task, without_labels

Class = tuple[str, str]
"""A task's name and one of its labels."""

HEADS = 64  # how many are cached: mixed batches (joint training, replay) hold many different sets of tasks
RIDGE = 1.0  # relative to the mean variance of the features


class VisionSettings(ModelSettings):
    """How a vision transformer sees and answers; see `ModelSettings` for the rest."""

    kind: Literal["vision"] = "vision"
    model: str = "dinov2-small"
    image_size: int | None = Field(default=None, ge=1)
    """images are resized to this many pixels a side; None = the model's image processor decides."""
    pooling: Literal["cls", "mean"] = "cls"
    """an image's feature is the class token's, or the mean over the patches' (the only choice for a model without a
    class token, such as Swin)."""
    classifier: Literal["class-mean", "linear"] = "class-mean"
    """'class-mean' needs each task's training images when answering; 'linear' keeps a head instead."""
    images_per_class: int = Field(default=32, ge=1)
    """how many training images of a class, the first ones, its mean (or the head) is measured on."""
    temperature: float = Field(default=0.1, gt=0)
    """cosines (or the head's outputs) are divided by it before the softmax."""


@dataclass(frozen=True, eq=False)
class Classifier:
    """Features to scores: `weight` [D, C], with unit columns for class means, and the `centre` [D]."""

    classes: tuple[Class, ...]
    centre: Tensor
    weight: Tensor
    cosine: bool

    def scores(self, feature_ND: Tensor, temperature: float) -> Tensor:
        """[N, C]."""
        centred = feature_ND - self.centre
        return (functional.normalize(centred, dim=1) if self.cosine else centred) @ self.weight / temperature


class Vision(PretrainedBackbone):
    """ViT or DINOv2 behind the `Backbone` protocol; an example's text is an image's path or data URI. Use `Vision.load`."""

    answers_from_examples = True

    def __init__(self, model: PreTrainedModel, processor: Any, settings: VisionSettings) -> None:
        accepted = inspect.signature(model.forward).parameters
        if "input_ids" in accepted:
            raise ConfigError(
                f"'{settings.model}' ({type(model).__name__}) also reads texts. Save the part that reads images, such as "
                "CLIPVisionModel or SiglipVisionModel, in a folder with its image processor, and give that folder."
            )
        if "noise" in accepted and getattr(model.config, "mask_ratio", 0):
            raise ConfigError(
                f"'{settings.model}' ({type(model).__name__}) hides a random part of every image, so each answer would be "
                "another. Set mask_ratio to 0 in its config.json."
            )
        self._before_patches = tokens_before_patches(model)
        if settings.pooling == "cls" and not self._before_patches:
            raise ConfigError(
                f"'{settings.model}' ({type(model).__name__}) has no class token: its first token is a corner of the image. Set "
                "backbone.pooling to mean."
            )
        super().__init__(model if settings.gradient_checkpointing else model.eval(), processor)
        self.settings = settings
        self._pretrained: dict[Class, Tensor] = {}
        self._heads: dict[tuple[str, ...], Classifier] = {}
        self._options = {"interpolate_pos_encoding": True} if "interpolate_pos_encoding" in accepted else {}

    @classmethod
    def load(cls, settings: VisionSettings) -> Vision:
        """The pretrained model and its image processor; for errors see `perdure.backbones.pretrained`.

        Raises:
            ConfigError: also for a model that reads texts too (CLIP, SigLIP), an image size that is not a multiple of the
                model's patches, or pooling by a class token the model does not have.
        """
        model = load_model(AutoModel, settings, "vision transformer")
        options: dict[str, Any] = {}
        if (side := settings.image_size) is not None:
            patch = getattr(model.config, "patch_size", 1)
            if isinstance(patch, int) and side % patch:
                raise ConfigError(
                    f"backbone.image_size={side} is not a multiple of {patch}, the side of the model's patches."
                )
            options = {"size": {"height": side, "width": side}, "do_resize": True, "do_center_crop": False}
        return cls(model, load_image_processor(settings, **options), settings)

    def prepare(self, tasks: Iterable[Task]) -> None:
        """Register the tasks and measure their classes' features; the pretrained weights must be in place.

        Raises:
            DataError: a task without labels, a class without training images, an image that cannot be read.
        """
        for task in tasks:
            refuse_chats(task, "a vision model")
            if not task.labels:
                raise DataError(
                    f"Task '{task.name}' has no labels; an image task needs classes to tell apart"
                    f"{f': {fix}' if (fix := without_labels(task)) else ''}."
                )
            self._tasks[task.name] = task
            # always fp32: a reopened run measures them again, and may compute in bf16
            given, self.precision = self.precision, "fp32"
            try:
                with answering(self.model), reading_explained(self.settings.model, self.model):
                    features = self._class_features(task)
            finally:
                self.precision = given
            # cloned here: autograd cannot save tensors made in inference mode
            self._pretrained |= {(task.name, label): feature_ND.clone() for label, feature_ND in features.items()}
            self._heads.clear()

    def length(self, example: Example) -> int:
        """The same for all images: they are resized."""
        return 1

    def collate(self, examples: Sequence[Example]) -> Batch:
        """Pixels, and each image's class among those of all tasks in the batch."""
        present = {example.task for example in examples}
        names = tuple(name for name in self._tasks if name in present)  # in one order, so that equal sets share a head
        extra = {"names": names, **class_targets(examples, self._classes(names))}
        batch = Batch(examples, {"pixel_values": self._pixels(examples)}, len(examples), extra=extra)
        return batch.to(model_device(self.model))

    def forward(self, batch: Batch) -> Outputs:
        """Mean cross-entropy of each image against its own task's classes, on the pretrained means (or head)."""
        feature_ND = self.features(batch)
        score_NC = self._head(batch.extra["names"]).scores(feature_ND, self.settings.temperature)
        return Outputs(class_loss(score_NC, batch), feature_ND)

    def features(self, batch: Batch) -> Tensor:
        """Pooled features of the images, [N, D] in fp32."""
        return self._encode(batch.inputs["pixel_values"])

    def vectors(self, examples: Sequence[Example]) -> Tensor:
        """Pooled features of the images, [N, D]."""
        with answering(self.model):
            return self._features_of(examples)

    def scores(self, batch: Batch, outputs: Outputs | None, task: str) -> Tensor:
        """Scores [N, classes] of the batch's images under the pretrained means (or head) of `task`."""
        feature_ND = self.features(batch) if outputs is None else outputs.features
        return self._head((task,)).scores(feature_ND, self.settings.temperature)

    def predict(self, examples: Sequence[Example], labels: Sequence[str]) -> list[Prediction]:
        """The best class of the tasks in `labels`, with probabilities, for each example in order."""
        with answering(self.model):
            classifier = self._answering_classifier(labels)
            scores_NC = classifier.scores(self._features_of(examples), self.settings.temperature)
            return most_probable(scores_NC.softmax(dim=1), classifier.classes)

    def save(self, folder: Path, state_dict: dict[str, Tensor]) -> None:
        """Write the bare model with these weights and its image processor, in transformers' format.

        `classes.safetensors` holds the classifier of every known task: centre and weight.
        """
        super().save(folder, state_dict)
        tensors: dict[str, Tensor] = {}
        for name in self._tasks:
            with answering(self.model):
                classifier = self._answering_classifier([name])
            tensors[f"{name}.centre"] = classifier.centre.clone()
            tensors[f"{name}.weight"] = classifier.weight.contiguous().clone()
        if tensors:
            save_file(tensors, folder / "classes.safetensors")

    def _head(self, names: tuple[str, ...]) -> Classifier:
        """The classifier on pretrained features over the classes of these tasks."""
        if names not in self._heads:
            if len(self._heads) >= HEADS:
                del self._heads[next(iter(self._heads))]  # the oldest
            make = class_means if self.settings.classifier == "class-mean" else ridge_head
            with torch.inference_mode(False):  # autograd cannot save tensors made in inference mode
                self._heads[names] = make({each: self._pretrained[each] for each in self._classes(names)})
        return self._heads[names]

    def _answering_classifier(self, names: Sequence[str]) -> Classifier:
        """The class means of the features of the current weights, or the linear head."""
        if self.settings.classifier == "linear":
            return self._head(tuple(names))
        features = {name: self._class_features(self._tasks[name]) for name in names}
        return class_means({(name, label): features[name][label] for name, label in self._classes(names)})

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
        if hidden_NPD.ndim == 4:  # a convolutional net's, [N, D, height, width]
            hidden_NPD = hidden_NPD.flatten(2).mT
        patches_NPD = hidden_NPD[:, self._before_patches :]
        pooled = hidden_NPD[:, 0] if self.settings.pooling == "cls" else patches_NPD.mean(dim=1)
        return pooled.float()

    def _pixels(self, examples: Sequence[Example]) -> Tensor:
        return pixels([example.text for example in examples], self.processor).to(model_device(self.model))


def tokens_before_patches(model: PreTrainedModel) -> int:
    """Number of tokens before the patches: class token, DeiT's distillation token, registers; 0 without a class token.

    The first two are recognised by parameter names (cls_token, class_embedding, distillation_token): no configuration has them.
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
    """Least squares from centred features to +-1 targets, classes weighted equally, ridge `RIDGE` x mean variance."""
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
