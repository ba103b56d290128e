"""`perdure show RUN --serve`: run in transformers, its program reads the ids that were learnt and gives perdure's own answers."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import perdure
from perdure.cli import app
from perdure.commands.card_programs import NO_BASE
from perdure.commands.export import export
from perdure.commands.serve import serving
from perdure.errors import ConfigError, RunMismatch, StoreError
from perdure.files.durable import read_json
from perdure.state.reopen import reopened_model
from perdure.state.store import Store
from perdure.tasks.task import Task
from tests.backbones.tiny import tiny_causal
from tests.contract.runs import SETTINGS

CHATS = [
    {
        "messages": [
            *([{"role": "system", "content": "Be brief."}] if i % 3 else []),
            {"role": "user", "content": f"What is {i}?"},
            {"role": "assistant", "content": f"It is {i}."},
            {"role": "user", "content": "Sure?"},
            {"role": "assistant", "content": "yes" if i % 2 else "no"},
        ]
    }
    for i in range(12)
]
FREE = Task("free", CHATS[:8], test=CHATS[8:], metric="rouge-l")
DATED = "{% if style == 'long' %}({{ strftime_now('%d %b %Y') }}){% endif %}"


def learnt(folder: Path, method: str = "inc-lora", tasks: Any = FREE, dated: bool = False, **backbone: Any) -> Path:
    base = tiny_causal(folder / "base", chat=True)
    if dated:
        (base / "chat_template.jinja").write_text(DATED + (base / "chat_template.jinja").read_text())
    settings = {"kind": "causal", "model": str(base), "max_new_tokens": 12, **backbone}
    perdure.learn(out=folder / "run", tasks=tasks, method=method, backbone=settings, **SETTINGS)
    return folder / "run"


def program(text: str) -> dict[str, Any]:
    names: dict[str, Any] = {"__name__": "served"}
    exec(text, names)
    return names


CASES = {
    "an adapter": {},
    "the whole model": {"method": "ps-lora"},
    "a system message": {"system": 'Say "it".\nNow.'},
    "a date and an argument": {"dated": True, "template_args": {"style": "long"}, "template_date": "2026-02-01"},
    "all turns": {"learn": "all"},
}


@pytest.mark.parametrize("case", CASES)
def test_the_program_of_a_card_reads_and_writes_the_same_chats(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    options: Any = CASES[case]
    run = learnt(tmp_path, **options)
    export(run, tmp_path / "out", "model" if options.get("method") == "ps-lora" else "adapter")
    monkeypatch.chdir(tmp_path)
    text = (tmp_path / "out/README.md").read_text()
    (code,) = re.findall(r"^## transformers\n\n```python\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE)
    written = program(code.replace(NO_BASE, str(tmp_path / "base")))["written"]
    asked = [chat["messages"][:-1] for chat in CHATS[8:]]
    answers = [row["text"] for row in perdure.predict(run, [{"messages": messages} for messages in asked])]
    assert [written(messages) for messages in asked] == answers
    assert any(answers)


@pytest.mark.parametrize("name", CASES)
def test_the_program_answers_as_the_run(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run = learnt(tmp_path, **CASES[name])
    shown = CliRunner().invoke(app, ["show", str(run), "--serve"])
    assert shown.exit_code == 0, shown.output
    served = program(shown.stdout)
    _, backbone = reopened_model(Store(run), [FREE])
    asked = [record["messages"][:-1] for record in CHATS]
    for messages, example in zip(asked, (*FREE.train, *FREE.test), strict=True):
        ids = backbone.chats.prompt(example.text)  # type: ignore[attr-defined]
        assert served["prompt_ids"](messages) == ids == backbone.chats.row(example).ids[: len(ids)]  # type: ignore[attr-defined]
    found = perdure.predict(run, [{"messages": messages} for messages in asked])
    assert [row["text"] for row in found] == [served["answer"](messages) for messages in asked]
    assert any(row["text"] for row in found)
    recorded = read_json(run / "run.json")
    assert recorded["backbone"]["template_date"] == CASES[name].get("template_date")
    if name == "a date and an argument":
        assert "(01 Feb 2026)" in backbone.tokenizer.decode(served["prompt_ids"](asked[0]))  # type: ignore[attr-defined]
        assert "01 Feb 2026" in (tmp_path / "template.jinja").read_text()
        assert "--chat-template template.jinja" in shown.stdout
        assert '"chat_template_kwargs": {"style": "long"}' in shown.stdout


def test_a_changed_template_is_noticed(tmp_path: Path) -> None:
    """Resumed or asked on another template, the run would read other prompts than it learnt."""
    run = learnt(tmp_path)
    template = tmp_path / "base/chat_template.jinja"
    template.write_text("Today: " + template.read_text())
    with pytest.raises(RunMismatch, match="The chat template of the base model changed"):
        perdure.predict(run, ["a"])


def test_a_date_that_was_not_given_is_the_one_of_the_day_the_run_began(tmp_path: Path) -> None:
    run = learnt(tmp_path, dated=True, template_args={"style": "long"})
    begun = read_json(run / "run.json")["backbone"]["template_date"]
    _, backbone = reopened_model(Store(run), [FREE])
    assert len(begun) == 10
    assert backbone.settings.template_date == begun


def test_prompts_and_completions_are_served_as_one_message(tmp_path: Path) -> None:
    task = Task(
        "plain",
        [(f"Say {i}.", str(i)) for i in range(8)],
        test=[("Say 9.", "9")],
        metric="rouge-l",
        template="Do: {text}",
    )
    run = learnt(tmp_path, tasks=task)
    served = program(serving(run))
    found = perdure.predict(run, ["Say 9.", "Say 3."])
    said = [[{"role": "user", "content": f"Do: {row['input']}"}] for row in found]
    assert [row["text"] for row in found] == [served["answer"](messages) for messages in said]


def test_what_cannot_be_served_so_is_refused(tmp_path: Path) -> None:
    labelled = Task("mood", [("a", "x"), ("b", "y")], test=[("c", "x")], labels={"x": "x", "y": "y"})
    run = learnt(tmp_path / "labels", tasks=labelled)
    with pytest.raises(ConfigError, match=r"'mood' is answered by a label .*docs/deployment\.md"):
        serving(run)
    run = learnt(tmp_path / "two", tasks=[FREE, labelled])
    with pytest.raises(StoreError, match=r"asked in different ways\. Choose one with --task: free, mood"):
        serving(run)
    assert "def answer(" in serving(run, "free")
    with pytest.raises(StoreError, match="deploys an adapter for each task"):
        serving(learnt(tmp_path / "each", "per-task"))
