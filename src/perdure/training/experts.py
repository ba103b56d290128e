"""LoRA on stacks of experts: parameters [E, ., .] of one module, which no layer holds (PEFT's `target_parameters`).

Every expert's matrix has an A and a B of its own and counts as a module, named PARAMETER.e. While the module computes, it sees

    W_e + s B_e A_e                   [O, I], or its transpose where the model stores [I, O]

in place of its parameter, all experts in one product. Files hold them as PEFT does: perdure.adapters.experts.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NoReturn

import torch
from torch import nn

from perdure.adapters.experts import NESTING
from perdure.config.lora_settings import LoraSettings
from perdure.errors import ConfigError, UnmetNeed
from perdure.training.matrices import holds_experts, owner
from perdure.training.targets import ends_with


class Experts:
    """The adapter of one parameter of a module; stands where PEFT's layer stands for a linear one."""

    def __init__(self, module: Any, name: str, settings: LoraSettings) -> None:
        self.parameter: nn.Parameter = getattr(module, name)
        self.transposed = bool(getattr(module, "is_transposed", False))
        self._name = name
        self.scaling = settings.alpha / (settings.rank**0.5 if settings.rslora else settings.rank)
        self.disable_adapters = True
        count, O, I = self.parameter.shape  # noqa: E741  (the shape's letters)
        if self.transposed:
            O, I = I, O  # noqa: E741
        options: Any = {
            "device": self.parameter.device,
            "dtype": torch.promote_types(self.parameter.dtype, torch.float32),
        }
        self.A = [nn.Parameter(torch.zeros(settings.rank, I, **options)) for _ in range(count)]
        self.B = [nn.Parameter(torch.zeros(O, settings.rank, **options)) for _ in range(count)]
        module.register_forward_pre_hook(self._adapt, with_kwargs=True)
        module.register_forward_hook(self._restore, always_call=True)

    def enable_adapters(self, on: bool) -> None:
        """As PEFT's layer."""
        self.disable_adapters = not on

    def register_forward_pre_hook(self, _hook: object) -> NoReturn:
        """UnmetNeed: which of the module's inputs reach an expert is decided inside it."""
        raise UnmetNeed("The inputs of single experts cannot be measured. Leave lora.target_parameters out.")

    register_forward_hook = register_forward_pre_hook

    def _adapt(self, module: nn.Module, _args: Any, _kwargs: Any) -> None:
        """Let the module find the adapted matrices under the parameter's name."""
        if self.disable_adapters:
            return
        left, right = torch.stack([*self.B]), torch.stack([*self.A])
        if self.transposed:
            left, right = right.mT, left.mT
        own = self.parameter
        vars(module)[self._name] = torch.baddbmm(own, left.to(own.dtype), right.to(own.dtype), alpha=self.scaling)

    def _restore(self, module: nn.Module, *_: object) -> None:
        vars(module).pop(self._name, None)


def chosen_parameters(model: nn.Module, settings: LoraSettings) -> list[tuple[str, nn.Module]]:
    """(full name, module) of every parameter that `lora.target_parameters` names, in the model's order.

    Raises:
        ConfigError: a name without a stack of experts, a rank above the experts' own, dropout, or a module whose parameters PEFT
            would nest in an order that its files do not tell.
    """
    if not settings.target_parameters:
        return []
    if settings.dropout:
        raise ConfigError("lora.dropout: experts' weights are added up before their inputs are known. Set it to 0.")
    stacks = dict(_stacks(model))
    for target in settings.target_parameters:
        if not any(ends_with(name, target) for name in stacks):
            known = ", ".join(sorted({".".join(name.rsplit(".", 2)[-2:]) for name in stacks})) or "none"
            raise ConfigError(
                f"lora.target_parameters: the model has no stack of experts '{target}' [experts, ., .]. It has: {known}."
            )
    chosen = [name for name in stacks if any(ends_with(name, target) for target in settings.target_parameters)]
    for name in chosen:
        if settings.rank > (smallest := min(stacks[name].shape[1:])):
            raise ConfigError(
                f"lora.rank: {settings.rank} is above the rank of the experts in '{name}' ({smallest}). Choose a smaller rank."
            )
    _check_nesting(chosen)
    return [(name, model.get_submodule(owner(name))) for name in chosen]


def _stacks(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    for name, parameter in model.named_parameters():
        if parameter.is_floating_point() and holds_experts(model, name, parameter):
            yield name, parameter


def _check_nesting(chosen: list[str]) -> None:
    """Raise ConfigError unless the order of a module's parameters is that in which adapter files are read."""
    own: dict[str, list[str]] = {}
    for name in chosen:
        own.setdefault(owner(name), []).append(name.rpartition(".")[2])
    for module, names in own.items():
        if len(names) > 1 and names != [name for name in NESTING if name in names]:
            raise ConfigError(
                f"lora.target_parameters: '{module}' holds {', '.join(names)}, whose order in an adapter's file is not known. "
                "Name one of them."
            )
