"""Texts whose answers changed since their task was learnt: by hand, capped, escaped, and only where they were kept."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from perdure.cli import app
from perdure.report import texts
from perdure.report.page import write_report
from perdure.report.texts import changed_texts, text_tables
from perdure.state.answers import read_answers, write_answers
from perdure.state.outcomes import task_outcomes
from perdure.state.store import Store
from tests.contract.runs import short_run
from tests.report.run_folders import write_run


def _with_texts(run, texts_of_mood):
    """Give the stage that learnt mood the texts of its four examples; checksums are not asked for by a report."""
    stage = Store(run).stage_folder(1)
    rows = [{**row, "text": text} for row, text in zip(read_answers(stage, "mood"), texts_of_mood, strict=True)]
    write_answers(stage, [("mood", rows), ("topic", read_answers(stage, "topic"))])


def test_what_became_worse_and_better_by_hand(tmp_path):
    """mood was all right; its second (good -> bad) and third text (bad -> good) are wrong now. topic keeps no texts here."""
    run = write_run(tmp_path / "run")
    _with_texts(run, ["fine day", "sunny", "rain", "fog"])
    mood, topic, _ = task_outcomes(Store(run))
    assert [(t.text, t.right, t.then, t.now, t.moved) for t in changed_texts(mood)] == [
        ("sunny", "good", "good", "bad", -1.0),
        ("rain", "bad", "bad", "good", -1.0),
    ]
    assert all(changed.text == "topic text" for changed in changed_texts(topic))
    worse, better = text_tables([mood, topic])
    assert worse.caption == "3 answers became worse since their task was learnt"
    assert worse.rows[0] == ["mood", "sunny", "good", "good", "bad"]
    assert better.caption == "1 answer became better since their task was learnt"
    assert better.rows == [["topic", "topic text", "money", "sport", "money"]]


def test_texts_are_capped_and_escaped(tmp_path, monkeypatch):
    run = write_run(tmp_path / "run")
    _with_texts(run, ["a", "<b>bold</b>\x1b[31m" + "x" * 500, "c", "d"])
    paths = write_report([run], tmp_path / "out")
    html = paths["html"].read_text(encoding="utf-8")
    assert "&lt;b&gt;bold&lt;/b&gt;\ufffd[31m" in html
    assert "<b>bold" not in html
    assert "x" * 200 not in html
    assert "became worse since their task was learnt" in paths["md"].read_text(encoding="utf-8")
    (changed,) = (
        t for t in json.loads(paths["json"].read_text())["runs"][0]["changed_texts"] if t["text"].startswith("<")
    )
    assert (changed["right"], changed["now"]) == ("good", "bad")
    monkeypatch.setattr(texts, "MOST", 1)
    (worse, _) = text_tables(task_outcomes(Store(run)))
    assert worse.caption == "3 answers became worse since their task was learnt, 2 of them shown"


def test_a_run_keeps_how_each_text_begins_where_its_task_was_learnt(tmp_path, small_tasks, encoder_folder):
    short_run(tmp_path / "run", small_tasks[:2], encoder_folder, "inc-lora")
    store = Store(tmp_path / "run")
    for task in small_tasks[:2]:
        own = read_answers(store.stage_folder(1 + small_tasks.index(task)), task.name)
        assert [row["text"] for row in own] == [example.text[:300] for example in task.test]
    later = read_answers(store.stage_folder(2), small_tasks[0].name)
    assert not any("text" in row for row in later)


@pytest.mark.parametrize("known", [True, False])
def test_show_lists_them(tmp_path, known):
    run = write_run(tmp_path / "run")
    if known:
        _with_texts(run, ["fine day", "sunny", "rain", "fog"])
    else:
        for task, position in (("mood", 1), ("topic", 2)):
            stage = Store(run).stage_folder(position)
            rows = [{k: v for k, v in row.items() if k != "text"} for row in read_answers(stage, task)]
            write_answers(stage, [(task, rows)])
    said = CliRunner().invoke(app, ["show", str(run), "--texts"], catch_exceptions=False).stdout
    assert ("mood: 'sunny': right 'good', when learnt 'good', now 'bad'" in said) == known
    assert ("No answer changed" in said) != known
