"""Whole tensors in adapters' files beside their updates: the base's own, and the heads of classifiers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from perdure.adapters.folder import Adapter
from perdure.adapters.weights import FROZEN, PREFIX, FrozenTensor, is_head
from perdure.errors import AdapterError


def frozen_beside(adapters: Iterable[Adapter]) -> dict[str, FrozenTensor]:
    """The base's own tensors that adapters bring, by name; an AdapterError if two bring different ones.

    '<module>.base_layer.weight' beside an embedding's LoRA, '<module>.weight' where PEFT saved an embedding without one.
    """
    frozen: dict[str, FrozenTensor] = {}
    for adapter in adapters:
        names = [(module, name) for module, entry in adapter.modules.items() for name in entry.frozen]
        names += [("", name) for name in adapter.beside if not is_head(name, adapter.config)]
        for module, name in names:
            own = FrozenTensor(adapter.file, adapter.place, name)
            key = f"{module}{FROZEN}{name.rpartition('.')[2]}" if module else name.removeprefix(PREFIX)
            first = frozen.setdefault(key, own)
            if first is not own and not same_values(first.read(), own.read()):
                raise AdapterError(
                    f"'{first.place}' and '{adapter.place}' were trained on different bases: each brings the base's "
                    f"weight '{key}', which PEFT saves with an embedding, and they differ, as after resizing "
                    "the vocabulary for each separately. Resize the base once, save it as a model, and train both on it."
                )
    return frozen


def heads_beside(adapters: Sequence[Adapter]) -> tuple[dict[str, FrozenTensor], tuple[str, ...]]:
    """Tensors of the heads that adapters bring, by name, where all that bring one agree; else none, and a note that says so."""
    brought = [adapter for adapter in adapters if adapter.config.heads]
    if not brought:
        return {}, ()
    each = [
        {n.removeprefix(PREFIX): FrozenTensor(a.file, a.place, n) for n in a.beside if is_head(n, a.config)}
        for a in brought
    ]
    first, *others = each
    agree = all(
        own.keys() == first.keys() and all(same_values(own[key].read(), first[key].read()) for key in first)
        for own in others
    )
    if agree:
        return first, ()
    named = ", ".join(f"'{adapter.place}'" for adapter in brought)
    return {}, (
        f"WARNING: the heads of {named} differ, so they were left out: each task keeps its own, in its adapter's folder.",
    )


def same_values(one: Tensor, two: Tensor) -> bool:
    """Bit for bit; for two dtypes, after rounding to the narrower one."""
    return one.shape == two.shape and (torch.equal(one.to(two.dtype), two) or torch.equal(one, two.to(one.dtype)))
