"""Greedy answers, the same from run to run for the same batches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn
from transformers import GenerationConfig, PreTrainedTokenizerBase

from perdure.backbones.device import model_device
from perdure.backbones.tokens import padded


def greedy(
    model: nn.Module, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[Sequence[int]], max_new_tokens: int
) -> list[str]:
    """What a decoder writes after each prompt, without special tokens and surrounding white space.

    Prompts are padded on the left and the answer is cut at the padded length: no prompt text can leak into it.
    """
    pad = _id(tokenizer.pad_token_id)
    ids, real = padded(prompts, pad, "left")
    written = _generate(model, tokenizer, max_new_tokens, input_ids=ids, attention_mask=real.long())
    return decoded(tokenizer, written[:, ids.shape[1] :], stop_ids(model, tokenizer))


def greedy_from_encoder(
    model: nn.Module, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[Sequence[int]], max_new_tokens: int
) -> list[str]:
    """The same for an encoder-decoder: prompts go to the encoder, padded on the right."""
    ids, real = padded(prompts, _id(tokenizer.pad_token_id))
    written = _generate(model, tokenizer, max_new_tokens, input_ids=ids, attention_mask=real.long())
    return decoded(tokenizer, written[:, 1:], stop_ids(model, tokenizer))  # without the decoder's start token


def decoded(tokenizer: PreTrainedTokenizerBase, written: Tensor, stops: Sequence[int]) -> list[str]:
    """Text of each row up to its first stop token."""
    texts = []
    for row in written.tolist():
        end = next((i for i, token in enumerate(row) if token in stops), len(row))
        text = tokenizer.decode(row[:end], skip_special_tokens=True)
        texts.append(str(text).strip())
    return texts


def stop_ids(model: nn.Module, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The tokenizer's end-of-sequence token and those the model itself names (chat models may have several)."""
    known = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    further = [] if known is None else [known] if isinstance(known, int) else list(known)
    return list(dict.fromkeys([_id(tokenizer.eos_token_id), *further]))


def _generate(model: Any, tokenizer: PreTrainedTokenizerBase, max_new_tokens: int, **inputs: Tensor) -> Tensor:
    options: dict[str, Any] = {
        "do_sample": False,
        "num_beams": 1,
        "max_new_tokens": max_new_tokens,
        "pad_token_id": tokenizer.pad_token_id,
        "eos_token_id": stop_ids(model, tokenizer),
    }
    own = getattr(model, "generation_config", None)
    start = getattr(own, "decoder_start_token_id", None)
    if start is not None:
        options["decoder_start_token_id"] = start
    device = model_device(model)
    kept = model.generation_config
    model.generation_config = GenerationConfig(**options)
    try:
        return model.generate(**{name: tensor.to(device) for name, tensor in inputs.items()})
    finally:
        model.generation_config = kept


def _id(token: Any) -> int:
    if not isinstance(token, int):
        raise TypeError(f"the tokenizer was loaded without this token: {token!r}")
    return token
