"""Texts as token ids: prompts cut to a length, completions with their terminator, rows padded on either side."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

import torch
from jinja2 import TemplateError
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from perdure.errors import ConfigError

Result = TypeVar("Result")


def cut_middle(ids: Sequence[int], limit: int) -> list[int]:
    """The first and last ids, at most `limit`: both the instruction and the cue for the answer stay."""
    if len(ids) <= limit:
        return list(ids)
    head = (limit + 1) // 2
    return [*ids[:head], *ids[len(ids) - (limit - head) :]]


def shortened(ids: Sequence[int], limit: int, cut: Literal["middle", "start", "end"] = "middle") -> list[int]:
    """At most `limit` ids, without the others in their middle, at their start or at their end."""
    if cut == "middle":
        return cut_middle(ids, limit)
    return list(ids[:limit] if cut == "end" else ids[max(0, len(ids) - limit) :])


def padded(
    rows: Sequence[Sequence[int]], value: int, side: Literal["left", "right"] = "right"
) -> tuple[Tensor, Tensor]:
    """`rows` as a tensor [n, longest] padded with `value`, and the mask of real positions (bool, same shape)."""
    lengths = torch.tensor([len(row) for row in rows])
    width = int(lengths.max())
    place = torch.arange(width).expand(len(rows), width)
    mask = place < lengths[:, None] if side == "right" else place >= width - lengths[:, None]
    ids = torch.full((len(rows), width), value)
    ids[mask] = torch.tensor([token for row in rows for token in row], dtype=torch.long)
    return ids, mask


def in_batches(
    lengths: Sequence[int],
    size: int,
    work: Callable[[list[int]], Iterable[Result]],
    alike: Sequence[Hashable] | None = None,
    pass_cost: int = 0,
) -> list[Result]:
    """`work(indices)` on batches of at most `size`, longest first; its results in the order of `lengths`.

    The same lengths give the same batches. `alike`: only those with equal entries share a batch. `pass_cost`: batches are
    smaller where padding would cost more than another pass, which costs as much as so many positions; 0: never.
    """
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    groups: dict[Hashable, list[int]] = {}
    for i in order:
        groups.setdefault(alike[i] if alike else None, []).append(i)
    results: dict[int, Result] = {}
    for group in groups.values():
        for chosen in _cut(group, lengths, size, pass_cost):
            results |= zip(chosen, work(chosen), strict=True)
    return [results[i] for i in range(len(lengths))]


def _cut(group: list[int], lengths: Sequence[int], size: int, pass_cost: int) -> list[list[int]]:
    """The group, longest first, in batches of `size`; with a cost of a pass, those with the least cost in all."""
    if not pass_cost:
        return [group[start : start + size] for start in range(0, len(group), size)]
    least, begins = [0], [0]  # of the first i: the least cost, and where their last batch begins
    for end in range(1, len(group) + 1):
        costs = {
            start: least[start] + (end - start) * lengths[group[start]] + pass_cost
            for start in range(max(0, end - size), end)
        }
        begins.append(min(costs, key=costs.__getitem__))
        least.append(costs[begins[-1]])
    batches: list[list[int]] = []
    end = len(group)
    while end:
        batches.insert(0, group[begins[end] : end])
        end = begins[end]
    return batches


@dataclass(frozen=True, eq=False)
class PromptFormat:
    """How a causal language model is prompted: text -> prompt ids, answer -> completion ids.

    Prompt and completion are tokenised separately and joined as ids, the same in training, ranking and generation. A chat
    template brings its own special tokens; without one the tokenizer adds them (never both).

    Args:
        tokenizer: with an end-of-sequence token, which ends every completion.
        chat: wrap the text as a user message in the tokenizer's chat template.
        system: system message before it; None = the template's default.
        separator: between a plain prompt and its answer; replaces spaces at the prompt's end.
        args: further arguments of the chat template.

    Raises:
        ConfigError: chat without a template, or a system message without chat or that the template rejects.
    """

    tokenizer: PreTrainedTokenizerBase
    chat: bool = False
    system: str | None = None
    separator: str = " "
    args: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.chat and not self.tokenizer.chat_template:
            raise ConfigError(
                "backbone.chat=true, but the model's tokenizer has no chat template. Set backbone.chat=false, or choose a "
                "model tuned for chat."
            )
        if self.system is not None:
            if not self.chat:
                raise ConfigError(
                    "backbone.system needs a chat template: set backbone.chat=true, or remove backbone.system."
                )
            self._rendered("a text")  # some templates have no system role and raise

    def prompt(self, text: str) -> list[int]:
        """Ids of `text` as a prompt; never empty, since the first answer token must follow something."""
        return self.prompts([text])[0]

    def prompts(self, texts: Sequence[str]) -> list[list[int]]:
        """The same for several."""
        if self.chat:
            rows = self._ids([self._rendered(text) for text in texts], special=False)
        else:
            # some tokenizers end every text; the answer is still to come
            end = self.tokenizer.eos_token_id
            rows = [
                ids[:-1] if ids and ids[-1] == end else ids
                for ids in self._ids([text.rstrip(" ") for text in texts], special=True)
            ]
        return [ids or self.start() for ids in rows]

    def completion(self, text: str) -> list[int]:
        """Ids of `text` as an answer, and the end-of-sequence token."""
        return self.completions([text])[0]

    def completions(self, texts: Sequence[str]) -> list[list[int]]:
        """The same for several."""
        # tokenised after an anchor: a sentencepiece tokenizer puts its own space before the start of a text
        anchor = "\n" if self.chat else ":"
        answers = list(texts) if self.chat else [self.separator + text for text in texts]
        before, *whole = self._ids([anchor, *(anchor + answer for answer in answers)], special=False)
        behind = len(before)
        rows = [
            ids[behind:] if ids[:behind] == before else self._ids([answer], special=False)[0]
            for ids, answer in zip(whole, answers, strict=True)
        ]
        return [[*ids, self._end()] for ids in rows]

    def start(self) -> list[int]:
        """Ids before a text without a prompt."""
        first = self.tokenizer.bos_token_id
        return [self._end() if first is None else first]  # pyright: ignore[reportReturnType]

    def plain(self, text: str) -> list[int]:
        """Ids of a text without a prompt, and the end-of-sequence token."""
        return self.plains([text])[0]

    def plains(self, texts: Sequence[str]) -> list[list[int]]:
        """The same for several."""
        return [[*ids, self._end()] for ids in self._ids(texts, special=False)]

    def _rendered(self, text: str) -> str:
        messages = [{"role": "system", "content": self.system}] if self.system is not None else []
        messages.append({"role": "user", "content": text})
        try:
            return self.tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False, **self.args)  # pyright: ignore[reportReturnType]
        except TemplateError as error:
            setting, fix = ("system", "Remove it") if self.system is not None else ("chat", "Set it to false")
            raise ConfigError(
                f"backbone.{setting}: rejected by the chat template of the model's tokenizer ({error}). {fix}, or choose "
                "another model."
            ) from error

    def _ids(self, texts: Sequence[str], special: bool) -> list[list[int]]:
        return self.tokenizer(list(texts), add_special_tokens=special, verbose=False)["input_ids"]  # pyright: ignore[reportReturnType]

    def _end(self) -> int:
        return self.tokenizer.eos_token_id  # pyright: ignore[reportReturnType]


@dataclass(frozen=True, eq=False)
class EncoderDecoderFormat:
    """How an encoder-decoder is prompted: the same four functions, with the tokenizer's own special tokens."""

    tokenizer: PreTrainedTokenizerBase

    def prompt(self, text: str) -> list[int]:
        """Ids for the encoder."""
        return self.prompts([text])[0]

    def prompts(self, texts: Sequence[str]) -> list[list[int]]:
        """The same for several."""
        return self.tokenizer(list(texts), verbose=False)["input_ids"]  # pyright: ignore[reportReturnType]

    def completion(self, text: str) -> list[int]:
        """Ids for the decoder, and the end-of-sequence token."""
        return self.completions([text])[0]

    def completions(self, texts: Sequence[str]) -> list[list[int]]:
        """The same for several."""
        rows: list[list[int]] = self.tokenizer(text_target=list(texts), verbose=False)["input_ids"]  # pyright: ignore[reportAssignmentType]
        end: int = self.tokenizer.eos_token_id  # pyright: ignore[reportAssignmentType]
        return [ids if ids and ids[-1] == end else [*ids, end] for ids in rows]

    plain, plains = completion, completions

    def start(self) -> list[int]:
        """What the encoder reads before a text without a prompt."""
        return self.prompt("")
