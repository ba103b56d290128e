"""Optimizers by transformers' names, and their state as tensors."""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from perdure.config.training_settings import TrainingSettings
from perdure.errors import ConfigError

NUMBER = "number"
"""In the name of a state that is a Python number, kept as a tensor."""


def optimizer(settings: TrainingSettings, parameters: Sequence[nn.Parameter], rate: float) -> torch.optim.Optimizer:
    """The optimizer that `settings` name; `check_optimizer` has passed."""
    options: dict[str, Any] = {"lr": rate, "weight_decay": settings.weight_decay}
    if settings.optimizer == "adamw":
        return torch.optim.AdamW(parameters, **options)
    if settings.optimizer == "adafactor":
        from transformers.optimization import Adafactor

        return Adafactor(parameters, scale_parameter=False, relative_step=False, **options)
    from bitsandbytes.optim import AdamW  # pyright: ignore[reportMissingImports]

    return AdamW(parameters, optim_bits=8, is_paged=settings.optimizer.startswith("paged"), **options)


def check_optimizer(settings: TrainingSettings, device: torch.device) -> None:
    """Raise ConfigError if the optimizer's package is missing, or it does not run on `device`: tried on one parameter."""
    name = settings.optimizer
    if not name.endswith("8bit"):
        return
    if importlib.util.find_spec("bitsandbytes") is None:
        raise ConfigError(f"training.optimizer={name} needs bitsandbytes: pip install 'perdure[quantized]'.")
    if name.startswith("paged") and device.type == "cpu":
        raise ConfigError(
            f"training.optimizer={name} moves its states out of a GPU's memory, and this model is in the CPU's. Take "
            "adamw_8bit, which has the same steps."
        )
    parameter = nn.Parameter(torch.ones(64, 64, device=device))  # smaller ones keep 32 bits
    parameter.grad = torch.ones_like(parameter)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            optimizer(settings, [parameter], 1.0).step()
    except (RuntimeError, NotImplementedError, AttributeError) as error:
        said = str(error).partition("\n")[0]
        raise ConfigError(f"training.optimizer={name} does not run on '{device}' here: {said}. Take adamw.") from error


def state_of(chosen: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Names such as '3.exp_avg' -> the state of a parameter by its place."""
    found: dict[str, Tensor] = {}
    for place, parameter in enumerate(_parameters(chosen)):
        for name, value in chosen.state.get(parameter, {}).items():
            found |= (
                {f"{place}.{name}": value} if isinstance(value, Tensor) else {f"{place}.{NUMBER}.{name}": _kept(value)}
            )
    return found


def load_state(chosen: torch.optim.Optimizer, state: Mapping[str, Tensor]) -> None:
    """Restore what `state_of` returned."""
    parameters = _parameters(chosen)
    for key, tensor in state.items():
        place, _, name = key.partition(".")
        kind, _, number = name.partition(".")
        if kind == NUMBER:
            chosen.state[parameters[int(place)]][number] = tensor.item()
        else:
            chosen.state[parameters[int(place)]][name] = tensor.clone()


def _parameters(chosen: torch.optim.Optimizer) -> list[nn.Parameter]:
    return [parameter for group in chosen.param_groups for parameter in group["params"]]


def _kept(value: float) -> Tensor:
    return torch.tensor(value, dtype=torch.int64 if isinstance(value, int) else torch.float64)
