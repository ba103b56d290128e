"""Where a model computes (CPU or GPU), and whether bf16 is worth it there."""

from __future__ import annotations

import os
import time
from contextlib import AbstractContextManager
from typing import Any, Literal

import torch
from torch import nn

from perdure.backbones.rounded import cpu_autocast
from perdure.errors import ConfigError


def chosen_device(name: str) -> torch.device:
    """The device for the setting `device`; 'auto' is a CUDA GPU if there is one, a different one for each launched process.

    Raises:
        ConfigError: this machine has no such device.
    """
    if name == "auto" and not torch.cuda.is_available():
        return torch.device("cpu")
    if name == "auto":
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError, NotImplementedError) as error:  # torch has no dedicated class
        reason = str(error).partition("\n")[0]
        raise ConfigError(
            f"backbone.device: '{name}' cannot be used here ({reason}). Give auto, cpu or cuda."
        ) from error


def model_device(model: nn.Module) -> torch.device:
    """The device of a model's weights."""
    return next(model.parameters()).device


def autocast(model: nn.Module, precision: str) -> AbstractContextManager[Any]:
    """Compute in the run's precision; the model's weights keep theirs."""
    kind = model_device(model).type
    if precision == "bf16" and kind == "cpu":
        return cpu_autocast()
    return torch.autocast(kind, torch.bfloat16, enabled=precision == "bf16")


def choose_precision(wanted: str, device: torch.device) -> Literal["fp32", "bf16"]:
    """`wanted`; for 'auto' bf16 if `device` multiplies it at least 1.5 x as fast as fp32 (measured, about 0.1 s on a CPU)."""
    if wanted in ("fp32", "bf16"):
        return wanted  # pyright: ignore[reportReturnType]
    # a GPU only shows its speed on large products
    rows, inner, columns = (768, 384, 1536) if device.type == "cpu" else (4096, 4096, 4096)
    seconds = {}
    for dtype in (torch.float32, torch.bfloat16):
        left, right = (torch.ones(shape, dtype=dtype, device=device) for shape in ((rows, inner), (inner, columns)))
        times = []
        for _ in range(8):
            start = time.perf_counter()
            torch.mm(left, right)[0, 0].item()  # reading a number waits for the device
            times.append(time.perf_counter() - start)
        seconds[dtype] = min(times)
    return "bf16" if seconds[torch.float32] > 1.5 * seconds[torch.bfloat16] else "fp32"
