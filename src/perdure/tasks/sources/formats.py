"""From a record to (text, label): the field names people use, and chats."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import Any

from perdure.errors import DataError
from perdure.tasks.pool import Pair
from perdure.tasks.sources.rows import Row
from perdure.tasks.spec import TaskSpec
from perdure.tasks.task import INVERSE_PERPLEXITY


@dataclass(frozen=True)
class Format:
    """Which fields of a record hold the text and the label, and whether the label is free text.

    Without a field for the label, the text is learnt as it is.
    """

    name: str
    text: str
    label: str | None
    free: bool = True

    def read(self, row: Row) -> Pair:
        """The record's text and label.

        Raises:
            DataError: one of them is missing or of a wrong kind; says where.
        """
        if self.name == "messages":
            return _messages(row)
        return self._input(row), _label(row, self.label) if self.label else ""

    def read_input(self, row: Row) -> tuple[str, str | None]:
        """The same of a record that may come without its label."""
        if self.name == "messages":
            return _chat(row)
        if self.label and row.fields.get(self.label) not in (None, ""):
            return self._input(row), _label(row, self.label)
        return self._input(row), None

    def _input(self, row: Row) -> str:
        return _instructed(row) if self.name == "instruction" else _text(row, self.text)


FORMATS = (
    Format("messages", "messages", "messages"),
    Format("instruction", "instruction", "output"),
    Format("text-label", "text", "label", free=False),
    Format("text-label", "sentence", "label", free=False),
    Format("prompt-completion", "prompt", "completion"),
    Format("prompt-completion", "prompt", "answer"),
    Format("prompt-completion", "input", "output"),
)
"""What records look like, in the order in which they are told; sentence/label is O-LoRA's layout, prompt/answer TRACE's."""


def choose_format(spec: TaskSpec, row: Row) -> Format:
    """The format the settings name, or the one the first record's fields tell.

    Raises:
        DataError: the fields fit no format; says which they are.
    """
    if spec.metric == INVERSE_PERPLEXITY:
        return _of_texts(spec, row)
    if spec.text_field or spec.label_field:
        return Format("text-label", spec.text_field or "text", spec.label_field or "label", bool(spec.free))
    for form in FORMATS:
        if spec.format in ("auto", form.name) and {form.text, form.label} <= row.fields.keys():
            return form
    half = next((f for f in FORMATS if spec.format in ("auto", f.name) and f.text in row.fields and f.label), None)
    if half:
        raise DataError(
            f"{row.where}: a field '{half.text}' but no '{half.label}', found {', '.join(map(repr, row.fields))}. Add it, or "
            f"name yours with `text_field` and `label_field`.{_other_case(row)}"
        )
    wanted = "" if spec.format == "auto" else f" of the format '{spec.format}'"
    raise DataError(
        f"{row.where}: no known fields{wanted}, found {', '.join(map(repr, row.fields))}. Known: text/label, sentence/label, "
        "prompt/completion, prompt/answer, input/output, instruction/input/output, messages; or name yours with "
        f"`text_field` and `label_field`.{_other_case(row)}"
    )


def _other_case(row: Row) -> str:
    """That fields of the record differ from known ones only in upper and lower case."""
    found = {field.casefold(): field for field in row.fields}
    for form in FORMATS:
        if form.label is not None and {form.text, form.label} <= found.keys():
            text, label = found[form.text], found[form.label]
            if form.free:
                return f" Did you mean '{form.text}' and '{form.label}'? Names are told apart by upper and lower case."
            return f" Did you mean `text_field: {text}` and `label_field: {label}`?"
    return ""


def _of_texts(spec: TaskSpec, row: Row) -> Format:
    """The format of texts that are learnt as they are.

    Raises:
        DataError: there is no text; a prompt and its answer are not taken for one.
    """
    field = spec.text_field or next((usual for usual in ("text", "sentence") if usual in row.fields), None)
    if field:
        return Format("text", field, None)
    raise DataError(
        f"{row.where}: the metric {INVERSE_PERPLEXITY} is of texts learnt as they are, found the fields "
        f"{', '.join(map(repr, row.fields))}. Known: text, sentence; or name yours with `text_field`."
    )


def input_format(spec: TaskSpec, row: Row) -> Format:
    """How to read records like `row`, which may come without labels: as the task's own were, where the fields tell it.

    Raises:
        DataError: the fields tell no input, or several; says which they are.
    """
    with contextlib.suppress(DataError):
        return choose_format(spec, row)
    known = [form for form in reversed(FORMATS) if spec.format in ("auto", form.name)]
    found = {form.text: form for form in known if form.text in row.fields}
    if "instruction" in found:
        found.pop("input", None)  # what the instruction is about
    if len(found) == 1:
        return next(iter(found.values()))
    which = "several inputs" if found else "no input"
    raise DataError(
        f"{row.where}: {which} to answer, found the fields {', '.join(map(repr, row.fields))}. Known: text, sentence, prompt, "
        "input, instruction (with input), messages; or name yours with `text_field`."
    )


def _chat(row: Row) -> tuple[str, str | None]:
    """A chat that waits for the assistant, or one with the assistant's answer as its label."""
    turns = row.fields["messages"]
    if isinstance(turns, list) and turns and isinstance(turns[-1], dict) and turns[-1].get("role") != "assistant":
        waiting = {"messages": [*turns, {"role": "assistant", "content": "?"}]}
        return _messages(Row(row.where, waiting))[0], None
    return _messages(row)


def _instructed(row: Row) -> str:
    """Alpaca's layout: the input, where there is one, stands below the instruction."""
    instruction, given = _text(row, "instruction"), row.fields.get("input") or ""
    if not isinstance(given, str):
        raise DataError(f"{row.where}: field 'input' should be a text, found {type(given).__name__}.")
    _check_characters(row, "input", given)
    return f"{instruction}\n\n{given}" if given.strip() else instruction


def _messages(row: Row) -> Pair:
    """A chat whose last message, the assistant's, is the answer to all before it."""
    messages = row.fields["messages"]
    turns: list[tuple[str, str]] = []
    for message in messages if isinstance(messages, list) else []:
        match message:
            case {"role": str(role), "content": str(content)}:
                _check_characters(row, "messages", content)
                turns.append((role, content))
            case _:
                raise DataError(f"{row.where}: a message should be {{'role', 'content'}}, found {message!r:.80}.")
    if len(turns) < 2 or turns[-1][0] != "assistant":
        raise DataError(f"{row.where}: `messages` should be a chat of at least two that ends with the assistant.")
    *before, (_, answer) = turns
    if len(before) == 1:
        return before[0][1], answer
    return "\n".join(f"{role}: {content}" for role, content in before), answer


def _text(row: Row, field: str) -> str:
    value = _present(row, field)
    if not isinstance(value, str):
        raise DataError(f"{row.where}: field '{field}' should be a text, found {type(value).__name__}.")
    if not value.strip():
        raise DataError(f"{row.where}: field '{field}' is empty; fill it in or remove the record.")
    return value


def _label(row: Row, field: str) -> str:
    value = _present(row, field)
    if isinstance(value, (bool, int)):
        return str(value)
    if isinstance(value, float) and value.is_integer():
        return str(int(value))  # a column of whole numbers that went through a spreadsheet
    if not isinstance(value, str):
        raise DataError(
            f"{row.where}: field '{field}' should be a text or a whole number, found {type(value).__name__}."
        )
    if not value.strip():
        raise DataError(f"{row.where}: field '{field}' is empty; fill it in or remove the record.")
    return value.strip()


def _present(row: Row, field: str) -> Any:
    if field not in row.fields:
        alike = next((f" Did you mean {name!r}?" for name in row.fields if name.casefold() == field.casefold()), "")
        raise DataError(f"{row.where}: no field '{field}', found {', '.join(map(repr, row.fields))}.{alike}")
    if row.fields[field] is None:
        raise DataError(f"{row.where}: field '{field}' is missing; fill it in or remove the record.")
    if isinstance(row.fields[field], str):
        _check_characters(row, field, row.fields[field])
    return row.fields[field]


def _check_characters(row: Row, field: str, text: str) -> None:
    """Every character of the text is a whole one.

    Raises:
        DataError: one is half of a pair, such as an emoji that was cut; no tokenizer reads it, no file can hold it.
    """
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        near = text[max(0, error.start - 20) : error.start]
        raise DataError(
            f"{row.where}: field '{field}' holds half of a character (\\u{ord(text[error.start]):04x}, after {near!r}): "
            "an emoji was cut there. Repair or remove the record."
        ) from None
