"""Readers of benchmarks in the folder layouts of their research repositories."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

from perdure.errors import DataError, MissingTask
from perdure.tasks.pool import Pair, Pool
from perdure.tasks.sources import prompts

UNLABELLED = "-"
ALTERNATIVES = re.compile(r"\nA: (.*)\nB: (.*)\s*\Z")


def read_cl_benchmark(root: Path | None, *, path: str, labels: list[str]) -> Pool:
    """One task of O-LoRA's CL_Benchmark: <TYPE>/<dataset>/{train,dev,test,labels}.json, rows {"label", "sentence"}.

    Without a folder, the same set is read from the hub with the same wording (`perdure.tasks.sources.cl_benchmark_hub`).
    Rows labelled "-" are dropped. A dev file identical to the test file is not used: validation is then cut from the
    training rows. Sentences are verbatim.

    Raises:
        MissingTask: no such folder; DataError: a file has another layout or other labels.
    """
    task_type, dataset = path.split("/")[0], path.split("/")[-1]
    if root is None:
        from perdure.tasks.sources.cl_benchmark_hub import hub_pairs

        train, test = hub_pairs(path, labels)
        pool = Pool(train, test, notes=["from the hub: other samples than the papers' files"])
    else:
        folder = task_folder(root, path)
        options = read_json(folder / "labels.json")
        if not isinstance(options, list) or not all(isinstance(option, str) for option in options):
            raise DataError(f"{folder / 'labels.json'} must be a list of label names.")
        if set(options) != set(labels):
            raise DataError(f"{folder / 'labels.json'} lists {options}; this suite expects {labels}.")
        labels, notes = options, []
        splits = {split: _labelled(folder / f"{split}.json", options, notes) for split in ("train", "dev", "test")}
        pool = _with_validation(splits, "dev", notes)
    pool.template = prompts.o_lora(task_type, dataset, labels)
    if task_type == "COPA":  # a text lists its alternatives A and B at its end
        every = (*pool.train, *(pool.validation or ()), *(pool.test or ()))
        pool.choices = {text: match.groups() for text, _ in every if (match := ALTERNATIVES.search(text))}
    return pool


def read_trace(root: Path, *, path: str) -> Pool:
    """One task of TRACE (arXiv 2310.06762): <task>/{train,eval,test}.json, lists of {"prompt", "answer"}.

    Raises:
        MissingTask: no such folder; DataError: a file has another layout.
    """
    folder = task_folder(root, path)
    splits = {split: _read_pairs(folder / f"{split}.json", "prompt", "answer") for split in ("train", "eval", "test")}
    pool = _with_validation(splits, "eval", [])
    pool.free = True
    return pool


def task_folder(root: Path, path: str) -> Path:
    """`root`/`path`, or MissingTask."""
    folder = root / path
    if not os.path.isdir(folder):
        raise MissingTask(f"not found: folder {path} in {root}")
    return folder


def read_json(path: Path) -> Any:
    """The file's content.

    Raises:
        DataError: missing or malformed; names the file, and the line of the error.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise DataError(f"{path} is missing. Get a complete copy of the benchmark.") from None
    except json.JSONDecodeError as error:
        raise DataError(f"{path}, line {error.lineno}: not valid JSON ({error.msg}).") from None
    except RecursionError:
        raise DataError(f"{path} is nested too deeply.") from None
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 (byte {error.start}).") from None


def same_as_test(name: str) -> str:
    """The note about a validation file that is not used."""
    return f"{name}.json is identical to test.json: validation is cut from train.json instead"


def _with_validation(splits: dict[str, list[Pair]], name: str, notes: list[str]) -> Pool:
    """A pool whose validation split is `name`, unless that is the test split."""
    same = splits[name] == splits["test"]
    if same:
        notes.append(same_as_test(name))
    return Pool(splits["train"], splits["test"], None if same else splits[name], notes)


def _labelled(path: Path, labels: list[str], notes: list[str]) -> list[Pair]:
    """(sentence, label) of each labelled row; the number of others goes to `notes`."""
    rows = _read_pairs(path, "sentence", "label")
    for number, (_, label) in enumerate(rows):
        if label not in (*labels, UNLABELLED):
            raise DataError(f"{path}, row {number}: label {label!r} is not among {labels} of labels.json.")
    pairs = [row for row in rows if row[1] != UNLABELLED]
    if len(pairs) < len(rows) and path.name != "dev.json":
        notes.append(f"{len(rows) - len(pairs)} unlabelled rows ('{UNLABELLED}') of {path.name} removed")
    return pairs


def _read_pairs(path: Path, text: str, label: str) -> list[Pair]:
    """The two string fields of each row of a JSON list."""
    rows = read_json(path)
    if not isinstance(rows, list):
        raise DataError(f'{path} must be a list of {{"{text}", "{label}"}}, found {type(rows).__name__}.')
    pairs: list[Pair] = []
    for number, row in enumerate(rows):
        match [row.get(text), row.get(label)] if isinstance(row, dict) else []:
            case [str(first), str(second)]:
                pairs.append((first, second))
            case _:
                raise DataError(f'{path}, row {number}: expected {{"{text}", "{label}"}} strings, found {row!r:.80}.')
    return pairs
