"""The matrices of a model, the layers they stand in, and how many of them an adapter reaches."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from torch import Tensor, nn

from perdure.training.coverage import Coverage

NOT_MATRICES = re.compile(r"pos_?emb|position|token|embed|table|scale|bias$|norm")
"""In the last part of a parameter's name: a table, not a matrix that inputs are multiplied by."""


def coverage(model: nn.Module, adapted: Collection[str]) -> Coverage:
    """What an adapter reaches in the model it is attached to.

    Args:
        adapted: full names of the adapted modules, and of the adapted parameters that hold experts.
    """
    matrices = dict(_matrices(model))
    total = sum(matrices.values()) or 1
    reached = sum(numel for name, numel in matrices.items() if owner(name) in adapted or name in adapted)
    layers = _layers(matrices)
    own = {layer for name in adapted if (layer := layer_of(name)) in layers}
    shapes = dict(_plain_parameters(model))
    experts = [name for name in matrices if name not in adapted and holds_experts(model, name, shapes[name])]
    return Coverage(
        modules=sum(shapes[name].shape[0] if name in shapes else 1 for name in adapted),
        layers=len(own),
        of_layers=len(layers),
        share=reached / total,
        bare=tuple(first for layer, first in layers.items() if layer not in own),
        experts=tuple(experts),
        experts_share=sum(matrices[name] for name in experts) / total,
    )


def holds_experts(model: nn.Module, name: str, parameter: Tensor) -> bool:
    """Whether a parameter is a stack of many experts' matrices, [E, ., .]."""
    module: Any = model.get_submodule(owner(name))
    while hasattr(module, "base_layer"):
        module = module.base_layer
    return parameter.ndim == 3 and "expert" in f"{owner(name)} {type(module).__name__}".lower()


def owner(parameter: str) -> str:
    """The module of a parameter."""
    return parameter.rpartition(".")[0]


def layer_of(name: str) -> tuple[str, int] | None:
    """The layer that a module or parameter belongs to, as (where its list stands, number); None outside of lists.

    Attention and feed-forward in two lists side by side (XLM's) are one layer.
    """
    found = re.match(r"((?:[^.]+\.)*?)(?:[^.\d][^.]*\.)?(\d+)(?=\.|$)", name)
    return (found[1], int(found[2])) if found else None


def _plain_parameters(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Parameters under their names from before an adapter was attached, without the adapter's own."""
    for name, parameter in model.named_parameters():
        if ".lora_" not in name:
            yield name.replace(".base_layer.", "."), parameter


def _matrices(model: nn.Module) -> Iterator[tuple[str, int]]:
    """(name, number of entries) of every matrix that inputs are multiplied by, but the output head."""
    head = getattr(model, "get_output_embeddings", lambda: None)()
    skipped = {id(parameter) for parameter in head.parameters()} if isinstance(head, nn.Module) else set()
    for module in model.modules():
        if isinstance(module, nn.Embedding):
            skipped |= {id(parameter) for parameter in module.parameters()}
    for name, parameter in _plain_parameters(model):
        sides = [side for side in parameter.shape if side > 1]
        last = name.rpartition(".")[2] if not name.endswith(".weight") else ""
        if len(sides) > 1 and id(parameter) not in skipped and not NOT_MATRICES.search(last):
            yield name, entries(model, name, parameter)


def entries(model: nn.Module, name: str, parameter: Tensor) -> int:
    """Number of entries of a matrix, also where four bits pack two of them into one byte."""
    if parameter.is_floating_point() or parameter.ndim > 2:
        return parameter.numel()
    module: Any = model.get_submodule(owner(name))
    module = getattr(module, "base_layer", module)
    return module.in_features * module.out_features if isinstance(module, nn.Linear) else parameter.numel()


def _layers(matrices: Mapping[str, int]) -> dict[tuple[str, int], str]:
    """The layers, numbered modules with at least two matrices, in order; each with the name of its first module."""
    members: dict[tuple[str, int], list[str]] = {}
    for name in matrices:
        if layer := layer_of(name):
            members.setdefault(layer, []).append(name)
    return {
        layer: re.sub(rf"(?<=\b{layer[1]})\..*", "", names[0]) for layer, names in members.items() if len(names) > 1
    }
