"""docs/own-data.md: its YAML is valid, its commands run in order, unchanged but for a tiny base; its Python runs."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from perdure.cli import app
from perdure.config.run_config import load_config
from perdure.state.store import Store
from perdure.tasks.chats import prompt_of, read_chat
from tests.contract.runs import SETTINGS, short_run
from tests.loop.test_adapter_history import peft_adapter

PAGE = (Path(__file__).parents[2] / "docs/own-data.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE, flags=re.DOTALL | re.MULTILINE)


def test_the_chat_on_the_page_is_read():
    [chat] = map(json.loads, blocks("json"))
    text, label = read_chat(chat, "here")
    assert [message["role"] for message in prompt_of(text)[0]] == ["system", "user", "assistant", "user"]
    assert label == "We will send somebody."


def records(path: Path, start: int, first: tuple[str, str], second: tuple[str, str]) -> None:
    rows = [
        {"text": f"{text} {i}", "label": label} for i in range(start, start + 20) for text, label in (first, second)
    ]
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture
def here(tmp_path, encoder_folder, monkeypatch):
    """The page's files; its configuration uses the tiny encoder, with steps too small to forget."""
    monkeypatch.chdir(tmp_path)
    task, config = blocks("yaml")
    for start, folder in ((0, tmp_path), (30, tmp_path / "april")):
        records(folder / "tickets.jsonl", start, ("the bill is", "billing"), ("no line since", "outage"))
        (folder / "tickets.yaml").write_text(task)
    for name in ("reviews", "spam"):
        records(tmp_path / f"{name}.jsonl", 0, (f"good {name}", "yes"), (f"bad {name}", "no"))
        (tmp_path / f"{name}.yaml").write_text(f"name: {name}\ntrain: {name}.jsonl\n")
    (tmp_path / "inbox.csv").write_text("text\nno internet\nmy bill\n")
    small = {
        **SETTINGS,
        "lora": {"rank": 4},
        "training": {"epochs": 1, "learning_rate": 1e-6},
        "backbone": {"kind": "encoder", "model": str(encoder_folder)},
    }
    (tmp_path / "perdure.yaml").write_text(yaml.safe_dump({**yaml.safe_load(config), **small}))
    for seed, name in enumerate(("news", "mail")):
        peft_adapter(encoder_folder, tmp_path / "adapters" / name, seed, rank=2 + seed)
    return tmp_path


def test_the_commands_run_as_they_stand(here, encoder_folder):
    ran = 0
    for command in "".join(blocks("console")).splitlines():
        command = command.replace("--backbone minilm", f"--backbone {encoder_folder} backbone.kind=encoder")
        done = CliRunner().invoke(app, shlex.split(command)[1:])
        assert done.exit_code == 0, f"{command}\n{done.output}\n{done.exception!r}"
        assert done.stdout.strip(), f"{command} says nothing"
        if command.endswith("spam.yaml"):
            assert Store(here / "runs/mine").stages() == ["tickets", "reviews", "tickets@2", "spam"]
        ran += 1
    assert ran >= 7
    assert Store(here / "runs/mine").stages() == ["tickets", "reviews"]
    assert Store(here / "runs/new").stages() == ["history-news", "history-mail", "spam"]
    assert len((here / "answers.jsonl").read_text().splitlines()) == 2


def test_the_configuration_is_valid(here):
    (here / "plain.yaml").write_text(blocks("yaml")[1])
    config = load_config(here / "plain.yaml")
    assert [task.name for task in config.tasks] == ["tickets", "reviews"]
    assert config.backbone["model"] == "minilm"


def test_the_python_runs(here, small_tasks, encoder_folder):
    short_run(here / "runs/small", small_tasks[:2], encoder_folder, "inc-lora", training={"learning_rate": 1e-6})
    first, second, third = small_tasks
    (code,) = blocks("python")
    names = {"first": first, "second": second, "third": third}
    exec(code, names)
    assert names["scores"].stages == ["fruit", "sky", "sea"]
