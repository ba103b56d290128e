"""What causal and encoder-decoder language models share: known tasks, cached ids, ranking or generating answers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from perdure.backbones.base import Batch, Outputs, Prediction
from perdure.backbones.device import autocast
from perdure.backbones.modes import without_dropout
from perdure.backbones.pretrained import ModelSettings, answering, query_value_targets
from perdure.backbones.text_metrics import normalise
from perdure.backbones.tokens import batches_by_length, check_completion
from perdure.errors import DataError
from perdure.tasks.task import Example, Task


class LanguageSettings(ModelSettings):
    """How a language model reads and answers."""

    max_length: int = Field(default=256, ge=2)
    """prompts are cut to this many tokens, in the middle."""
    max_new_tokens: int = Field(default=50, ge=1)
    """longest answer in tokens, its end included; a label text must fit."""
    long_targets: Literal["error", "cut"] = "error"
    """free-text targets above that are an error, or cut (their end is then not learnt)."""
    answer_by: Literal["auto", "ranking", "generation"] = "auto"
    """'ranking' scores every label text, 'generation' lets the model write; 'auto' ranks where there are labels. A
    written answer counts as a label if they are equal but for case, spacing and punctuation."""
    label_score: Literal["sum", "mean"] = "sum"
    """a label's log-probabilities are summed, or averaged over its tokens."""
    ranking: Literal["auto", "packed", "exhaustive"] = "auto"
    """'packed' computes the prompt once for all labels, 'exhaustive' once for each; 'auto' packs where both agree on
    the model, tried once, and no layer's window is shorter than prompt and answer."""


class LanguageModel(ABC):
    """The shared half of `CausalLM` and `Seq2SeqLM`; they say how text becomes ids, loss, scores and answers."""

    answers_from_examples = False

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, settings: LanguageSettings) -> None:
        self.model: nn.Module = model.eval() if not settings.gradient_checkpointing else model
        self.tokenizer = tokenizer
        self.settings = settings
        self.precision: Literal["fp32", "bf16"] = "fp32"
        self.truncated = 0
        self._packs: bool | None = {"packed": True, "exhaustive": False}.get(settings.ranking)
        self._tasks: dict[str, Task] = {}
        self._prompts: dict[str, list[int]] = {}
        self._completions: dict[str, list[int]] = {}

    @property
    def default_targets(self) -> tuple[str, ...]:
        """The query and value projections.

        Raises:
            ConfigError: it is not known how they are called.
        """
        return query_value_targets(self.model)

    @abstractmethod
    def collate(self, examples: Sequence[Example]) -> Batch:
        """Examples as one batch; its loss is over the answers' tokens."""

    @abstractmethod
    def forward(self, batch: Batch) -> Outputs:
        """Mean cross-entropy over the batch's target tokens."""

    @abstractmethod
    def features(self, batch: Batch) -> Any:
        """The forward pass over the inputs alone, for input statistics."""

    @abstractmethod
    def _prompt_ids(self, text: str) -> list[int]: ...

    @abstractmethod
    def _completion_ids(self, text: str) -> list[int]: ...

    def _start_ids(self) -> list[int]:
        """What stands before a text that is learnt as it is."""
        return self._prompt_ids("")

    def _text_ids(self, text: str) -> list[int]:
        """Ids of a text that is learnt as it is, and its end."""
        return self._completion_ids(text)

    @abstractmethod
    def _packed(self, prompts: Sequence[list[int]], completions: Sequence[list[int]]) -> Tensor:
        """Scores [N, L] with every prompt computed once."""

    @abstractmethod
    def _exhaustive(self, prompts: Sequence[list[int]], completions: Sequence[list[int]]) -> Tensor:
        """The same scores, every prompt computed once for each label."""

    @abstractmethod
    def _generate(self, prompts: Sequence[list[int]]) -> list[str]: ...

    @abstractmethod
    def _log_likelihood(self, prompts: Sequence[list[int]], completions: Sequence[list[int]]) -> Tensor:
        """Summed log-probability [N] of each completion."""

    def prepare(self, tasks: Iterable[Task]) -> None:
        """Know the tasks' labels, tokenise every text once and count those that are cut.

        Raises:
            DataError: a label text or choice (or a free-text target to train on) above `max_new_tokens`, or two labels of a task
                with the same text (where answers are written: the same but for case, spacing and punctuation).
        """
        for task in tasks:
            self._tasks[task.name] = task
            self._check_labels(task)
            examples = (*task.train, *task.validation, *task.test)
            if task.learns_text:  # each text is tokenised when it is needed; here those that are cut are counted
                self.truncated += sum(len(self._text_ids(e.text)) > self.settings.max_length for e in examples)
                continue
            for example in examples:
                self._prompt(task.prompt(example.text))
            for example in () if task.labels else task.train:
                self._completion(example)

    def _check_labels(self, task: Task) -> None:
        texts: dict[tuple[int, ...], str] = {}
        written: dict[str, str] = {}
        for name, text in task.labels.items():
            what = f"Task '{task.name}': the text of label '{name}'"
            ids = tuple(check_completion(self._completion_ids(text), self.settings.max_new_tokens, what, cut=False))
            if ids in texts:
                raise DataError(
                    f"Task '{task.name}': the labels '{texts[ids]}' and '{name}' stand for the same text {text!r}; give each "
                    "its own."
                )
            texts[ids] = name
            other = written.setdefault(normalise(text), name)
            if other != name and self.settings.answer_by == "generation":
                raise DataError(
                    f"Task '{task.name}': written answers are told apart without case, spacing and punctuation, so the labels "
                    f"'{other}' and '{name}' are one; give them other texts, or set backbone.answer_by=ranking."
                )
        own = () if task.template else {text for choices in task.choices.values() for text in choices}
        for text in sorted(own):
            what = f"Task '{task.name}': the choice {text[:40]!r}"
            check_completion(self._completion_ids(text), self.settings.max_new_tokens, what, cut=False)

    def length(self, example: Example) -> int:
        """Number of tokens of prompt and answer."""
        return len(self._asked(example)) + len(self._completion(example))

    def scores(self, batch: Batch, outputs: Outputs | None, task: str) -> Tensor:
        """Differentiable scores [N, labels]: the batch's inputs, asked as `task` asks, under its label texts."""
        asked = self._tasks[task]
        prompts = [self._prompt(asked.prompt(e.text)) for e in batch.examples]
        return self._label_scores(prompts, [_label_texts(asked, e.text) for e in batch.examples])

    def predict(self, examples: Sequence[Example], labels: Sequence[str]) -> list[Prediction]:
        """An answer for each example in order: the best label of the tasks in `labels`, or written text if none has any.

        Beside tasks with labels, one without has nothing to choose from and does not count.
        """
        asked = [self._tasks[name] for name in labels]
        tasks = [task for task in asked if task.labels] or asked
        if tasks and all(task.learns_text for task in tasks):
            return [Prediction("", nats=nats, tokens=tokens) for nats, tokens in self.token_losses(examples)]
        with_labels = bool(tasks) and bool(tasks[0].labels)
        if self.settings.answer_by == "ranking" and not with_labels:
            raise DataError(
                f"{', '.join(labels)}: no labels, so there is nothing to rank; set backbone.answer_by=generation."
            )
        answer = self._ranked if with_labels and self.settings.answer_by != "generation" else self._written
        found: dict[int, Prediction] = {}
        prompts = [self._asked(example, tasks) for example in examples]
        with answering(self.model):
            for chosen in batches_by_length([len(ids) for ids in prompts], self.settings.predict_batch_size):
                answers = answer([prompts[i] for i in chosen], [examples[i].text for i in chosen], tasks)
                found |= zip(chosen, answers, strict=True)
        return [found[i] for i in range(len(examples))]

    def _ranked(self, prompts: Sequence[list[int]], inputs: Sequence[str], tasks: Sequence[Task]) -> list[Prediction]:
        names = [(task.name, label) for task in tasks for label in task.labels]
        texts = [tuple(text for task in tasks for text in _label_texts(task, given)) for given in inputs]
        probability_NL = self._label_scores(prompts, texts).softmax(dim=1)
        return [
            Prediction(names[at][1], tuple(row), names[at][0])
            for at, row in zip(probability_NL.argmax(dim=1).tolist(), probability_NL.tolist(), strict=True)
        ]

    def _written(self, prompts: Sequence[list[int]], inputs: Sequence[str], tasks: Sequence[Task]) -> list[Prediction]:
        """Generated answers; one equal to a label's text after normalisation becomes that label (the first of equals).

        One that is the name of a label, but the text of none, is no answer: empty, since scores compare names.
        """
        names = {normalise(label) for task in tasks for label in task.labels}
        with autocast(self.model, self.precision):
            written = self._generate(prompts)
        answers = []
        for text, given in zip(written, inputs, strict=True):
            known = {
                normalise(label_text): (task.name, label)
                for task in reversed(tasks)
                for label, label_text in reversed(list(zip(task.labels, _label_texts(task, given), strict=True)))
            }
            task, label = known.get(normalise(text), ("", "" if normalise(text) in names else text))
            answers.append(Prediction(label, (), task))
        return answers

    def token_losses(self, examples: Sequence[Example]) -> list[tuple[float, int]]:
        """For each example the summed negative log-likelihood of its answer in nats, and its number of tokens (perplexity)."""
        found: dict[int, tuple[float, int]] = {}
        with answering(self.model):
            for chosen in batches_by_length([self.length(e) for e in examples], self.settings.predict_batch_size):
                prompts = [self._asked(examples[i]) for i in chosen]
                completions = [self._completion(examples[i]) for i in chosen]
                with autocast(self.model, self.precision):
                    total = self._log_likelihood(prompts, completions)
                for i, value, ids in zip(chosen, total.tolist(), completions, strict=True):
                    found[i] = (-value, len(ids))
        return [found[i] for i in range(len(examples))]

    def save(self, folder: Path, state_dict: dict[str, Tensor]) -> None:
        """The bare model with these weights, and the tokenizer, as transformers loads them."""
        self.model.save_pretrained(folder, state_dict=state_dict)  # pyright: ignore[reportCallIssue]
        self.tokenizer.save_pretrained(folder)

    def _label_scores(self, prompts: Sequence[list[int]], texts: Sequence[tuple[str, ...]]) -> Tensor:
        """Scores [N, L] of each prompt's own label texts; prompts with the same texts are scored together."""
        groups: dict[tuple[str, ...], list[int]] = {}
        for row, own in enumerate(texts):
            groups.setdefault(own, []).append(row)
        parts = [
            self._scores_of([prompts[row] for row in rows], [self._completion_ids(text) for text in own])
            for own, rows in groups.items()
        ]
        order = torch.tensor([row for rows in groups.values() for row in rows])
        found = torch.cat(parts)
        return found[order.argsort().to(found.device)]

    def _scores_of(self, prompts: Sequence[list[int]], completions: Sequence[list[int]]) -> Tensor:
        if self._packs is None:
            self._packs = self._packing_is_right(prompts, completions)
        with autocast(self.model, self.precision):
            return self._packed(prompts, completions) if self._packs else self._exhaustive(prompts, completions)

    def _packing_is_right(self, prompts: Sequence[list[int]], completions: Sequence[list[int]]) -> bool:
        """Whether this architecture follows packed masks and positions: both ways agree on two short prompts."""
        from perdure.backbones.ranking import agree

        tried, labels = [prompts[0][:9], prompts[-1][:5]], completions[:4]
        with torch.no_grad(), without_dropout(self.model):  # which of the two it would tell apart
            try:
                packed = self._packed(tried, labels)
            except (TypeError, ValueError, RuntimeError):
                return False  # it does not take such a mask or such positions
            return agree(self.model, packed, self._exhaustive(tried, labels))

    def _asked(self, example: Example, tasks: Sequence[Task] = ()) -> list[int]:
        """Ids of the example's prompt, as its own task (or else the only one of `tasks`) puts it."""
        task = self._tasks.get(example.task) or (tasks[0] if len(tasks) == 1 else None)
        if task and task.learns_text:
            return self._start_ids()
        return self._prompt(task.prompt(example.text) if task else example.text)

    def _prompt(self, text: str) -> list[int]:
        if text not in self._prompts:
            self._prompts[text] = self._prompt_ids(text)
        return self._prompts[text]

    def _completion(self, example: Example) -> list[int]:
        """Ids of the text the example's label stands for, its end included; of the example's own text where that is learnt."""
        text, task = example.label, self._tasks.get(example.task)
        if task and task.learns_text:
            return self._text_ids(example.text)[: self.settings.max_length]
        if task and text in task.labels:
            text = dict(zip(task.labels, _label_texts(task, example.text), strict=True))[text]
        if text not in self._completions:
            limit, cut = self.settings.max_new_tokens, self.settings.long_targets == "cut"
            what = f"Task '{example.task}': the target {text[:40]!r}"
            self._completions[text] = check_completion(self._completion_ids(text), limit, what, cut)
        return self._completions[text]


def _label_texts(task: Task, text: str) -> tuple[str, ...]:
    """The texts that stand for the labels: this input's own, unless the task's prompt asks for the labels themselves."""
    return tuple(task.labels.values()) if task.template else task.label_texts(text)
