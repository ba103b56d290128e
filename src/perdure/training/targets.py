"""Which modules LoRA adapts: those that `lora.targets` names, as PEFT reads it, less `lora.exclude`.

    q_proj, model.layers.0.q_proj    a list: every module whose name is one of these, or ends with one at a dot
    .*layers\\.[01]\\.mlp\\..*           a string: a regular expression that matches the whole name
    all-linear                       every linear layer except the output head

Named layers that cannot be adapted are an error; 'all-linear' leaves them out and says so.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear
from transformers.pytorch_utils import Conv1D

from perdure.config.lora_settings import ALL_LINEAR, LoraSettings, Targets
from perdure.errors import ConfigError
from perdure.settings.patterns import full_matches

MAMBA = ("falcon_h1", "mamba", "mamba2", "falcon_mamba", "nemotron_h")
"""Model types of whose Mamba layers PEFT refuses `out_proj`."""

Reason = Callable[[nn.Module, str], str | None]
"""(model, module's name) -> why it cannot be adapted; None: it can."""


@dataclass(frozen=True)
class Chosen:
    """Full names of the chosen modules, in the model's order; and, for 'all-linear', each reason -> those left out."""

    modules: tuple[str, ...]
    left_out: Mapping[str, tuple[str, ...]]


def chosen_modules(model: nn.Module, settings: LoraSettings, default: Targets, unfit: Reason) -> Chosen:
    """The modules to adapt.

    Args:
        default: what is adapted if `settings.targets` is empty.
        unfit: why PEFT cannot adapt a linear layer of the model.

    Raises:
        ConfigError: a name or pattern without a linear layer, nothing left to adapt, or (where layers are named) one that shares
            its weight, is smaller than the rank, or is `unfit`.
    """
    targets = settings.targets or default
    linear = {name: module for name, module in model.named_modules() if name and is_linear(module)}
    if targets == ALL_LINEAR:
        names, left_out = _all_linear(model, linear, settings.rank, unfit)
        if not names:
            raise ConfigError(
                f"lora.targets=all-linear: {type(model).__name__} has no linear layer that can be adapted."
            )
    else:
        names, left_out = _matching(targets, linear, model), {}
    names = _without(names, settings.exclude)
    if not names and not settings.target_parameters:
        raise ConfigError("lora.exclude leaves no layer to adapt. Exclude fewer, or choose other lora.targets.")
    if targets != ALL_LINEAR:
        check_unshared(model, names)
        _check_fit(model, linear, names, settings.rank, unfit)
    return Chosen(tuple(names), left_out)


def is_linear(module: nn.Module) -> bool:
    """Whether LoRA can adapt the module: it multiplies its inputs by its weight, and does nothing else.

    A router or clipped layer of transformers computes more in a `forward` of its own (Falcon's does not); torch's own attention
    reads the weight of its projection directly, past any adapter.
    """
    if not isinstance(module, nn.Linear):
        return isinstance(module, Conv1D)
    kind = type(module)
    own = kind.forward is not nn.Linear.forward and kind.__module__.startswith("transformers.models.")
    return not isinstance(module, NonDynamicallyQuantizableLinear) and (not own or _multiplies(module))


def _multiplies(module: nn.Linear) -> bool:
    """Whether the module's own `forward` gives what a linear layer's does, on inputs of both signs and of some size."""
    weight = module.weight
    if weight.is_meta or not weight.dtype.is_floating_point:
        return False
    x = torch.linspace(-1e3, 1e3, 3 * module.in_features, dtype=weight.dtype, device=weight.device).view(1, 3, -1)
    try:
        with torch.no_grad():
            own, linear = module(x), nn.Linear.forward(module, x)
    except (RuntimeError, TypeError, ValueError):
        return False
    return isinstance(own, Tensor) and own.shape == linear.shape and torch.allclose(own, linear, rtol=1e-3, atol=1e-3)


def size(module: nn.Module) -> tuple[int, int]:
    """(O, I) of a linear layer (a packed weight has another shape than its layer)."""
    if isinstance(module, nn.Linear):
        return module.out_features, module.in_features
    width, height = cast(Conv1D, module).weight.shape  # stored as [I, O]
    return height, width


def _all_linear(
    model: nn.Module, linear: Mapping[str, nn.Module], rank: int, unfit: Reason
) -> tuple[list[str], dict[str, tuple[str, ...]]]:
    """The linear layers to adapt, and each reason -> the others. The output head and poolers go without saying."""
    head = getattr(model, "get_output_embeddings", lambda: None)()
    tied = sharing_modules(model)
    names: list[str] = []
    left_out: dict[str, list[str]] = {}
    for name, module in linear.items():
        if module is head or "pooler" in name:
            continue  # no backbone uses a pooler
        reason = _read_past(model, name) or unfit(model, name)
        if name in tied:
            reason = "share their weight with another module"
        elif min(size(module)) < rank:
            reason = f"are smaller than lora.rank = {rank}"
        if reason:
            left_out.setdefault(reason, []).append(name)
        else:
            names.append(name)
    return names, {reason: tuple(those) for reason, those in left_out.items()}


def _matching(targets: Targets, linear: Mapping[str, nn.Module], model: nn.Module) -> list[str]:
    """The linear layers that a pattern or a list of names matches; ConfigError for a name that matches none."""
    if isinstance(targets, str):
        if found := full_matches(targets, linear, "lora.targets"):
            return found
        raise ConfigError(
            f"lora.targets: no linear layer's whole name matches the regular expression '{targets:.60}'. A list gives names or "
            f"their ends, as in [q_proj, v_proj]. Names here look like '{next(iter(linear), '')}'."
        )
    for target in targets:
        if not any(ends_with(name, target) for name in linear):
            raise ConfigError(_no_match(model, linear, target))
    return [name for name in linear if any(ends_with(name, target) for target in targets)]


def ends_with(name: str, end: str) -> bool:
    """Whether a module's name is `end`, or ends with it at a dot."""
    return name == end or name.endswith(f".{end}")


def _no_match(model: nn.Module, linear: Mapping[str, nn.Module], target: str) -> str:
    head = getattr(model, "get_output_embeddings", lambda: None)()
    fit = {name for name, module in linear.items() if module is not head} - sharing_modules(model)
    kinds = sorted({name.rsplit(".", 1)[-1] for name in fit})
    candidates = f"Candidates: {', '.join(kinds)}."
    for name, module in model.named_modules():
        if ends_with(name, target):
            return f"lora.targets: '{name}' is not a linear layer but a {type(module).__name__}. {candidates}"
    return f"lora.targets: the model has no layer '{target}'. {candidates}"


def _without(names: list[str], exclude: Targets) -> list[str]:
    """The names that `lora.exclude` leaves; ConfigError for an entry that none of them matches."""
    if not exclude:
        return names
    if isinstance(exclude, str):
        out: Collection[str] = set(full_matches(exclude, names, "lora.exclude"))
        unused = [] if out else [exclude]
    else:
        out = {name for name in names if any(ends_with(name, end) for end in exclude)}
        unused = [end for end in exclude if not any(ends_with(name, end) for name in names)]
    if unused:
        raise ConfigError(
            f"lora.exclude: none of the layers to adapt matches '{unused[0]:.60}'. Leave it out, or correct it."
        )
    return [name for name in names if name not in out]


def _check_fit(
    model: nn.Module, linear: Mapping[str, nn.Module], names: Iterable[str], rank: int, unfit: Reason
) -> None:
    for name in names:
        if rank > (smallest := min(size(linear[name]))):
            raise ConfigError(
                f"lora.rank: {rank} is above the rank of '{name}' ({smallest}). Choose a smaller rank, or exclude that layer "
                "(lora.exclude)."
            )
        if reason := _read_past(model, name) or unfit(model, name):
            raise ConfigError(
                f"lora.targets: '{name}' cannot be adapted: such layers {reason}. Leave it out (lora.exclude)."
            )


def _read_past(model: nn.Module, name: str) -> str | None:
    """Why an adapter of the layer would be passed over: Mamba computes with the weights of some of its layers itself."""
    parent, _, end = name.rpartition(".")
    if end == "out_proj" and getattr(getattr(model, "config", None), "model_type", None) in MAMBA:
        return "are read by Mamba's fused kernels past any adapter"
    if end == "dt_proj" and "Mamba" in type(model.get_submodule(parent)).__name__:
        return "have their weight read by Mamba directly, past any adapter"
    return None


def check_unshared(model: nn.Module, names: Iterable[str]) -> None:
    """Raise ConfigError if a module in `names` shares its weight with another module."""
    if tied := sorted(sharing_modules(model).intersection(names)):
        raise ConfigError(
            f"lora.targets (PEFT's target_modules): '{tied[0]}' shares its weight with another module, as tied embeddings do. An "
            "update of one would change the other too. Choose other layers, or untie the model first."
        )


def sharing_modules(model: nn.Module) -> set[str]:
    """Names of the modules that share their weight with another one, such as an output head tied to the input embedding.

    One module that stands at two places of the model is not two: its adapter stands at both.
    """
    holders: dict[int, dict[int, set[str]]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        if isinstance(weight := getattr(module, "weight", None), nn.Parameter) and not hasattr(module, "base_layer"):
            holders.setdefault(id(weight), {}).setdefault(id(module), set()).add(name.removesuffix(".base_layer"))
    return {name for own in holders.values() if len(own) > 1 for names in own.values() for name in names}


def check_reached(loss: Tensor) -> None:
    """Raise ConfigError if the loss depends on none of the adapted layers: nothing could be learnt."""
    if not loss.requires_grad:
        raise ConfigError(
            "lora.targets: the model's loss depends on none of the adapted layers, so nothing can be learnt. Choose layers that "
            "the model uses for this kind of input, or lora.targets=all-linear."
        )
