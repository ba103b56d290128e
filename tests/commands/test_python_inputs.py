"""What a user may give to `learn`, `resume`, `add` and `predict` from Python, and what is refused at the door."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

import perdure
from perdure.errors import ConfigError, DataError
from perdure.loop.progress import Plain
from perdure.state.store import Store
from tests.contract.runs import short_run
from tests.own_files import write_own_files


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, small_tasks, encoder_folder) -> Path:
    """A finished run of one task."""
    out = tmp_path_factory.mktemp("python") / "run"
    short_run(out, small_tasks[:1], encoder_folder, "inc-lora")
    return out


def test_one_task_needs_no_list(run: Path, tmp_path: Path, small_tasks, encoder_folder) -> None:
    short_run(tmp_path / "alone", small_tasks[0], encoder_folder, "inc-lora")
    assert Store(tmp_path / "alone").about["tasks"] == Store(run).about["tasks"]
    perdure.resume(run, tasks=small_tasks[0])
    assert perdure.predict(run, ["sun"], tasks=small_tasks[0])


def test_one_file_and_settings_are_tasks(tmp_path: Path, encoder_folder, monkeypatch) -> None:
    write_own_files(tmp_path, encoder_folder)
    monkeypatch.chdir(tmp_path)
    given: Any = ("data/sky.yaml", Path("data/sky.yaml"), [{"name": "sky", "train": "data/sky.csv"}])
    for number, tasks in enumerate((*given, iter(["data/sky.yaml"]))):
        short_run(tmp_path / f"run{number}", tasks, encoder_folder, "inc-lora")
        assert Store(tmp_path / f"run{number}").initial["config"]["tasks"][0]["train"] == str(tmp_path / "data/sky.csv")


@pytest.mark.parametrize("tasks", [5, [5], [None]])
def test_what_is_no_task_is_refused(tasks: Any, tmp_path: Path, encoder_folder) -> None:
    with pytest.raises(ConfigError, match=r"tasks=5: expected a list|is not a task: give a perdure\.Task"):
        short_run(tmp_path / "run", tasks, encoder_folder, "inc-lora")


@pytest.mark.parametrize("report", ["tensorboard", Plain, 3])
def test_a_report_that_cannot_be_told_is_refused_at_the_door(
    report: Any, run: Path, tmp_path: Path, small_tasks
) -> None:
    for call in (
        lambda: perdure.learn(out=tmp_path / "new", tasks=small_tasks, report=report, backbone="no such model"),
        lambda: perdure.resume(run, tasks=small_tasks[:1], report=report),
        lambda: perdure.add(run, small_tasks[1], report=report),
    ):
        with pytest.raises(ConfigError, match=r"report=.*: expected an object with begin, step, scored and end"):
            call()


INPUTS: dict[str, tuple[Any, str]] = {
    "numbers": ([1, 2], "Input 0 is 1: give texts"),
    "records": (["a", {"text": "b"}], "Input 1 is {'text': 'b'}: give texts"),
    "a mapping": ({"text": "a"}, r"Cannot answer a dict: give a list of texts"),
    "a number": (3, "Cannot answer a int"),
    "nothing": ([], "at least one text"),
}


@pytest.mark.parametrize("case", INPUTS)
def test_inputs_that_are_no_texts_are_refused(case: str, run: Path) -> None:
    inputs, message = INPUTS[case]
    with pytest.raises(DataError, match=message):
        perdure.predict(run, inputs)


def test_a_task_without_labels_is_told_its_classes(tmp_path: Path, encoder_folder) -> None:
    rows: Any = [("dull", "bad"), ("fine", "good")] * 2
    with pytest.raises(DataError, match=r"has no labels.*; give labels=\['bad', 'good'\], or take a language model"):
        short_run(tmp_path / "run", [perdure.Task("t", rows, test=rows)], encoder_folder, "inc-lora")


def test_what_stands_in_train_and_test_is_noticed(run: Path, tmp_path: Path, small_tasks, encoder_folder) -> None:
    rows = [(e.text, e.label) for e in small_tasks[1].train]
    leaky = perdure.Task("leaky", rows, test=rows[:4], labels=["a", "b"])
    said = "leaky: 4 training texts are also in the test split, which inflates its score; kept as given"
    short_run(tmp_path / "run", [leaky], encoder_folder, "inc-lora")
    assert said in Store(tmp_path / "run").about["warnings"]
    grown = tmp_path / "grown"
    shutil.copytree(run, grown)
    perdure.add(grown, leaky, tasks=small_tasks[:1])
    assert said in Store(grown).about["warnings"]
    empty = perdure.Task("empty", [*rows, ("", "a")], test=rows[:4], labels=["a", "b"])
    for call in (
        lambda: perdure.learn(out=tmp_path / "new", tasks=[empty]),
        lambda: perdure.add(grown, empty, tasks=[*small_tasks[:1], leaky]),
    ):
        with pytest.raises(DataError, match="Task 'empty', train example 20: the text is empty"):
            call()
