"""Tasks given by an instruction: the layouts of Super-NaturalInstructions and of BIG-bench."""

from __future__ import annotations

import random
import re
from pathlib import Path
from typing import Any, Literal

from perdure.errors import DataError, MissingTask
from perdure.tasks.pool import Pair, Pool
from perdure.tasks.sources import prompts
from perdure.tasks.sources.benchmarks import read_json, same_as_test

FEW_ANSWERS = 20  # a task with at most this many different answers is scored by exact match, others by ROUGE-L
PROMPTS = {"sapt": prompts.sapt, "slice": prompts.slice_chat}


def read_super_ni(
    root: Path,
    *,
    task: str,
    prompt: Literal["sapt", "slice"],
    metric: Literal["rouge-l", "auto"] = "rouge-l",
    answers: Literal["all", "one"] = "all",
    strip: bool = True,
) -> Pool:
    """One task of Super-NaturalInstructions (arXiv 2204.07705), found by its number ("task073").

    Reads SAPT's layout, <task>_<name>/{train,dev,test}.json, or the original tasks/<task>_<name>.json, from which a test
    split is then cut. A dev file identical to the test file is not used.

    Args:
        answers: 'all' trains on a row's first answer and scores the best of all; 'one' draws one of them for both, as SAPT does.
        strip: remove white space around inputs.

    Raises:
        MissingTask: no such task; DataError: a file has another layout.
    """
    found = sorted(path for folder in (root, root / "tasks") for path in folder.glob(f"{task}_*"))
    if not found:
        raise MissingTask(f"not found: {task}_* in {root}")
    splits = ("train", "dev", "test") if found[0].is_dir() else ("train",)
    answered: dict[str, list[tuple[str, list[str]]]] = {}
    definition: Any = ""
    for split in splits:
        path = found[0] / f"{split}.json" if found[0].is_dir() else found[0]
        document = read_json(path)
        if not isinstance(document, dict) or not isinstance(document.get("Instances"), list):
            raise DataError(f"{path} must be an object with Definition, Instances with input and output.")
        rows = _answered(document["Instances"], found[0] / split, strip)
        answered[split] = _one_drawn(rows, split) if answers == "one" else rows
        if split == "train":
            definition = document.get("Definition", "")
    if isinstance(definition, list) and definition:  # some copies keep it as a list of one
        definition = definition[0]
    same = answered.get("dev") == answered.get("test")
    pool = _pool(answered["train"], PROMPTS[prompt](str(definition).strip()), metric)
    pool.test = _pairs(answered["test"]) if "test" in answered else None
    pool.validation = None if same else _pairs(answered["dev"])
    pool.references = {text: tuple(all_) for rows in answered.values() for text, all_ in rows if len(all_) > 1}
    if same and "dev" in answered:
        pool.notes.append(same_as_test("dev"))
    return pool


def read_bigbench_instructions(folder: Path, *, task: str) -> Pool:
    """One natural_instructions subtask of BIG-bench (arXiv 2206.04615); `task_prefix` is the instruction.

    Raises:
        DataError: no such task.
    """
    document = _bigbench(folder, task)
    answered = [(example["input"].strip(), example["target"]) for example in document["examples"]]
    return _pool(answered, prompts.sapt(document["task_prefix"].removeprefix("Definition: ")), "auto")


def read_bigbench_choices(folder: Path, *, task: str, keep: dict[str, str] | None = None) -> Pool:
    """One multiple-choice task of BIG-bench; the label is the choice with the top score.

    With `keep`, an instruction task is read as classification: answer -> label; rows with several answers, or another
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


def _pool(answered: list[tuple[str, list[str]]], template: str, metric: str) -> Pool:
    """Training pool of (input, correct answers); the metric 'auto' goes by the number of different first answers."""
    pairs = _pairs(answered)
    if metric == "auto":
        metric = "exact-match" if len({answer for _, answer in pairs}) <= FEW_ANSWERS else "rouge-l"
    references = {text: tuple(answers) for text, answers in answered if len(answers) > 1}
    return Pool(pairs, template=template, references=references, metric=metric, free=True)


def _one_drawn(answered: list[tuple[str, list[str]]], split: str) -> list[tuple[str, list[str]]]:
    """Each input with one of its answers, the same in every run; dev and test files that are equal stay so."""
    draw = random.Random("train" if split == "train" else "test")
    return [(text, [draw.choice(answers)]) for text, answers in answered]


def _answered(instances: list[Any], where: Path, strip: bool = True) -> list[tuple[str, list[str]]]:
    """(input, its correct answers) of every instance."""
    rows: list[tuple[str, list[str]]] = []
    for number, instance in enumerate(instances):
        match instance:
            case {"input": str(text), "output": str(answer)}:
                rows.append((text.strip() if strip else text, [answer]))
            case {"input": str(text), "output": [str(), *_] as answers}:
                rows.append((text.strip() if strip else text, [str(answer) for answer in answers]))
            case _:
                raise DataError(f"{where}, instance {number}: expected input and output, found {instance!r:.80}.")
    return rows


def _pairs(answered: list[tuple[str, list[str]]]) -> list[Pair]:
    return [(text, answers[0]) for text, answers in answered]


def _bigbench(folder: Path, task: str) -> dict[str, Any]:
    found = [path for path in folder.rglob("task.json") if re.search(rf"{task}$", path.parent.name)]
    if not found:
        raise DataError(f"{folder} has no BIG-bench task {task}.")
    return read_json(found[0])
