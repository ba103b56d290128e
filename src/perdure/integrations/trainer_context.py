"""Adapts a trainer to perdure's contracts: rows of its dataset are the examples, its collator and loss the backbone."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal, NoReturn

import torch
from torch import Tensor, nn
from torch.nn import functional

from perdure.backbones.base import Batch, NextTokens, Outputs, Prediction
from perdure.backbones.modes import not_training, without_dropout
from perdure.backbones.ranking import at_least_fp32
from perdure.errors import ConfigError, UnmetNeed
from perdure.integrations.written import writes, written
from perdure.methods.contract.past import PerTask
from perdure.ops.lowrank import Update
from perdure.tasks.task import Example, Stage, Task
from perdure.training.context import StageContext


class DatasetRows(Sequence[Any]):
    """Some rows of a dataset, read lazily."""

    def __init__(self, dataset: Any, chosen: Sequence[int] | None = None) -> None:
        self._dataset = dataset
        self._chosen = range(len(dataset)) if chosen is None else chosen

    def __len__(self) -> int:
        return len(self._chosen)

    def __getitem__(self, index: Any) -> Any:
        chosen: Any = self._chosen[index]
        return DatasetRows(self._dataset, chosen) if isinstance(index, slice) else self._dataset[chosen]

    def shuffled(self, generator: torch.Generator, size: int) -> Iterator[DatasetRows]:
        """All rows in a random order, in batches of `size` (the last may be smaller)."""
        order = torch.randperm(len(self), generator=generator).tolist()
        for start in range(0, len(order), size):
            yield DatasetRows(self._dataset, [self._chosen[i] for i in order[start : start + size]])


@dataclass(frozen=True)
class TrainerStage(Stage):
    """The trainer's task, of which only the name is known, and the rows it trains on."""

    rows: Sequence[Any] = ()

    @classmethod
    def named(cls, name: str, rows: Sequence[Any]) -> TrainerStage:
        """The stage of one task."""
        task: Any = SimpleNamespace(name=name)
        return cls(name, (task,), rows)

    @property
    def train(self) -> Any:
        """The trainer's rows, as its collator takes them."""
        return self.rows


class TrainerBackbone:
    """Collates and computes the loss as `trainer` does; refuses what needs perdure's own tasks."""

    default_targets = ()
    answers_from_examples = False
    precision: Literal["fp32", "bf16"] = "fp32"
    truncated = 0

    def __init__(self, trainer: Any, model: nn.Module, collate: Any) -> None:
        self.model, self._trainer, self._collate = model, trainer, collate
        self.encoder_decoder = bool(getattr(getattr(model, "config", None), "is_encoder_decoder", False))

    def prepare(self, tasks: Iterable[Task]) -> None:
        """Nothing to prepare: rows are what the trainer's collator takes."""

    def collate(self, examples: Sequence[Any]) -> Batch:
        """Rows as one batch, on the trainer's device; `attention_mask` marks padding, in a decoder the labels do."""
        from accelerate.utils.operations import send_to_device

        own = writes(self._trainer)
        made = written(self._trainer, self.model, examples) if own else self._collate(list(examples))
        inputs: dict[str, Any] = dict(send_to_device(made, self._trainer.args.device))
        mask = inputs.get("attention_mask")
        if mask is None and self.encoder_decoder and "input_ids" in inputs:
            mask = torch.ones_like(inputs["input_ids"])  # otherwise the decoder's mask would be used for it
        mask = None if mask is None else mask.bool()
        if self.encoder_decoder and (decoder_mask := decoder_positions(inputs)) is not None:
            if mask is not None and mask.shape == decoder_mask.shape:
                config: Any = self.model.config
                inputs = one_longer(inputs, config.pad_token_id)
            return Batch(examples, inputs, len(examples), mask, decoder_positions(inputs))
        return Batch(examples, inputs, len(examples), mask)

    def check_readable(self, rows: Sequence[Any], method: str) -> None:
        """The model reads these rows and gives their loss, if they have one: measuring after training must not fail there.

        Raises:
            UnmetNeed: the trainer makes its batches otherwise.
        """
        try:
            with torch.no_grad(), without_dropout(self.model):
                batch = self.collate(rows)
                self.features(batch)
                if not writes(self._trainer):
                    self.forward(batch)
        except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
            raise UnmetNeed(
                f"Method '{method}' measures something on examples, and those of a {type(self._trainer).__name__} cannot be "
                f"given to its model as they are ({type(error).__name__}: {error}). Choose a method that works on weights alone, "
                "such as ps-lora, o-lora or n-lora."
            ) from error

    def forward(self, batch: Batch) -> Outputs:
        with self._trainer.compute_loss_context_manager(), unlogged(self._trainer):
            return Outputs(self._trainer.compute_loss(self.model, dict(batch.inputs)))

    def features(self, batch: Batch) -> Any:
        with self._trainer.compute_loss_context_manager():
            return self.model(**{name: batch.inputs[name] for name in batch.inputs if self._reads(name)})

    def _reads(self, name: str) -> bool:
        """Whether the model has this argument: TRL's collators add masks for the loss alone."""
        known = inspect.signature(self.model.get_base_model().forward).parameters  # pyright: ignore[reportCallIssue]
        return name in known or "input_ids" not in known

    def length(self, example: Any) -> int:
        return 0  # unknown; batches are not sorted

    def scores(self, batch: Batch, outputs: Outputs | None, task: str) -> Tensor:
        _refuse("scores of labels")

    def vectors(self, examples: Sequence[Example]) -> Tensor:
        _refuse("vectors of inputs")

    def predict(self, examples: Sequence[Example], labels: Sequence[str]) -> list[Prediction]:
        _refuse("predictions")

    def save(self, folder: Path, state_dict: dict[str, Tensor]) -> None:
        """The bare model with these weights, and the trainer's tokenizer."""
        bare: Any = self.model.get_base_model()  # pyright: ignore[reportCallIssue]  (a PEFT model)
        bare.save_pretrained(folder, state_dict=state_dict)
        if self._trainer.processing_class is not None:
            self._trainer.processing_class.save_pretrained(folder)


@dataclass
class TrainerContext(StageContext):
    """See `Context`; measurements use eval mode and the trainer's rows."""

    def batches(self, examples: Sequence[Any], size: int, purpose: str) -> Iterable[Any]:
        """Batches that read their rows lazily."""
        rows = examples if isinstance(examples, DatasetRows) else DatasetRows(examples)
        return rows.shuffled(self.generator(purpose), size)

    def _measuring(self) -> AbstractContextManager[None]:
        return not_training([*self.backbone.model.modules()])

    def _scored(self, batches: Iterable[Sequence[Any]]) -> Iterator[Tensor | NextTokens]:
        """A classifier's logits [n, classes], or a language model's at the labels; a causal model's are one position further."""
        for rows in batches:
            batch = self.backbone.collate(rows)
            logits, labels = self.backbone.features(batch).logits, answered(batch.inputs)
            if logits.ndim == 3 and labels is not None:
                if not self.backbone.model.config.is_encoder_decoder:  # pyright: ignore[reportAttributeAccessIssue]
                    logits, labels = logits[:, :-1], labels[:, 1:]
                wanted = labels != -100
                yield NextTokens(at_least_fp32(logits[wanted]), wanted.sum(dim=1))
            else:
                yield logits

    def teacher(self, examples: Sequence[Any], tasks: Sequence[str]) -> list[Tensor]:
        _refuse("scores of labels")

    def evaluate(self, deployed: Update | PerTask, task: str) -> float:
        _refuse("scores on validation examples")


def answered(inputs: Mapping[str, Any]) -> Tensor | None:
    """Labels, -100 where none is learnt; without them, the completion's tokens (TRL's preference trainers), or all real ones."""
    mask = inputs.get("completion_mask", inputs.get("attention_mask"))
    if "labels" in inputs or "input_ids" not in inputs or mask is None:
        return inputs.get("labels")
    return inputs["input_ids"].masked_fill(mask == 0, -100)


@contextmanager
def unlogged(trainer: Any) -> Iterator[None]:
    """Within: what TRL's trainers note for their log while computing a loss is dropped; a measurement is not a training step."""
    names = ("_metrics", "_total_train_tokens")
    kept = {name: copy.deepcopy(getattr(trainer, name)) for name in names if hasattr(trainer, name)}
    try:
        yield
    finally:
        for name, value in kept.items():
            setattr(trainer, name, value)


def decoder_positions(inputs: Mapping[str, Tensor]) -> Tensor | None:
    """[n, length] True where a decoder reads no padding: from its mask, else from the labels; None without either."""
    if (mask := inputs.get("decoder_attention_mask")) is not None:
        return mask.bool()
    labels = inputs.get("labels")
    return labels != -100 if labels is not None and labels.ndim == 2 and not labels.is_floating_point() else None


def one_longer(inputs: Mapping[str, Any], pad: int | None) -> dict[str, Any]:
    """The inputs, the decoder's padded by one position: encoder and decoder are told apart by length."""
    fill = {"labels": -100, "decoder_input_ids": pad or 0, "decoder_attention_mask": 0}
    return {n: functional.pad(t, (0, 1), value=fill[n]) if n in fill else t for n, t in inputs.items()}


def training_rows(trainer: Any) -> tuple[DatasetRows, Any]:
    """The rows the trainer trains on, and its collate function; UnmetNeed if it streams its data."""
    loader = trainer.get_train_dataloader()
    if not hasattr(loader.dataset, "__len__") or not hasattr(loader.dataset, "__getitem__"):
        raise UnmetNeed(
            "This method measures something on the training examples, but the trainer streams them (an IterableDataset). "
            "Give it a dataset with a length."
        )
    return DatasetRows(loader.dataset), loader.collate_fn


def old_rows(old_examples: Mapping[str, Sequence[Any]]) -> dict[str, DatasetRows]:
    """Task name -> its old rows; ConfigError for a task without any."""
    if empty := [name for name, rows in old_examples.items() if len(rows) == 0]:
        raise ConfigError(f"old_examples: '{empty[0]}' has none. Leave the name out.")
    return {name: DatasetRows(rows) for name, rows in old_examples.items()}


def _refuse(what: str) -> NoReturn:
    raise UnmetNeed(f"A part requires {what}, which only perdure's own loop has (`perdure run`, `perdure.learn`).")
