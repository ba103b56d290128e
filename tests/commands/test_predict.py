"""Batch prediction: the answers a run was scored by, for new inputs in any format a task may have."""

from __future__ import annotations

import csv
import dataclasses
import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

import perdure
from perdure.cli import app
from perdure.commands.learn import run_config
from perdure.config.run_config import load_config
from perdure.errors import DataError, StoreError, UnknownName
from perdure.files.durable import read_lines
from perdure.state.answers import read_answers
from perdure.state.store import Store
from tests.backbones.tiny import tiny_causal
from tests.contract.runs import SETTINGS, short_run
from tests.months import write_config, write_task


@pytest.fixture(scope="module")
def run(tmp_path_factory, small_tasks, encoder_folder):
    out = tmp_path_factory.mktemp("predict") / "run"
    short_run(out, small_tasks[:2], encoder_folder, "ps-lora")
    return out


def lines(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize("method", ["ps-lora", "per-task", "inc-lora"])
def test_the_answers_are_those_the_run_was_scored_by(method, tmp_path, small_tasks, encoder_folder):
    out = tmp_path / "run"
    short_run(out, small_tasks[:2], encoder_folder, method)
    for task in small_tasks[:2]:
        rows = [{"text": e.text, "label": e.label} for e in task.test]
        found = perdure.predict(out, lines(tmp_path / "in.jsonl", rows), task=task.name)
        known = read_answers(Store(out).stage_folder(2), task.name)
        assert [row["label"] for row in found] == [row["predicted"] for row in known]
        assert [max(row["probabilities"].values()) for row in found] == [row["probability"] for row in known]
        assert [row["expected"] for row in found] == [e.label for e in task.test]
        assert [row["input"] for row in found] == [e.text for e in task.test]
        assert all(list(row["probabilities"]) == ["a", "b"] for row in found)
        assert all(sum(row["probabilities"].values()) == pytest.approx(1, abs=1e-5) for row in found)


TEXTS = ["the sun and 99", "the moon and 99"]
WAYS = {
    "text.jsonl": [{"text": t} for t in TEXTS],
    "sentence.json": [{"sentence": t, "extra": 1} for t in TEXTS],
    "prompt.jsonl": [{"prompt": t} for t in TEXTS],
    "input.jsonl": [{"input": t} for t in TEXTS],
    "instruction.jsonl": [{"instruction": t, "input": ""} for t in TEXTS],
    "waiting.jsonl": [{"messages": [{"role": "user", "content": t}]} for t in TEXTS],
    "answered.jsonl": [
        {"messages": [{"role": "user", "content": t}, {"role": "assistant", "content": "a"}]} for t in TEXTS
    ],
    "partly.jsonl": [{"text": TEXTS[0], "label": "a"}, {"text": TEXTS[1], "label": None}],
}


@pytest.mark.parametrize("name", [*WAYS, "table.csv"])
def test_every_format_is_read_with_and_without_labels(name, run, tmp_path):
    file = tmp_path / name
    if name == "table.csv":
        with file.open("w", newline="") as out:
            csv.writer(out).writerows([("text",), *((t,) for t in TEXTS)])
    elif name.endswith(".json"):
        file.write_text(json.dumps(WAYS[name]))
    else:
        lines(file, WAYS[name])
    found = perdure.predict(run, file, task="sky")
    plain = perdure.predict(run, TEXTS, task="sky")
    expected = {"answered.jsonl": ["a", "a"], "partly.jsonl": ["a", None]}.get(name, [None, None])
    assert [row.get("expected") for row in found] == expected
    assert [row.pop("extra", None) for row in found] == [1 if name == "sentence.json" else None] * 2
    assert [{k: v for k, v in row.items() if k != "expected"} for row in found] == plain


BAD = [
    ("missing.jsonl", None, "does not exist.*relative to the current folder", DataError),
    (
        "cut.jsonl",
        '{"text": "x"}\n{"text": "so good \\ud83d"}\n',
        r"line 2: field 'text' holds half of a character",
        DataError,
    ),
    ("bad.jsonl", '{"text": "x"}\n{"text": \n', "line 2: not valid JSON", DataError),
    ("empty.jsonl", "", "is empty", DataError),
    ("other.jsonl", '{"body": "x"}\n', "found the fields 'body'.*`text_field`", DataError),
    ("blank.jsonl", '{"text": "x"}\n{"text": " "}\n', "line 2: field 'text' is empty", DataError),
    ("table.xlsx", "x", "unknown file type", DataError),
]


@pytest.mark.parametrize("name,content,message,error", BAD, ids=[row[0] for row in BAD])
def test_bad_files_are_named_with_the_line(name, content, message, error, run, tmp_path):
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(error, match=message):
        perdure.predict(run, tmp_path / name, task="sky")


def test_which_task_is_asked(run, tmp_path, small_tasks, encoder_folder):
    with pytest.raises(StoreError, match=r"--task: fruit, sky"):
        perdure.predict(run, TEXTS)
    with pytest.raises(UnknownName, match=r"Unknown learnt task: 'skye'\. Did you mean 'sky'"):
        perdure.predict(run, TEXTS, task="skye")
    with pytest.raises(DataError, match="Nothing to answer"):
        perdure.predict(run, [], task="sky")
    with pytest.raises(StoreError, match="holds no run"):
        perdure.predict(tmp_path / "none", TEXTS)
    short_run(tmp_path / "seen", small_tasks[:2], encoder_folder, "inc-lora", evaluation={"labels": "seen"})
    found = perdure.predict(tmp_path / "seen", TEXTS)
    assert {row["task"] for row in found} <= {"fruit", "sky"}
    assert list(found[0]["probabilities"]) == ["fruit/a", "fruit/b", "sky/a", "sky/b"]


def test_labels_of_two_tasks_with_the_same_text_have_one_probability(tmp_path, small_tasks, encoder_folder):
    """The run books both tasks' examples as right alike, and an answer is named after the first task."""
    fruit, sky = (dataclasses.replace(task, labels={"a": "about a", "b": "about b"}) for task in small_tasks[:2])
    short_run(tmp_path / "run", [fruit, sky], encoder_folder, "inc-lora", evaluation={"labels": "seen"})
    found = perdure.predict(tmp_path / "run", [example.text for example in sky.test])
    known = read_answers(Store(tmp_path / "run").stage_folder(2), "sky")
    assert not any("predicted_task" in row for row in known), "before, every answer was the first task's"
    for row, stored in zip(found, known, strict=True):
        assert list(row["probabilities"]) == ["fruit/a", "fruit/b"]
        assert sum(row["probabilities"].values()) == pytest.approx(1, abs=1e-5)
        assert (row["label"], row["task"]) == (stored["predicted"], "fruit")
        assert max(row["probabilities"].values()) == stored["probability"]


def test_an_update_for_each_task_needs_a_task_even_where_all_labels_compete(tmp_path, small_tasks, encoder_folder):
    short_run(tmp_path / "seen", small_tasks[:2], encoder_folder, "per-task", evaluation={"labels": "seen"})
    with pytest.raises(StoreError, match=r"Choose whose labels to use with --task: fruit, sky"):
        perdure.predict(tmp_path / "seen", TEXTS)


def causal_run(out, tasks, **settings):
    backbone = {"kind": "causal", "model": str(tiny_causal(out / "model")), "max_new_tokens": 20}
    perdure.learn(out=out / "run", tasks=tasks, method="inc-lora", backbone=backbone, **SETTINGS, **settings)
    return out / "run"


def test_tasks_that_are_asked_in_other_words_need_a_name(tmp_path, small_tasks):
    fruit, sky = (dataclasses.replace(task, template="Which? {text}") for task in small_tasks[:2])
    alike = causal_run(tmp_path / "alike", [fruit, sky], evaluation={"labels": "seen"})
    texts = [example.text for example in fruit.test]
    found = perdure.predict(alike, texts)
    known = read_answers(Store(alike).stage_folder(2), "fruit")
    assert [max(row["probabilities"].values()) for row in found] == [row["probability"] for row in known]
    apart = causal_run(
        tmp_path / "apart", [fruit, dataclasses.replace(sky, template="")], evaluation={"labels": "seen"}
    )
    with pytest.raises(StoreError, match="--task: fruit, sky"):
        perdure.predict(apart, texts)
    assert len(perdure.predict(apart, texts, task="sky")) == len(texts)


def test_tasks_with_nothing_to_answer_for_new_texts_are_refused(tmp_path, small_tasks):
    fruit, story = small_tasks[0], perdure.Task("story", [("ab", "")], test=[("cd", "")], metric="inverse-perplexity")
    copa = dataclasses.replace(small_tasks[1], choices={small_tasks[1].test[0].text: ("it rains", "it shines")})
    out = causal_run(tmp_path, [fruit, copa, story])
    with pytest.raises(DataError, match=r"text of task 'sky' has its own answers to choose from.*--task"):
        perdure.predict(out, TEXTS, task="sky")
    with pytest.raises(DataError, match=r"'story' learns texts as they are: there is nothing to answer.*--task"):
        perdure.predict(out, TEXTS, task="story")
    assert len(perdure.predict(out, TEXTS, task="fruit")) == 2


def test_a_class_by_number_is_one_of_the_only_task_asked(run, tmp_path, small_tasks, encoder_folder):
    file = lines(tmp_path / "in.jsonl", [{"text": "the sun", "label": 1}])
    assert perdure.predict(run, file, task="sky")[0]["expected"] == "b"
    short_run(tmp_path / "seen", small_tasks[:2], encoder_folder, "inc-lora", evaluation={"labels": "seen"})
    assert perdure.predict(tmp_path / "seen", file)[0]["expected"] == "1"


def test_files_are_read_as_the_task_was(tmp_path, encoder_folder):
    rows = [{"prompt": f"{w} {i}", "text": f"note {i}", "completion": w} for i in range(20) for w in ("sun", "moon")]
    lines(tmp_path / "sky.jsonl", rows)
    task = {"name": "sky", "train": str(tmp_path / "sky.jsonl"), "format": "prompt-completion", "free": False}
    backbone = {"kind": "encoder", "model": str(encoder_folder)}
    run_config(load_config({"tasks": [task], "method": "inc-lora", "backbone": backbone, **SETTINGS}), tmp_path / "run")
    for asked in (rows, [{key: row[key] for key in ("text", "prompt")} for row in rows]):
        found = perdure.predict(tmp_path / "run", lines(tmp_path / "in.jsonl", asked))
        assert [row["input"] for row in found] == [row["prompt"] for row in rows]


def test_versions_are_asked_by_name(tmp_path, encoder_folder):
    config = write_config(tmp_path, encoder_folder, ["fruit"], "per-task")
    run_config(load_config(config), tmp_path / "run")
    before = perdure.predict(tmp_path / "run", ["apples"])
    perdure.add(tmp_path / "run", write_task(tmp_path / "later", "fruit", ("apples", "plums"), start=50))
    new, same, old = (perdure.predict(tmp_path / "run", ["apples"], task=t) for t in ("fruit", "fruit@2", "fruit@1"))
    assert new == same != old
    assert old == before
    assert perdure.predict(tmp_path / "run", ["apples"]) == new
    assert not any("other labels" in text for text in Store(tmp_path / "run").about["warnings"])


def test_a_version_with_other_labels_is_noticed(tmp_path, encoder_folder):
    run_config(load_config(write_config(tmp_path, encoder_folder, ["fruit"])), tmp_path / "run")
    later = write_task(tmp_path / "later", "fruit", start=50, labels={"a": "about apples", "c": "about plums"})
    data = later.with_suffix(".jsonl")
    data.write_text(data.read_text().replace('"label": "b"', '"label": "c"'))
    perdure.add(tmp_path / "run", later)
    (warning,) = [text for text in Store(tmp_path / "run").about["warnings"] if "other labels" in text]
    assert "fruit@2: other labels than fruit (new: 'c'; gone: 'b')" in warning
    assert "`--task fruit@1` among the old ones" in warning


def test_fields_are_named_as_in_the_task(tmp_path, encoder_folder):
    def task(name, start):
        file = write_task(tmp_path / name, "fruit", start=start, name=name, text_field="body", label_field="kind")
        data = file.with_suffix(".jsonl")
        data.write_text(data.read_text().replace('"text"', '"body"').replace('"label"', '"kind"'))
        return file

    backbone = {"kind": "encoder", "model": str(encoder_folder)}
    perdure.learn(out=tmp_path / "run", tasks=[task("begun", 0)], method="inc-lora", backbone=backbone, **SETTINGS)
    perdure.add(tmp_path / "run", task("added", 50))
    for name in ("begun", "added"):
        found = perdure.predict(tmp_path / "run", tmp_path / name / "fruit.jsonl", task=name)
        assert [row["expected"] for row in found] == ["a", "b"] * 20
    other = lines(tmp_path / "in.jsonl", [{"note": "apples"}])
    assert len(perdure.predict(tmp_path / "run", other, task="begun", text_field="note")) == 1


def test_free_texts_are_written(tmp_path):
    model = tiny_causal(tmp_path / "model")
    rows = [(f"say {word} {i}", word) for i in range(4) for word in ("yes", "no")]
    task = perdure.Task("speak", train=rows, test=rows, metric="rouge-l")
    backbone = {"kind": "causal", "model": str(model), "max_new_tokens": 6}
    perdure.learn(out=tmp_path / "run", tasks=[task], method="inc-lora", backbone=backbone, **SETTINGS)
    found = perdure.predict(tmp_path / "run", lines(tmp_path / "in.jsonl", [{"prompt": "say yes"}]))
    assert [set(row) for row in found] == [{"input", "text"}]
    assert isinstance(found[0]["text"], str)


def test_the_command_writes_whole_files(run, tmp_path, monkeypatch):
    rows = [{"text": "the sun", "label": "a"}, {"text": "a moon"}]
    file, out = lines(tmp_path / "in.jsonl", rows), tmp_path / "answers.jsonl"
    asked = ["predict", str(run), str(file), "--task", "sky"]
    printed = CliRunner().invoke(app, asked)
    assert printed.exit_code == 0, printed.output
    assert [json.loads(line) for line in printed.stdout.splitlines()] == perdure.predict(run, file, task="sky")
    told = CliRunner().invoke(app, [*asked, "--out", str(out)])
    assert told.stdout.startswith(f"Wrote 2 predictions to {out}; ")
    assert told.stdout.strip().endswith("% of 1 labelled inputs correct")
    assert read_lines(out) == perdure.predict(run, file, task="sky")
    out.write_text("mine")
    monkeypatch.setattr("perdure.commands.predict.answer", None)  # said before anything is answered
    refused = CliRunner().invoke(app, [*asked, "--out", str(out)])
    monkeypatch.undo()
    assert isinstance(refused.exception, StoreError)
    assert out.read_text() == "mine"
    assert CliRunner().invoke(app, [*asked, "--out", str(out), "--overwrite"]).exit_code == 0
    assert len(read_lines(out)) == 2


@pytest.mark.parametrize("out", ["{file}", "{run}/run.json", "{run}/answers.jsonl"])
def test_the_command_replaces_nothing_that_is_read(out, run, tmp_path, monkeypatch):
    file = lines(tmp_path / "in.jsonl", [{"text": "the sun"}])
    place = Path(out.format(file=file, run=run))
    before = place.read_text() if place.exists() else None
    monkeypatch.setattr("perdure.commands.predict.answer", None)  # said before anything is answered
    asked = ["predict", str(run), str(file), "--task", "sky", "--out", str(place), "--overwrite"]
    refused = CliRunner().invoke(app, asked)
    assert isinstance(refused.exception, StoreError), refused.output
    assert "the input" in str(refused.exception)
    assert (place.read_text() if place.exists() else None) == before


def test_a_damaged_run_is_not_asked(run, tmp_path):
    import shutil

    from perdure.errors import CorruptFile

    copy = shutil.copytree(run, tmp_path / "run")
    state = Store(copy).stage_folder(2) / "state.safetensors"
    state.write_bytes(state.read_bytes()[:-1] + b"x")
    with pytest.raises(CorruptFile, match=r"state\.safetensors.*damaged.*intact stage: fruit"):
        perdure.predict(copy, TEXTS, task="sky")


def chat(*said: str, **others: object) -> dict:
    roles = ["user", "assistant"] * 4
    return {"messages": [{"role": r, "content": s} for r, s in zip(roles, said, strict=False)], **others}


@pytest.fixture(scope="module")
def chat_run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("chats")
    task = perdure.Task(
        "talk", [chat("a", "b", "c", str(i)) for i in range(8)], test=[chat("a", "b")], metric="rouge-l"
    )
    backbone = {"kind": "causal", "model": str(tiny_causal(folder / "model", chat=True)), "max_new_tokens": 8}
    perdure.learn(out=folder / "run", tasks=task, method="inc-lora", backbone=backbone, **SETTINGS)
    return folder / "run"


def test_chats_are_answered_with_their_fields(chat_run, tmp_path):
    """A chat may wait or be answered, or be a text; what a record has besides stays, under `fields` where a name is taken."""
    waiting, answered = chat("a", "b", "c", id=7), chat("a", "b", id=8, text="mine")
    lines(tmp_path / "a.jsonl", [waiting, answered])
    first, second = perdure.predict(chat_run, tmp_path / "a.jsonl")
    assert first == {**waiting, "text": first["text"]}
    assert second == {**chat("a", "b"), "id": 8, "text": second["text"], "expected": "b", "fields": {"text": "mine"}}
    [given] = perdure.predict(chat_run, [waiting])
    assert given == first
    [plain] = perdure.predict(chat_run, ["a"])
    assert plain == {"input": "a", "text": second["text"]}


def test_good_rows_are_written_and_bad_ones_named(chat_run, tmp_path):
    long = chat("x" * 300)
    content = [json.dumps(row) for row in (chat("a", id=1), chat(" "), long, chat("c", id=4))]
    (tmp_path / "a.jsonl").write_text("\n".join([*content[:3], "{", content[3]]))
    done = CliRunner().invoke(
        app, ["predict", str(chat_run), str(tmp_path / "a.jsonl"), "--out", str(tmp_path / "out.jsonl")]
    )
    assert [row["id"] for row in read_lines(tmp_path / "out.jsonl")] == [1, 4]
    assert isinstance(done.exception, DataError)
    assert "Wrote 2 predictions" in done.output
    for part in (
        "line 2, message 0: the turn of 'user' is empty",
        "line 3: 322 tokens",
        "line 4: not valid JSON",
        "3 rows were left out",
    ):
        assert part in str(done.exception)
    with pytest.raises(DataError, match="line 4: not valid JSON"):
        perdure.predict(chat_run, tmp_path / "a.jsonl")


def test_standard_input(chat_run, run):
    done = CliRunner().invoke(app, ["predict", str(chat_run), "-"], input=json.dumps(chat("a", id=1)) + "\n")
    assert done.exit_code == 0
    assert json.loads(done.stdout)["id"] == 1
    done = CliRunner().invoke(app, ["predict", str(run), "-", "--task", "sky"], input='{"text": "x", "id": "q"}\n')
    assert done.exit_code == 0
    assert json.loads(done.stdout)["id"] == "q"
    done = CliRunner().invoke(app, ["predict", str(run), "-", "--task", "sky"], input='{"body": "x"}\n')
    assert isinstance(done.exception, DataError)
    assert "standard input, line 1: no input to answer" in str(done.exception)


def test_a_task_of_texts_reads_one_message_and_refuses_more(run, tmp_path):
    lines(tmp_path / "a.jsonl", [chat("x"), chat("x", "y", "z")])
    with pytest.raises(DataError, match=r"line 2: the task learnt texts, and this chat is more than one message"):
        perdure.predict(run, tmp_path / "a.jsonl", task="sky")


def test_nothing_on_standard_input_is_said(run):
    done = CliRunner().invoke(app, ["predict", str(run), "-", "--task", "sky"], input="\n")
    assert isinstance(done.exception, DataError)
    assert "standard input is empty" in str(done.exception)
