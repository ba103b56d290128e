"""What all prompts of a task begin with (its instruction, its list of labels): keys and values computed once, without gradient.

Exact where every layer is plain attention: a position's keys and values depend on what stands before it alone.
"""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache, DynamicLayer

from perdure.backbones.device import model_device

PASS_COST = 32
"""What one more forward pass costs on a CPU, in token positions: its weights are read once more."""


@dataclass(frozen=True, eq=False)
class Prefix:
    """Token ids and the model's keys and values at them, for rows of any number that begin with these ids."""

    ids: list[int]
    lent: Cache

    def grown(self, rows: int) -> Cache:
        """A cache of `rows` rows that begins with the prefix, to write on."""
        cache = Cache(layer_class_to_replicate=DynamicLayer)
        for index, layer in enumerate(self.lent.layers):
            cache.update(*_rows(layer, rows), index)
        return cache


class _Lent(DynamicLayer):
    """A layer that keeps what the first pass gives it, and lends that to the rows of every later pass."""

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        if not self.is_initialized:
            return super().update(key_states, value_states, *args, **kwargs)
        keys, values = _rows(self, len(key_states))
        return torch.cat([keys, key_states], dim=-2), torch.cat([values, value_states], dim=-2)


def common_ids(prompts: Sequence[Sequence[int]]) -> list[int]:
    """Ids that all prompts begin with, of none its last; empty if they save less than a forward pass costs."""
    if len(prompts) < 2:
        return []
    begin = begun_alike(prompts)
    return begin if len(begin) * (len(prompts) - 1) >= PASS_COST else []


def begun_alike(rows: Sequence[Sequence[int]]) -> list[int]:
    """Ids that all rows begin with, of none its last."""
    columns = zip(*(ids[:-1] for ids in rows), strict=False)
    return [column[0] for column in itertools.takewhile(lambda column: len(set(column)) == 1, columns)]


def cached(model: nn.Module, cache: Cache) -> dict[str, Cache]:
    """The keyword argument that gives the model, or its `generate`, a cache: `past_key_values` before transformers 5.24."""
    return {"cache" if "cache" in inspect.signature(model.forward).parameters else "past_key_values": cache}


def computed_prefix(model: nn.Module, ids: list[int]) -> Prefix:
    """The prefix of these ids, in one forward pass of one row."""
    cache = Cache(layer_class_to_replicate=_Lent)
    row = torch.tensor([ids], device=model_device(model))
    model(input_ids=row, use_cache=True, logits_to_keep=1, **cached(model, cache))
    return Prefix(ids, cache)


def _rows(layer: Any, rows: int) -> tuple[Tensor, Tensor]:
    """The layer's keys and values, seen as `rows` equal rows."""
    return layer.keys.expand(rows, -1, -1, -1), layer.values.expand(rows, -1, -1, -1)
