"""Tasks given by an instruction: Super-NaturalInstructions' layouts, and those of BIG-bench."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Literal

from perdure.errors import DataError, MissingTask
from perdure.tasks.pool import Pair, Pool
from perdure.tasks.sources import prompts
from perdure.tasks.sources.benchmarks import read_json

FEW_ANSWERS = 20
"""A task with at most this many different answers counts as classification: exact match, else ROUGE-L."""
PROMPTS = {"sapt": prompts.sapt, "slice": prompts.slice_chat}
DOCUMENT = "Definition, Instances with input and output"


def read_super_ni(
    root: Path, *, task: str, prompt: Literal["sapt", "slice"], metric: Literal["rouge-l", "auto"] = "rouge-l"
) -> Pool:
    """One task of Super-NaturalInstructions (arXiv 2204.07705), found by its number ("task073").

    Either SAPT's layout, <task>_<name>/{train,dev,test}.json, or the original one, tasks/<task>_<name>.json, whose
    test split is then cut. A dev file identical to the test file is not used.

    Raises:
        MissingTask: no such task; DataError: a file is not in this layout.
    """
    found = sorted(path for folder in (root, root / "tasks") for path in folder.glob(f"{task}_*"))
    if not found:
        raise MissingTask(f"there is no {task}_* in {root}")
    if found[0].is_dir():
        documents = {split: _document(found[0] / f"{split}.json") for split in ("train", "dev", "test")}
    else:
        documents = {"train": _document(found[0])}
    instances = {split: document["Instances"] for split, document in documents.items()}
    answered = {split: _answered(instances[split], found[0] / split) for split in instances}
    same = answered.get("dev") == answered.get("test")
    pool = Pool(
        train=_pairs(answered["train"]),
        test=_pairs(answered["test"]) if "test" in answered else None,
        validation=None if same else _pairs(answered["dev"]),
        template=PROMPTS[prompt](_definition(documents["train"])),
        references={text: tuple(all_) for rows in answered.values() for text, all_ in rows if len(all_) > 1},
        metric=_metric(_pairs(answered["train"])) if metric == "auto" else metric,
        free=True,
    )
    if same and "dev" in answered:
        pool.notes.append("dev.json is identical to test.json: a validation split is cut from train.json instead")
    return pool


def read_bigbench_instructions(folder: Path, *, task: str) -> Pool:
    """One natural_instructions subtask of BIG-bench (arXiv 2206.04615): `task_prefix` is the instruction.

    Raises:
        DataError: no such task.
    """
    document = _bigbench(folder, task)
    answered = [(example["input"].strip(), example["target"]) for example in document["examples"]]
    definition = document["task_prefix"].removeprefix("Definition: ")
    return Pool(
        train=_pairs(answered),
        template=prompts.sapt(definition),
        references={text: tuple(targets) for text, targets in answered if len(targets) > 1},
        metric=_metric(_pairs(answered)),
        free=True,
    )


def read_bigbench_choices(folder: Path, *, task: str, keep: dict[str, str] | None = None) -> Pool:
    """One multiple-choice task of BIG-bench; the label is the choice with the top score.

    With `keep`, an instruction task read as classification: answer -> label; rows with several answers, or another
    one, are left out.
    """
    pairs: list[Pair] = []
    examples = _bigbench(folder, task)["examples"]
    for example in examples:
        if keep is None:
            scores: dict[str, float] = example["target_scores"]
            pairs.append((example["input"].strip(), max(scores, key=lambda choice: scores[choice])))
        elif len(example["target"]) == 1 and example["target"][0] in keep:
            pairs.append((example["input"].strip(), keep[example["target"][0]]))
    left_out = len(examples) - len(pairs)
    return Pool(pairs, notes=[f"{left_out} rows with several or rare answers left out"] if left_out else [])


def _document(path: Path) -> dict[str, Any]:
    document = read_json(path)
    if not isinstance(document, dict) or not isinstance(document.get("Instances"), list):
        raise DataError(f"{path} should be an object with {DOCUMENT}.")
    return document


def _definition(document: dict[str, Any]) -> str:
    """The instruction; some copies keep it as a list of one."""
    definition = document.get("Definition", "")
    return (definition[0] if isinstance(definition, list) and definition else str(definition)).strip()


def _answered(instances: list[Any], where: Path) -> list[tuple[str, list[str]]]:
    """(input, its right answers) of every instance."""
    rows: list[tuple[str, list[str]]] = []
    for number, instance in enumerate(instances):
        match instance:
            case {"input": str(text), "output": str(answer)}:
                rows.append((text.strip(), [answer]))
            case {"input": str(text), "output": [str(), *_] as answers}:
                rows.append((text.strip(), [str(answer) for answer in answers]))
            case _:
                raise DataError(f"{where}, instance {number}: expected input and output, found {instance!r:.80}.")
    return rows


def _pairs(answered: list[tuple[str, list[str]]]) -> list[Pair]:
    return [(text, answers[0]) for text, answers in answered]


def _metric(pairs: list[Pair]) -> str:
    return "exact-match" if len({answer for _, answer in pairs}) <= FEW_ANSWERS else "rouge-l"


def _bigbench(folder: Path, task: str) -> dict[str, Any]:
    found = [path for path in folder.rglob("task.json") if re.search(rf"{task}$", path.parent.name)]
    if not found:
        raise DataError(f"{folder} has no BIG-bench task {task}.")
    return read_json(found[0])
