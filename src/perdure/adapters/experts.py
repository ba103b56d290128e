"""LoRA on stacks of experts as PEFT stores it (`target_parameters`), taken apart into one A and B per expert, and joined.

    <module>[.base_layer ...].lora_A.weight [E R, I]     expert e has the rows e R ... e R + R - 1
    <module>[.base_layer ...].lora_B.weight [O, R E]     expert e has the columns e, E + e, 2 E + e, ...

PEFT wraps a module once for every parameter, in the order in which its class makes them: the first one's factors stand under
the most `base_layer`s. Here an expert's update is that of a module named PARAMETER.e.

Legend: E experts, R rank, O output features, I input features.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

from perdure.errors import AdapterError

NESTING = ("gate_up_proj", "down_proj")
"""The order in which transformers' experts make their parameters."""
LAYER = ".base_layer"


def parameter_at(stored: str, targets: Sequence[str], place: str) -> str:
    """The full name of the parameter whose factors a file holds under the module name `stored`.

    Args:
        targets: `target_parameters` of the adapter's configuration, names or their ends.

    Raises:
        AdapterError: none of them fits, or their order is not known.
    """
    module, depth = re.sub(rf"({re.escape(LAYER)})+$", "", stored), stored.count(LAYER)
    names = {end for target in targets for owner, _, end in [target.rpartition(".")] if _ends(module, owner)}
    order = [name for name in NESTING if name in names] if len(names) > 1 else [*names]
    if len(order) != len(names) or depth >= len(order):
        raise AdapterError(
            f"{place}: '{stored}' is not the adapter of a known parameter ({', '.join(sorted(targets))}); the order in which "
            "PEFT nests them is known for gate_up_proj and down_proj."
        )
    return f"{module}.{order[len(order) - 1 - depth]}"


def is_of_parameter(stored: str, targets: Iterable[str]) -> bool:
    """Whether a module name in a file stands for a parameter."""
    module = re.sub(rf"({re.escape(LAYER)})+$", "", stored)
    return any(_ends(module, target.rpartition(".")[0]) for target in targets)


def _ends(module: str, owner: str) -> bool:
    """Whether the module may hold a parameter that was named with this `owner`; '': any module called experts."""
    if not owner:
        return "expert" in module.rpartition(".")[2]
    return module == owner or module.endswith(f".{owner}")


def rows_of(A: Tensor, expert: int, experts: int) -> Tensor:
    """[R, I] of one expert, out of [E R, I]."""
    rank = A.shape[0] // experts
    return A[expert * rank : (expert + 1) * rank]


def columns_of(B: Tensor, expert: int, experts: int) -> Tensor:
    """[O, R] of one expert, out of [O, R E]."""
    return B[:, expert::experts]


def joined(pairs: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """(A [E R, I], B [O, R E]) of the experts' factors, all of one rank."""
    B = torch.stack([B for _, B in pairs], dim=2)  # [O, R, E]
    return torch.cat([A for A, _ in pairs]), B.flatten(1)


def grouped(modules: Iterable[str], parameters: Iterable[str]) -> dict[str, list[str]]:
    """Parameter -> the names of its experts' modules in order; the other modules are left out.

    Raises:
        AdapterError: an expert is missing, so that PEFT's layout has no place for the others.
    """
    found: dict[str, dict[int, str]] = {}
    known = set(parameters)
    for name in modules:
        parameter, _, number = name.rpartition(".")
        if parameter in known:
            found.setdefault(parameter, {})[int(number)] = name
    for parameter, experts in found.items():
        if sorted(experts) != list(range(len(experts))):
            raise AdapterError(f"'{parameter}': the update lacks some of the experts; nothing was written.")
    return {parameter: [experts[e] for e in sorted(experts)] for parameter, experts in found.items()}


def stored_names(parameters: Iterable[str]) -> Mapping[str, str]:
    """Parameter -> the module name under which its factors are stored."""
    own: dict[str, list[str]] = {}
    for name in parameters:
        own.setdefault(name.rpartition(".")[0], []).append(name)
    names: dict[str, str] = {}
    for module, ones in own.items():
        order = [name for end in NESTING for name in ones if name.endswith(f".{end}")] if len(ones) > 1 else ones
        if len(order) != len(ones):
            raise AdapterError(f"'{module}': the order in which PEFT nests {', '.join(sorted(ones))} is not known.")
        for depth, name in enumerate(reversed(order)):
            names[name] = module + LAYER * depth
    return names
