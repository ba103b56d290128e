"""One vector for a prompt: the mean over its tokens of what a layer of a language model holds."""

from __future__ import annotations

import inspect

import torch
from torch import Tensor, nn

READ_AT = 0.6
"""Share of the layers that a vector is read after. Measured on the tuning sequences of the language leaderboard with SmolLM2-135M
(docs/methods/frozen-head.md): the last layers turn towards the next token, the first hold words."""


def prompt_vectors(trunk: nn.Module, ids: Tensor, mask: Tensor) -> Tensor:
    """Mean hidden state [N, D] fp32 over the real positions of `ids` [N, length], read in the middle of the layers.

    Args:
        trunk: the model without its vocabulary head; of an encoder-decoder the encoder.
        mask: True at real positions.
    """
    no_cache = {"use_cache": False} if "use_cache" in inspect.signature(trunk.forward).parameters else {}
    found = trunk(input_ids=ids, attention_mask=mask.long(), output_hidden_states=True, **no_cache)
    layers = getattr(found, "hidden_states", None) or (found.last_hidden_state,)
    hidden_NLD = layers[round(READ_AT * (len(layers) - 1))]
    if hidden_NLD.ndim != 3:  # Gemma 3n keeps several streams until the end
        hidden_NLD = found.last_hidden_state
    hidden_NLD = hidden_NLD.float()
    return torch.where(mask[..., None], hidden_NLD, 0).sum(dim=1) / mask.sum(dim=1, keepdim=True)
