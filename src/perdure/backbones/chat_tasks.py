"""Tasks of chats under a language model: every chat rendered once, checked before anything is trained, and kept."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from perdure.backbones.chats import ChatFormat, Rendered
from perdure.backbones.language_settings import LanguageSettings
from perdure.backbones.token_rows import Again, TokenRows, tokenizer_key
from perdure.backbones.trials import Trials
from perdure.errors import DataError
from perdure.tasks.chats import NO_CHAT
from perdure.tasks.task import SPLITS, Example, Examples, Task

NO_TEMPLATE = (
    "chats need a language model with a chat template that is used (backbone.kind=causal, a model tuned for chat, backbone.chat "
    "not false); give this one prompts and completions"
)

BETWEEN = "\0"


class ChatTasks:
    """The ids of chats, by their text (and label). A chat is never cut in the middle: that would join two turns."""

    def __init__(self, form: ChatFormat, settings: LanguageSettings) -> None:
        self.form = form
        self.settings = settings
        self._prompts = TokenRows("chat prompts", lambda texts: (list(map(form.prompt, texts)), 0), self._reading)
        self._rows = TokenRows("chats", lambda keys: (list(map(self._rendered, keys)), 0), self._reading)

    def _rendered(self, key: str) -> list[int]:
        text, label = key.split(BETWEEN, 1)
        return _packed(self.form.rendered(text, label))

    def _reading(self) -> str | None:
        """What besides a chat decides about its ids, as a checksum."""
        form = self.form
        return tokenizer_key(form.tokenizer, {"system": form.system, "args": form.args, "learn": form.learn})

    def prepare(self, task: Task) -> None:
        """Render all chats of a task.

        Raises:
            DataError: the template refuses, drops or rewrites a turn, or chats are too long; names file and row.
        """
        try:
            if task.labels:
                self._prompts.add(Again(lambda: (example.text for example, _ in _placed(task))))
            else:
                self._rows.add(Again(lambda: (_key(example) for example, _ in _placed(task))))
        except DataError:
            self._name_the_first(task)
            raise
        _check_lengths(
            task,
            ((where, len(self.asked(example))) for example, where in _placed(task)),
            *(self.settings.max_length, "max_length", "before the answer"),
        )
        if task.labels:
            return
        if self.settings.long_targets == "cut":
            self._check_learnt(task)
            return
        _check_lengths(
            task,
            (
                (where, len(self._rows[_key(example)]) - 1 - self._rows[_key(example)][0])
                for example, where in _placed(task)
            ),
            *(self.settings.max_new_tokens, "max_new_tokens", "in the answer, its end included"),
        )

    def _name_the_first(self, task: Task) -> None:
        """Raise DataError with the place of the first chat that cannot be rendered."""
        for example, where in _placed(task):
            try:
                self._prompts[example.text] if task.labels else self._rows[_key(example)]
            except DataError as error:
                raise DataError(f"{where}: {error}.") from error

    def _check_learnt(self, task: Task) -> None:
        """Raise DataError if nothing is left to learn of a chat whose answer is cut."""
        for example, where in _placed(task):
            if not any(self.learnt(example)):
                raise DataError(
                    f"{where}: what is to be learnt lies behind the first backbone.max_new_tokens = "
                    f"{self.settings.max_new_tokens} tokens of the answer, and long_targets=cut leaves nothing of it. Raise it."
                )

    def known(self) -> list[list[int]]:
        """The prompts of the shortest and the longest chat."""
        rows = [_unpacked(row) for row in self._rows.extremes()]
        return [*map(list, self._prompts.extremes()), *(row.ids[: row.start] for row in rows)]

    def prompt(self, text: str) -> list[int]:
        """Ids up to where the answer begins; for errors see `ChatFormat.prompt`."""
        return self._prompts[text]  # pyright: ignore[reportReturnType]

    def asked(self, example: Example) -> list[int]:
        """The same for an example, whose whole chat may be known."""
        if _key(example) not in self._rows:
            return self.prompt(example.text)
        row = self.row(example)
        return row.ids[: row.start]

    def check(self, text: str) -> None:
        """Raise DataError unless a chat can be answered: the template writes it, within `max_length`."""
        if (length := len(self.prompt(text))) > self.settings.max_length:
            raise DataError(
                f"{length} tokens before the answer; the run reads backbone.max_length = {self.settings.max_length}"
            )

    def row(self, example: Example) -> Rendered:
        """The whole chat; for errors see `ChatFormat.rendered`."""
        return _unpacked(self._rows[_key(example)])

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
        self.chats.prepare(task)

    def _known_prompts(self) -> list[list[int]]:
        chats = self.chats.known() if self.reads_chats else []
        return sorted([*super()._known_prompts(), *chats], key=len)

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
        examples = getattr(task, split)
        for i, example in enumerate(examples):
            if isinstance(examples, Examples):
                yield example, examples.table.place(i)
            elif example.text != NO_CHAT:
                yield example, task.places.get(example.text, f"Task '{task.name}', {split} example {i}")


def _key(example: Example) -> str:
    """What a whole chat is known by; JSON holds no such character."""
    return f"{example.text}{BETWEEN}{example.label}"


def _packed(chat: Rendered) -> list[int]:
    """A chat as integers: where its answer begins, then its ids, those that are not learnt as -1 - id."""
    return [chat.start, *(i if learnt else -1 - i for i, learnt in zip(chat.ids, chat.learnt, strict=True))]


def _unpacked(row: Sequence[int]) -> Rendered:
    return Rendered([i if i >= 0 else -1 - i for i in row[1:]], [i >= 0 for i in row[1:]], row[0])


def _check_lengths(task: Task, lengths: Iterable[tuple[str, int]], limit: int, setting: str, what: str) -> None:
    """Raise DataError if chats exceed a limit; says how many, and what would be enough for all."""
    longest, most, number, count = "", limit, 0, 0
    for where, length in lengths:
        count += 1
        number += length > limit
        if length > most:
            longest, most = where, length
    if longest:
        cut = ", or cut them (backbone.long_targets=cut)" if setting == "max_new_tokens" else ""
        raise DataError(
            f"{longest}: {most} tokens {what}, and {number} of {count} chats of task '{task.name}' have more "
            f"than backbone.{setting} = {limit}. Raise it to {most}, shorten or remove the chats{cut}."
        )
