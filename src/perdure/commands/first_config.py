"""`perdure init tickets.jsonl`: a configuration for what is in the files, by the rules of docs/choosing.md; nothing is asked."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from perdure.errors import ConfigError, DataError
from perdure.settings.yaml_text import parse_yaml
from perdure.tasks.sources.files import file_spec, load_task
from perdure.tasks.spec import TaskSpec
from perdure.tasks.task import INVERSE_PERPLEXITY, Task

TOKENS_A_WORD = 1.6
"""Of English text in the known models' tokenizers, on the safe side."""
LENGTHS = (48, 64, 96, 128, 192, 256, 384, 512, 1024, 2048)
ANSWERS = (50, 100, 200, 400, 800, 1600)
FEW_STEPS, MOST_EPOCHS, EPOCHS, BATCH = 100, 12, 3, 16


@dataclass(frozen=True)
class Looked:
    """A data file: the settings it can be read with, the task that gives, and what it holds in words."""

    spec: TaskSpec
    task: Task
    what: str


def look_at(file: Path, fields: Mapping[str, str] | None = None) -> Looked:
    """Read a data file as labels, else as free text, else as plain texts; bad rows are left out.

    Args:
        fields: `text_field` and `label_field`, if given; else the usual names, else those that `own_fields` finds.

    Raises:
        DataError: it cannot be read in any of these ways; the message is that of the first.
    """
    ways: tuple[dict[str, Any], ...] = ({}, {"free": True}, {"metric": INVERSE_PERPLEXITY})
    first: DataError | None = None
    for way in ways:
        spec = file_spec(file, bad_rows="skip", **(fields or {}), **way)
        try:
            task = load_task(spec)
        except DataError as error:
            first = first or error
            continue
        if first and spec.free and len({example.label for example in task.train}) == 1:
            raise first  # of a single class, which is no free text
        if task.chats:
            what = "chats"
        elif task.labels:
            what = f"{len(task.labels)} labels"
        else:
            what = "plain texts" if task.learns_text else "free text"
        return Looked(spec, task, what)
    assert first is not None
    raise first


def first_config(files: Sequence[Path], out: Path, fields: Mapping[str, str] | None = None) -> tuple[str, list[str]]:
    """The YAML of a configuration that learns `files` in this order, and a line about each file; `fields`: see `look_at`.

    Raises:
        ConfigError: files of labels and of free text together, or two of one name. DataError: see `look_at`.
    """
    looked = [look_at(file, fields) for file in files]
    names = [one.task.name for one in looked]
    if len(set(names)) < len(names):
        raise ConfigError(
            f"Tasks are named after their files, and {', '.join(names)} holds a name twice: rename a file."
        )
    kinds = {bool(one.task.labels) for one in looked}
    if len(kinds) > 1:
        both = ", ".join(f"{one.task.name} ({one.what})" for one in looked)
        raise ConfigError(f"Labels and free text need different models, so they are two runs: {both}.")
    labelled = kinds == {True}
    lines = [
        f"# Written by perdure init for {', '.join(file.name for file in files)}. Try it:  perdure run {out.name} --dry-run",
        "tasks:                          # learnt in this order",
        *(line for one in looked for line in _task(one, out.parent)),
        "",
        *_method(labelled),
        *_backbone(looked, labelled),
        *_training(looked),
        "seed: 0",
    ]
    said = [
        f"{one.task.name}: {one.task.rows:,} rows, {one.what}, {len(one.task.train):,} to learn from" for one in looked
    ]
    return "\n".join(lines) + "\n", said


def _task(one: Looked, folder: Path) -> list[str]:
    path = os.path.relpath(str(one.spec.train), folder.resolve())
    lines = [f"  - name: {one.task.name}", f"    train: {_quoted(path)}"]
    for field in ("text_field", "label_field"):
        if name := getattr(one.spec, field):
            lines.append(f"    {field}: {_quoted(name)}")
    if one.spec.free:
        lines.append("    free: true                  # answers are free text")
    if one.task.learns_text:
        lines.append(f"    metric: {INVERSE_PERPLEXITY}  # the texts themselves are learnt")
    if one.task.skipped:
        lines.append(f"    bad_rows: skip              # {len(one.task.skipped)} rows cannot be read")
    if one.task.labels and all(label.isdecimal() for label in one.task.labels):
        meant = ", ".join(f"{label}: ..." for label in one.task.labels)
        lines.append(f"    # labels: {{{meant}}}      say what the numbers mean: a model reads these texts")
    return lines


def _method(labelled: bool) -> list[str]:
    more = "slice+replay scores about the same and keeps old examples" if labelled else "replay keeps old examples"
    return [
        f"method: perdure                 # keeps no old example; {more} (docs/choosing.md)",
        "training_by_task: {}            # for single tasks, such as {april: {epochs: 6}}",
        "",
    ]


def _backbone(looked: Sequence[Looked], labelled: bool) -> list[str]:
    tasks = [one.task for one in looked]
    words = sorted(len(example.text.split()) for task in tasks for example in task.train)
    longest = _at_least(TOKENS_A_WORD * words[int(0.95 * (len(words) - 1))] + 2, LENGTHS)
    if labelled and not any(task.chats for task in tasks):
        return [f"backbone: {{model: minilm, max_length: {longest}}}   # 95 % of the texts fit", ""]
    settings = f"kind: causal, model: smollm2-135m, max_length: {max(longest, 256)}"
    if not labelled and not any(task.learns_text for task in tasks):
        answers = max(len(example.label.split()) for task in tasks for example in task.train)
        settings += f", max_new_tokens: {_at_least(TOKENS_A_WORD * answers + 8, ANSWERS)}"
    return [f"backbone: {{{settings}}}   # or a model of your own", ""]


def _training(looked: Sequence[Looked]) -> list[str]:
    least = min(len(one.task.train) for one in looked)
    epochs = min(MOST_EPOCHS, max(EPOCHS, math.ceil(FEW_STEPS * BATCH / least)))
    why = f"  # {least} examples: fewer passes would be few steps" if epochs > EPOCHS else ""
    return [
        f"training: {{learning_rate: 2.0e-3, epochs: {epochs}, batch_size: {BATCH}}}{why}",
        "lora: {rank: 8, alpha: 16}",
        "evaluation: {split: test}       # validation while you choose settings",
    ]


def _at_least(value: float, sizes: Sequence[int]) -> int:
    return next((size for size in sizes if size >= value), sizes[-1])


def _quoted(text: str) -> str:
    plain = re.fullmatch(r"[\w./-]+", text) and parse_yaml(text) == text
    return text if plain else "'" + text.replace("'", "''") + "'"
