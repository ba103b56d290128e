"""What a chat template reads besides the chat: its arguments, which are checked, and the date, which is pinned.

A template may write today's date into every prompt (Llama 3, Granite, gpt-oss). The date of the day a run begins is then
put into the template in its place and recorded, so that resuming, answering and serving read the same prompts.
"""

from __future__ import annotations

import datetime
import hashlib
import json
import re
from collections.abc import Mapping
from typing import Any

from transformers import PreTrainedTokenizerBase

from perdure.errors import ConfigError

DATED = re.compile(r"strftime_now\(\s*(?P<quote>['\"])(?P<format>[^'\"]*)(?P=quote)\s*\)")
RANDOM = re.compile(r"\|\s*random\b|\blipsum\s*\(")
OWN = ("messages", "tools", "documents", "add_generation_prompt", "continue_final_message", "chat_template", "tokenize")
"""Arguments of a template that are set for each chat."""


def templates_of(tokenizer: PreTrainedTokenizerBase) -> dict[str, str]:
    """Name -> text of the tokenizer's chat templates; most have one, called 'default'."""
    given: Any = tokenizer.chat_template
    return dict(given) if isinstance(given, Mapping) else {"default": given} if given else {}


def check_args(tokenizer: PreTrainedTokenizerBase, args: Mapping[str, Any]) -> None:
    """Raise ConfigError for arguments that no template of the tokenizer reads, or that are set for each chat."""
    texts = templates_of(tokenizer).values()
    for name in args:
        if name in OWN:
            raise ConfigError(f"backbone.template_args.{name} is set for each chat; leave it out.")
        if not any(re.search(rf"\b{re.escape(name)}\b", text) for text in texts):
            raise ConfigError(
                f"backbone.template_args.{name} has no effect: the chat template of the model's tokenizer does not read it."
            )


def pin_date(tokenizer: PreTrainedTokenizerBase, date: str | None) -> str | None:
    """Put a date (None: today's) in place of "now" in the tokenizer's templates; the date, or None if they read none.

    Raises:
        ConfigError: a template draws at random, or reads the date in a way that cannot be pinned; a date that none reads.
    """
    texts = templates_of(tokenizer)
    if any(RANDOM.search(text) for text in texts.values()):
        raise ConfigError(
            "The chat template of the model's tokenizer draws at random: no prompt could be repeated. Edit it."
        )
    if not any("strftime_now(" in text for text in texts.values()):
        if date is not None:
            raise ConfigError(
                "backbone.template_date has no effect: the chat template of the model's tokenizer reads no date."
            )
        return None
    day = datetime.date.fromisoformat(date) if date else datetime.datetime.now().astimezone().date()
    # a time of day would change within a run; midnight is what the date alone says
    pinned = {
        name: DATED.sub(lambda found: json.dumps(day.strftime(found["format"])), text) for name, text in texts.items()
    }
    if any("strftime_now(" in text for text in pinned.values()):
        raise ConfigError(
            "The chat template of the model's tokenizer computes the format of today's date, so the date cannot be pinned. "
            "Write the format out in the template, as in strftime_now('%d %b %Y')."
        )
    given: Any = tokenizer.chat_template
    tokenizer.chat_template = pinned if isinstance(given, Mapping) else pinned["default"]  # pyright: ignore[reportAttributeAccessIssue]
    return day.isoformat()


def digest(tokenizer: PreTrainedTokenizerBase) -> str:
    """sha256 of the tokenizer's chat templates, as they are used."""
    return hashlib.sha256(json.dumps(templates_of(tokenizer), sort_keys=True).encode()).hexdigest()
