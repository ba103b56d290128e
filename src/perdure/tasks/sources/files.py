"""A task as people give it: settings, a YAML file of settings, or the data file alone."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Mapping
from itertools import islice
from pathlib import Path
from typing import Any

from perdure.errors import ConfigError, DataError
from perdure.settings.read import validate
from perdure.settings.yaml_text import read_yaml
from perdure.tasks.sources.formats import choose_format
from perdure.tasks.sources.from_spec import task_from
from perdure.tasks.sources.rows import KINDS, Row, each_row
from perdure.tasks.spec import TaskSpec, check_is_task
from perdure.tasks.task import Task

ROWS_LOOKED_AT, MOST_LABELS = 1000, 50


def read_task_spec(path: str | Path) -> TaskSpec:
    """The settings in a task's YAML file.

    Raises:
        DataError: no such file, or not valid YAML; ConfigError: unknown keys or wrong values, all of them at once.
    """
    path = Path(path)
    settings = read_yaml(path, "task", DataError)
    check_is_task(path, settings)
    try:
        return validate(TaskSpec, settings)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error


def task_spec(task: str | Path | TaskSpec | Mapping[str, Any]) -> TaskSpec:
    """A task's settings with absolute file names; of a data file those of `file_spec`; errors as in `read_task_spec`.

    Args:
        task: settings, their YAML file, or a data file alone: each name of `perdure.tasks.sources.rows.KINDS`.
    """
    match task:
        case TaskSpec():
            return task.located(".")
        case str() | Path() if _holds_data(Path(task)):
            return file_spec(Path(task))
        case str() | Path():
            return read_task_spec(task).located(Path(task).parent)
        case Mapping():
            return validate(TaskSpec, task, "task").located(".")
    raise ConfigError(
        f"{task!r:.80} is not a task: give a perdure.Task, a data file, a task's YAML file, or its settings as in "
        "{'name': 'reviews', 'train': 'reviews.csv'}."
    )


def file_spec(file: Path, **settings: Any) -> TaskSpec:
    """Settings of the task that a data file alone holds, named after it; fields of other names as `own_fields` finds them."""
    name = re.sub(r"[^\w.-]+", "-", file.stem).strip(".-") or "task"
    given: dict[str, Any] = own_fields(file) | settings
    return TaskSpec(name=name, train=str(file.resolve()), **given)


def _holds_data(path: Path) -> bool:
    """Whether a file has a data file's ending; of JSON, which a task's settings may be written in too, if it holds records."""
    if path.suffix.lower() != ".json" or not path.is_file():
        return path.suffix.lower() in KINDS
    with contextlib.suppress(ValueError):
        content = json.loads(path.read_bytes())
        return not isinstance(content, dict) or "data" in content
    return True


def load_task(task: str | Path | TaskSpec | Mapping[str, Any], folder: str | Path = ".") -> Task:
    """The task that a YAML file or settings describe, or that a data file alone holds; its notes say what was cut and removed.

    Args:
        folder: what relative files of a `TaskSpec` are resolved against.

    Raises:
        DataError, FetchError: see `perdure.tasks.sources.from_spec.task_from`.
    """
    return task_from(task if isinstance(task, TaskSpec) else task_spec(task), folder)


def own_fields(file: Path) -> dict[str, str]:
    """`text_field` and `label_field` of a file whose fields have other than the usual names, where its content leaves no doubt.

    The label: the only field with few values that come again and again. The text: of the others, the only one of several
    words. Empty if the names are known ones, or if there is doubt.
    """
    if not file.is_file():
        return {}
    rows = list(islice(each_row(file, bad=[]), ROWS_LOOKED_AT))
    if not rows or _known_fields(rows[0]):
        return {}
    values = {name: [str(row.fields.get(name) or "").strip() for row in rows] for name in rows[0].fields}
    few = [name for name, own in values.items() if 2 <= len(set(own)) <= min(MOST_LABELS, len(own) / 5)]
    several = [name for name, own in values.items() if sum(len(text.split()) for text in own) >= 3 * len(own)]
    texts = [name for name in several if name not in few]
    return {"text_field": texts[0], "label_field": few[0]} if len(few) == len(texts) == 1 else {}


def _known_fields(row: Row) -> bool:
    try:
        choose_format(TaskSpec(name="task", train="-"), row)
    except DataError:
        return False
    return True
