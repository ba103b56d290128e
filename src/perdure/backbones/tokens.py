"""Texts as token ids: prompts cut in the middle, completions with their terminator, rows padded on either side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jinja2 import TemplateError
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from perdure.errors import ConfigError, DataError


def cut_middle(ids: Sequence[int], limit: int) -> list[int]:
    """At most `limit` ids: the first and the last ones, so that an instruction and the mark for the answer both stay."""
    if len(ids) <= limit:
        return list(ids)
    head = (limit + 1) // 2
    return [*ids[:head], *ids[len(ids) - (limit - head) :]]


def padded(
    rows: Sequence[Sequence[int]], value: int, side: Literal["left", "right"] = "right"
) -> tuple[Tensor, Tensor]:
    """`rows` as a tensor [n, longest] filled up with `value`, and the mask of real positions (bool, same shape)."""
    lengths = torch.tensor([len(row) for row in rows])
    width = int(lengths.max())
    place = torch.arange(width).expand(len(rows), width)
    mask = place < lengths[:, None] if side == "right" else place >= width - lengths[:, None]
    ids = torch.full((len(rows), width), value)
    ids[mask] = torch.tensor([token for row in rows for token in row], dtype=torch.long)
    return ids, mask


def batches_by_length(lengths: Sequence[int], size: int) -> list[list[int]]:
    """Indices in batches of at most `size`, longest first; the same lengths give the same batches."""
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    return [order[start : start + size] for start in range(0, len(order), size)]


@dataclass(frozen=True, eq=False)
class PromptFormat:
    """How a causal language model is asked: text -> prompt ids, answer -> completion ids.

    Prompt and completion are tokenised apart and joined as ids, the same in training, ranking and generation. A chat
    template brings its own special tokens; without one the tokenizer adds them (never both).

    Args:
        tokenizer: with an end-of-sequence token, which ends every completion.
        chat: wrap the text as a user's message in the tokenizer's chat template.
        system: system message in front of it; None = what the template does by itself.
        separator: stands between a plain prompt and its answer; spaces at the prompt's end give way to it.

    Raises:
        ConfigError: chat without a template, a system message without chat, or one that the template refuses.
    """

    tokenizer: PreTrainedTokenizerBase
    chat: bool = False
    system: str | None = None
    separator: str = " "

    def __post_init__(self) -> None:
        if self.chat and not self.tokenizer.chat_template:
            raise ConfigError(
                "backbone.chat=true, but the model's tokenizer has no chat template. Set backbone.chat=false, or choose a "
                "model that was tuned for chat."
            )
        if self.system is not None and not self.chat:
            raise ConfigError(
                "backbone.system has no place without a chat template: set backbone.chat=true or remove it."
            )
        if self.system is not None:
            self._rendered("a text")  # some templates know no system message, and say so

    def prompt(self, text: str) -> list[int]:
        """Ids of `text` as a prompt; never empty, since the first answer token needs something to follow."""
        if self.chat:
            ids = self._ids(self._rendered(text), special=False)
        else:
            ids = self._ids(text.rstrip(" "), special=True)
            if ids and ids[-1] == self.tokenizer.eos_token_id:
                ids = ids[:-1]  # some tokenizers end every text; the answer is still to come
        return ids or [self._first()]

    def completion(self, text: str) -> list[int]:
        """Ids of `text` as an answer, and the end-of-sequence token."""
        # after something: a sentencepiece tokenizer would put a space of its own in front of a text that begins
        anchor = "\n" if self.chat else ":"
        answer = text if self.chat else self.separator + text
        before, whole = self._ids(anchor, special=False), self._ids(anchor + answer, special=False)
        ids = whole[len(before) :] if whole[: len(before)] == before else self._ids(answer, special=False)
        return [*ids, self._end()]

    def start(self) -> list[int]:
        """Ids that stand before a text of its own, which nothing asks for."""
        return [self._first()]

    def plain(self, text: str) -> list[int]:
        """Ids of a text of its own, and the end-of-sequence token."""
        return [*self._ids(text, special=False), self._end()]

    def _rendered(self, text: str) -> str:
        messages = [{"role": "system", "content": self.system}] if self.system is not None else []
        messages.append({"role": "user", "content": text})
        try:
            rendered = self.tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        except TemplateError as error:
            wrong, instead = ("system", "Remove it") if self.system is not None else ("chat", "Set it to false")
            raise ConfigError(
                f"backbone.{wrong}: the chat template of the model's tokenizer refuses it ({error}). {instead}, or choose "
                "another model."
            ) from error
        if not isinstance(rendered, str):
            raise ConfigError("The chat template gave no text.")
        return rendered

    def _ids(self, text: str, special: bool) -> list[int]:
        return self.tokenizer(text, add_special_tokens=special, verbose=False)["input_ids"]  # pyright: ignore[reportReturnType]

    def _first(self) -> int:
        first = self.tokenizer.bos_token_id
        return self._end() if first is None else first  # pyright: ignore[reportReturnType]

    def _end(self) -> int:
        return self.tokenizer.eos_token_id  # pyright: ignore[reportReturnType]


def check_completion(ids: Sequence[int], limit: int, what: str, cut: bool) -> list[int]:
    """`ids`, cut to `limit` if `cut`, so that its end is not learnt as the answer's end.

    Raises:
        DataError: too long and not to be cut; `what` says whose text it is.
    """
    if len(ids) <= limit:
        return list(ids)
    if not cut:
        raise DataError(
            f"{what} has {len(ids)} tokens with its end, the model may write backbone.max_new_tokens = {limit}. "
            "Raise that, shorten the text, or (for free text) set backbone.long_targets=cut."
        )
    return list(ids[:limit])
