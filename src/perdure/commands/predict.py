"""Answers of a run's deployed model for new inputs: `perdure predict RUN FILE`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from perdure.backbones.base import Backbone, Prediction
from perdure.backbones.language import LanguageModel
from perdure.commands.inputs import Input, read_inputs
from perdure.errors import DataError, StoreError, UnknownName
from perdure.files.durable import write_text
from perdure.files.output import check_file
from perdure.methods.contract.past import PerTask
from perdure.settings.read import validate
from perdure.state.record import load_deployed, load_head
from perdure.state.reopen import known_tasks, reopened_model
from perdure.state.store import Store
from perdure.tasks.chats import one_turn
from perdure.tasks.spec import TaskSpec
from perdure.tasks.task import INVERSE_PERPLEXITY, Example, Task, given_tasks, named_by_number, same_task, version
from perdure.training.evaluation import answer
from perdure.training.heads import with_head


def predict(
    run: str | Path,
    inputs: str | Path | Sequence[str | Mapping[str, Any]],
    *,
    task: str | None = None,
    tasks: Sequence[Task] = (),
    text_field: str | None = None,
    encoding: str = "utf-8",
    bad: list[str] | None = None,
) -> list[dict[str, Any]]:
    """The answers of the run's model, after its last finished stage, for the inputs in order.

    A row holds `input` (of a chat, the fields of its record instead); for classes `label` and `probabilities` (label -> share),
    for free texts `text`; `expected` if the file has labels; `task` if several tasks' labels compete; and the record's other
    fields, such as an id (one whose name is taken stands under `fields`).

    Args:
        inputs: a data file like those of tasks, labels optional; "-" for JSON lines on standard input; or texts and chats.
        task: whose labels to choose from; 'reviews' means its newest version, 'reviews@1' the first. Not needed if the run
            learnt one task, or was scored among the labels of all (`evaluation.labels: seen`), deploys one update and presents
            all tasks in the same way.
        tasks: those given from Python; only models that answer from training examples (vision) need them.
        text_field: the name of the text's field, if it is not a usual one.
        encoding: of the file.
        bad: gets a message, with the line, for each row that cannot be read or answered, which is left out; None: the first one
            is an error.

    Raises:
        StoreError: no finished stage, or a damaged one. RunMismatch: the base model changed since the run began.
        DataError: the file is malformed (names the line), or the task has nothing to answer. UnknownName: no such task.
    """
    store, tasks = Store(Path(run)), given_tasks(tasks)
    about = store.about
    names = _competing_tasks(store, task)
    _check_answerable(about["asked"], names)
    begun = {spec["name"]: spec for spec in about["config"]["tasks"]}
    without_fields = {"name": names[0], "train": "as usual"}  # of a suite, or given from Python
    spec = validate(TaskSpec, about["added"].get(names[0]) or begun.get(names[0]) or without_fields)
    spec = spec.model_copy(update={"text_field": text_field}) if text_field else spec
    chats = bool(about["asked"][names[0]].get("chats"))
    rows = read_inputs(inputs, spec, encoding, chats, bad)
    store.verify()
    model, backbone = reopened_model(store)
    backbone.prepare(known_tasks(store, backbone, names, tasks))
    deployed = load_deployed(store)
    if len(names) > 1 and (isinstance(deployed, PerTask) or _prompts_differ(backbone, about["asked"], names)):
        raise _task_needed(store, names)  # the run was scored with each task's own update or prompt
    if chats and isinstance(backbone, LanguageModel):
        rows = _answerable(rows, backbone, bad)
    labels = {name: list(about["asked"][name]["labels"]) for name in names}
    known = chats and not labels[names[0]]  # the answer as the model would write it
    examples = [Example(row.text, (row.expected or "") if known else "", names[0]) for row in rows]
    predictions = answer(model, backbone, deployed, examples, names)
    head = load_head(store)
    predictions = with_head(head, model, backbone, examples, predictions, labels)
    return [_row(row, chats, p, labels) for row, p in zip(rows, predictions, strict=True)]


def write_predictions(path: Path, rows: Sequence[Mapping[str, Any]], overwrite: bool = False) -> None:
    """Write one JSON object per line, all or nothing; for errors see `check_file` and `write_text`."""
    check_file(path, overwrite=overwrite)
    write_text(path, "".join(f"{as_line(row)}\n" for row in rows))


def as_line(row: Mapping[str, Any]) -> str:
    """A row as JSON; what JSON cannot hold (a date of a Parquet file) as text."""
    return json.dumps(row, ensure_ascii=False, default=str)


def share_right(rows: Sequence[Mapping[str, Any]]) -> tuple[float, int] | None:
    """Share of correct rows among those with a known class, and the number of these; None if no row has one."""
    known = [row["label"] == row["expected"] for row in rows if "expected" in row and "label" in row]
    return (sum(known) / len(known), len(known)) if known else None


def _competing_tasks(store: Store, task: str | None) -> list[str]:
    """The learnt tasks whose labels compete."""
    about, stages = store.about, store.stages()
    learnt = [name for name in about["tasks"] if name in stages or stages == ["joint"]]
    if not learnt:
        raise StoreError(f"No task of the run in '{store.folder}' is learnt. Run `perdure resume {store.folder}`.")
    if "asked" not in about or not about["asked"].keys() >= set(learnt):
        raise StoreError(f"'{store.folder}' is from before runs recorded their labels. Learn it again in a new folder.")
    newest = list({version(name)[0]: name for name in learnt}.values())
    if task is None:
        if len(newest) == 1 or about["config"]["evaluation"]["labels"] == "seen":
            return newest
        raise _task_needed(store, newest)
    exact = task.removesuffix("@1")
    if exact in learnt and (exact != task or version(task)[1] > 1):
        return [exact]
    if task in learnt:
        return [next(name for name in newest if same_task(name, task))]
    raise UnknownName("learnt task", task, learnt)


def _check_answerable(asked: Mapping[str, Any], names: Sequence[str]) -> None:
    """No task only learns texts, or has separate answers to choose from for each text."""
    for name in names:
        if asked[name].get("metric") == INVERSE_PERPLEXITY:
            raise DataError(
                f"Task '{name}' learns texts as they are: there is nothing to answer. Choose another with --task."
            )
        if asked[name].get("choices"):
            raise DataError(
                f"Each text of task '{name}' has its own answers to choose from, and new texts have none. Choose another task "
                "with --task."
            )


def _prompts_differ(backbone: Backbone, asked: Mapping[str, Any], names: Sequence[str]) -> bool:
    """Whether these tasks have different templates, or some of them free answers; encoders read only the text."""
    ways = {(asked[name]["template"], bool(asked[name]["labels"]), asked[name].get("chats", False)) for name in names}
    return len(ways) > 1 and isinstance(backbone, LanguageModel)


def _task_needed(store: Store, names: Sequence[str]) -> StoreError:
    return StoreError(
        f"The run in '{store.folder}' learnt several tasks. Choose whose labels to use with --task: {', '.join(names)}."
    )


def _answerable(rows: Sequence[Input], backbone: LanguageModel, bad: list[str] | None) -> list[Input]:
    """The chats that the model's template writes within the limit; DataError for another one, unless `bad` collects it."""
    found = []
    for row in rows:
        try:
            backbone.chats.check(row.text)
            found.append(row)
        except DataError as error:
            if bad is None:
                raise DataError(f"{row.where}: {error}.") from error
            bad.append(f"{row.where}: {error}.")
    return found


def _row(given: Input, chats: bool, output: Prediction, labels: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    row = _answered(given, output, labels)
    if chats:
        row["input"] = one_turn(given.text) or given.text
        if given.others:
            del row["input"]
    kept = {name: value for name, value in given.others.items() if name not in row}
    taken = {name: value for name, value in given.others.items() if name in row}
    return {**kept, **row, **({"fields": taken} if taken else {})}


def _answered(given: Input, output: Prediction, labels: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    row: dict[str, Any] = {"input": given.text}
    expected = output.wanted or given.expected
    every = [(task, label) for task, own in labels.items() for label in own]
    single = len(labels) == 1
    if not every:
        row["text"] = output.label
    elif not (output.task or output.probabilities):
        row |= {"label": None, "text": output.label}
    else:
        row["label"] = output.label
        if not single:
            row["task"] = output.task
        options = output.options or every
        shares = zip(options, output.probabilities, strict=True) if output.probabilities else ()
        row["probabilities"] = {
            (label if single else f"{task}/{label}"): round(share, 6) for (task, label), share in shares
        }
    if expected is not None:
        row["expected"] = named_by_number(expected, next(iter(labels.values()))) if single else expected
    return row
