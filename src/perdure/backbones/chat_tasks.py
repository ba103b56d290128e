"""Tasks of chats under a language model: every chat rendered once, checked before anything is trained, and kept."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from perdure.backbones.chats import ChatFormat, Rendered
from perdure.backbones.language_settings import LanguageSettings
from perdure.backbones.trials import Trials
from perdure.errors import DataError
from perdure.tasks.chats import NO_CHAT
from perdure.tasks.task import SPLITS, Example, Task

NO_TEMPLATE = (
    "chats need a language model with a chat template that is used (backbone.kind=causal, a model tuned for chat, backbone.chat "
    "not false); give this one prompts and completions"
)


class ChatTasks:
    """The ids of chats, by their text (and label). A chat is never cut in the middle: that would join two turns."""

    def __init__(self, form: ChatFormat, settings: LanguageSettings) -> None:
        self.form = form
        self.settings = settings
        self._prompts: dict[str, list[int]] = {}
        self._rows: dict[tuple[str, str], Rendered] = {}

    def prepare(self, task: Task) -> dict[str, list[int]]:
        """Render all chats of a task; text -> ids of the prompt.

        Raises:
            DataError: the template refuses, drops or rewrites a turn, or chats are too long; names file and row.
        """
        prompts: dict[str, int] = {}
        answers: dict[str, int] = {}
        for example, where in _placed(task):
            try:
                if not task.labels:
                    row = self.row(example)
                    answers[where] = len(row.ids) - row.start
                prompts[where] = len(self.prompt(example.text))
            except DataError as error:
                raise DataError(f"{where}: {error}.") from error
        _check_lengths(task, prompts, self.settings.max_length, "max_length", "before the answer")
        if self.settings.long_targets == "error":
            _check_lengths(
                task, answers, self.settings.max_new_tokens, "max_new_tokens", "in the answer, its end included"
            )
        return {example.text: self._prompts[example.text] for example, _ in _placed(task)}

    def prompt(self, text: str) -> list[int]:
        """Ids up to where the answer begins; for errors see `ChatFormat.prompt`."""
        if text not in self._prompts:
            self._prompts[text] = self.form.prompt(text)
        return self._prompts[text]

    def check(self, text: str) -> None:
        """Raise DataError unless a chat can be answered: the template writes it, within `max_length`."""
        if (length := len(self.prompt(text))) > self.settings.max_length:
            raise DataError(
                f"{length} tokens before the answer; the run reads backbone.max_length = {self.settings.max_length}"
            )

    def row(self, example: Example) -> Rendered:
        """The whole chat; for errors see `ChatFormat.rendered`."""
        key = (example.text, example.label)
        if key not in self._rows:
            row = self._rows[key] = self.form.rendered(*key)
            self._prompts.setdefault(example.text, row.ids[: row.start])
        return self._rows[key]

    def answer(self, example: Example) -> list[int]:
        """Ids of the answer, its end included; a cut one has no end, so that no false end is learnt."""
        row = self.row(example)
        return row.ids[row.start : row.start + self.settings.max_new_tokens]

    def learnt(self, example: Example) -> list[bool]:
        """Which ids of prompt and answer are learnt."""
        row = self.row(example)
        return row.learnt[: row.start + self.settings.max_new_tokens]

    def wanted(self, example: Example) -> str:
        """The answer as the model would write it, with reasoning and tool calls; "" where it is not known."""
        row = self.row(example) if example.label else None
        return self.form.text(row.ids[row.start :]) if row else ""


class ReadsChats(Trials):
    """The part of a language model that knows chats; `CausalLM` has them if it has a chat template."""

    reads_chats = False

    @property
    def chats(self) -> ChatTasks:
        """How chats are read; DataError for a model that has no chat template."""
        raise DataError(NO_TEMPLATE)

    def _prepare_chats(self, task: Task) -> None:
        if not self.reads_chats:
            raise DataError(f"Task '{task.name}': {NO_TEMPLATE}.")
        self._prompts |= {f"chat:{text}": ids for text, ids in self.chats.prepare(task).items()}

    def _is_chat(self, example: Example, tasks: Sequence[Task] = ()) -> bool:
        """Whether the example's own task, or else the only one of `tasks`, holds chats."""
        task = self._tasks.get(example.task) or (tasks[0] if len(tasks) == 1 else None)
        return task is not None and task.chats

    def _wanted(self, example: Example) -> str:
        """What a written answer is compared with, if not with the label."""
        task = self._tasks.get(example.task)
        return self.chats.wanted(example) if task and task.chats and not task.labels else ""


def _placed(task: Task) -> Iterator[tuple[Example, str]]:
    """Every example, and where it was read."""
    for split in SPLITS:
        for i, example in enumerate(getattr(task, split)):
            if example.text != NO_CHAT:
                yield example, task.places.get(example.text, f"Task '{task.name}', {split} example {i}")


def _check_lengths(task: Task, lengths: dict[str, int], limit: int, setting: str, what: str) -> None:
    """Raise DataError if chats exceed a limit; says how many, and what would be enough for all."""
    longest = max(lengths, key=lengths.__getitem__, default="")
    if longest and lengths[longest] > limit:
        number = sum(length > limit for length in lengths.values())
        cut = ", or cut them (backbone.long_targets=cut)" if setting == "max_new_tokens" else ""
        raise DataError(
            f"{longest}: {lengths[longest]} tokens {what}, and {number} of {len(lengths)} chats of task '{task.name}' have more "
            f"than backbone.{setting} = {limit}. Raise it to {lengths[longest]}, shorten or remove the chats{cut}."
        )
