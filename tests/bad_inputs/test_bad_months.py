"""Months that cannot be learnt: too few rows, one class, nothing new, files that are gone. The run stays as it was."""

from __future__ import annotations

import json
import shutil

import pytest

import perdure
from perdure.commands.learn import run_config
from perdure.config.run_config import load_config
from perdure.errors import DataError
from perdure.state.scores import read_scores
from tests.contract.runs import bits
from tests.months import write_config, write_task


@pytest.fixture(scope="module")
def begun(tmp_path_factory, encoder_folder):
    """A finished run of one month."""
    folder = tmp_path_factory.mktemp("months")
    run_config(load_config(write_config(folder, encoder_folder, ["fruit"])), folder / "run")
    return folder


@pytest.fixture
def refused(begun):
    """Adds a task of these settings, and returns the message; nothing of the run may change."""

    def add(**task):
        before = bits(begun / "run")
        with pytest.raises(DataError) as error:
            perdure.add(begun / "run", task)
        assert bits(begun / "run") == before
        return str(error.value)

    return add


def _file(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_a_month_with_three_rows(refused, tmp_path):
    rows = [{"text": f"text {i}", "label": "ab"[i % 2]} for i in range(3)]
    message = refused(name="may", train=_file(tmp_path / "may.jsonl", rows))
    assert message.startswith("Task 'may' has too few examples: 3 to train on give ")


def test_a_month_of_one_class(refused, tmp_path):
    rows = [{"text": f"text {i}", "label": "a"} for i in range(40)]
    message = refused(name="may", train=_file(tmp_path / "may.jsonl", rows))
    assert message.startswith("Task 'may' has only one class in train ('a'). Add examples of another class")


def test_the_same_month_under_another_name(refused, begun, tmp_path):
    """A copy, whose splits are drawn otherwise because it is called otherwise; also with its rows in another order."""
    rows = [json.loads(line) for line in (begun / "fruit.jsonl").read_text().splitlines()]
    labels = {"a": "about apples", "b": "about pears"}
    for order in (1, -1):
        message = refused(name="may", train=_file(tmp_path / "may.jsonl", rows[::order]), labels=labels)
        assert message == (
            "'may' holds nothing new: each of its 40 examples is already in 'fruit', with the same label. Nothing was added."
        )


def test_the_same_texts_with_other_labels_are_another_task(begun, tmp_path):
    shutil.copytree(begun / "run", tmp_path / "run")
    rows = [json.loads(line) for line in (begun / "fruit.jsonl").read_text().splitlines()]
    other = [{**row, "label": {"a": "ripe", "b": "raw"}[row["label"]]} for row in rows]
    scores = perdure.add(tmp_path / "run", {"name": "may", "train": _file(tmp_path / "may.jsonl", other)})
    assert scores.tasks == ["fruit", "may"]


def test_scores_of_a_run_whose_data_are_gone(encoder_folder, tmp_path):
    """They are in the run; only a further month, which scores the old ones again, needs the file and says which."""
    run_config(load_config(write_config(tmp_path, encoder_folder, ["fruit"])), tmp_path / "run")
    before, scores = bits(tmp_path / "run"), read_scores(tmp_path / "run")
    (tmp_path / "fruit.jsonl").unlink()
    assert read_scores(tmp_path / "run").as_dict() == scores.as_dict()
    with pytest.raises(
        DataError, match=r"fruit\.jsonl does not exist: the run in .* recorded that path for task 'fruit'"
    ):
        perdure.add(tmp_path / "run", write_task(tmp_path, "sea"))
    assert bits(tmp_path / "run") == before
