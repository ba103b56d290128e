"""From a record to (text, label): the usual field names, and chats."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from perdure.errors import DataError
from perdure.tasks.chats import CHAT_FIELDS, check_characters, is_list_of_messages, read_chat, read_waiting
from perdure.tasks.pool import Pair
from perdure.tasks.sources.rows import Row, set_apart
from perdure.tasks.spec import TaskSpec
from perdure.tasks.task import INVERSE_PERPLEXITY, as_label


@dataclass(frozen=True)
class Format:
    """Which fields of a record hold the text and the label, and whether the label is free text.

    Without a label field, the text itself is learnt.
    """

    name: str
    text: str
    label: str | None
    free: bool = True

    def read(self, row: Row) -> Pair:
        """The record's text and label.

        Raises:
            DataError: one is missing or has the wrong type; says where.
        """
        if self.chats:
            return read_chat(row.fields, row.where)
        return self._input(row), _string(row, self.label, is_label=True) if self.label else ""

    def readable(self, rows: Iterable[Row], bad: list[str]) -> Iterator[tuple[Row, Pair]]:
        """The records that can be read, with text and label; what is wrong with the others is added to `bad`."""
        for row in rows:
            try:
                pair = self.read(row)
            except DataError as error:
                set_apart(error, bad)
            else:
                yield row, pair

    @property
    def chats(self) -> bool:
        """Whether the records are chats: their text and label are as in `perdure.tasks.chats`."""
        return self.name == "messages"

    def read_input(self, row: Row) -> tuple[str, str | None]:
        """The same for a record that may have no label (of a chat: that waits for the assistant)."""
        if self.chats:
            return read_waiting(row.fields, row.where)
        if self.label and row.fields.get(self.label) not in (None, ""):
            return self.read(row)
        return self._input(row), None

    def _input(self, row: Row) -> str:
        text = _string(row, self.text)
        if self.name == "instruction" and (given := row.fields.get("input") or "") and str(given).strip():
            return f"{text}\n\n{_string(row, 'input')}"  # Alpaca's layout
        return text


FORMATS = (
    *(Format("messages", field, field) for field in CHAT_FIELDS),
    Format("instruction", "instruction", "output"),
    Format("text-label", "text", "label", free=False),
    Format("text-label", "sentence", "label", free=False),
    Format("prompt-completion", "prompt", "completion"),
    Format("prompt-completion", "prompt", "answer"),
    Format("prompt-completion", "input", "output"),
)
"""Known layouts in the order they are tried; sentence/label is O-LoRA's, prompt/answer TRACE's."""


def choose_format(spec: TaskSpec, row: Row) -> Format:
    """The format the settings name, or the one that fits the fields of the first record.

    Raises:
        DataError: no format fits; lists the fields.
    """
    if spec.metric == INVERSE_PERPLEXITY:
        field = spec.text_field or next((usual for usual in ("text", "sentence") if usual in row.fields), None)
        if field:
            return Format("text", field, None)
        raise DataError(
            f"{row.where}: the metric {INVERSE_PERPLEXITY} learns the texts themselves, found the fields {row.names}. "
            "Known: text, sentence; or name yours with `text_field`."
        )
    if spec.text_field or spec.label_field:
        return Format("text-label", spec.text_field or "text", spec.label_field or "label", bool(spec.free))
    candidates = [form for form in FORMATS if spec.format in ("auto", form.name)]
    if spec.format in ("auto", "prompt-completion", "messages") and is_list_of_messages(row.fields.get("prompt")):
        candidates.insert(0, Format("messages", "prompt", "completion"))
    for form in candidates:
        if {form.text, form.label} <= row.fields.keys():
            return form
    for form in candidates:
        if form.text in row.fields:
            raise DataError(
                f"{row.where}: a field '{form.text}' but no '{form.label}', found {row.names}. Add it, or name yours with "
                f"`text_field` and `label_field`.{_other_case(row)}"
            )
    wanted = "" if spec.format == "auto" else f" of the format '{spec.format}'"
    raise DataError(
        f"{row.where}: no known fields{wanted}, found {row.names}. Known: text/label, sentence/label, prompt/completion, "
        "prompt/answer, input/output, instruction/input/output, messages, conversations; or name yours with `text_field` and "
        f"`label_field`.{_other_case(row)}"
    )


def _other_case(row: Row) -> str:
    """A hint if fields of the record differ from known ones only in case."""
    folded = {field.casefold(): field for field in row.fields}
    for form in FORMATS:
        if form.text in folded and form.label in folded:
            if form.free:
                return f" Did you mean '{form.text}' and '{form.label}'? Field names are case-sensitive."
            return f" Did you mean `text_field: {folded[form.text]}` and `label_field: {folded[form.label]}`?"
    return ""


def input_format(spec: TaskSpec, row: Row) -> Format:
    """How to read records like `row`, which may have no labels: as the task's own, if the fields allow it.

    Raises:
        DataError: no input field, or several; lists the fields.
    """
    with contextlib.suppress(DataError):
        return choose_format(spec, row)
    if is_list_of_messages(row.fields.get("prompt")):
        return Format("messages", "prompt", "completion")
    known = [form for form in reversed(FORMATS) if spec.format in ("auto", form.name)]
    inputs = {form.text: form for form in known if form.text in row.fields}
    if "instruction" in inputs:
        inputs.pop("input", None)  # belongs to the instruction
    if len(inputs) == 1:
        return next(iter(inputs.values()))
    which = "several inputs" if inputs else "no input"
    raise DataError(
        f"{row.where}: {which} to answer, found the fields {row.names}. Known: text, sentence, prompt, input, instruction "
        "(with input), messages, conversations; or name yours with `text_field`."
    )


def _string(row: Row, field: str, *, is_label: bool = False) -> str:
    """A field's text, or its label; numbers are labels too, as spreadsheets turn them into floats."""
    if field not in row.fields:
        hint = next((f" Did you mean {name!r}?" for name in row.fields if name.casefold() == field.casefold()), "")
        raise DataError(f"{row.where}: no field '{field}', found {row.names}.{hint}")
    value = row.fields[field]
    if value is None:
        raise DataError(f"{row.where}: field '{field}' is missing; fill it in or remove the record.")
    value = as_label(value) if is_label else value
    if not isinstance(value, str):
        wanted = "a string or an integer" if is_label else "a string"
        raise DataError(f"{row.where}: field '{field}' must be {wanted}, found {type(value).__name__}.")
    if not value.strip():
        raise DataError(f"{row.where}: field '{field}' is empty; fill it in or remove the record.")
    check_characters(value, f"{row.where}: field '{field}'")
    return value.strip() if is_label else value
