"""Chats as token ids: one rendering through the model's own template is what is trained, scored, answered and served.

A chat's ids are `apply_chat_template` of all its messages. Its prompt is the same without the last message and with the
generation prompt, and has to be how the whole begins; the rest is the answer. Which assistant turns are learnt says
`backbone.learn`. Where they are says the template's generation mask ({% generation %}), else the renderings of the chat
up to each turn, each of which has to be how the whole begins. A template that rewrites earlier turns (Qwen 3 drops their
reasoning) is therefore refused for learning all turns: TRL trains such chats on another template than the model answers with.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any, Literal

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from perdure.errors import ConfigError, DataError
from perdure.tasks.chats import ROLES, SHAREGPT, Message, answer_of, prompt_of

Learn = Literal["last", "all", "weighted"]
GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")


@dataclass(frozen=True)
class Rendered:
    """A whole chat: its ids, which of them are learnt, and where its last answer begins."""

    ids: list[int]
    learnt: list[bool]
    start: int


@dataclass(frozen=True, eq=False)
class ChatFormat:
    """How a model's tokenizer writes chats.

    Args:
        tokenizer: with a chat template.
        system: system message of chats that have none; None = the template's default.
        args: further arguments of the template.
        learn: which assistant turns are learnt.

    Raises:
        ConfigError: the template ends no answer with a token of its own, so that a model could never learn to stop.
    """

    tokenizer: PreTrainedTokenizerBase
    system: str | None = None
    args: Mapping[str, Any] = field(default_factory=dict)
    learn: Learn = "last"
    stop: int = field(init=False)
    """the token that ends an answer."""
    _special: frozenset[int] = field(init=False)
    _shapes: set[tuple[Any, ...]] = field(init=False, default_factory=set)

    def __post_init__(self) -> None:
        tokens = self.tokenizer.added_tokens_decoder
        special = frozenset(i for i, token in tokens.items() if token.special) | {*self.tokenizer.all_special_ids}
        object.__setattr__(self, "_special", special)
        short, long = (self._ids(_asked_and_answered(answer), None) for answer in ("b", "some other words"))
        end = short[len(short) - _common(short[::-1], long[::-1]) :]  # how the template ends any answer
        stops = [token for token in end if token in special]
        if not stops:
            raise ConfigError(
                "The chat template of the model's tokenizer ends no answer with a special token: a model cannot learn to stop. "
                "Edit the template, or give prompts and completions instead of chats."
            )
        object.__setattr__(self, "stop", stops[0])

    def prompt(self, text: str) -> list[int]:
        """Ids of a chat that waits for its answer.

        Raises:
            DataError: the template refuses or drops a turn.
        """
        messages, tools = self._chat(text)
        messages = _without_weights(messages)
        self._check_kept(messages, tools, answered=False)
        return self._ids(messages, tools, prompt=True)

    def rendered(self, text: str, label: str) -> Rendered:
        """A whole chat; for errors see `prompt`.

        Raises:
            DataError: the template refuses, drops or rewrites a turn, or no turn is to be learnt.
        """
        (messages, tools), answer = self._chat(text), answer_of(label)
        given = [*messages, {**answer, "content": self._content(answer["content"])}]
        if self.learn != "weighted" and any(message.get("weight") == 0 for message in given):
            raise DataError("a turn has `weight: 0`, which counts with backbone.learn=weighted only")
        every = _without_weights(given)
        self._check_kept(every, tools, answered=True)
        ids = self._ids(every, tools)
        start = self._begins(every[:-1], tools, ids)
        turns = [i for i, message in enumerate(given) if message["role"] == "assistant" and message.get("weight", 1)]
        return Rendered(
            ids, self._learnt(every, turns[-1:] if self.learn == "last" else turns, tools, ids, start), start
        )

    def _learnt(
        self, messages: list[Message], turns: list[int], tools: list[Any] | None, ids: list[int], start: int
    ) -> list[bool]:
        """Which ids of a chat are learnt: those of `turns`, of which the last begins at `start`."""
        marked = self._marked(messages, tools)
        if marked and len(turns) == sum(message["role"] == "assistant" for message in messages):
            learnt = marked
        else:
            learnt = [False] * len(ids)
            for turn in turns:
                last = turn == len(messages) - 1
                first, end = (start, len(ids)) if last else self._span(messages, turn, tools, ids)
                learnt[first:end] = marked[first:end] if marked else [True] * (end - first)
        if True not in learnt:
            raise DataError("none of its turns is to be learnt")
        if marked and self.stop not in (token for token, own in zip(ids, learnt, strict=True) if own):
            raise DataError("the template's {% generation %} leaves out the token that ends a turn; move it inside")
        return learnt

    def text(self, ids: Sequence[int]) -> str:
        """An answer's ids as text, as generated answers are read."""
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=True)).strip()

    def _chat(self, text: str) -> tuple[list[Message], list[Any] | None]:
        messages, tools = prompt_of(text)
        if self.system is not None and messages[0]["role"] not in ("system", "developer"):
            messages.insert(0, {"role": "system", "content": self.system})
        return [{**m, "content": self._content(m["content"])} for m in messages], tools

    def _content(self, content: Any) -> Any:
        """Several parts of text as the template reads them; joined by line breaks, as vLLM does, where it reads strings only."""
        if isinstance(content, str):
            return content
        try:
            written = self._written([{"role": "user", "content": content}], None, True)
        except DataError:
            written = ""
        reads = all(part["text"].strip() in written for part in content) and "'type'" not in written
        return content if reads else "\n".join(part["text"] for part in content)

    def _begins(self, messages: Sequence[Message], tools: list[Any] | None, whole: Sequence[int]) -> int:
        """The number of ids before an answer: those of the prompt, which must be how the whole begins."""
        prompt = self._ids(messages, tools, prompt=True)
        same = _common(prompt, whole)
        if same < len(prompt):
            seen, learnt = (self.tokenizer.decode(list(ids[same : same + 12])) for ids in (prompt, whole))
            raise DataError(
                f"the template writes the prompt of turn {len(messages)} otherwise when it is answered ({seen!r}) than when the "
                f"chat is learnt ({learnt!r}): the model would learn after a text that it never reads. With earlier turns, set "
                "backbone.learn=last; with reasoning, see reasoning_content and backbone.template_args"
            )
        return same

    def _span(self, messages: list[Message], turn: int, tools: list[Any] | None, whole: list[int]) -> tuple[int, int]:
        """Where an earlier turn's ids begin and end."""
        if turn == 0:
            raise DataError(
                "its first turn is the assistant's, and no prompt asks for it. Remove that turn, or set "
                "backbone.learn=weighted and its weight to 0"
            )
        start = self._begins(messages[:turn], tools, whole)
        upto = self._ids(messages[: turn + 1], tools)
        end = _common(upto, whole)
        if end <= start or any(
            token not in self._special for token in upto[end:]
        ):  # Phi ends a whole chat with one more token
            raise DataError(
                f"the template rewrites turn {turn} once others follow, so it cannot be learnt as it is answered. Set "
                "backbone.learn=last (one record for each turn learns them all)"
            )
        return start, end

    def _marked(self, messages: Sequence[Message], tools: list[Any] | None) -> list[bool] | None:
        """The template's own generation mask; None if it has none."""
        if not GENERATION.search(self.tokenizer.get_chat_template(None, tools)):  # pyright: ignore[reportArgumentType]
            return None
        found: Any = self.tokenizer.apply_chat_template(
            list(messages), tools=tools, return_dict=True, return_assistant_tokens_mask=True, **self.args
        )
        return [bool(mark) for mark in found["assistant_masks"]]

    def _check_kept(self, messages: Sequence[Message], tools: list[Any] | None, *, answered: bool) -> None:
        """Every turn, tool and tool call appears in the rendering, and the answer's reasoning; tried once for each shape."""
        shape = tuple(
            (m["role"], bool(m["content"]), len(m.get("tool_calls", ())), answered and "reasoning_content" in m)
            for m in messages
        )
        shape = (*shape, tuple(map(_name, tools or ())), answered)
        if shape in self._shapes:
            return
        self._check_roles(messages, tools)
        tried = [_probe(i, message) for i, message in enumerate(messages)]
        try:
            written = self._written(tried, tools, not answered)
        except DataError:
            return  # it refuses the marks; whether it refuses the chat, its own rendering says
        for i, (message, probe) in enumerate(zip(messages, tried, strict=True)):
            last = answered and i == len(tried) - 1
            if missing := [what for what, mark in _marks(probe, last) if mark not in written]:
                raise DataError(
                    f"the model's chat template drops the {missing[0]} of turn {i} ('{message['role']}'): nothing would be "
                    "learnt of it. Remove it from the data, or choose a model whose template writes it"
                )
        if missing := [name for name in map(_name, tools or ()) if name not in written]:
            raise DataError(
                f"the model's chat template drops the tool {missing[0]!r}. Choose a model whose template writes tools"
            )
        self._shapes.add(shape)

    def _check_roles(self, messages: Sequence[Message], tools: list[Any] | None) -> None:
        """Every role is a usual one, or one that the template names: most templates write any other as it stands."""
        template: Any = self.tokenizer.get_chat_template(None, tools)  # pyright: ignore[reportArgumentType]
        for i, role in enumerate(message["role"] for message in messages):
            if role not in ROLES and not re.search(f"(['\"]){re.escape(role)}\\1", template):
                usual = SHAREGPT.get(role.strip().lower()) or next(
                    iter(get_close_matches(role.lower(), ROLES, 1)), None
                )
                hint = f" Did you mean '{usual}'?" if usual else ""
                raise DataError(
                    f"turn {i} has the role '{role}', which neither is one of {', '.join(ROLES)} nor stands in the model's "
                    f"chat template.{hint} The model would learn it as a speaker that it has never met"
                )

    def _ids(self, messages: Sequence[Message], tools: list[Any] | None, prompt: bool = False) -> list[int]:
        text = self._written(messages, tools, prompt)
        return self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]  # pyright: ignore[reportReturnType]

    def _written(self, messages: Sequence[Message], tools: list[Any] | None, prompt: bool) -> str:
        try:
            return self.tokenizer.apply_chat_template(  # pyright: ignore[reportReturnType]
                list(messages), tools=tools, add_generation_prompt=prompt, tokenize=False, **self.args
            )
        except (TemplateError, TypeError, ValueError, KeyError, IndexError, AttributeError) as error:
            raise DataError(f"the model's chat template refuses it ({error})") from error


def _without_weights(messages: Sequence[Message]) -> list[Message]:
    return [{key: value for key, value in message.items() if key != "weight"} for message in messages]


def _asked_and_answered(answer: str) -> list[Message]:
    return [{"role": "user", "content": "a"}, {"role": "assistant", "content": answer}]


def _common(one: Sequence[int], other: Sequence[int]) -> int:
    """How many ids both begin with."""
    return next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


def _probe(i: int, message: Message) -> Message:
    """The message with marks in place of its texts; tool calls keep their shape."""
    probe = {**message, "content": f"content{i}mark" if message["content"] else ""}
    if "reasoning_content" in message:
        probe["reasoning_content"] = f"reasoning{i}mark"
    if "tool_calls" in message:
        probe["tool_calls"] = [_called(call, f"call{i}mark{j}") for j, call in enumerate(message["tool_calls"])]
    return probe


def _called(call: Mapping[str, Any], name: str) -> Message:
    """The same tool call under another name."""
    return {**call, "function": {**call["function"], "name": name}} if "function" in call else {**call, "name": name}


def _marks(probe: Message, last: bool) -> list[tuple[str, str]]:
    """What of a probe has to be in its rendering; the reasoning of earlier turns need not be."""
    calls = [("tool call", _name(call)) for call in probe.get("tool_calls", ())]
    reasoning = [("reasoning", probe["reasoning_content"])] if last and "reasoning_content" in probe else []
    return [("content", probe["content"]), *reasoning, *calls]


def _name(described: Mapping[str, Any]) -> str:
    """The name of a tool, or of a call of one."""
    return str(described.get("function", described).get("name", ""))
