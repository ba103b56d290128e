"""Tasks given from Python: what is taken as an example and as a label, and what every refusal says to do."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from perdure.errors import ConfigError, DataError
from perdure.tasks.sources.files import load_task, task_spec
from perdure.tasks.sources.hub import read_hub
from perdure.tasks.splits import checked
from perdure.tasks.task import Task, given_tasks, named_by_number, without_labels

PAIRS: Any = [("dull", "bad"), ("fine", "good")]


def made(train: Any = PAIRS, name: Any = "t", **more: Any) -> Task:
    return Task(name, train=train, test=train, **more)


FRAME = SimpleNamespace(to_dict=None, columns=["text", "label"])
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "a number as a name": ({"name": 3}, r"name must be a string such as 'reviews', got 3"),
    "a data frame": ({"train": FRAME}, r"Task 't', train: pass a data frame as records, train=df.to_dict\('records'\)"),
    "a file's name": ({"train": "a.csv"}, r"To read a file, .* \{'name': 't', 'train': 'a.csv'\}"),
    "a path": ({"train": Path("a.csv")}, r"To read a file, .* \{'name': 't', 'train': 'a.csv'\}"),
    "a number as examples": ({"train": 5}, r"Task 't', train: expected a list of \(text, label\), got 5"),
    "columns": ({"train": {"text": ["a"], "label": ["b"]}}, r"expected a list of \(text, label\)"),
    "a text that is none": ({"train": [(1, "a")]}, "train example 0: the text must be a string, got 1"),
    "a label that is half": ({"train": [("a", 0.5)]}, "train example 0: the label must be a string or an integer, got 0.5"),
    "a number beyond the labels": (
        {"train": [("a", 2)], "labels": ["bad", "good"]},
        "train example 0: label '2' is not one of 'bad', 'good'",
    ),
    "one text as labels": ({"labels": "bad"}, r"give labels as a list, labels=\['bad', 'good'\], not 'bad'"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_no_task_is_refused_with_the_remedy(case: str) -> None:
    given, message = REFUSED[case]
    with pytest.raises(DataError, match=message):
        made(**given)


def test_whole_numbers_as_labels_are_taken_as_in_files() -> None:
    numbers = [("dull", 0), ("fine", 1)]
    assert [e.label for e in made(numbers).train] == ["0", "1"]
    assert (
        made(numbers, labels=[0, 1]).fingerprint()
        == made([("dull", "0"), ("fine", "1")], labels=["0", "1"]).fingerprint()
    )
    by_position = made(numbers, labels=["bad", "good"])
    assert by_position.fingerprint() == made(PAIRS, labels=["bad", "good"]).fingerprint()
    assert [e.label for e in made([("a", 2.0), ("b", True)]).train] == ["2", "True"]
    assert [e.label for e in made(numbers, labels={"1": "one", "0": "none"}).train] == ["0", "1"]


def test_only_what_int_reads_is_a_number() -> None:
    assert [named_by_number(label, ("bad", "good")) for label in ("1", "2", "\N{SUPERSCRIPT TWO}", "bad")] == [
        "good", "2", "\N{SUPERSCRIPT TWO}", "bad",
    ]  # fmt: skip
    assert named_by_number("0", ("1", "0")) == "0"


def test_a_superscript_is_a_label_in_files_too(tmp_path: Path) -> None:
    labels = ("\N{SUPERSCRIPT ONE}", "\N{SUPERSCRIPT TWO}")
    rows = [{"text": f"text {i}", "label": labels[i % 2]} for i in range(20)]
    (tmp_path / "a.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    with pytest.raises(DataError, match="label '\N{SUPERSCRIPT TWO}' is not one of `labels`"):
        load_task(task_spec({"name": "t", "train": str(tmp_path / "a.jsonl"), "labels": ["bad", "good", "fine"]}))


@pytest.mark.parametrize("text", ["{0}", "{text", "{text.no}", "{text:d}"])
def test_a_template_of_a_hub_set_that_is_none(text: str, tmp_path: Path) -> None:
    for split in ("train", "test"):
        (tmp_path / f"{split}.jsonl").write_text('{"text": "a", "label": 0}\n')
    given: Any = {"dataset": "d", "config": tmp_path.name, "test": "test", "names": ["bad", "good"]}
    with pytest.raises(DataError, match="`text` is not a valid template"):
        read_hub(tmp_path.parent, text=text, **given)
    with pytest.raises(DataError, match="no field 'body', found 'text', 'label'"):
        read_hub(tmp_path.parent, text="{body}", **given)
    assert read_hub(tmp_path.parent, text="it: {text}", **given).train == [("it: a", "bad")]


def test_numpys_numbers_are_whole_numbers() -> None:
    import numpy

    assert [e.label for e in made([("a", numpy.int64(3))]).train] == ["3"]


def test_the_cure_for_missing_labels_names_the_classes() -> None:
    assert without_labels(made()) == "give labels=['bad', 'good']"
    assert without_labels(made([(f"q {i}", f"a {i}") for i in range(9)])) == "", "answers to write"
    assert without_labels(made([("a", ""), ("b", "")], metric="inverse-perplexity")) == ""
    many = made([(f"q {i}", f"{i % 12:02}") for i in range(60)])
    assert without_labels(many).endswith("'09', ...]")


def test_settings_are_a_task_whose_files_lie_in_the_working_folder(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert task_spec({"name": "t", "train": "a.csv"}).train == str(tmp_path / "a.csv")
    with pytest.raises(ConfigError, match=r"'trian'. Did you mean 'train'"):
        task_spec({"name": "t", "trian": "a.csv"})
    nothing: Any = 7
    with pytest.raises(
        ConfigError, match=r"7 is not a task: give a perdure.Task, a data file, a task's YAML file, or its settings"
    ):
        task_spec(nothing)


def test_one_task_alone_stands_for_a_list_of_it() -> None:
    task, file = made(), "t.yaml"
    assert given_tasks(task) == given_tasks([task]) == (task,)
    nothing: Any = [file]
    with pytest.raises(ConfigError, match=r"'t.yaml' is not a perdure.Task"):
        given_tasks(nothing)


def test_what_files_would_lose_is_noted_and_kept() -> None:
    train = [("a", "x"), ("A ", "x"), ("b", "y"), ("c", "x"), ("c", "y")]
    task = Task("t", train, test=[("a", "x"), ("d", "y")], validation=[("d", "y"), ("b", "y")], labels=["x", "y"])
    found = checked(task)
    assert found.fingerprint() == task.fingerprint()
    assert found.train == task.train
    assert found.notes == (
        "1 duplicate training texts kept as given",
        "2 training rows with conflicting labels for the same text kept as given",
        "2 training texts are also in the test split, which inflates its score; kept as given",
        "1 validation texts are also in the test split, which inflates its score; kept as given",
        "1 training texts are also in the validation split, which inflates its score; kept as given",
    )
    assert checked(found).notes == found.notes, "said once"
    clean = Task("t", [("a", "x")], test=[("b", "x")])
    assert checked(clean) is clean


def test_an_empty_text_is_refused_with_its_place() -> None:
    task = Task("t", [("a", "x"), (" ", "x")], test=[("b", "x")])
    with pytest.raises(DataError, match="Task 't', train example 1: the text is empty; fill it in"):
        checked(task)


def test_a_name_too_long_for_a_file() -> None:
    rows = [("x", "a"), ("y", "b")]
    assert Task("n" * 200, train=rows, test=rows).name == "n" * 200
    with pytest.raises(DataError, match=r"Task name 'nnn.*\.\.\.' is too long for a file's name"):
        Task("n" * 201, train=rows, test=rows)
