"""The weights of a PyTorch model from its ONNX export, under their names in PyTorch."""

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
    """Name -> tensor for every initialiser of an ONNX model, linear weights included.

    The exporter keeps all names except those of linear weights, which it transposes and calls onnx::MatMul_123. Each is
    identified by the bias that is added to the MatMul's result.

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
    products = [node for node in graph.node if node.op_type == "MatMul" and node.input[1] in arrays]
    weight_of = {node.output[0]: arrays[node.input[1]] for node in products}
    weights = dict(arrays)
    for node in (node for node in graph.node if node.op_type == "Add"):
        for bias, product in (node.input, reversed(node.input)):
            if bias.endswith(".bias") and product in weight_of:
                weights[bias.removesuffix("bias") + "weight"] = weight_of[product].T
    return {
        name: torch.from_numpy(np.array(array)) for name, array in weights.items()
    }  # copies: the message is read-only


def under(weights: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The weights whose names start with `prefix`, without it."""
    return {name.removeprefix(prefix): tensor for name, tensor in weights.items() if name.startswith(prefix)}


def check_names(found: Mapping[str, Tensor], expected: Mapping[str, tuple[int, ...]], what: str) -> None:
    """Check that exactly the expected weights are there, in their shapes.

    Raises:
        FetchError: the package holds another model.
    """
    shapes = {name: tuple(tensor.shape) for name, tensor in found.items()}
    if shapes != dict(expected):
        wrong = sorted(n for n in shapes.keys() | expected.keys() if shapes.get(n) != expected.get(n))
        raise FetchError(f"The package does not hold {what}: {len(wrong)} weights differ, the first is {wrong[0]}.")


def write_weights(weights: Mapping[str, Tensor], folder: Path) -> None:
    """Write model.safetensors as transformers reads it."""
    save_file({n: t.contiguous() for n, t in weights.items()}, folder / "model.safetensors", {"format": "pt"})
