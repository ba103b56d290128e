"""How much of a model its adapter reaches: modules, layers, and the share of the matrix parameters; in numbers and words."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Coverage:
    """What an adapter reaches.

    Args:
        modules: number of adapted matrices (an expert counts as one).
        layers, of_layers: layers with an adapted module, and all; 0 of 0 where the model is not made of layers.
        share: of the matrix parameters, without embeddings and output head.
        bare: names of the layers that nothing in is adapted.
        experts: names of the parameters that hold many experts' matrices and are not adapted.
        experts_share: of the matrix parameters.
    """

    modules: int
    layers: int
    of_layers: int
    share: float
    bare: tuple[str, ...] = ()
    experts: tuple[str, ...] = ()
    experts_share: float = 0.0

    def as_json(self) -> dict[str, Any]:
        """As run.json records it."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}


def coverage_line(found: Mapping[str, Any]) -> str:
    """One line, as in "adapts 24 modules in 6 of 6 layers, 14 % of the matrix parameters"; `found` as recorded."""
    modules = f"{found['modules']} module{'s' if found['modules'] != 1 else ''}"
    where = f" in {found['layers']} of {found['of_layers']} layers" if found["of_layers"] else ""
    share = 100 * found["share"]
    return f"adapts {modules}{where}, {share:.{0 if share >= 1 else 2}f} % of the matrix parameters"


def coverage_warnings(found: Coverage) -> list[str]:
    """What the adapter does not reach and a user may not expect: whole layers, experts."""
    lines = []
    if found.bare:
        some = ", ".join(found.bare[:3]) + (", ..." if len(found.bare) > 3 else "")
        lines.append(
            f"{len(found.bare)} of {found.of_layers} layers are not adapted ({some}): they have other modules than lora.targets "
            "names. lora.targets=all-linear adapts every linear layer"
        )
    if found.experts:
        kinds = ", ".join(sorted({".".join(name.rsplit(".", 2)[-2:]) for name in found.experts}))
        lines.append(
            f"experts with {100 * found.experts_share:.0f} % of the matrix parameters are not adapted; "
            f"lora.target_parameters=[{kinds}] adapts them"
        )
    return lines
