"""Chats as data: every layout gives the same messages, and what is wrong is named with its place."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from perdure.errors import DataError
from perdure.tasks.chats import answer_of, as_text, prompt_of, read_chat, read_waiting
from perdure.tasks.few_shot import with_shots
from perdure.tasks.sources.files import load_task
from perdure.tasks.spec import TaskSpec
from perdure.tasks.task import Task

SYSTEM, ASK = {"role": "system", "content": "s"}, {"role": "user", "content": "a"}
FIRST, MORE, LAST = (
    {"role": "assistant", "content": "b"},
    {"role": "user", "content": "c"},
    {"role": "assistant", "content": "d"},
)
CALL = {"type": "function", "function": {"name": "add", "arguments": {"y": 1, "x": 2}}}

LAYOUTS = {
    "messages": {"messages": [SYSTEM, ASK, FIRST, MORE, LAST]},
    "ShareGPT": {
        "conversations": [
            {"from": "system", "value": "s"},
            {"from": "human", "value": "a"},
            {"from": "gpt", "value": "b"},
            {"from": "human", "value": "c"},
            {"from": "gpt", "value": "d"},
        ]
    },
    "ShareGPT, system beside it": {
        "system": "s",
        "conversations": [{"from": who, "value": said} for who, said in zip(["human", "gpt"] * 2, "abcd", strict=True)],
    },
    "messages in conversations": {"conversations": [SYSTEM, ASK, FIRST, MORE, LAST]},
    "TRL's prompt and completion": {"prompt": [SYSTEM, ASK, FIRST, MORE], "completion": [LAST]},
    "prompt and a text": {"prompt": [SYSTEM, ASK, FIRST, MORE], "completion": "d"},
    "one part of text": {
        "messages": [SYSTEM, {"role": "user", "content": [{"type": "text", "text": "a"}]}, FIRST, MORE, LAST]
    },
    "empty keys": {
        "messages": [{**m, "tool_calls": None, "name": None} for m in (SYSTEM, ASK, FIRST, MORE, LAST)],
        "tools": [],
    },
    "weight 1 on the answer": {"messages": [SYSTEM, ASK, FIRST, MORE, {**LAST, "weight": 1}]},
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_every_layout_gives_the_same_chat(name: str, tmp_path: Path) -> None:
    assert read_chat(LAYOUTS[name], "here") == (as_text([SYSTEM, ASK, FIRST, MORE]), "d")
    rows = [json.loads(json.dumps(LAYOUTS[name]).replace('"a"', f'"a{i}"')) for i in range(8)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = load_task(TaskSpec(name="t", train="a.jsonl"), tmp_path)
    assert task.chats
    assert task.metric == "rouge-l"
    assert not task.labels
    assert [m["role"] for m in prompt_of(task.train[0].text)[0]] == ["system", "user", "assistant", "user"]
    place = task.places[task.train[0].text]
    assert place == f"{tmp_path / 'a.jsonl'}, line {1 + int(prompt_of(task.train[0].text)[0][1]['content'][1:])}"
    assert Task("t", rows[:4], test=rows[4:]).fingerprint() == Task("t", rows[:4], test=rows[4:]).fingerprint()


def test_a_line_may_be_a_list_of_messages(tmp_path: Path) -> None:
    rows = [[{"role": "user", "content": f"a{i}"}, FIRST] for i in range(8)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = load_task(TaskSpec(name="t", train="a.jsonl"), tmp_path)
    assert {prompt_of(e.text)[0][0]["content"] for e in (*task.train, *task.validation, *task.test)} == {
        f"a{i}" for i in range(8)
    }


def test_tools_calls_and_reasoning_are_kept() -> None:
    """Arguments in a string, as OpenAI writes them, become an object in the same order; tools may be JSON in a string."""
    as_string = {"type": "function", "function": {"name": "add", "arguments": '{"y": 1, "x": 2}'}}
    tool = {"type": "function", "function": {"name": "add", "parameters": {}}}
    record = {
        "messages": [ASK, {"role": "assistant", "content": None, "tool_calls": [as_string]}],
        "tools": json.dumps([tool]),
    }
    text, label = read_chat(record, "here")
    assert prompt_of(text) == ([ASK], [tool])
    assert answer_of(label) == {"role": "assistant", "content": "", "tool_calls": [CALL]}
    assert list(answer_of(label)["tool_calls"][0]["function"]["arguments"]) == ["y", "x"]
    _, label = read_chat({"messages": [ASK, {**FIRST, "reasoning": "r"}]}, "here")
    assert answer_of(label) == {**FIRST, "reasoning_content": "r"}
    called = {"from": "function_call", "value": '{"name": "add", "arguments": {"y": 1, "x": 2}}'}
    _, label = read_chat({"conversations": [{"from": "human", "value": "a"}, called]}, "here")
    assert answer_of(label)["tool_calls"] == [CALL]


def test_an_answer_that_looks_like_a_message_is_still_its_content() -> None:
    content = json.dumps({"role": "assistant", "content": "not this"})
    _, label = read_chat({"messages": [ASK, {"role": "assistant", "content": content}]}, "here")
    assert answer_of(label) == {"role": "assistant", "content": content}


BAD = {
    "ends with the user": (
        [ASK, FIRST, MORE],
        r"line 1: .* ends with the assistant; this one ends with 'user'\. Remove it",
    ),
    "one message": ([FIRST], "line 1: .*this one has one message"),
    "no message": ([], "line 1: .*this one has no messages"),
    "an empty turn": (
        [ASK, {"role": "assistant", "content": " "}, MORE, LAST],
        "line 1, message 1: the turn of 'assistant' is empty",
    ),
    "no content": ([{"role": "user"}, FIRST], "line 1, message 0: the turn of 'user' is empty"),
    "an image": (
        [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}, FIRST],
        "line 1, message 0: a part of the content is 'image_url'; only parts of text",
    ),
    "no role": (
        [{"content": "a"}, FIRST],
        r"line 1, message 0: expected \{'role', 'content'\}, or \{'from', 'value'\} in ShareGPT",
    ),
    "half of each layout": (
        [{"role": "user", "value": "a"}, FIRST],
        "line 1, message 0: expected .* in ShareGPT's layout",
    ),
    "an unknown speaker": (
        [{"from": "narrator", "value": "a"}, FIRST],
        "line 1, message 0: unknown speaker 'narrator'; known: human",
    ),
    "a number": ([{"role": "user", "content": 3}, FIRST], "line 1, message 0: the content must be a string or parts"),
    "a weight between": ([ASK, {**FIRST, "weight": 0.5}], "line 1, message 1: `weight` is 0 or 1"),
    "a user's weight": (
        [{**ASK, "weight": 1}, FIRST],
        "line 1, message 0: `weight` is 0 or 1 and belongs to an assistant",
    ),
    "a call without a name": ([ASK, {**FIRST, "tool_calls": [{}]}], "line 1, message 1: a tool call needs a name"),
    "broken arguments": (
        [ASK, {**FIRST, "tool_calls": [{"function": {"name": "add", "arguments": "{"}}]}],
        "line 1, message 1: the arguments of tool call 'add' is not valid JSON",
    ),
    "a message's pictures": ([{**ASK, "images": ["a.png"]}, FIRST], "line 1, message 0: `images` is not text"),
    "half of a character": (
        [{"role": "user", "content": "\ud83d"}, FIRST],
        r"line 1, message 0 holds half of a character \(\\ud83d",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_chat_is_named_with_its_place(name: str, tmp_path: Path) -> None:
    messages, message = BAD[name]
    (tmp_path / "a.jsonl").write_text(json.dumps({"messages": messages}) + "\n")
    with pytest.raises(DataError, match=message):
        load_task(TaskSpec(name="t", train="a.jsonl"), tmp_path)


def test_pictures_beside_a_chat_are_refused(tmp_path: Path) -> None:
    """LLaVA's layout; an empty field means none."""
    turns = [{"from": "human", "value": "<image>\nWhat is it?"}, {"from": "gpt", "value": "A cat."}]
    with pytest.raises(DataError, match="here: `image` is not text, and only texts of a chat are learnt"):
        read_chat({"image": "cat.png", "conversations": turns}, "here")
    assert read_chat({"images": [], "conversations": turns}, "here")[1] == "A cat."


def test_openais_older_function_call_is_a_tool_call() -> None:
    call = {"name": "add", "arguments": '{"y": 1, "x": 2}'}
    _, label = read_chat({"messages": [ASK, {"role": "assistant", "content": None, "function_call": call}]}, "here")
    assert answer_of(label) == {"role": "assistant", "content": "", "tool_calls": [CALL]}


def test_a_longer_completion_and_odd_tools_are_refused() -> None:
    with pytest.raises(DataError, match=r"here: the completion of a chat is one assistant message"):
        read_chat({"prompt": [ASK], "completion": [FIRST, MORE, LAST]}, "here")
    with pytest.raises(DataError, match=r"here: `tools` must be a list of descriptions, found 'add'|not valid JSON"):
        read_chat({"messages": [ASK, FIRST], "tools": "add"}, "here")


def test_a_chat_that_waits_has_no_answer() -> None:
    assert read_waiting({"messages": [ASK, FIRST, MORE]}, "here") == (as_text([ASK, FIRST, MORE]), None)
    assert read_waiting({"messages": [ASK, FIRST]}, "here") == (as_text([ASK]), "b")


def test_classes_of_one_plain_turn_stay_texts_and_labels(tmp_path: Path) -> None:
    """Any kind of model learns those; with a system message they are chats."""
    rows = [
        {"messages": [{"role": "user", "content": f"a{i}"}, {"role": "assistant", "content": "xy"[i % 2]}]}
        for i in range(16)
    ]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = load_task(TaskSpec(name="t", train="a.jsonl", labels=("x", "y")), tmp_path)
    assert not task.chats
    assert len(task.places) <= 1  # of texts only the longest
    assert {e.text[0] for e in task.train} == {"a"}
    assert {*task.labels} == {"x", "y"}
    rows[3]["messages"].insert(0, SYSTEM)
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = load_task(TaskSpec(name="t", train="a.jsonl", labels=("x", "y")), tmp_path)
    assert task.chats
    assert {e.label for e in task.train} == {"x", "y"}


def test_chats_from_python() -> None:
    record = {"messages": [SYSTEM, ASK, FIRST]}
    task = Task("t", [record], test=[record])
    assert task.chats
    assert task.train[0].text == as_text([SYSTEM, ASK])
    assert task.train[0].label == "b"
    with pytest.raises(DataError, match="'t': some examples are chats and some are not"):
        Task("t", [record, ("a", "b")], test=[record])
    with pytest.raises(DataError, match="'t', test example 0: a chat to learn from"):
        Task("t", [record], test=[{"messages": [ASK]}])
    with pytest.raises(DataError, match="'t': chats take no template"):
        Task("t", [record], test=[record], template="Q: {text}")
    with pytest.raises(DataError, match="'t' holds chats: solved examples cannot"):
        with_shots(task, 2)


def test_a_chat_counts_otherwise_than_the_same_text() -> None:
    """The fingerprint tells a chat from a text that spells it."""
    record = {"messages": [ASK, FIRST]}
    chat = Task("t", [record], test=[record])
    spelt = Task("t", [(as_text([ASK]), "b")], test=[(as_text([ASK]), "b")])
    assert not spelt.chats
    assert spelt.fingerprint() != chat.fingerprint()
