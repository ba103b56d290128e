"""A sentence encoder as a learner: a text is matched to its label's text by the same encoder.

Without a task head: scores are cosines between the text's and the labels' embeddings over a temperature, so an untrained
model already answers, and the score of a task not learnt yet means something. In a batch of several tasks every example
competes among its own task's labels only. A text with its own choices (COPA's alternatives) is matched to those.
"""

from __future__ import annotations

import functools
import inspect
import itertools
from array import array
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor
from transformers import AutoModel, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from perdure.backbones.base import (
    Batch,
    Outputs,
    Prediction,
    best_of_tasks,
    class_targets,
    most_probable,
    refuse_chats,
)
from perdure.backbones.device import autocast, model_device
from perdure.backbones.load_errors import explained, reading_explained
from perdure.backbones.losses import class_loss
from perdure.backbones.models import model_folder
from perdure.backbones.modes import without_dropout
from perdure.backbones.pooling import Pooling, read_pooling
from perdure.backbones.pretrained import (
    OWN_CODE,
    ModelSettings,
    PretrainedBackbone,
    check_positions,
    check_vocabulary,
    load_model,
    tried,
)
from perdure.backbones.ranking import agree
from perdure.backbones.token_rows import Again, TokenRows, tokenizer_key
from perdure.backbones.tokens import in_batches, padded
from perdure.errors import ConfigError, DataError
from perdure.settings.read import Settings
from perdure.tasks.task import Example, Task, without_labels


class EncoderSettings(Settings):
    """How the encoder reads and answers."""

    kind: Literal["encoder"] = "encoder"
    model: str = "minilm"
    """a known model's name, a folder, or a hub id (hub:NAME where it has no owner)."""
    max_length: int = Field(default=48, ge=2)
    """texts are cut to this many tokens."""
    temperature: float = Field(default=0.05, gt=0)
    """cosines are divided by it before the softmax."""
    pooling: Literal["auto", "mean", "cls", "max", "last"] = "auto"
    """how a text's token vectors become one: 'auto' = as the model's sentence-transformers files say (modules.json,
    1_Pooling, 2_Dense), the mean if it has none; any other: that, of the transformer's output alone."""
    attention: Literal["eager", "sdpa"] = "eager"
    """transformers' attention implementation; 'eager' is the fastest at short lengths on a CPU (measured)."""
    predict_batch_size: int = Field(default=64, ge=1)
    """examples per forward pass when answering."""
    device: str = "auto"
    """where the model computes; 'auto' is a CUDA GPU if there is one, a different one for each process of a launcher."""


class Encoder(PretrainedBackbone):
    """A BERT-like encoder and its pooling behind the `Backbone` protocol. Use `Encoder.load`."""

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        settings: EncoderSettings,
        pooling: Pooling | None = None,
    ) -> None:
        # eval: dropout of the pretrained model stays off, since labels are matched to its features
        super().__init__(model.eval(), tokenizer)
        self.tokenizer = tokenizer
        self.settings = settings
        self.pooling = pooling or Pooling()
        self._width = int(getattr(model.config, "hidden_size", 0))
        self._tokens = TokenRows(
            "texts", self._read, lambda: tokenizer_key(tokenizer, {"max_length": settings.max_length}), later=True
        )
        self._mixes: bool | None = None  # whether padding changes a text's embedding; None: not tried yet

    @classmethod
    def load(cls, settings: EncoderSettings) -> Encoder:
        """The pretrained model in fp32 and its tokenizer; for errors see `perdure.backbones.pretrained`."""
        base = ModelSettings(model=settings.model, attention=settings.attention, device=settings.device)
        model = load_model(AutoModel, base, "sentence encoder")
        if "decoder_input_ids" in inspect.signature(model.forward).parameters:
            raise ConfigError(
                f"'{settings.model}' ({type(model).__name__}) is an encoder and a decoder, not a sentence encoder. Use "
                "backbone.kind=seq2seq with a model that writes (ForConditionalGeneration)."
            )
        with explained(settings.model, "sentence encoder"):
            tokenizer = tried(AutoTokenizer.from_pretrained(model_folder(settings.model), **OWN_CODE))
            pooling = read_pooling(settings.model, settings.pooling)
        pooling.check(getattr(model.config, "hidden_size", None), settings.model)
        check_vocabulary(model, tokenizer, settings.model)
        check_positions(model, settings.model, settings.max_length, "backbone.max_length")
        return cls(model, tokenizer, settings, pooling)

    def prepare(self, tasks: Iterable[Task]) -> None:
        """Register the tasks' labels; tokenise every text once, many of them when they are needed.

        Raises:
            DataError: a task without labels, or two labels of a task that have the same text once tokenised.
        """
        for task in tasks:
            refuse_chats(task, "an encoder")
            if not task.labels:
                fix = without_labels(task)
                raise DataError(
                    f"Task '{task.name}' has no labels, and an encoder can only tell classes apart; "
                    f"{f'{fix}, or ' if fix else ''}take a language model."
                )
            self._tasks[task.name] = task
            self._tokens.add(Again(functools.partial(_texts, task)))
            self._check_labels(task)
        self._try_padding()

    def _try_padding(self) -> None:
        """Compare, once, a text alone with the same text padded: FNet and ConvBERT mix padding into their texts."""
        if self._mixes is not None or not self._tokens:
            return
        short, longest = self._tokens.extremes()
        long = [*longest, *longest][: self.settings.max_length]
        if len(long) <= len(short):
            return
        with torch.inference_mode(), without_dropout(self.model), reading_explained(self.settings.model, self.model):
            alone, beside = (self._encode(self._inputs(rows))[0] for rows in ([short], [short, long]))
        self._mixes = not agree(self.model, beside, alone)

    def _check_labels(self, task: Task) -> None:
        names: dict[tuple[int, ...], str] = {}
        for name, text in task.labels.items():
            if (other := names.setdefault(tuple(self._token_ids(text)), name)) != name:
                raise DataError(
                    f"Task '{task.name}': the labels '{other}' and '{name}' stand for the same text within the model's "
                    f"first {self.settings.max_length} tokens ({text!r:.60}); make them differ, or raise backbone.max_length."
                )

    @property
    def truncated(self) -> int:
        """How many texts were longer than `max_length`, and were cut; about so many, if `sampled`."""
        return self._tokens.cut

    @property
    def sampled(self) -> bool:
        """Whether many texts wait to be tokenised, and `truncated` is estimated."""
        return self._tokens.sampled

    def _read(self, texts: list[str]) -> tuple[list[Sequence[int]], int]:
        """Token ids of each text, cut to `max_length`, and how many were longer."""
        limit = self.settings.max_length
        options: dict[str, Any] = {"return_attention_mask": False, "return_token_type_ids": False}
        found = self.tokenizer(texts, truncation=True, max_length=limit, **options)
        if found.encodings is not None:
            cut = sum(bool(encoding.overflowing) for encoding in found.encodings)
        else:
            more = self.tokenizer(texts, truncation=True, max_length=limit + 1, **options)
            cut = sum(len(ids) > limit for ids in more["input_ids"])  # pyright: ignore[reportArgumentType]
        rows: Any = found["input_ids"]
        return [array("i", ids) for ids in rows], cut  # a ninth of a list's memory

    @property
    def pools(self) -> str:
        """How texts are pooled, in words that are recorded and compared."""
        return self.pooling.described()

    def length(self, example: Example) -> int:
        """Number of tokens."""
        return len(self._token_ids(example.text))

    def full(self, example: Example) -> bool:
        """Whether its text fills `max_length`, and so may have been cut."""
        return self.length(example) >= self.settings.max_length

    def collate(self, examples: Sequence[Example]) -> Batch:
        """Padded token ids of the texts; each example's target among the labels of all tasks in the batch."""
        inputs = self._padded([example.text for example in examples])
        names = list(dict.fromkeys(example.task for example in examples))
        extra = {"names": names, **class_targets(examples, self._classes(names))}
        batch = Batch(examples, inputs, len(examples), inputs["attention_mask"].bool(), extra=extra)
        return batch.to(model_device(self.model))

    def forward(self, batch: Batch) -> Outputs:
        """Mean cross-entropy of each text against its own task's labels."""
        text_ND = self.features(batch)
        return Outputs(class_loss(self._match(text_ND, batch.examples, batch.extra["names"]), batch), text_ND)

    def features(self, batch: Batch) -> Tensor:
        """Normalised embeddings of the texts, [N, D] in fp32."""
        return self._encode(batch.inputs)

    @torch.inference_mode()
    def vectors(self, examples: Sequence[Example]) -> Tensor:
        """The texts' embeddings, [N, D]."""

        def work(chosen: list[int]) -> Tensor:
            return self._encode(self._padded([examples[i].text for i in chosen]))

        return torch.stack(in_batches([self.length(e) for e in examples], self.settings.predict_batch_size, work))

    def scores(self, batch: Batch, outputs: Outputs | None, task: str) -> Tensor:
        """Cosine / temperature of the batch's texts to the labels of `task`, [N, labels]."""
        text_ND = self.features(batch) if outputs is None else outputs.features
        return self._match(text_ND, batch.examples, [task])

    @torch.inference_mode()
    def predict(self, examples: Sequence[Example], labels: Sequence[str]) -> list[Prediction]:
        """The best label among those of the tasks named in `labels`, with probabilities, for each example in order.

        Labels of several tasks whose texts say the same are one; see `best_of_tasks`.
        """
        classes = self._classes(labels)
        common_LD = self._common_labels(labels)

        def work(chosen: list[int]) -> list[Prediction]:
            batch = [examples[i] for i in chosen]
            text_ND = self._encode(self._padded([example.text for example in batch]))
            score_NC = self._match(text_ND, batch, labels, common_LD)
            if len(labels) == 1:
                return most_probable(score_NC.softmax(dim=1), classes)
            texts = [self._label_texts(example, labels) for example in batch]
            tasks = [example.task for example in batch]
            return best_of_tasks(score_NC, classes, texts, lambda text: tuple(self._token_ids(text)), tasks)

        return in_batches([self.length(e) for e in examples], self.settings.predict_batch_size, work)

    def save(self, folder: Path, state_dict: dict[str, Tensor]) -> None:
        """Write the bare model with these weights, its tokenizer and how it pools (as sentence-transformers does)."""
        super().save(folder, state_dict)
        self.pooling.save(folder, self._width)

    def _match(
        self, text_ND: Tensor, examples: Sequence[Example], names: Sequence[str], common_LD: Tensor | None = None
    ) -> Tensor:
        """Cosine / temperature [N, labels] of embedded texts to the labels of the tasks `names`, each text to its own."""
        if common_LD is None:
            common_LD = self._common_labels(names)
        if common_LD is not None:
            return text_ND @ common_LD.T / self.settings.temperature
        rows = [self._label_texts(example, names) for example in examples]
        index = {text: i for i, text in enumerate(dict.fromkeys(text for row in rows for text in row))}
        score_NU = text_ND @ self._encode(self._padded(list(index))).T / self.settings.temperature
        return score_NU.gather(1, torch.tensor([[index[text] for text in row] for row in rows], device=score_NU.device))

    def _label_texts(self, example: Example, names: Sequence[str]) -> list[str]:
        """The texts this example is matched to, in the order of `_classes`."""
        return [text for name in names for text in self._tasks[name].label_texts(example.text)]

    def _common_labels(self, names: Sequence[str]) -> Tensor | None:
        """Embedded label texts [labels, D] of these tasks; None if one of them has choices that depend on the input."""
        tasks = [self._tasks[name] for name in names]
        if any(task.choices for task in tasks):
            return None
        return self._encode(self._padded([text for task in tasks for text in task.labels.values()]))

    def _encode(self, inputs: dict[str, Tensor]) -> Tensor:
        if not self._mixes:
            return self._embedded(inputs)
        lengths_N = inputs["attention_mask"].sum(dim=1)
        rows = [
            (lengths_N == length).nonzero()[:, 0] for length in lengths_N.unique()
        ]  # texts of equal length together
        parts = [self._embedded({k: v[own, : lengths_N[own[0]]] for k, v in inputs.items()}) for own in rows]
        return torch.cat(parts)[torch.cat(rows).argsort()]

    def _embedded(self, inputs: dict[str, Tensor]) -> Tensor:
        with autocast(self.model, self.precision):
            hidden_NLD = self.model(**inputs).last_hidden_state
        return self.pooling(hidden_NLD.float(), inputs["attention_mask"])

    def _padded(self, texts: Sequence[str]) -> dict[str, Tensor]:
        """Model inputs padded to the longest of `texts`."""
        return self._inputs([self._token_ids(text) for text in texts])

    def _inputs(self, rows: Sequence[Sequence[int]]) -> dict[str, Tensor]:
        ids, mask = padded(rows, self.tokenizer.pad_token_id or 0)  # pyright: ignore[reportArgumentType]
        device = model_device(self.model)
        return {"input_ids": ids.to(device), "attention_mask": mask.to(device).long()}

    def _token_ids(self, text: str) -> Sequence[int]:
        return self._tokens[text]


def _texts(task: Task) -> Iterator[str]:
    """Every text of a task, and those of its answers."""
    for split in (task.train, task.validation, task.test):
        yield from (example.text for example in split)
    yield from task.labels.values()
    yield from itertools.chain.from_iterable(task.choices.values())
