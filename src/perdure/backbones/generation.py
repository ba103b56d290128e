"""Greedy answers, the same from run to run for the same batches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from transformers import GenerationConfig, PreTrainedTokenizerBase

from perdure.backbones.device import model_device
from perdure.backbones.tokens import padded


def greedy(
    model: Any, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[Sequence[int]], max_new_tokens: int
) -> list[str]:
    """What the model writes after each prompt, without special tokens and surrounding white space.

    A decoder's prompts are padded on the left and the answer is cut at the padded length, so no prompt text can leak into
    it. An encoder-decoder's go to the encoder, padded on the right; its answer begins after the start token.
    """
    encodes, device = model.config.is_encoder_decoder, model_device(model)
    pad, given = tokenizer.pad_token_id, model.generation_config
    ids, real = padded(prompts, pad, "right" if encodes else "left")  # pyright: ignore[reportArgumentType]
    stops = [tokenizer.eos_token_id]
    if (own := getattr(given, "eos_token_id", None)) is not None:  # chat models may have several
        stops += [own] if isinstance(own, int) else own
    model.generation_config = GenerationConfig(
        do_sample=False,
        num_beams=1,
        max_new_tokens=max_new_tokens,
        pad_token_id=pad,
        eos_token_id=[*dict.fromkeys(stops)],
        decoder_start_token_id=getattr(given, "decoder_start_token_id", None),
    )
    try:
        written = model.generate(input_ids=ids.to(device), attention_mask=real.long().to(device))
    finally:
        model.generation_config = given
    texts = []
    for row in written[:, 1 if encodes else ids.shape[1] :].tolist():
        end = next((i for i, token in enumerate(row) if token in stops), len(row))
        texts.append(str(tokenizer.decode(row[:end], skip_special_tokens=True)).strip())
    return texts
