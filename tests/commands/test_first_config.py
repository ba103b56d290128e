"""`perdure init DATA`: what it finds decides; the configuration it writes is valid, and the run of it works."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from perdure.cli import app
from perdure.commands.first_config import first_config
from perdure.config.run_config import load_config
from perdure.errors import ConfigError, DataError
from perdure.tasks.sources.files import load_task


def _write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def _labels(folder, name="tickets.jsonl", words=20):
    rows = [{"text": f"{'word ' * words}{i}", "label": ("bill", "outage")[i % 2]} for i in range(200)]
    return _write(folder / name, rows)


def test_labels_give_an_encoder_whose_length_fits(tmp_path, monkeypatch):
    """21 words x 1.6 + 2 = 35.6 tokens: 48. Of 200 rows 120 are left: 100 steps of 16 would be 14 passes, and 12 is the most."""
    monkeypatch.chdir(tmp_path)
    _labels(tmp_path)
    done = CliRunner().invoke(app, ["init", "tickets.jsonl"], catch_exceptions=False)
    assert done.stdout.splitlines() == [
        "tickets: 200 rows, 2 labels, 120 to learn from",
        "Wrote perdure.yaml. Look at it, then: perdure run perdure.yaml --dry-run",
    ]
    config = load_config(tmp_path / "perdure.yaml")
    assert config.method_name == "perdure"
    assert config.backbone == {"model": "minilm", "max_length": 48}
    assert config.training.epochs == 12
    assert len(load_task(config.tasks[0]).train) == 120
    with pytest.raises(ConfigError, match="already exists"):
        CliRunner().invoke(app, ["init", "tickets.jsonl"], catch_exceptions=False)


def test_many_long_texts(tmp_path):
    """2,000 rows of 101 words: 164 tokens fit in 192, and three passes are enough."""
    rows = [{"text": f"{'word ' * 100}{i}", "label": str(i % 2)} for i in range(2_000)]
    text, _ = first_config([_write(tmp_path / "a.jsonl", rows)], tmp_path / "c.yaml")
    assert "max_length: 192" in text
    assert "epochs: 3," in text
    assert "# labels: {0: ..., 1: ...}" in text
    (tmp_path / "c.yaml").write_text(text)
    assert load_config(tmp_path / "c.yaml").training.epochs == 3


@pytest.mark.parametrize(
    ("row", "what", "expected"),
    [
        (lambda i: {"prompt": f"ask {i}", "completion": f"answer number {i} " * 9}, "free text", "max_new_tokens: 100"),
        (lambda i: {"text": f"only a text {i}"}, "plain texts", "metric: inverse-perplexity"),
        (
            lambda i: {"messages": [{"role": "user", "content": f"q{i}"}, {"role": "assistant", "content": f"a{i}"}]},
            "chats",
            "kind: causal",
        ),
    ],
)
def test_what_has_no_labels_gives_a_language_model(tmp_path, row, what, expected):
    file = _write(tmp_path / "my texts.jsonl", [row(i) for i in range(60)])
    text, (said,) = first_config([file], tmp_path / "perdure.yaml")
    assert f", {what}, " in said
    assert expected in text
    assert "kind: causal, model: smollm2-135m" in text
    (tmp_path / "perdure.yaml").write_text(text)
    (task,) = load_config(tmp_path / "perdure.yaml").tasks
    assert (task.name, load_task(task).rows) == ("my-texts", 60)


def test_bad_rows_are_counted_and_several_files_are_one_sequence(tmp_path):
    first, second = _labels(tmp_path), _labels(tmp_path, "reviews.jsonl")
    first.write_text(first.read_text() + "{broken\n")
    text, said = first_config([first, second], tmp_path / "perdure.yaml")
    assert "bad_rows: skip              # 1 rows cannot be read" in text
    assert [line.partition(":")[0] for line in said] == ["tickets", "reviews"]
    free = _write(tmp_path / "free.jsonl", [{"prompt": f"p{i}", "completion": f"c{i}"} for i in range(60)])
    with pytest.raises(ConfigError, match=r"two runs: tickets \(2 labels\), free \(free text\)"):
        first_config([first, free], tmp_path / "perdure.yaml")
    with pytest.raises(DataError, match="does not exist"):
        first_config([tmp_path / "none.jsonl"], tmp_path / "perdure.yaml")


def test_fields_of_other_names_are_found_by_their_content(tmp_path: Path) -> None:
    """A column that repeats is the label, the one of several words the text; numbers and dates are neither."""
    file = tmp_path / "tickets.csv"
    rows = [
        f"{i},2026-01-{i % 28 + 1:02},please help with my parcel {i},{('sales', 'support')[i % 2]}" for i in range(60)
    ]
    file.write_text("\n".join(["id,day,message,team", *rows]))
    text, (said,) = first_config([file], tmp_path / "perdure.yaml")
    (task,) = yaml.safe_load(text)["tasks"]
    assert (task["text_field"], task["label_field"]) == ("message", "team")
    assert "2 labels" in said


@pytest.mark.parametrize(
    "columns", ["message,team,urgent", "message,answer", "message"], ids=["two repeat", "no label", "one column"]
)
def test_doubt_about_fields_is_an_error_that_the_options_answer(tmp_path: Path, columns: str) -> None:
    file, names = tmp_path / "tickets.csv", columns.split(",")
    values = {"team": ("sales", "support"), "urgent": ("yes", "no")}
    lines = [",".join(values.get(name, [f"some words {i}"] * 2)[i % 2] for name in names) for i in range(60)]
    file.write_text("\n".join([columns, *lines]))
    with pytest.raises(DataError, match=r"line 2: no known fields.*text_field"):
        first_config([file], tmp_path / "perdure.yaml")
    if len(names) > 1:
        given = {"text_field": names[0], "label_field": names[1]}
        text, _ = first_config([file], tmp_path / "perdure.yaml", given)
        (task,) = yaml.safe_load(text)["tasks"]
        assert given.items() <= task.items()
        assert task.get("free", False) == (names[1] == "answer")


def test_field_names_that_yaml_reads_as_something_else_are_quoted(tmp_path: Path) -> None:
    file = tmp_path / "tickets.csv"
    file.write_text("\n".join(["message,null", *(f"please help with {i},{'ab'[i % 2]}" for i in range(60))]))
    text, _ = first_config([file], tmp_path / "perdure.yaml")
    assert yaml.safe_load(text)["tasks"][0]["label_field"] == "null"


def test_one_class_is_no_free_text(tmp_path: Path) -> None:
    file = _write(tmp_path / "a.jsonl", [{"text": f"parcel {i}", "label": "sales"} for i in range(40)])
    with pytest.raises(DataError, match="only one class"):
        first_config([file], tmp_path / "perdure.yaml")


def test_fields_without_a_file_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(app, ["init", "--text-field", "message"])
    assert isinstance(done.exception, ConfigError)
    assert not (tmp_path / "perdure.yaml").exists()
