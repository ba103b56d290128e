"""Super-NaturalInstructions in both layouts and BIG-bench's tasks, with invented contents."""

import json
from pathlib import Path
from typing import Any

import pytest

from perdure.errors import DataError, MissingTask
from perdure.tasks.sources.instructions import read_bigbench_choices, read_bigbench_instructions, read_super_ni
from perdure.tasks.suites import load_suite


def document(split: str, size: int, answers: int | None = None) -> dict[str, Any]:
    instances = [
        {"id": f"{split}-{i}", "input": f" {split} {i} ", "output": [f"answer {i % (answers or size)}"]}
        for i in range(size)
    ]
    return {"Definition": ["Do the thing."], "Positive Examples": [], "Instances": instances}


def write_sapt(root: Path, name: str, *, same: bool = True, answers: int | None = None) -> Path:
    folder = root / name
    folder.mkdir(parents=True)
    contents = {"train": document("train", 30, answers), "test": document("test", 8, answers)}
    contents["dev"] = contents["test"] if same else document("dev", 6, answers)
    for split, content in contents.items():
        (folder / f"{split}.json").write_text(json.dumps(content))
    return folder


def test_sapt_layout(tmp_path: Path) -> None:
    write_sapt(tmp_path, "task073_an_invented_name")
    suite = load_suite("super-ni", data=tmp_path, order="task073,task363")
    [task] = suite.tasks
    assert (len(task.train), len(task.validation), len(task.test)) == (24, 6, 8)
    assert task.labels == {}
    assert task.metric == "rouge-l"
    assert task.prompt("X").startswith("Definition: Do the thing.\n\nNow complete the following example -\nInput: X\n")
    assert {e.text for e in task.test} == {f"test {i}" for i in range(8)}
    assert suite.warnings == (
        "task073: dev.json is identical to test.json: validation is cut from train.json instead",
        "task073: only 6 validation examples available, 64 requested",
        f"task363: left out, not found: task363_* in {tmp_path}",
    )


def test_original_layout_has_its_test_split_cut(tmp_path: Path) -> None:
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks/task363_invented.json").write_text(json.dumps(document("all", 40, answers=2)))
    [task] = load_suite("ni-seq", data=tmp_path, order="task363").tasks
    assert (len(task.train), len(task.validation), len(task.test)) == (24, 6, 10)
    assert task.metric == "exact-match"
    assert task.prompt("X") == "Do the thing.\n\nInput: X"


def test_a_real_dev_split_is_used(tmp_path: Path) -> None:
    write_sapt(tmp_path, "task002_x", same=False)
    pool = read_super_ni(tmp_path, task="task002", prompt="sapt")
    assert pool.validation is not None
    assert len(pool.validation) == 6
    assert pool.notes == []


def test_several_right_answers_are_kept(tmp_path: Path) -> None:
    folder = write_sapt(tmp_path, "task002_x")
    content = document("test", 2)
    content["Instances"][0]["output"] = ["first", "second"]
    (folder / "test.json").write_text(json.dumps(content))
    [task] = load_suite("super-ni", data=tmp_path, order="task002").tasks
    by_text = {example.text: example for example in task.test}
    assert by_text["test 0"].label == "first"
    assert task.answers(by_text["test 0"]) == ("first", "second")
    assert task.answers(by_text["test 1"]) == ("answer 1",)
    assert task.references == {"test 0": ("first", "second")}


@pytest.mark.parametrize("answers,metric", [(20, "exact-match"), (21, "rouge-l")])
def test_few_different_answers_are_classification(tmp_path: Path, answers: int, metric: str) -> None:
    write_sapt(tmp_path, "task002_x", answers=answers)
    assert read_super_ni(tmp_path, task="task002", prompt="slice", metric="auto").metric == metric


@pytest.mark.parametrize(
    "content,message",
    [
        ("[]", "must be an object with Definition"),
        ('{"Definition": "d"}', "must be an object with Definition"),
        ('{"Definition": "d", "Instances": [{"input": "a", "output": []}]}', "instance 0: expected input and output"),
    ],
)
def test_wrong_files_are_named(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "task002_x.json").write_text(content)
    with pytest.raises(DataError, match=message):
        read_super_ni(tmp_path, task="task002", prompt="sapt")


def test_a_number_is_not_taken_for_a_longer_one(tmp_path: Path) -> None:
    write_sapt(tmp_path, "task1510_x")
    with pytest.raises(MissingTask, match="not found: task151_"):
        read_super_ni(tmp_path, task="task151", prompt="sapt")


@pytest.fixture
def bigbench(tmp_path: Path) -> Path:
    tasks = {
        "intent": {"examples": [{"input": "Utterance: hi", "target_scores": {"greet": 1, "leave": 0}}]},
        "subtask001_ask": {
            "task_prefix": "Definition: Ask.",
            "examples": [
                {"input": "one ", "target": ["Yes."]},
                {"input": "two", "target": ["No.", "Yes."]},
                {"input": "three", "target": ["Maybe."]},
            ],
        },
    }
    for name, content in tasks.items():
        folder = tmp_path / "x/benchmark_tasks" / name
        folder.mkdir(parents=True)
        (folder / "task.json").write_text(json.dumps(content))
    return tmp_path


def test_bigbench_choices(bigbench: Path) -> None:
    assert read_bigbench_choices(bigbench, task="intent").train == [("Utterance: hi", "greet")]


def test_bigbench_instructions(bigbench: Path) -> None:
    pool = read_bigbench_instructions(bigbench, task="subtask001_ask")
    assert pool.train == [("one", "Yes."), ("two", "No."), ("three", "Maybe.")]
    assert pool.references == {"two": ("No.", "Yes.")}
    assert pool.template.startswith("Definition: Ask.\n\n")


def test_bigbench_instructions_as_classes(bigbench: Path) -> None:
    pool = read_bigbench_choices(bigbench, task="subtask001_ask", keep={"Yes.": "yes"})
    assert pool.train == [("one", "yes")]
    assert pool.notes == ["2 rows with several or rare answers left out"]


def test_missing_bigbench_task(bigbench: Path) -> None:
    with pytest.raises(DataError, match="no BIG-bench task nothing"):
        read_bigbench_choices(bigbench, task="nothing")
