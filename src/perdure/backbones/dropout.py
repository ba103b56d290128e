"""Dropout belongs to training steps: what is measured on a model is measured without it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn
from torch.nn.modules.dropout import _DropoutNd


@contextmanager
def without_dropout(model: nn.Module) -> Iterator[None]:
    """Within: dropout modules pass their input on. Every other module keeps its mode (checkpointing reads that of its layers)."""
    active = [module for module in model.modules() if isinstance(module, _DropoutNd) and module.training]
    for module in active:
        module.training = False
    try:
        yield
    finally:
        for module in active:
            module.training = True
