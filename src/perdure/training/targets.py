"""Which modules LoRA may adapt: those that `lora.targets` names, whose weight no other module shares."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor, nn

from perdure.errors import ConfigError


def check_targets(model: nn.Module, targets: tuple[str, ...], rank: int) -> None:
    """Raise ConfigError unless every target matches a module with its own weight, of which no side is below `rank`."""
    linear = {n: s for n, m in model.named_modules() if not isinstance(m, nn.Embedding) and (s := _shape(m))}
    for target in targets:
        matched = {name: s for name, s in linear.items() if name == target or name.endswith(f".{target}")}
        if not matched:
            kinds = sorted({name.rsplit(".", 1)[-1] for name in linear.keys() - _sharing_modules(model)})
            raise ConfigError(f"lora.targets: the model has no layer '{target}'. Candidates: {', '.join(kinds)}.")
        check_unshared(model, matched)
        for name, shape in matched.items():
            if rank > min(shape):
                raise ConfigError(
                    f"lora.rank: {rank} is above the rank of '{name}' ({min(shape)}). Choose a smaller rank."
                )


def check_unshared(model: nn.Module, names: Iterable[str]) -> None:
    """Raise ConfigError if a module in `names` shares its weight with another module."""
    if tied := sorted(_sharing_modules(model).intersection(names)):
        raise ConfigError(
            f"lora.targets (PEFT's target_modules): '{tied[0]}' shares its weight with another module, as tied embeddings do. An "
            "update of one would change the other too. Choose other layers, or untie the model first."
        )


def _shape(module: nn.Module) -> tuple[int, ...] | None:
    """(O, I) of a layer with a matrix (a packed weight has another shape than its layer); None for other modules."""
    weight = getattr(module, "weight", None)
    if not isinstance(weight, Tensor) or weight.ndim != 2:
        return None
    return (module.out_features, module.in_features) if isinstance(module, nn.Linear) else tuple(weight.shape)


def _sharing_modules(model: nn.Module) -> set[str]:
    """Names of the modules that share their weight, such as an output head tied to the input embedding."""
    holders: dict[int, set[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        module, _, kind = name.rpartition(".")
        if kind == "weight":
            holders.setdefault(id(parameter), set()).add(module.removesuffix(".base_layer"))
    return {name for names in holders.values() if len(names) > 1 for name in names}
