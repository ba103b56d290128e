"""The adapter, as settings; names follow PEFT's LoraConfig where both have the same thing."""

from __future__ import annotations

import math
from typing import Annotated, Self

from pydantic import AfterValidator, Field, model_validator

from perdure.settings.patterns import checked_pattern
from perdure.settings.read import Settings

ALL_LINEAR = "all-linear"
Targets = str | tuple[str, ...]
"""Names or ends of names; or 'all-linear' (targets only) or a regular expression."""


def _pattern(value: Targets) -> Targets:
    """A checked regular expression; 'all-linear' in any case of letters, as in PEFT."""
    if not isinstance(value, str):
        if ALL_LINEAR in map(str.casefold, value):
            raise ValueError(
                f"'{ALL_LINEAR}' stands for all names and is not one of a list: write lora.targets={ALL_LINEAR}"
            )
        return value
    return ALL_LINEAR if value.casefold() == ALL_LINEAR else checked_pattern(value)


LARGEST_SCALING = 1e19
"""A step of the factors changes the update by the scaling's square; fp32 ends at 3.4e38."""


class LoraSettings(Settings):
    """The adapter."""

    rank: int = Field(default=8, ge=1)
    """r, the rank of each layer's update."""
    alpha: float = Field(default=16.0, gt=0)
    """scales the update by alpha / r, or by alpha / sqrt(r) with `rslora`."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """dropout probability on the adapter's input during training."""
    targets: Annotated[Targets, AfterValidator(_pattern)] = ()
    """which linear layers get an adapter, as PEFT's target_modules: names or their ends, 'all-linear' = all but the output
    head, or one string = a regular expression that matches whole names; empty = the model's default (query and value)."""
    exclude: Annotated[Targets, AfterValidator(_pattern)] = ()
    """layers among these that get none: names or their ends, or a regular expression."""
    target_parameters: tuple[str, ...] = ()
    """parameters that hold many experts' matrices and get adapters too, as PEFT's target_parameters: names or their ends."""
    rslora: bool = False
    """rank-stabilised scaling."""

    @model_validator(mode="after")
    def _trainable(self) -> Self:
        scaling = self.alpha / (math.sqrt(self.rank) if self.rslora else self.rank)
        if scaling > LARGEST_SCALING:
            raise ValueError(
                f"lora.alpha={self.alpha:g} and lora.rank={self.rank} scale the update by {scaling:.3g}: with more than "
                f"{LARGEST_SCALING:.0e}, numbers of 32 bits overflow at the first step. Usual are 1 to 4"
            )
        return self
