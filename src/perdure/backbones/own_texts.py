"""Texts that a causal language model writes by itself: what it knows, without any data."""

from __future__ import annotations

from typing import Any

from perdure.backbones.causal import CausalLM
from perdure.backbones.generation import sampled
from perdure.backbones.pretrained import answering
from perdure.errors import ConfigError, DataError

INSTEAD = "Give protect.base a file of texts or a suite (`perdure suites`) instead of 'self'."


def own_texts(backbone: Any, count: int, tokens: int, seed: int) -> list[str]:
    """At most `count` different texts that the model writes after its start token, drawn from its softmax.

    A text is left out if it is empty, one token again and again, or there already.

    Raises:
        ConfigError: the model does not write texts by itself. DataError: more than half of the texts would be left out.
    """
    if not isinstance(backbone, CausalLM):
        raise ConfigError(f"Only a causal language model writes texts by itself. {INSTEAD}")
    settings = backbone.settings
    tokens, batch = min(tokens, settings.max_length), settings.predict_batch_size
    with answering(backbone.model):
        starts = [backbone.format.start()] * count
        rows = sampled(backbone.model, backbone.tokenizer, starts, tokens, batch, seed)
    written = [str(backbone.tokenizer.decode(row, skip_special_tokens=True)).strip() for row in rows]
    texts = dict.fromkeys(text for text, row in zip(written, rows, strict=True) if text and len(set(row)) > 1)
    if 2 * len(texts) < count:
        raise DataError(
            f"'{settings.model}' writes nothing that could be protected: of {count} texts only {len(texts)} are not empty, one "
            f"token again and again, or a repetition. {INSTEAD}"
        )
    return [*texts]
