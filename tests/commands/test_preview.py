"""What is said before training: counted by hand, and nothing written by a dry run."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

import perdure
from perdure.cli import app
from perdure.commands import preview as before
from perdure.commands.learn import preview, run_config
from perdure.commands.preview import decisions, majority, steps
from perdure.config.run_config import RunConfig, load_config
from perdure.errors import StoreError
from perdure.loop.progress import Plain, duration
from perdure.tasks.sources.files import load_task
from perdure.tasks.spec import TaskSpec
from perdure.tasks.task import Example, Stage, Task
from perdure.training.reporter import Quiet
from tests.contract.runs import bits
from tests.months import write_config, write_task


class Notes(Quiet):
    """Keeps the lines that a run says before it begins."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def note(self, line: str) -> None:
        self.lines.append(line)


@pytest.fixture
def uneven(tmp_path, encoder_folder):
    """A configuration of one task: 20 rows, of which one repeats, two contradict each other, one is long; 12 to score, 9 'a'."""
    rows = [{"text": f"words number {i}", "label": "ab"[i % 2]} for i in range(16)]
    rows += [{"text": "words number 3", "label": "b"}]
    rows += [{"text": "both", "label": label} for label in "ab"]
    rows += [{"text": "long " * 60, "label": "a"}]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    test = [{"text": f"asked {i}", "label": "aaab"[i % 4]} for i in range(12)]
    (tmp_path / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in test))
    task = {"name": "mail", "train": "train.jsonl", "test": "test.jsonl", "validation_size": 0}
    (tmp_path / "config.yaml").write_text(
        json.dumps(
            {
                "tasks": [task],
                "backbone": {"kind": "encoder", "model": str(encoder_folder), "max_length": 40},
                "training": {"epochs": 2, "batch_size": 4},
            }
        )
    )
    return tmp_path


def test_a_dry_run_says_what_was_read_and_writes_nothing(uneven):
    before = sorted(uneven.rglob("*"))
    done = CliRunner().invoke(
        app, ["run", str(uneven / "config.yaml"), "--out", str(uneven / "run"), "--dry-run"], catch_exceptions=False
    )
    assert sorted(uneven.rglob("*")) == before
    lines = done.stdout.splitlines()
    assert "Warning: mail: 1 duplicate training texts removed, the first: train.jsonl, line 17" in lines
    both = "2 training rows with conflicting labels for the same text removed, the first: train.jsonl, line 18"
    assert f"Warning: mail: {both}" in lines
    (of_task,) = (line for line in lines if line.startswith("mail: "))
    assert of_task.startswith(
        "mail: 32 rows read: 17 to learn from, 12 to score; 2 classes: a 53 %, b 47 %; "
    )  # 9 of 17
    assert "1 of 17 texts fill the model's length and may be cut, such as train.jsonl, line 20" in of_task
    assert "always answering 'a' scores 75.0 (accuracy)" in of_task
    assert "the untouched model: about " in of_task
    (cost,) = (line for line in lines if line.startswith("writes to "))
    assert "1 stage of 10 steps" in cost  # 17 examples in batches of 4 are 5 steps, twice
    assert lines.index(cost) > lines.index(of_task)
    assert [line.partition(":")[0] for line in lines[lines.index(cost) + 1 :]] == ["Decide"] * 3  # cut, frequent, few


def test_a_run_says_the_same_and_is_the_same_to_the_bit(uneven):
    config = load_config(uneven / "config.yaml")
    said = Notes()
    run_config(config, uneven / "told", report=said)
    run_config(config, uneven / "silent")
    assert bits(uneven / "told") == bits(uneven / "silent")
    assert [line for line in said.lines if line.startswith("Warning: mail: 1 duplicate")]
    assert [line for line in said.lines if line.startswith("mail: 32 rows read")]
    assert len(said.lines) == len(set(said.lines))
    with pytest.raises(StoreError, match="holds a run already"):
        preview(config, uneven / "told")


def test_an_add_is_previewed_too(tmp_path, encoder_folder):
    config = write_config(tmp_path, encoder_folder, ["fruit"])
    run_config(load_config(config), tmp_path / "run")
    task, before = write_task(tmp_path, "sea"), bits(tmp_path / "run")
    done = CliRunner().invoke(
        app, ["add", str(tmp_path / "run"), str(task), "training.epochs=5", "--dry-run"], catch_exceptions=False
    )
    assert bits(tmp_path / "run") == before
    assert "sea: 40 rows read: " in done.stdout
    assert "fruit: " not in done.stdout
    examples = len(load_task(task).train)
    batch = load_config(config).training.batch_size
    assert f"1 stage of {5 * -(-examples // batch)} steps" in done.stdout
    said = Notes()
    perdure.add(tmp_path / "run", task, report=said)
    assert any(line.startswith("sea: 40 rows read") for line in said.lines)


def test_decisions_are_a_line_of_each_kind(uneven):
    """Numbers as labels; a class that is never trained on; the sentence names the tasks."""
    rows = [("good", "1"), ("bad", "0")] * 60
    numbers = Task("stars", rows, test=[(f"{t} {i}", y) for i, (t, y) in enumerate(rows)], labels=["0", "1", "2"])
    config = RunConfig()
    lines = decisions([numbers], Quiet(), config)  # pyright: ignore[reportArgumentType]
    assert [line.partition(": ")[2].partition(";")[0] for line in lines] == [
        "stars (2): classes without a training example",
        "stars: classes are numbers, and a model reads their texts",
    ]


def test_the_majority_of_every_metric_by_hand():
    test = [("x", "a")] * 3 + [("y", "b")]
    for metric, expected in (
        ("accuracy", 0.75),
        ("balanced-accuracy", 0.5),
        ("macro-f1", 3 / 7),
    ):  # F1 of a: 6/7, of b: 0
        task = Task("t", [("x", "a"), ("y", "b")], test=test, labels=["a", "b"], metric=metric)
        label, score = majority(task, RunConfig()) or ("", 0.0)
        assert (label, round(score, 6)) == ("a", round(expected, 6))
    assert majority(Task("t", [("x", "a")], test=[("x", "a")], metric="rouge-l"), RunConfig()) is None


def test_steps_and_durations():
    stage = Stage("t", (Task("t", [("x", "a")] * 33, test=[("x", "a")]),))
    assert steps(stage, load_config({"training": {"epochs": 3, "batch_size": 16}})) == 9
    assert [duration(s) for s in (0.2, 89, 90, 5399, 5400)] == ["0 s", "89 s", "2 min", "90 min", "1.5 h"]


def test_notices_stand_before_training_and_once(uneven, capsys):
    run_config(load_config(uneven / "config.yaml"), uneven / "run", report=Plain("mine"))
    lines = capsys.readouterr().err.splitlines()
    begun = next(i for i, line in enumerate(lines) if "step 1 of" in line)
    assert not any("Warning" in line or "Decide" in line for line in lines[begun:])
    assert load_task(TaskSpec(name="m", train=str(uneven / "train.jsonl"), free=True)).rows == 20


class Letters:
    """A model that reads four letters of a text."""

    def length(self, example: Example) -> int:
        return min(len(example.text), 4)

    def full(self, example: Example) -> bool:
        return len(example.text) >= 4


def test_of_many_texts_a_sample_is_measured_and_said_as_such(monkeypatch):
    """Five of ten texts are full; a sample of eight has three to five of them."""
    task = Task(
        "t",
        [(("abcd" if i % 2 else "ab") + str(i), "ab"[i % 2]) for i in range(10)],
        test=[("c", "a")],
        labels=["a", "b"],
    )
    whole = [*before._lengths(task, Letters())]  # type: ignore[arg-type]
    assert whole == ["3 to 4 tokens, half of them up to 4", "5 of 10 texts fill the model's length and may be cut"]
    monkeypatch.setattr(before, "MANY", 9)
    monkeypatch.setattr(before, "SAMPLE", 8)
    first, second = before._lengths(task, Letters())  # type: ignore[arg-type]
    assert first.endswith(" (8 texts measured)")
    assert second in {f"about {share} % of 10 texts fill the model's length and may be cut" for share in (38, 50, 62)}
