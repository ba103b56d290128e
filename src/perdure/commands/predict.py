"""Answers of a run's deployed model for new inputs: `perdure predict RUN FILE`."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from perdure.backbones.base import Backbone, Prediction
from perdure.backbones.language import LanguageModel
from perdure.errors import DataError, StoreError, UnknownName
from perdure.files.durable import write_text
from perdure.files.output import check_file
from perdure.methods.contract.past import PerTask
from perdure.settings.read import validate
from perdure.state.record import load_deployed
from perdure.state.reopen import known_tasks, reopened_model
from perdure.state.store import Store
from perdure.tasks.sources.files import image_in
from perdure.tasks.sources.formats import input_format
from perdure.tasks.sources.rows import read_rows
from perdure.tasks.spec import TaskSpec
from perdure.tasks.task import (
    INVERSE_PERPLEXITY,
    Example,
    Task,
    given_tasks,
    named_by_number,
    same_task,
    version,
)
from perdure.training.evaluation import answer

Input = tuple[str, str | None]
"""A text, and the label it should get where that is known."""


def predict(
    run: str | Path,
    inputs: str | Path | Sequence[str],
    *,
    task: str | None = None,
    tasks: Sequence[Task] = (),
    text_field: str | None = None,
    encoding: str = "utf-8",
) -> list[dict[str, Any]]:
    """An answer of the run's model, as after its last finished stage, for every input in order.

    A row holds `input`; for classes `label` and `probabilities` (label -> share), for free texts `text`; `expected` where
    the file has labels; and `task` where several tasks' labels compete.

    Args:
        inputs: a data file as tasks are read from, labels optional; or texts.
        task: whose labels to choose from; 'reviews' means its newest version, 'reviews@1' the first. Not needed if the run
            learnt one task, or was scored among the labels of all (`evaluation.labels: seen`), deploys one update and asks
            all tasks in the same way.
        tasks: those given from Python; only models that answer from training examples (vision) need them.
        text_field: the name of the text's field, where it is not a usual one.
        encoding: of the file.

    Raises:
        StoreError: no finished stage, or a damaged one. RunMismatch: the base model changed since the run began.
        DataError: the file is malformed; names the line. Or the task has nothing to answer. UnknownName: no such task.
    """
    store, tasks = Store(Path(run)), given_tasks(tasks)
    about = store.about
    names = _asked(store, task)
    begun = {spec["name"]: spec for spec in about["config"]["tasks"]}
    _check_answerable(about["asked"], names)
    of_suite = {"name": names[0], "train": "as usual"}  # or given from Python: nothing is said about fields
    spec = validate(TaskSpec, about["added"].get(names[0]) or begun.get(names[0]) or of_suite)
    rows = _inputs(inputs, spec.model_copy(update={"text_field": text_field}) if text_field else spec, encoding)
    store.verify()
    model, backbone = reopened_model(store)
    backbone.prepare(known_tasks(store, backbone, names, tasks))
    deployed = load_deployed(store)
    if len(names) > 1 and (isinstance(deployed, PerTask) or _asks_apart(backbone, about["asked"], names)):
        raise _several(store, names)  # the run was scored with each task's own update or prompt
    examples = [Example(text, "", names[0]) for text, _ in rows]
    found = answer(model, backbone, deployed, examples, names)
    labels = {name: list(about["asked"][name]["labels"]) for name in names}
    return [_row(text, expected, one, labels) for (text, expected), one in zip(rows, found, strict=True)]


def write_predictions(path: Path, rows: Sequence[Mapping[str, Any]], overwrite: bool = False) -> None:
    """One JSON object a line; the file appears whole or not at all.

    Raises:
        StoreError: it exists and is not to be replaced, is part of a run or a merge state, or cannot be written.
    """
    check_file(path, overwrite=overwrite)
    write_text(path, "".join(f"{as_line(row)}\n" for row in rows))


def as_line(row: Mapping[str, Any]) -> str:
    """A row as JSON."""
    return json.dumps(row, ensure_ascii=False)


def share_right(rows: Sequence[Mapping[str, Any]]) -> tuple[float, int] | None:
    """Share of rows with a known class that got it, and how many these are; None if no row has one."""
    known = [row["label"] == row["expected"] for row in rows if "expected" in row and "label" in row]
    return (sum(known) / len(known), len(known)) if known else None


def _asked(store: Store, task: str | None) -> list[str]:
    """The learnt tasks whose labels compete."""
    about, stages = store.about, store.stages()
    learnt = [name for name in about["tasks"] if name in stages or stages == ["joint"]]
    if not learnt:
        raise StoreError(
            f"No task of the run in '{store.folder}' is learnt; go on with `perdure resume {store.folder}`."
        )
    if "asked" not in about or not about["asked"].keys() >= set(learnt):
        raise StoreError(
            f"'{store.folder}' was written before runs recorded their labels; learn it again in a new folder."
        )
    newest = list({version(name)[0]: name for name in learnt}.values())
    if task is None:
        if len(newest) == 1 or about["config"]["evaluation"]["labels"] == "seen":
            return newest
        raise _several(store, newest)
    exact = task.removesuffix("@1")
    if exact in learnt and (exact != task or version(task)[1] > 1):
        return [exact]
    if task in learnt:
        return [next(name for name in newest if same_task(name, task))]
    raise UnknownName("learnt task", task, learnt)


def _check_answerable(asked: Mapping[str, Any], names: Sequence[str]) -> None:
    """New texts can be answered as the tasks' own were.

    Raises:
        DataError: a task only learns texts, or each of its texts brings the answers to choose from.
    """
    for name in names:
        if asked[name].get("metric") == INVERSE_PERPLEXITY:
            raise DataError(
                f"Task '{name}' learns texts as they are: there is nothing to answer. Ask another one with --task."
            )
        if asked[name].get("choices"):
            raise DataError(
                f"Each text of task '{name}' has its own answers to choose from, which new texts do not bring. Ask another task "
                "with --task."
            )


def _asks_apart(backbone: Backbone, asked: Mapping[str, Any], names: Sequence[str]) -> bool:
    """Whether these tasks are asked in different words, or one of them is asked to write; encoders read the text alone."""
    ways = {(asked[name]["template"], bool(asked[name]["labels"])) for name in names}
    return len(ways) > 1 and isinstance(backbone, LanguageModel)


def _several(store: Store, names: Sequence[str]) -> StoreError:
    """What is said where one of these tasks must be chosen."""
    return StoreError(
        f"The run in '{store.folder}' learnt several tasks; say whose labels to choose from with --task: {', '.join(names)}."
    )


def _inputs(inputs: str | Path | Sequence[str], spec: TaskSpec, encoding: str) -> list[Input]:
    if not isinstance(inputs, (str, Path)):
        return [(text, None) for text in _texts(inputs)]
    rows = read_rows(Path(inputs), encoding, "the current folder")
    form = input_format(spec, rows[0])
    found = (form.read_input(row) for row in rows)
    return [(image_in(Path(inputs).parent, text), label) for text, label in found]


def _texts(inputs: Iterable[str]) -> list[str]:
    if isinstance(inputs, Mapping) or hasattr(inputs, "columns") or not isinstance(inputs, Iterable):
        raise DataError(
            f"{type(inputs).__name__} is nothing to answer: give a list of texts (of a data frame df['text'].tolist()), or the "
            "path of a data file."
        )
    texts = list(inputs)
    if not texts:
        raise DataError("There is nothing to answer: give at least one text.")
    for position, text in enumerate(texts):
        if not isinstance(text, str):
            raise DataError(f"Input {position} is {text!r:.80}: give texts, or the path of a data file.")
    return texts


def _row(text: str, expected: str | None, found: Prediction, labels: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    row: dict[str, Any] = {"input": text}
    every = [(task, label) for task, own in labels.items() for label in own]
    if not every or not (found.task or found.probabilities):
        row |= {"text": found.label} if not every else {"label": None, "text": found.label}
    else:
        row["label"] = found.label
        if len(labels) > 1:
            row["task"] = found.task
        shares = zip(every, found.probabilities, strict=True) if found.probabilities else ()
        row["probabilities"] = {
            (label if len(labels) == 1 else f"{task}/{label}"): round(share, 6) for (task, label), share in shares
        }
    if expected is not None:
        row["expected"] = named_by_number(expected, next(iter(labels.values()))) if len(labels) == 1 else expected
    return row
