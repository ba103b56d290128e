"""A stage's answers in one compressed file: each task is read alone, the same rows give the same bytes, damage is named."""

from __future__ import annotations

import random
import zipfile
from pathlib import Path

import pytest

from perdure.errors import CorruptFile
from perdure.files.durable import write_lines
from perdure.state import answers
from perdure.state.answers import StageAnswers, read_answers, write_answers

ROWS = {"a": [{"label": "x\u2028y", "predicted": "z"}], "b": [{"label": "1", "predicted": "1", "value": 0.5}] * 3}


def test_what_is_written_is_read_task_by_task(tmp_path: Path) -> None:
    write_answers(tmp_path, ROWS.items())
    found = StageAnswers(tmp_path)
    assert {task: found.rows(task) for task in ROWS} == ROWS
    assert found.rows("never scored") == []
    assert found.files() == [path.name for path in tmp_path.iterdir()] == ["predictions.zip"]


def test_the_same_rows_give_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_answers(tmp_path, ROWS.items())
    first = (tmp_path / "predictions.zip").read_bytes()
    monkeypatch.setattr("time.time", lambda: 2e9)
    write_answers(tmp_path, ROWS.items())
    assert (tmp_path / "predictions.zip").read_bytes() == first


def test_a_value_that_is_not_finite_does_not_cost_the_stage(tmp_path: Path) -> None:
    write_answers(tmp_path, [("a", [{"label": "x", "predicted": "y", "value": float("nan")}])])
    assert read_answers(tmp_path, "a")[0]["value"] is None


def test_nothing_scored_leaves_no_file(tmp_path: Path) -> None:
    write_answers(tmp_path, [])
    assert [*tmp_path.iterdir()] == []
    assert read_answers(tmp_path, "a") == []


def test_answers_of_0_1_are_read(tmp_path: Path) -> None:
    write_lines(tmp_path / "predictions/a.jsonl", ROWS["a"])
    assert read_answers(tmp_path, "a") == ROWS["a"]
    assert read_answers(tmp_path, "b") == []
    assert StageAnswers(tmp_path).files() == ["predictions/a.jsonl"]


def test_a_file_that_unpacks_to_more_than_is_read_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_answers(tmp_path, [("a", [{"label": "x" * 5000, "predicted": "y"}])])
    monkeypatch.setattr(answers, "LARGEST", 4000)
    assert (tmp_path / "predictions.zip").stat().st_size < 4000
    with pytest.raises(CorruptFile, match=r"predictions.zip': a.jsonl has more than the 4,000 bytes"):
        read_answers(tmp_path, "a")


@pytest.mark.parametrize("content", [b'{"label": 3}\n', b"\xff\n", b"[]\n", b'{"label": '])
def test_rows_of_another_shape_are_named(tmp_path: Path, content: bytes) -> None:
    with zipfile.ZipFile(tmp_path / "predictions.zip", "w") as archive:
        archive.writestr("a.jsonl", content)
    with pytest.raises(CorruptFile, match=r"predictions\.zip"):
        read_answers(tmp_path, "a")


def test_whatever_is_changed_in_the_file_it_is_read_or_named(tmp_path: Path) -> None:
    write_answers(tmp_path, ROWS.items())
    file, draw = tmp_path / "predictions.zip", random.Random(0)
    whole, named = file.read_bytes(), 0
    for _ in range(600):
        changed = bytearray(whole)
        for _ in range(draw.choice((1, 2, 8))):
            changed[draw.randrange(len(changed))] = draw.choice((0, 1, 12, 14, 99, 255, draw.randrange(256)))
        file.write_bytes(bytes(changed[: draw.choice((len(changed), len(changed), draw.randrange(len(changed))))]))
        try:
            for task in ROWS:
                read_answers(tmp_path, task)
        except CorruptFile:
            named += 1
    assert named > 300
