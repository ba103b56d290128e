"""The weights of a PyTorch model out of its ONNX export, under the names they had in PyTorch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from perdure.errors import ConfigError, FetchError

Array = np.ndarray[Any, Any]


def named_weights(content: bytes) -> dict[str, Tensor]:
    """Name -> tensor of every initialiser of an ONNX model, linear weights included.

    The exporter keeps names except for the weights of linear layers, which it transposes and calls onnx::MatMul_123. Each
    is found again by what follows it: the MatMul's result is added to a bias that has kept its name.

    Raises:
        ConfigError: the package onnx is not installed.
    """
    try:
        import onnx
        from onnx import numpy_helper
    except ImportError as error:
        raise ConfigError(
            "Reading this model needs the package onnx: pip install onnx (or perdure[convert])."
        ) from error
    graph = onnx.load_model_from_string(content).graph
    arrays: dict[str, Array] = {t.name: numpy_helper.to_array(t) for t in graph.initializer}
    weight_of = {
        node.output[0]: arrays[node.input[1]]
        for node in graph.node
        if node.op_type == "MatMul" and node.input[1] in arrays
    }
    found = {name: _tensor(array) for name, array in arrays.items()}
    for node in graph.node:
        if node.op_type != "Add":
            continue
        for bias, product in (node.input, reversed(node.input)):
            if bias.endswith(".bias") and product in weight_of:
                found[bias.removesuffix("bias") + "weight"] = _tensor(weight_of[product].T)
    return found


def under(weights: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The weights whose names start with `prefix`, without it."""
    return {name.removeprefix(prefix): tensor for name, tensor in weights.items() if name.startswith(prefix)}


def check_names(found: Mapping[str, Tensor], expected: Mapping[str, tuple[int, ...]], what: str) -> None:
    """Every expected weight is there in its shape, and nothing else.

    Raises:
        FetchError: the package holds another model than is meant.
    """
    shapes = {name: tuple(tensor.shape) for name, tensor in found.items()}
    if shapes != dict(expected):
        wrong = sorted(n for n in shapes.keys() | expected.keys() if shapes.get(n) != expected.get(n))
        raise FetchError(f"The package does not hold {what}: {len(wrong)} weights differ, the first is {wrong[0]}.")


def write_weights(weights: Mapping[str, Tensor], folder: Path) -> None:
    """model.safetensors, as transformers reads it."""
    save_file({n: t.contiguous() for n, t in weights.items()}, folder / "model.safetensors", {"format": "pt"})


def _tensor(array: Array) -> Tensor:
    return torch.from_numpy(np.array(array))  # a copy: the parsed message's own memory is read-only
