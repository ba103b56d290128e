"""Where a model computes: the CPU, or a GPU; and whether bf16 is worth it there."""

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


def choose_precision(wanted: str, device: torch.device) -> Literal["fp32", "bf16"]:
    """bf16 where `device` multiplies it at least 1.5 x as fast as fp32 (measured, about 0.1 s on a CPU), else fp32."""
    if wanted in ("fp32", "bf16"):
        return wanted  # pyright: ignore[reportReturnType]
    rows, inner, columns = (768, 384, 1536) if device.type == "cpu" else (4096, 4096, 4096)  # a GPU begins that slowly
    seconds = {}
    for dtype in (torch.float32, torch.bfloat16):
        left, right = (torch.ones(shape, dtype=dtype, device=device) for shape in ((rows, inner), (inner, columns)))
        times = []
        for _ in range(8):
            began = time.perf_counter()
            torch.mm(left, right)[0, 0].item()  # reading a number waits for the device
            times.append(time.perf_counter() - began)
        seconds[dtype] = min(times)
    return "bf16" if seconds[torch.float32] > 1.5 * seconds[torch.bfloat16] else "fp32"
