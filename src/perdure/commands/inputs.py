"""What `perdure predict` is asked: rows of a data file, of standard input, or texts and chats from Python."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from perdure.errors import DataError
from perdure.tasks.chats import as_text, is_chat, one_turn, read_waiting
from perdure.tasks.sources.formats import Format, input_format
from perdure.tasks.sources.from_spec import image_in
from perdure.tasks.sources.rows import Row, each_json_line, read_rows
from perdure.tasks.spec import TaskSpec

STANDARD_INPUT = "-"


@dataclass(frozen=True)
class Input:
    """One input: its text (of a chat, see `perdure.tasks.chats`), the right label if known, where it is, and other fields."""

    text: str
    expected: str | None = None
    where: str = ""
    others: Mapping[str, Any] = field(default_factory=dict)


def read_inputs(
    inputs: str | Path | Sequence[str | Mapping[str, Any]],
    spec: TaskSpec,
    encoding: str,
    chats: bool,
    bad: list[str] | None = None,
) -> list[Input]:
    """The inputs in order.

    Args:
        inputs: a data file, "-" for JSON lines on standard input, or texts and chats.
        spec: how the task's own records are read.
        chats: whether the task learnt chats: a text is then a chat of one message.
        bad: gets a message for each row that cannot be read, which is left out; None: the first one is an error.

    Raises:
        DataError: nothing to answer, or a row that cannot be read; says where.
    """
    if not isinstance(inputs, (str, Path)):
        return [_from_python(given, f"Input {i}", chats) for i, given in enumerate(_listed(inputs))]
    if str(inputs) == STANDARD_INPUT:
        rows, folder = list(each_json_line(sys.stdin.buffer, "standard input", encoding, bad)), Path()
        if not rows and not bad:
            raise DataError("Nothing to answer: standard input is empty.")
    else:
        rows, folder = read_rows(Path(inputs), encoding, "the current folder", bad), Path(inputs).parent
    if not rows:
        return []
    form = input_format(spec, rows[0])
    found = []
    for row in rows:
        try:
            found.append(_from_row(row, form, folder, chats))
        except DataError as error:
            if bad is None:
                raise
            bad.append(str(error))
    return found


def _from_row(row: Row, form: Format, folder: Path, chats: bool) -> Input:
    text, expected = form.read_input(row)
    used = {form.text, form.label, *(("input",) if form.name == "instruction" else ())}
    if form.chats and chats:
        used = set()  # the answer's row holds the whole chat
    others = {name: value for name, value in row.fields.items() if name not in used}
    if not form.chats:
        text = image_in(folder, text)
    return Input(_presented(text, form.chats, chats, row.where), expected, row.where, others)


def _presented(text: str, is_chat: bool, chats: bool, where: str) -> str:
    """The input as its task presents it: a chat, or a text."""
    if is_chat == chats:
        return text
    if chats:
        return as_text([{"role": "user", "content": text}])
    plain = one_turn(text)
    if plain is None:
        raise DataError(
            f"{where}: the task learnt texts, and this chat is more than one message of the user. Give its text."
        )
    return plain


def _from_python(given: object, where: str, chats: bool) -> Input:
    if isinstance(given, Mapping) and is_chat(given):
        text, expected = read_waiting(given, where)
        return Input(_presented(text, True, chats, where), expected, where, given)
    if not isinstance(given, str):
        raise DataError(f"{where} is {given!r:.80}: give texts or chats, or the path of a data file.")
    return Input(_presented(given, False, chats, where), None, where)


def _listed(inputs: object) -> list[object]:
    if isinstance(inputs, Mapping) or hasattr(inputs, "columns") or not isinstance(inputs, Iterable):
        raise DataError(
            f"Cannot answer a {type(inputs).__name__}: give a list of texts (for a data frame df['text'].tolist()), or the path "
            "of a data file."
        )
    if not (given := list(inputs)):
        raise DataError("Nothing to answer: give at least one text.")
    return given
