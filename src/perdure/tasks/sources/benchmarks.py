"""Readers of the folders in which research repositories distribute their benchmarks."""

from __future__ import annotations

import json
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

    Without a folder the same set is read from the hub (`perdure.tasks.sources.cl_benchmark_hub`), in the same words.

    Rows labelled "-" are dropped. A dev file identical to the test file is not used: validation is then cut from the
    training rows. Sentences are taken verbatim.

    Raises:
        MissingTask: no such folder; DataError: a file is not in this layout, or has other labels.
    """
    if root is None:
        return _from_hub(path, labels)
    folder = task_folder(root, path)
    options = _strings(read_json(folder / "labels.json"), folder / "labels.json")
    if set(options) != set(labels):
        raise DataError(f"{folder / 'labels.json'} lists {options}; this suite expects {labels}.")
    notes: list[str] = []
    splits = {split: _rows(folder / f"{split}.json", options, notes) for split in ("train", "dev", "test")}
    same = splits["dev"] == splits["test"]
    if same:
        notes.append("dev.json is identical to test.json: a validation split is cut from train.json instead")
    return Pool(
        train=splits["train"],
        test=splits["test"],
        validation=None if same else splits["dev"],
        notes=notes,
        template=prompts.o_lora(path.split("/")[0], folder.name, options),
        choices=_alternatives(splits) if path.startswith("COPA") else {},
    )


def _from_hub(path: str, labels: list[str]) -> Pool:
    from perdure.tasks.sources.cl_benchmark_hub import hub_pairs

    task_type, _, dataset = path.partition("/")
    train, test = hub_pairs(path, labels)
    return Pool(
        train=train,
        test=test,
        notes=["from the hub: other samples than the papers' files"],
        template=prompts.o_lora(task_type, dataset, labels),
        choices=_alternatives({"train": train, "test": test}) if path.startswith("COPA") else {},
    )


def read_trace(root: Path, *, path: str) -> Pool:
    """One task of TRACE (arXiv 2310.06762): <task>/{train,eval,test}.json, lists of {"prompt", "answer"}.

    Raises:
        MissingTask: no such folder; DataError: a file is not in this layout.
    """
    folder = task_folder(root, path)
    splits = {split: _prompts(folder / f"{split}.json") for split in ("train", "eval", "test")}
    same = splits["eval"] == splits["test"]
    notes = ["eval.json is identical to test.json: a validation split is cut from train.json instead"] if same else []
    return Pool(splits["train"], splits["test"], None if same else splits["eval"], notes, free=True)


def task_folder(root: Path, path: str) -> Path:
    """`root`/`path`, or MissingTask."""
    folder = root / path
    if not folder.is_dir():
        raise MissingTask(f"there is no folder {path} in {root}")
    return folder


def read_json(path: Path) -> Any:
    """The file's content.

    Raises:
        DataError: missing or malformed; names the file, and the line where it is malformed.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise DataError(f"{path} is missing; the folder should hold it. Get a whole copy of the benchmark.") from None
    except json.JSONDecodeError as error:
        raise DataError(f"{path}, line {error.lineno}: not valid JSON ({error.msg}).") from None
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 (byte {error.start}).") from None


def _rows(path: Path, labels: list[str], notes: list[str]) -> list[Pair]:
    """(sentence, label) of every labelled row; says in `notes` how many were not."""
    rows = read_json(path)
    if not isinstance(rows, list):
        raise DataError(f'{path} should be a list of {{"label", "sentence"}}, found {type(rows).__name__}.')
    pairs: list[Pair] = []
    for number, row in enumerate(rows):
        match row:
            case {"label": str(label), "sentence": str(sentence)}:
                pass
            case _:
                raise DataError(f'{path}, row {number}: expected {{"label", "sentence"}} texts, found {row!r:.80}.')
        if label == UNLABELLED:
            continue
        if label not in labels:
            raise DataError(f"{path}, row {number}: label {label!r} is not among {labels} of labels.json.")
        pairs.append((sentence, label))
    if len(pairs) < len(rows) and path.name != "dev.json":
        notes.append(f"{len(rows) - len(pairs)} unlabelled rows ('{UNLABELLED}') of {path.name} removed")
    return pairs


def _prompts(path: Path) -> list[Pair]:
    rows = read_json(path)
    if not isinstance(rows, list):
        raise DataError(f'{path} should be a list of {{"prompt", "answer"}}, found {type(rows).__name__}.')
    pairs: list[Pair] = []
    for number, row in enumerate(rows):
        match row:
            case {"prompt": str(prompt), "answer": str(answer)}:
                pairs.append((prompt, answer))
            case _:
                raise DataError(f'{path}, row {number}: expected {{"prompt", "answer"}} texts, found {row!r:.80}.')
    return pairs


def _alternatives(splits: dict[str, list[Pair]]) -> dict[str, tuple[str, ...]]:
    """COPA's text -> its alternatives A and B, which the text itself lists at its end."""
    found = {}
    for pairs in splits.values():
        for text, _ in pairs:
            if match := ALTERNATIVES.search(text):
                found[text] = match.groups()
    return found


def _strings(value: Any, path: Path) -> list[str]:
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise DataError(f"{path} should be a list of label names.")
    return value
