"""Records of a data set that the `datasets` library loads: from the hub, or from its cache without a network."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from perdure.errors import DataError, FetchError
from perdure.tasks.benchmarks import MissingTask
from perdure.tasks.rows import KINDS, Row, read_rows
from perdure.tasks.splits import Pair, Pool


def dataset_rows(name: str, config: str | None, split: str) -> list[Row]:
    """One split; numbers of classes become their names, and None where a class is not told (-1).

    Raises:
        FetchError: `datasets` cannot load it; says what to check.
    """
    import datasets

    try:
        loaded: Any = datasets.load_dataset(name, config, split=split)
    except Exception as error:  # the library raises dozens of kinds, from missing configurations to broken networks
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise FetchError(
            f"`datasets` could not load '{name}'{f' ({config})' if config else ''}, split '{split}': {reason} "
            "Check id, configuration and split; without a network, give the data as local files."
        ) from error
    classes = {field: kind for field, kind in loaded.features.items() if isinstance(kind, datasets.ClassLabel)}
    rows: list[Row] = []
    for number, record in enumerate(loaded):
        named = {
            field: kind.int2str(record[field]) if (record[field] or 0) >= 0 and record[field] is not None else None
            for field, kind in classes.items()
        }
        rows.append(Row(f"{name}, {split} {number}", {**record, **named}))
    return rows


def read_hub(
    data: Path | None, *, dataset: str, config: str, text: str, test: str, names: list[str], label: str = "label"
) -> Pool:
    """A classification set of the hub, or the same in files <data>/<config>/<split>.jsonl (or .csv, .parquet).

    Args:
        text: the text with fields in braces, as "sentence: {sentence}".
        test: the split that is tested on (a benchmark's own test labels are often secret).
        names: class names by number, for files that hold numbers.

    Raises:
        MissingTask: no folder of that name; DataError, FetchError: it cannot be read.
    """
    splits: dict[str, list[Pair]] = {}
    for split in ("train", test):
        rows = dataset_rows(dataset, config, split) if data is None else _local_rows(data / config, split)
        splits[split] = [_pair(row, text, label, names) for row in rows]
    return Pool(splits["train"], splits[test])


def _pair(row: Row, text: str, label: str, names: list[str]) -> Pair:
    try:
        filled = text.format_map(row.fields)
    except (KeyError, ValueError) as error:
        raise DataError(f"{row.where}: no field {error}, found {', '.join(map(repr, row.fields))}.") from None
    value = str(row.fields.get(label))
    if value not in names and value.isdigit() and int(value) < len(names):
        value = names[int(value)]
    if value not in names:
        raise DataError(f"{row.where}: label {value!r} is not one of {', '.join(names)}.")
    return filled, value


def _local_rows(folder: Path, split: str) -> list[Row]:
    if not folder.is_dir():
        raise MissingTask(f"there is no folder {folder.name} in {folder.parent}")
    for kind in KINDS:
        if (path := folder / f"{split}{kind}").is_file():
            return read_rows(path)
    raise DataError(f"{folder} has no {split} file; expected {split}.jsonl (or {', '.join(KINDS)}).")
