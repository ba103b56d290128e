"""What causal and encoder-decoder language models share: known tasks, cached ids, ranking or generating answers."""

from __future__ import annotations

import functools
import itertools
import json
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from perdure.backbones.base import Batch, NextTokens, Outputs, Prediction, best_of_tasks, most_probable
from perdure.backbones.chat_tasks import ReadsChats
from perdure.backbones.device import autocast
from perdure.backbones.generation import GENERATION_FILE, as_scored, greedy
from perdure.backbones.label_texts import check_distinct, label_texts
from perdure.backbones.language_settings import LanguageSettings
from perdure.backbones.load_errors import reading_explained
from perdure.backbones.losses import token_loss
from perdure.backbones.pretrained import answering
from perdure.backbones.ranking import at_least_fp32, logits_at
from perdure.backbones.sharing import Sharing
from perdure.backbones.text_metrics import AS_WRITTEN, normalise
from perdure.backbones.texts import ReadsTexts
from perdure.backbones.token_rows import Again
from perdure.backbones.tokens import in_batches
from perdure.backbones.vectors import GivesVectors
from perdure.errors import DataError
from perdure.tasks.chats import NO_CHAT
from perdure.tasks.task import Example, Task, same_task


class LanguageModel(ReadsTexts, ReadsChats, GivesVectors, Sharing, ABC):
    """The shared half of `CausalLM` and `Seq2SeqLM`; they make batches and packed scores, and set `format`: text -> ids."""

    gap = ""
    """What stands between prompt and answer, and so begins every written answer without being part of it."""

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, settings: LanguageSettings) -> None:
        super().__init__(model, tokenizer, settings)
        self.reads = False  # whether a forward pass is known to work

    @abstractmethod
    def _batch(
        self, prompts: Sequence[list[int]], completions: Sequence[list[int]], examples: Sequence[Example] = ()
    ) -> Batch:
        """The forward pass that predicts the completions, of `examples` if for training.

        Its `extra` has `predicting` [N, length] bool, where the model predicts a target, and `answers`, the target ids.
        """

    def prepare(self, tasks: Iterable[Task]) -> None:
        """Register the tasks' labels, tokenise every text once and count those that are cut.

        Raises:
            DataError: a label text or choice (or a free-text target to train on) above `max_new_tokens`, or two labels of a task
                with the same text (where answers are written: the same up to case, spacing and punctuation).
        """
        for task in tasks:
            self._tasks[task.name] = task
            self._check_labels(task)
            if task.chats:
                self._prepare_chats(task)
            else:
                self._read_task(task)
        self._try_reading()
        self._try_writing()
        self._try_padding()

    def _read_task(self, task: Task) -> None:
        every = (task.train, task.validation, task.test)
        if task.learns_text:
            self._texts.add(Again(lambda: (example.text for example in itertools.chain(*every))))
            return
        self._prompts.add(Again(lambda: (task.prompt(example.text) for example in itertools.chain(*every))))
        if not task.labels:
            self._add_answers(task.name, Again(lambda: (example.label for example in task.train)))

    def _try_reading(self) -> None:
        """One forward pass, once, so that a model that cannot learn this way is refused before anything begins."""
        task = next((task for task in self._tasks.values() if task.train[0].text != NO_CHAT), None)
        if self.reads or task is None:
            return
        with reading_explained(self.settings.model, self.model), torch.no_grad():
            self.forward(self.collate(task.train[:1]))
        self.reads = True

    def _check_labels(self, task: Task) -> None:
        ids = {
            name: self._fitting(text, f"Task '{task.name}': the text of label '{name}'")
            for name, text in task.labels.items()
        }
        check_distinct(task, ids, written=self.settings.answer_by == "generation")
        for text in sorted(set() if task.template else {text for texts in task.choices.values() for text in texts}):
            self._fitting(text, f"Task '{task.name}': the choice {text[:40]!r}")

    def length(self, example: Example) -> int:
        """Number of tokens of prompt and answer."""
        return len(self._asked(example)) + len(self._completion(example))

    def full(self, example: Example) -> bool:
        """Whether its prompt fills `max_length`, and so may have been cut."""
        return len(self._asked(example)) >= self.settings.max_length

    def collate(self, examples: Sequence[Example]) -> Batch:
        """Prompts and answers, padded on the right; `count` is the number of target tokens."""
        return self._batch([self._asked(e) for e in examples], [self._completion(e) for e in examples], examples)

    def forward(self, batch: Batch) -> Outputs:
        """Mean cross-entropy over the batch's target tokens, in fp32."""
        return Outputs(token_loss(self.next_tokens(batch).logits, batch.extra["answers"], batch))

    def next_tokens(self, batch: Batch) -> NextTokens:
        """Differentiable scores of all next tokens at the batch's targets, in fp32."""
        predicting = batch.extra["predicting"]
        with autocast(self.model, self.precision):
            logits = logits_at(self.model, predicting, **batch.inputs)
        return NextTokens(at_least_fp32(logits), predicting.sum(dim=1))

    def features(self, batch: Batch) -> Any:
        """A forward pass over prompts and answers, with the vocabulary projection at one position a row only."""
        first = torch.zeros_like(batch.extra["predicting"])
        first[:, 0] = True
        with autocast(self.model, self.precision):
            return logits_at(self.model, first, **batch.inputs)

    def scores(self, batch: Batch, outputs: Outputs | None, task: str) -> Tensor:
        """Differentiable scores [N, labels] of the batch's inputs, prompted as `task` prompts, under its label texts."""
        asked = self._tasks[task]
        prompts = [self._presented(asked, e) for e in batch.examples]
        return self._label_scores(prompts, [label_texts(asked, e.text) for e in batch.examples])

    def predict(self, examples: Sequence[Example], labels: Sequence[str]) -> list[Prediction]:
        """An answer for each example in order: the best label of the tasks in `labels`, or written text if none has any.

        Among tasks with labels, one without has nothing to choose from and is ignored.
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
        ranks = with_labels and self.settings.answer_by != "generation"
        answer = self._ranked if ranks else self._written
        prompts = [self._asked(example, tasks) for example in examples]

        def work(chosen: list[int]) -> list[Prediction]:
            return answer([prompts[i] for i in chosen], [examples[i] for i in chosen], tasks)

        with answering(self.model):
            if ranks:
                self._try_packing(prompts, [self.format.completion(text) for text in tasks[0].labels.values()])
            lengths = [len(ids) for ids in prompts]
            with self._sharing(prompts, "ranked" if ranks else "written") as pass_cost:
                return in_batches(lengths, self._at_once, work, lengths if self._mixes else None, pass_cost)

    def _ranked(
        self, prompts: Sequence[list[int]], examples: Sequence[Example], tasks: Sequence[Task]
    ) -> list[Prediction]:
        """Ranked labels; those of several tasks whose texts say the same are one, see `best_of_tasks`."""
        texts = [tuple(text for task in tasks for text in label_texts(task, e.text)) for e in examples]
        score_NL = self._label_scores(prompts, texts)
        classes = [(task.name, label) for task in tasks for label in task.labels]
        if len(tasks) == 1:
            return most_probable(score_NL.softmax(dim=1), classes)
        read = functools.cache(lambda text: tuple(self.format.completion(text)))
        return best_of_tasks(score_NL, classes, texts, read, [example.task for example in examples])

    def _written(
        self, prompts: Sequence[list[int]], examples: Sequence[Example], tasks: Sequence[Task]
    ) -> list[Prediction]:
        """Generated answers; one equal to a label's text after normalisation becomes that label.

        Of several equal ones it is that of the example's own task (in any version), else the first. One that equals a label's
        name but no label's text becomes empty: scores compare names, so it would count as right.
        """
        names = {normalise(label) for task in tasks for label in task.labels}
        ends = {"stops": [self.chats.form.stop]} if any(self._is_chat(e, tasks) for e in examples) else {}
        with autocast(self.model, self.precision):
            written = self._generate(prompts, **ends)
        if not any(task.metric in AS_WRITTEN for task in tasks):
            written = [text.strip() for text in written]
        answers = []
        for text, example in zip(written, examples, strict=True):
            own_first = sorted(tasks, key=lambda task: not same_task(task.name, example.task))
            known = {
                normalise(label_text): (task.name, label)
                for task in reversed(own_first)
                for label, label_text in reversed(list(zip(task.labels, label_texts(task, example.text), strict=True)))
            }
            task, label = known.get(normalise(text), ("", "" if normalise(text) in names else text))
            answers.append(Prediction(label, (), task, wanted=self._wanted(example)))
        return answers

    def generation_settings(self) -> dict[str, Any]:
        """What a model written out needs in its generation_config.json to answer as this one."""
        return as_scored(self.model, self.tokenizer, self.settings.max_new_tokens)

    def save(self, folder: Path, state_dict: dict[str, Tensor]) -> None:
        """See `PretrainedBackbone`; with the settings by which answers were written and scored."""
        super().save(folder, state_dict)
        (folder / GENERATION_FILE).write_text(json.dumps(self.generation_settings(), indent=2) + "\n")

    def _generate(self, prompts: Sequence[list[int]], stops: Sequence[int] = ()) -> list[str]:
        written = greedy(self.model, self.tokenizer, prompts, self.settings.max_new_tokens, self._prefix, stops)
        return [text.removeprefix(self.gap) for text in written]

    def token_losses(self, examples: Sequence[Example]) -> list[tuple[float, int]]:
        """For each example the summed negative log-likelihood of its answer in nats, and its number of tokens (perplexity)."""

        def work(chosen: list[int]) -> list[tuple[float, int]]:
            prompts = [self._asked(examples[i]) for i in chosen]
            completions = [self._completion(examples[i]) for i in chosen]
            with autocast(self.model, self.precision):
                totals = self._log_likelihood(prompts, completions).tolist()
            return [(-total, len(ids)) for total, ids in zip(totals, completions, strict=True)]

        with answering(self.model):
            alike = [(len(self._asked(e)), len(self._completion(e))) for e in examples] if self._mixes else None
            return in_batches([self.length(e) for e in examples], self.settings.predict_batch_size, work, alike)

    def _log_likelihood(self, prompts: Sequence[list[int]], completions: Sequence[list[int]]) -> Tensor:
        """Summed log-probability [N] of each completion after its prompt."""
        batch = self._batch(prompts, completions)
        logits = logits_at(self.model, batch.extra["predicting"], **batch.inputs)
        loss = functional.cross_entropy(at_least_fp32(logits), batch.extra["answers"], reduction="none")
        return -loss.new_zeros(len(prompts)).index_add(0, batch.extra["predicting"].nonzero()[:, 0], loss)

    def _exhaustive(self, prompts: Sequence[list[int]], completions: Sequence[list[int]]) -> Tensor:
        """The scores of `_packed`, with one full forward pass for each label."""
        columns = []
        for ids in completions:
            total = self._log_likelihood(prompts, [ids] * len(prompts))
            columns.append(total / len(ids) if self.settings.label_score == "mean" else total)
        return torch.stack(columns, dim=1)

    def _label_scores(self, prompts: Sequence[list[int]], texts: Sequence[tuple[str, ...]]) -> Tensor:
        """Scores [N, L] of each prompt under its own label texts; prompts with the same texts are scored together."""
        groups: dict[tuple[str, ...], list[int]] = {}
        for row, own in enumerate(texts):
            groups.setdefault(own, []).append(row)
        parts = [
            self._scores([prompts[row] for row in rows], [self.format.completion(text) for text in own])
            for own, rows in groups.items()
        ]
        order = torch.tensor([row for rows in groups.values() for row in rows])
        return torch.cat(parts)[order.argsort().to(parts[0].device)]

    def _scores(self, prompts: Sequence[list[int]], completions: Sequence[list[int]]) -> Tensor:
        self._try_packing(prompts, completions)
        with autocast(self.model, self.precision):
            if self._packs:
                return self._packed(prompts, completions, self._prefix)
            return self._exhaustive(prompts, completions)

    def _asked(self, example: Example, tasks: Sequence[Task] = ()) -> list[int]:
        """Ids of the example's prompt, as its own task (or else the only one of `tasks`) formats it."""
        task = self._tasks.get(example.task) or (tasks[0] if len(tasks) == 1 else None)
        if task and task.learns_text:
            return self.format.start()
        return self._presented(task, example)

    def _presented(self, task: Task | None, example: Example) -> list[int]:
        """Ids of the example's prompt as `task` presents it; a chat is its own prompt, whichever task asks."""
        if self._is_chat(example, [task] if task else []):
            return self.chats.asked(example)
        return self._prompt(task.prompt(example.text) if task else example.text)

    def _prompt(self, text: str) -> list[int]:
        return self._prompts[text]  # pyright: ignore[reportReturnType]

    def _completion(self, example: Example) -> list[int]:
        """Ids of the text behind the example's label, its end included; of the example's own text where that is learnt."""
        text, task = example.label, self._tasks.get(example.task)
        if task and task.learns_text:
            return self._texts[example.text]  # pyright: ignore[reportReturnType]
        if task and task.chats and not task.labels:
            return self.chats.answer(example)
        if task and text in task.labels:
            text = dict(zip(task.labels, label_texts(task, example.text), strict=True))[text]
        self._add_answers(example.task, [text])
        return self._completions[text]  # pyright: ignore[reportReturnType]
