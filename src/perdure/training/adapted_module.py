"""One target module of a LoRA adapter: its factors A and B, and its base weight, which updates are folded into."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from perdure.errors import ConfigError, UnmetNeed
from perdure.ops.factors import Factors
from perdure.ops.lowrank import Delta, LowRank, dense
from perdure.training.sharding import gathered, write


class SidePath:
    """A low-rank term added to the output of a layer whose weight cannot be written."""

    def __init__(self, base: nn.Module) -> None:
        self.delta: LowRank | None = None
        base.register_forward_hook(self._add)

    def _add(self, _module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        if self.delta is None:
            return output
        A, B = self.delta.A.to(output), self.delta.B.to(output)
        return output + functional.linear(functional.linear(args[0].to(output.dtype), A), B)


@dataclass(frozen=True, eq=False)
class AdaptedModule:
    """One target module: its trainable factors, and the pretrained values of its base weight [O, I] in fp32 (perhaps sharded).

    `index`: which expert of a stack it is.

    A quantised weight (4 or 8 bit) cannot be written. It has a side path instead of pretrained values: the low-rank terms are
    added to the layer's output, y = W_0 x + B (A x), which is the same function.
    """

    layer: Any
    A: nn.Parameter
    B: nn.Parameter
    scaling: float
    pretrained_OI: Tensor | None
    transposed: bool
    side: SidePath | None = None
    index: int | None = None

    @classmethod
    def of_expert(cls, stack: Any, index: int) -> AdaptedModule:
        """One expert of a stack (perdure.training.experts.Experts)."""
        own = stack.parameter.detach()[index]
        pretrained = (own.mT if stack.transposed else own).float().clone()
        return cls(stack, stack.A[index], stack.B[index], stack.scaling, pretrained, stack.transposed, None, index)

    @classmethod
    def around(cls, name: str, layer: Any, adapter: str) -> AdaptedModule:
        """The module of a PEFT LoRA layer; ConfigError if it is merged or is not a linear layer."""
        bare = hasattr(layer, "parameter_name")  # PEFT's wrapper of a module whose parameter is adapted
        if bare or layer.merged or adapter not in layer.lora_A or layer.lora_A[adapter].weight.ndim != 2:
            raise ConfigError(
                f"The adapter '{adapter}' at '{name}' is merged into the base, or does not adapt a linear layer's weight. Give "
                "an unmerged model with LoRA on linear layers."
            )
        base = layer.get_base_layer()
        weight = base.weight.detach()
        transposed = bool(getattr(layer, "fan_in_fan_out", False))
        A, B = layer.lora_A[adapter].weight, layer.lora_B[adapter].weight
        is_dense = weight.is_floating_point() and weight.ndim == 2
        pretrained = (weight.mT if transposed else weight).float().clone() if is_dense else None
        side = None if is_dense else SidePath(base)
        return cls(layer, A, B, float(layer.scaling[adapter]), pretrained, transposed, side)

    @property
    def base(self) -> nn.Parameter:
        """The base weight, in its own dtype and layout; of an expert, its part of the parameter."""
        return self.layer.get_base_layer().weight if self.index is None else self.layer.parameter[self.index]

    @property
    def shape(self) -> tuple[int, int]:
        """(O, I) of the weight."""
        return self.B.shape[0], self.A.shape[1]

    def weight(self, name: str, delta: Delta | None) -> Tensor:
        """pretrained + `delta`, [O, I] in fp32 (the stored tensor itself without `delta`); UnmetNeed if quantised."""
        if self.pretrained_OI is None:
            raise UnmetNeed(f"'{name}' is stored quantised and has no dense weight. Load the base in bf16 or fp32.")
        pretrained = gathered(self.pretrained_OI)
        return pretrained if delta is None else pretrained + dense(delta.to(pretrained.device))

    @torch.no_grad()
    def set_update(self, name: str, delta: Delta | None, start: Factors | None) -> None:
        """Set the base to pretrained + `delta` - s B_0 A_0 (the offset of `start`); UnmetNeed if quantised and `delta` dense."""
        A0, B0, scaling = (start.A0, start.B0, start.scaling) if start else (None, None, 1.0)
        if self.side is not None:
            if isinstance(delta, Tensor):
                raise UnmetNeed(
                    f"'{name}' is stored quantised and can carry only a low-rank update, but this one is dense: merged entry by "
                    "entry, or the sum of so many adapters that their factors are larger than the matrix. Load the base dense, "
                    "or choose a method that sums, a lower rank or fewer tasks."
                )
            terms = [] if delta is None else [delta]
            if A0 is not None and B0 is not None:
                terms.append(LowRank(A0, B0 * -scaling))
            A, B = [term.A for term in terms], [term.B for term in terms]
            self.side.delta = LowRank(torch.cat(A), torch.cat(B, dim=1)) if terms else None
        if self.pretrained_OI is not None:
            weight = self.weight(name, delta)
            if A0 is not None and B0 is not None:
                weight = torch.addmm(weight, B0.to(weight), A0.to(weight), alpha=-scaling)
            write(self.base.data, weight.mT if self.transposed else weight)
