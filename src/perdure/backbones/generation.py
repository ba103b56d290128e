"""What a model writes: greedy answers, the same from run to run for the same batches; and texts drawn by a seed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, PreTrainedTokenizerBase

from perdure.backbones.device import model_device
from perdure.backbones.prefix import Prefix, cached
from perdure.backbones.tokens import padded

GENERATION_FILE = "generation_config.json"


def greedy(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    prefix: Prefix | None = None,
    more_stops: Sequence[int] = (),
) -> list[str]:
    """What the model writes after each prompt, without special tokens.

    A decoder's prompts are padded on the left and the answer is cut at the padded length, so no prompt text can leak into
    it. An encoder-decoder's go to the encoder, padded on the right; its answer begins after the start token. What all prompts
    begin with may be given as `prefix`; `more_stops` end an answer besides the end tokens of tokenizer and model.
    """
    encodes, pad = model.config.is_encoder_decoder, tokenizer.pad_token_id
    ids, real = _padded(model, prompts, pad, prefix)
    stops = [*_stops(model, tokenizer), *more_stops]
    written = _generated(model, ids, real, pad, prefix, max_new_tokens=max_new_tokens, eos_token_id=stops)
    rows = _until(written[:, 1 if encodes else ids.shape[1] :], stops)
    return [str(tokenizer.decode(row, skip_special_tokens=True)) for row in rows]


def sampled(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Sequence[int]],
    tokens: int,
    batch: int,
    seed: int,
) -> list[list[int]]:
    """What a decoder writes after each prompt, token by token drawn from its softmax, as ids without the end.

    The same seed gives the same ids for the same batches; torch's own random state is left as it was.
    """
    stops, device, rows = _stops(model, tokenizer), model_device(model), []
    pad: Any = tokenizer.pad_token_id
    options = {"max_new_tokens": tokens, "eos_token_id": stops, "do_sample": True, "top_k": 0}
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        for begin in range(0, len(prompts), batch):
            ids, real = padded(prompts[begin : begin + batch], pad, "left")
            written = _generated(model, ids, real, pad, None, **options)
            rows += _until(written[:, ids.shape[1] :], stops)
    return rows


def _stops(model: Any, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The tokens that end a text: the tokenizer's, and the model's own (chat models may have several)."""
    own = getattr(model.generation_config, "eos_token_id", None)
    return [*dict.fromkeys([tokenizer.eos_token_id, *([own] if isinstance(own, int) else own or [])])]  # pyright: ignore[reportReturnType]


def _until(written: Tensor, stops: Sequence[int]) -> list[list[int]]:
    """Every row up to its first stop."""
    rows = written.tolist()
    return [row[: next((i for i, token in enumerate(row) if token in stops), len(row))] for row in rows]


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
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Sequence[int]],
    steps: int,
    prefix: Prefix | None = None,
) -> tuple[Tensor, Tensor]:
    """What the model writes after the first prompt in `steps` steps [steps], and each step's log-probabilities [steps, V]."""
    pad = tokenizer.pad_token_id
    ids, real = _padded(model, prompts, pad, prefix)
    options = {"max_new_tokens": steps, "output_logits": True, "return_dict_in_generate": True}
    given = _generated(model, ids, real, pad, prefix, **options)
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


def _padded(model: Any, prompts: Sequence[Sequence[int]], pad: Any, prefix: Prefix | None) -> tuple[Tensor, Tensor]:
    """Ids and the mask of real positions. Padding stands behind a prefix: positions are counted over real ones alone."""
    if prefix is None:
        return padded(prompts, pad, "right" if model.config.is_encoder_decoder else "left")
    ids, real = padded([prompt[len(prefix.ids) :] for prompt in prompts], pad, "left")
    begin = torch.tensor(prefix.ids).expand(len(ids), -1)
    return torch.cat([begin, ids], dim=1), torch.cat([torch.ones_like(begin, dtype=torch.bool), real], dim=1)


def _generated(model: Any, ids: Tensor, real: Tensor, pad: Any, prefix: Prefix | None, **options: Any) -> Any:
    """Generation with these options alone, greedy unless they say otherwise, whatever the model's own generation settings."""
    given, device = model.generation_config, model_device(model)
    start = decoder_start(given, model.config)
    model.generation_config = GenerationConfig(
        **{"do_sample": False, "num_beams": 1, "pad_token_id": pad, "decoder_start_token_id": start, **options}
    )
    try:
        known = cached(model, prefix.grown(len(ids))) if prefix else {}
        return model.generate(input_ids=ids.to(device), attention_mask=real.long().to(device), **known)
    finally:
        model.generation_config = given
