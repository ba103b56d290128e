"""Greedy answers, the same from run to run for the same batches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, PreTrainedTokenizerBase

from perdure.backbones.device import model_device
from perdure.backbones.tokens import padded

GENERATION_FILE = "generation_config.json"


def greedy(
    model: Any, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[Sequence[int]], max_new_tokens: int
) -> list[str]:
    """What the model writes after each prompt, without special tokens and surrounding white space.

    A decoder's prompts are padded on the left and the answer is cut at the padded length, so no prompt text can leak into
    it. An encoder-decoder's go to the encoder, padded on the right; its answer begins after the start token.
    """
    encodes, pad = model.config.is_encoder_decoder, tokenizer.pad_token_id
    ids, real = padded(prompts, pad, "right" if encodes else "left")  # pyright: ignore[reportArgumentType]
    stops = _stops(model, tokenizer)
    options = {"max_new_tokens": max_new_tokens, "eos_token_id": stops}
    written = _generated(model, ids, real, pad, **options)
    texts = []
    for row in written[:, 1 if encodes else ids.shape[1] :].tolist():
        end = next((i for i, token in enumerate(row) if token in stops), len(row))
        texts.append(str(tokenizer.decode(row[:end], skip_special_tokens=True)).strip())
    return texts


def _stops(model: Any, tokenizer: PreTrainedTokenizerBase) -> list[Any]:
    """Tokens that end an answer."""
    stops = [tokenizer.eos_token_id]
    if (own := getattr(model.generation_config, "eos_token_id", None)) is not None:  # chat models may have several
        stops += [own] if isinstance(own, int) else own
    return [*dict.fromkeys(stops)]


def as_scored(model: Any, tokenizer: PreTrainedTokenizerBase, max_new_tokens: int) -> dict[str, Any]:
    """The generation_config.json with which `model.generate` writes what `greedy` does."""
    start = decoder_start(model.generation_config, model.config) if model.config.is_encoder_decoder else None
    return {
        "do_sample": False,
        "num_beams": 1,
        "max_new_tokens": max_new_tokens,
        "eos_token_id": _stops(model, tokenizer),
        "pad_token_id": tokenizer.pad_token_id,
        **({} if start is None else {"decoder_start_token_id": start}),
    }


def first_scores(
    model: Any, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[Sequence[int]], steps: int
) -> tuple[Tensor, Tensor]:
    """What the model writes after the first prompt in `steps` steps [steps], and each step's log-probabilities [steps, V]."""
    pad = tokenizer.pad_token_id
    ids, real = padded(prompts, pad, "right" if model.config.is_encoder_decoder else "left")  # pyright: ignore[reportArgumentType]
    options = {"max_new_tokens": steps, "output_logits": True, "return_dict_in_generate": True}
    given = _generated(model, ids, real, pad, **options)
    return given.sequences[0, -steps:], torch.stack([step[0] for step in given.logits]).float().log_softmax(dim=-1)


def decoder_start(*stated: Any) -> int | None:
    """The token before an encoder-decoder's answer, by the first of the configurations that names one.

    T5Gemma's is its decoder's beginning of text.
    """
    for config in stated:
        for holder, key in ((config, "decoder_start_token_id"), (getattr(config, "decoder", None), "bos_token_id")):
            if (start := getattr(holder, key, None)) is not None:
                return int(start)
    return None


def _generated(model: Any, ids: Tensor, real: Tensor, pad: Any, **options: Any) -> Any:
    """Greedy generation with these options alone, whatever the model's own generation settings."""
    given, device = model.generation_config, model_device(model)
    start = decoder_start(given, model.config)
    model.generation_config = GenerationConfig(
        do_sample=False, num_beams=1, pad_token_id=pad, decoder_start_token_id=start, **options
    )
    try:
        return model.generate(input_ids=ids.to(device), attention_mask=real.long().to(device))
    finally:
        model.generation_config = given
