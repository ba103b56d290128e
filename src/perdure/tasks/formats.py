"""From a record to (text, label): the field names people use, and chats."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from perdure.errors import DataError
from perdure.tasks.rows import Row
from perdure.tasks.spec import TaskSpec
from perdure.tasks.splits import Pair

USUAL_FIELDS: dict[str, tuple[tuple[str, str], ...]] = {
    "text-label": (("text", "label"), ("sentence", "label")),
    "prompt-completion": (("prompt", "completion"), ("prompt", "answer"), ("input", "output")),
}
"""Format -> (text, label) field names; sentence/label is O-LoRA's layout, prompt/answer TRACE's."""


@dataclass(frozen=True)
class Format:
    """How a record is read, and whether its label is free text."""

    name: str
    read: Callable[[Row], Pair]
    free: bool


def choose_format(spec: TaskSpec, row: Row) -> Format:
    """The format the settings name, or the one the first record's fields tell.

    Raises:
        DataError: the fields fit no format; says which they are.
    """
    if spec.text_field or spec.label_field:
        text, label = spec.text_field or "text", spec.label_field or "label"
        return Format(spec.format, _two_fields(text, label), bool(spec.free))
    fields = row.fields.keys()
    if spec.format in ("auto", "messages") and "messages" in fields:
        return Format("messages", _messages, True)
    if spec.format in ("auto", "instruction") and {"instruction", "output"} <= fields:
        return Format("instruction", _instruction, True)
    for name, names in USUAL_FIELDS.items():
        for text, label in names:
            if spec.format in ("auto", name) and {text, label} <= fields:
                return Format(name, _two_fields(text, label), name != "text-label")
    wanted = "" if spec.format == "auto" else f" of the format '{spec.format}'"
    raise DataError(
        f"{row.where}: no known fields{wanted}, found {', '.join(map(repr, fields))}. Known: text/label, sentence/label, "
        "prompt/completion, prompt/answer, input/output, instruction/input/output, messages; or name yours with "
        "`text_field` and `label_field`."
    )


def input_reader(row: Row, text_field: str | None, label_field: str | None) -> Callable[[Row], tuple[str, str | None]]:
    """How to read (text, label or None) from records like `row` that may come without labels.

    Raises:
        DataError: the fields tell no input; says which they are.
    """
    if text_field is None and "messages" in row.fields:
        return _chat
    if text_field is None and "instruction" in row.fields:
        return lambda row: (_instructed(row), _optional(row, "output"))
    texts = [text_field] if text_field else [text for pairs in USUAL_FIELDS.values() for text, _ in pairs]
    for text in texts:
        if text in row.fields:
            usual = [label for pairs in USUAL_FIELDS.values() for name, label in pairs if name == text] or ["label"]
            label = label_field or next((name for name in usual if name in row.fields), usual[0])
            return lambda row: (_text(row, text), _optional(row, label))
    raise DataError(
        f"{row.where}: no input to answer, found the fields {', '.join(map(repr, row.fields))}. Known: text, sentence, prompt, "
        "input, instruction (with input), messages; or name yours with `text_field`."
    )


def _optional(row: Row, field: str) -> str | None:
    """The label, where there is one."""
    return None if row.fields.get(field) in (None, "") else _label(row, field)


def _chat(row: Row) -> tuple[str, str | None]:
    """A chat that waits for the assistant, or one with the assistant's answer as its label."""
    turns = row.fields["messages"]
    if isinstance(turns, list) and turns and isinstance(turns[-1], dict) and turns[-1].get("role") != "assistant":
        waiting = {"messages": [*turns, {"role": "assistant", "content": "?"}]}
        return _messages(Row(row.where, waiting))[0], None
    return _messages(row)


def _two_fields(text: str, label: str) -> Callable[[Row], Pair]:
    return lambda row: (_text(row, text), _label(row, label))


def _instruction(row: Row) -> Pair:
    """Alpaca's layout: the input, where there is one, stands below the instruction."""
    return _instructed(row), _label(row, "output")


def _instructed(row: Row) -> str:
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
        raise DataError(f"{row.where}: no field '{field}', found {', '.join(map(repr, row.fields))}.")
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
