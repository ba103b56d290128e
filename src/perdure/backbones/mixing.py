"""Which layers of a model mix positions otherwise than by plain attention: they read neighbours whatever a mask says.

State-space, convolution, linear-attention and recurrent layers go through a row from left to right. A label packed behind
another label would be read as its continuation, so a model with such a layer ranks labels one by one.
"""

from __future__ import annotations

import inspect
import re
from typing import Any

from torch import nn

from perdure.backbones.pretrained import POSITION_TABLES

LAYER_LISTS = ("layer_types", "layers_block_type", "block_types", "attention_layers")
"""What configurations call the kinds of their layers, in order."""

PLAIN_KINDS = {"full_attention", "sliding_attention", "chunked_attention", "attention", "global", "mlp", "moe"}
"""Kinds that a packed mask describes; windows (sliding, chunked) are compared with the texts by their length."""

MIXES = re.compile(
    r"mamba|(?-i:SSM)|statespace|recurrent|rwkv|lstm|(?-i:GRU)|delta(net|rule|attention)|linearattention|lightning|shortconv|retention"
    r"|hyena|mixer|indexer|sparseattention",
    re.IGNORECASE,
)
"""In the name of a module's class: it mixes positions by other means, or by a selection of its own."""

MIXING_PARAMETERS = {"A_log", "dt_bias", "time_decay"}
"""What the decays of state-space and recurrent layers are called, under whatever class."""

WINDOWS = ("attention_chunk_size", "local_attention", "window_size", "attention_window_size", "attention_window")
"""What configurations call a local window; `sliding_window` has switches of its own."""


def reads_neighbours(model: nn.Module) -> str | None:
    """Why a packed mask cannot hold for this decoder, by its configuration and modules; None: all its layers attend."""
    config: Any = getattr(model, "config", None)
    config = config.get_text_config() if hasattr(config, "get_text_config") else config
    for name in LAYER_LISTS:
        kinds = getattr(config, name, None) or ()
        if other := sorted({str(kind) for kind in kinds} - PLAIN_KINDS):
            return f"its configuration lists layers of the kind {', '.join(other)} ({name})"
    for path, module in model.named_modules():
        kind = type(module).__name__
        convolves = isinstance(module, nn.Conv1d) and module.kernel_size != (1,)
        own = MIXING_PARAMETERS & {name for name, _ in module.named_parameters(recurse=False)}
        if convolves or own or isinstance(module, nn.RNNBase) or MIXES.search(kind):
            return f"its layer {path or 'itself'} ({kind}) reads neighbouring tokens whatever the mask says"
    if getattr(type(model), "_is_stateful", False):
        return f"{type(model).__name__} carries a state from token to token"
    return None


def takes_no_positions(model: nn.Module) -> str | None:
    """Why a label cannot stand elsewhere than behind its prompt in a causal model; None: it takes each token's position."""
    if "position_ids" in inspect.signature(model.forward).parameters and not getattr(model.config, "alibi", False):
        return None
    return f"{type(model).__name__} takes no positions: it counts places, also those of padding and of other labels"


def counts_places(decoder: nn.Module) -> str | None:
    """Why labels cannot stand in one row of an encoder-decoder's decoder: a table gives every place in it its own vector."""
    for path, _ in decoder.named_modules():
        if path.rpartition(".")[2] in POSITION_TABLES:
            return f"its decoder adds a position to every place of a row ({path}), also to those of other labels"
    return None


def attention_window(model: Any) -> int | None:
    """How many tokens a layer sees at most (a sliding window, chunks); None: all of them.

    A packed mask replaces every layer's own, so within it such layers would see everything.
    """
    config = model.config.get_text_config()
    windows = [getattr(config, name, None) for name in WINDOWS]
    slides = "sliding_attention" in (getattr(config, "layer_types", None) or ())
    if slides or getattr(config, "use_sliding_window", None) is not False:
        windows.append(getattr(config, "sliding_window", None))
    return min((size for window in windows for size in _sizes(window)), default=None)


def _sizes(window: Any) -> list[int]:
    """The sizes in a window's entry: one, or one a layer; 0 and -1 mean none."""
    entries = window if isinstance(window, list | tuple) else [window]
    return [size for size in entries if isinstance(size, int) and size > 0]
