"""Where a model computes: the CPU, or a GPU."""

from __future__ import annotations

import os
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import nn

from perdure.backbones.rounded import cpu_autocast
from perdure.errors import ConfigError


def chosen_device(name: str) -> torch.device:
    """The device that the setting `device` names; 'auto' is a CUDA GPU where there is one, each process of a launcher its own.

    Raises:
        ConfigError: this machine has no such device.
    """
    if name == "auto" and not torch.cuda.is_available():
        return torch.device("cpu")
    if name == "auto":
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError, NotImplementedError) as error:  # torch has no class of its own for it
        reason = str(error).partition("\n")[0]
        raise ConfigError(
            f"backbone.device: '{name}' cannot be used here ({reason}). Give auto, cpu or cuda."
        ) from error


def model_device(model: nn.Module) -> torch.device:
    """Where a model's weights are."""
    return next(model.parameters()).device


def autocast(model: nn.Module, precision: str) -> AbstractContextManager[Any]:
    """Within: a model computes in the run's precision, its weights stay as they are."""
    kind = model_device(model).type
    if precision == "bf16" and kind == "cpu":
        return cpu_autocast()
    return torch.autocast(kind, torch.bfloat16, enabled=precision == "bf16")
