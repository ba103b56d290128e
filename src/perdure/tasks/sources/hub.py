"""Records of data sets loaded with the `datasets` library: from the hub, or from its cache without a network."""

from __future__ import annotations

import base64
import os
import random
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from perdure.errors import DataError, FetchError, MissingTask
from perdure.tasks.pool import Pair, Pool
from perdure.tasks.sources.rows import KINDS, Row, read_rows
from perdure.tasks.task import named_by_number


def load_split(name: str, config: str | None, split: str) -> Any:
    """One split of a data set on the hub, as `datasets` returns it.

    Raises:
        FetchError: `datasets` cannot load it; says what to check.
    """
    import datasets

    try:
        return datasets.load_dataset(name, config, split=split)
    except Exception as error:  # the library raises dozens of types, from missing configurations to broken networks
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise FetchError(
            f"`datasets` could not load '{name}'{f' ({config})' if config else ''}, split '{split}': {reason} "
            "Check id, configuration and split; without a network, give the data as local files."
        ) from error


def dataset_rows(
    name: str, config: str | None, split: str, most: int | None = None, numbers: bool = False
) -> list[Row]:
    """All rows of a split; see `each_dataset_row`."""
    return list(each_dataset_row(name, config, split, most, numbers))


def each_dataset_row(
    name: str, config: str | None, split: str, most: int | None = None, numbers: bool = False
) -> Iterator[Row]:
    """The rows of a split one after another, with class names in place of class numbers (None for -1, an unknown class).

    Args:
        most: maximum number of rows, drawn at random, always the same ones.
        numbers: keep class numbers.
    """
    import datasets

    loaded = load_split(name, config, split)
    if most is not None and len(loaded) > most:
        loaded = loaded.select(sorted(random.Random(f"{name}/{split}").sample(range(len(loaded)), most)))
    features = {} if numbers else loaded.features
    classes = {field: feature for field, feature in features.items() if isinstance(feature, datasets.ClassLabel)}
    for number, record in enumerate(loaded):
        named = {
            field: None if record[field] is None or record[field] < 0 else feature.int2str(record[field])
            for field, feature in classes.items()
        }
        yield Row(f"{name}, {split} {number}", {**record, **named})


def dataset_images(name: str, split: str, image: str, label: str, labels: Mapping[Any, str]) -> list[Pair]:
    """(image as a data URI, label) of the rows whose field `label` is a key of `labels`; only those are read.

    Raises:
        DataError: the split has other fields; FetchError: see `load_split`.
    """
    import datasets

    loaded = load_split(name, None, split)
    if missing := {image, label} - set(loaded.column_names):
        raise DataError(f"{name}, {split}: no field {', '.join(missing)}, found {', '.join(loaded.column_names)}.")
    numbers = [i for i, value in enumerate(loaded[label]) if value in labels]
    chosen = loaded.select(numbers).cast_column(image, datasets.Image(decode=False))
    return [(data_uri(record[image]["bytes"]), labels[record[label]]) for record in chosen]


def data_uri(content: bytes) -> str:
    """An image file as a data URI."""
    mime = "png" if content.startswith(b"\x89PNG") else "jpeg"
    return f"data:image/{mime};base64,{base64.b64encode(content).decode()}"


def filled(template: str, row: Row) -> str:
    """The template with the row's fields in place of their names in braces.

    Raises:
        DataError: the row has no such field, or the template is not valid.
    """
    try:
        return template.format_map(row.fields)
    except KeyError as error:
        raise DataError(f"{row.where}: no field {error}, found {row.names}.") from None
    except (ValueError, LookupError, AttributeError) as error:
        raise DataError(f"`text` is not a valid template: {template!r} ({error}); put fields in braces.") from None


def read_hub(
    data: Path | None, *, dataset: str, config: str, text: str, test: str, names: list[str], label: str = "label"
) -> Pool:
    """A classification set of the hub, or the same in files <data>/<config>/<split>.jsonl (or .csv, .parquet).

    Args:
        text: template of the text with fields in braces, as in "sentence: {sentence}".
        test: split to test on (a benchmark's own test labels are often secret).
        names: class names by number, for files that hold numbers.

    Raises:
        MissingTask: no such folder; DataError, FetchError: it cannot be read.
    """
    splits: dict[str, list[Pair]] = {}
    for split in ("train", test):
        rows = dataset_rows(dataset, config, split) if data is None else _local_rows(data / config, split)
        pairs = splits[split] = []
        for row in rows:
            sentence, value = filled(text, row), named_by_number(str(row.fields.get(label)), names)
            if value not in names:
                raise DataError(f"{row.where}: label {value!r} is not one of {', '.join(names)}.")
            pairs.append((sentence, value))
    return Pool(splits["train"], splits[test])


def _local_rows(folder: Path, split: str) -> list[Row]:
    if not os.path.isdir(folder):
        raise MissingTask(f"not found: folder {folder.name} in {folder.parent}")
    for suffix in KINDS:
        if (path := folder / f"{split}{suffix}").is_file():
            return read_rows(path)
    raise DataError(f"{folder} has no {split} file; expected {split}.jsonl (or {', '.join(KINDS)}).")
