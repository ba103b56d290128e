"""Chats as data: messages in one form, whichever layout brought them, split into a prompt and the answer to learn.

A chat's `text` is JSON of everything before its last message, and its label is that message: the content alone where
there is nothing else, JSON of the whole message where it also has tool calls or reasoning. So a chat is, like any other
example, a text and a label: it is compared, drawn, replayed and stored as such.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from perdure.errors import DataError

Message = dict[str, Any]
CHAT_FIELDS = ("messages", "conversations")
"""Fields that hold a whole chat; ShareGPT's layout is called `conversations`."""
SHAREGPT = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "assistant": "assistant",
    "model": "assistant",
    "system": "system",
    "tool": "tool",
    "observation": "tool",
    "function_response": "tool",
    "function_call": "assistant",
}
"""ShareGPT's `from` -> role."""
ROLES = ("system", "developer", "user", "assistant", "tool", "function")
"""Roles that every layout may name; a model's chat template may name others."""
MEDIA = ("image", "images", "video", "videos", "audio", "audios")
"""Keys of a record or a message that hold what a language model does not read."""
NO_CHAT = '{"messages": []}'
"""The text that stands for a chat where a task is known without its examples."""
_ANSWER = '{"role": "assistant"'
"""How the label of an answer with more than content begins; plain content that begins so is written as a message too."""


def is_chat(record: object) -> bool:
    """Whether a record is a chat: `messages`, ShareGPT's `conversations`, or a prompt that is a list of messages."""
    return isinstance(record, Mapping) and (
        any(field in record for field in CHAT_FIELDS) or is_list_of_messages(record.get("prompt"))
    )


def is_list_of_messages(value: object) -> bool:
    """Whether `value` looks like messages, in either layout."""
    return (
        isinstance(value, list)
        and bool(value)
        and all(isinstance(m, dict) and m.keys() & {"role", "from"} for m in value)
    )


def read_chat(record: Mapping[str, Any], where: str) -> tuple[str, str]:
    """A record's (text, label): everything before the last message, and the last message, an assistant's.

    Raises:
        DataError: not a chat, an empty turn, or one that does not end with the assistant; says where.
    """
    messages, tools = _messages(record, where), _tools(record, where)
    if len(messages) < 2 or messages[-1]["role"] != "assistant":
        last = f"ends with '{messages[-1]['role']}'" if messages else "has no messages"
        raise DataError(
            f"{where}: a chat to learn from has at least two messages and ends with the assistant; this one "
            f"{last if len(messages) != 1 else 'has one message'}. Remove it, or add the answer."
        )
    return as_text(messages[:-1], tools), as_answer(messages[-1])


def read_splits(task: str, splits: Mapping[str, Sequence[Any]]) -> dict[str, Any] | None:
    """The splits of a task given from Python as (text, label), and `chats`, if they are chats; None if no example is.

    Raises:
        DataError: some are and some are not, or one is wrong; says which.
    """
    found = [is_chat(example) for examples in splits.values() for example in examples]
    if not any(found):
        return None
    if not all(found):
        raise DataError(f"Task '{task}': some examples are chats and some are not; give all of them as chats.")
    read = {
        split: [read_chat(example, f"Task '{task}', {split} example {i}") for i, example in enumerate(examples)]
        for split, examples in splits.items()
    }
    return {**read, "chats": True}


def read_waiting(record: Mapping[str, Any], where: str) -> tuple[str, str | None]:
    """The same for a record that may have no answer yet."""
    messages, tools = _messages(record, where), _tools(record, where)
    if messages and messages[-1]["role"] != "assistant":
        return as_text(messages, tools), None
    return read_chat(record, where)


def as_text(messages: Sequence[Message], tools: Sequence[Any] | None = None) -> str:
    """A prompt's text; the order of keys is kept, since templates write tool calls in it."""
    content = {"messages": list(messages), **({"tools": list(tools)} if tools else {})}
    return json.dumps(content, ensure_ascii=False)


def as_answer(message: Message) -> str:
    """An answer's label."""
    content = message["content"]
    if message.get("weight") == 1:  # which is what a turn without weight counts, and the last one is always asked for
        message = {key: value for key, value in message.items() if key != "weight"}
    if message.keys() == {"role", "content"} and isinstance(content, str) and not content.startswith(_ANSWER):
        return content
    return json.dumps({"role": "assistant", **message}, ensure_ascii=False)


def prompt_of(text: str) -> tuple[list[Message], list[Any] | None]:
    """The messages and tools of a chat's text."""
    content = json.loads(text)
    return content["messages"], content.get("tools")


def answer_of(label: str) -> Message:
    """The message of a chat's label."""
    return json.loads(label) if label.startswith(_ANSWER) else {"role": "assistant", "content": label}


def one_turn(text: str) -> str | None:
    """What the user says, if a chat's text is one plain message of theirs; else None."""
    messages, tools = prompt_of(text)
    plain = len(messages) == 1 and messages[0].keys() == {"role", "content"} and messages[0]["role"] == "user"
    content = messages[0]["content"] if plain and not tools else None
    return content if isinstance(content, str) else None


def _messages(record: Mapping[str, Any], where: str) -> list[Message]:
    given = next((record[field] for field in CHAT_FIELDS if field in record), None)
    if given is None:
        given = _prompt_and_completion(record, where)
    _check_texts(record, where)
    if not isinstance(given, list):
        raise DataError(f"{where}: a chat is a list of messages, found {given!r:.80}.")
    messages = [_message(message, f"{where}, message {i}") for i, message in enumerate(given)]
    system = record.get("system")  # beside the turns, as LLaMA-Factory writes ShareGPT's layout
    if isinstance(system, str) and system.strip() and not (messages and messages[0]["role"] == "system"):
        messages.insert(0, {"role": "system", "content": system})
    return messages


def _prompt_and_completion(record: Mapping[str, Any], where: str) -> Any:
    """TRL's conversational prompt and completion as one list."""
    prompt, completion = record.get("prompt"), record.get("completion")
    if completion in (None, "", []):
        return prompt
    if isinstance(completion, str):
        completion = [{"role": "assistant", "content": completion}]
    if not isinstance(completion, list) or len(completion) != 1:
        raise DataError(
            f"{where}: the completion of a chat is one assistant message, found {completion!r:.80}. Put longer ones into "
            "`messages`, and choose what is learnt with backbone.learn."
        )
    return [*prompt, *completion] if isinstance(prompt, list) else prompt


def _message(given: Any, where: str) -> Message:
    """One message without empty keys; ShareGPT's {from, value} as {role, content}."""
    _check_plain(given, where)
    match given:
        case {"role": str(role), **rest} if not rest.keys() & {"from", "value"}:
            content, rest = rest.get("content"), {k: v for k, v in rest.items() if k != "content"}
        case {"from": str(speaker), "value": value, **rest} if "role" not in given:
            role, content = _role(speaker, where), value
            if speaker == "function_call":
                content, rest = "", {**rest, "tool_calls": _called(value, where)}
        case _:
            raise DataError(
                f"{where}: expected {{'role', 'content'}}, or {{'from', 'value'}} in ShareGPT's layout, found {given!r:.80}."
            )
    rest = {key: value for key, value in rest.items() if value not in (None, [])}
    _check_texts(rest, where)
    if "function_call" in rest:  # OpenAI's older key, which templates do not read
        rest.setdefault("tool_calls", _called(rest.pop("function_call"), where))
    if reasoning := next((name for name in ("reasoning", "thinking") if isinstance(rest.get(name), str)), None):
        rest.setdefault(
            "reasoning_content", rest.pop(reasoning)
        )  # the name templates read; transformers knows the others
    if "tool_calls" in rest:
        rest["tool_calls"] = _tool_calls(rest["tool_calls"], where)
    if "weight" in rest:
        rest["weight"] = _weight(rest["weight"], role, where)
    return {"role": role, "content": _content(content, bool(rest.get("tool_calls")), role, where), **rest}


def _check_texts(fields: Mapping[str, Any], where: str) -> None:
    """Refuse pictures and sounds beside the texts: a chat would be learnt as if they were not there."""
    if found := next((name for name in MEDIA if fields.get(name)), None):
        raise DataError(
            f"{where}: `{found}` is not text, and only texts of a chat are learnt. Remove it or the record."
        )


def _role(speaker: str, where: str) -> str:
    if speaker not in SHAREGPT:
        raise DataError(f"{where}: unknown speaker {speaker!r}; known: {', '.join(SHAREGPT)}.")
    return SHAREGPT[speaker]


def _content(content: Any, calls_tools: bool, role: str, where: str) -> Any:
    """A string, or parts of text where there are several; empty only beside tool calls."""
    if isinstance(content, list):
        content = [_part(part, where) for part in content]
        content = content[0]["text"] if len(content) == 1 else content
    text = "".join(part["text"] for part in content) if isinstance(content, list) else content
    if content is not None and not isinstance(text, str):
        raise DataError(f"{where}: the content must be a string or parts of text, found {type(content).__name__}.")
    if not (text or "").strip():
        if not calls_tools:
            raise DataError(f"{where}: the turn of '{role}' is empty; fill it in or remove the record.")
        return ""
    return content


def _part(part: object, where: str) -> dict[str, str]:
    match part:
        case {"type": "text", "text": str(text)} | str(text):
            return {"type": "text", "text": text}
    kind = part.get("type") if isinstance(part, Mapping) else part
    raise DataError(f"{where}: a part of the content is {kind!r:.40}; only parts of text are learnt.")


def _tool_calls(calls: object, where: str) -> list[Any]:
    """Tool calls with their arguments as objects: OpenAI writes them as JSON in a string, templates write them out again."""
    if not isinstance(calls, list):
        raise DataError(f"{where}: `tool_calls` must be a list, found {calls!r:.80}.")
    found = []
    for call in calls:
        function = call.get("function", call) if isinstance(call, Mapping) else None
        if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
            raise DataError(f"{where}: a tool call needs a name, found {call!r:.80}.")
        arguments = function.get("arguments", {})
        if isinstance(arguments, str):
            arguments = _parsed(arguments, f"{where}: the arguments of tool call '{function['name']}'")
        function = {**function, "arguments": arguments}
        found.append({**call, "function": function} if "function" in call else function)
    return found


def _called(value: object, where: str) -> list[Any]:
    """The tool calls of a `function_call` turn: JSON of one call, or of a list."""
    calls = _parsed(value, f"{where}: a function_call") if isinstance(value, str) else value
    calls = calls if isinstance(calls, list) else [calls]
    return [{"type": "function", "function": call} for call in calls]


def _weight(weight: object, role: str, where: str) -> int:
    if weight not in (0, 1) or role != "assistant":
        raise DataError(
            f"{where}: `weight` is 0 or 1 and belongs to an assistant's turn, found {weight!r:.20} on '{role}'."
        )
    return int(weight)  # pyright: ignore[reportArgumentType]


def _tools(record: Mapping[str, Any], where: str) -> list[Any] | None:
    """The tools a chat may call: a list of descriptions, or JSON of one in a string, as data sets store it."""
    tools = record.get("tools")
    if isinstance(tools, str):
        tools = _parsed(tools, f"{where}: `tools`") if tools.strip() else None
    if tools in (None, []):
        return None
    if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
        raise DataError(f"{where}: `tools` must be a list of descriptions, found {tools!r:.80}.")
    return tools


def _parsed(text: str, what: str) -> Any:
    try:
        return json.loads(text)
    except (json.JSONDecodeError, RecursionError) as error:
        raise DataError(f"{what} is not valid JSON ({error}).") from None


def _check_plain(given: object, where: str) -> None:
    try:
        check_characters(json.dumps(given, ensure_ascii=False), where)
    except (TypeError, ValueError) as error:
        raise DataError(f"{where}: holds what JSON cannot ({error}).") from None


def check_characters(text: str, where: str) -> None:
    """Refuse half of a surrogate pair, such as a cut emoji: no tokenizer reads it, no file can hold it."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        near = text[max(0, error.start - 20) : error.start]
        raise DataError(
            f"{where} holds half of a character (\\u{ord(text[error.start]):04x}, after {near!r}), "
            "such as a cut emoji. Fix or remove the record."
        ) from None
