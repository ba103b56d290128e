"""LoRA on a model: attach factors, start them, fold updates into the base, deploy. The only file that imports peft.

One adapter per module is active at any time: what earlier tasks left is folded into the base, so a training step costs the
same at task 100 as at task 2. The base is always recomputed from the pretrained weights in fp32, never updated in place,
so nothing drifts:

    W = W_0 + carry - s B_0 A_0      while training (the offset only where an init asks for one)
    W = W_0 + deployed               while answering

A quantised base (4 or 8 bit) cannot be written to: there the same low-rank terms are added to the layer's output instead,
y = W_0 x + B (A x), which is the same function. A dense update is refused there: it would need more memory than it saves.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from peft import LoraConfig, PeftModel, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from torch.nn import functional

from perdure.config.run_config import LoraSettings
from perdure.errors import ConfigError, UnmetNeed
from perdure.methods.contract.context import Gradients
from perdure.methods.contract.parts import Start, Trainable
from perdure.methods.contract.past import PerTask
from perdure.ops.factors import Factors
from perdure.ops.lowrank import LowRank, Update, dense
from perdure.training.processes import Processes
from perdure.training.sharding import gathered, write

ADAPTER = "default"


class SidePath:
    """A low-rank term beside a layer whose weight cannot be written: added to its output."""

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

    A quantised weight has no such values but a side path.
    """

    layer: Any
    A: nn.Parameter
    B: nn.Parameter
    scaling: float
    pretrained_OI: Tensor | None
    transposed: bool
    side: SidePath | None = None

    @property
    def base(self) -> nn.Parameter:
        """The base weight."""
        return self.layer.get_base_layer().weight

    def set_base(self, weight_OI: Tensor) -> None:
        """Write the base weight, in its own dtype and layout."""
        write(self.base.data, weight_OI.mT if self.transposed else weight_OI)


class AdaptedModel:
    """A frozen model with one LoRA adapter, and the base weights it stands on.

    Args:
        model: any module with linear layers; changed in place.
        settings: rank, alpha, dropout, targets.
        default_targets: used when `settings.targets` is empty.

    Raises:
        ConfigError: no module matches the targets (candidates listed), one shares its weight, or a rank above a layer's.
    """

    def __init__(self, model: nn.Module, settings: LoraSettings, default_targets: tuple[str, ...]) -> None:
        targets = settings.targets or default_targets
        _check_targets(model, targets, settings.rank)
        model.requires_grad_(False)
        config = LoraConfig(
            r=settings.rank,
            lora_alpha=settings.alpha,  # pyright: ignore[reportArgumentType]  (peft accepts a float)
            lora_dropout=settings.dropout,
            use_rslora=settings.rslora,
            target_modules=list(targets),
        )
        self._hold(_with_adapter(config, model), ADAPTER)
        self.enable(False)

    @classmethod
    def around(cls, peft_model: Any) -> AdaptedModel:
        """The same view of a model that PEFT has adapted already; nothing of it changes before `fold` and `start`.

        Args:
            peft_model: what `peft.get_peft_model` returned, with one active plain LoRA adapter; its names are the bare model's.

        Raises:
            ConfigError: it is no such model, is merged, or adapts something else than the weights of linear layers, or a
                weight that two modules share.
        """
        if not isinstance(peft_model, PeftModel) or not isinstance(peft_model.active_adapter, str):
            raise ConfigError(
                f"Expected a PEFT model with one active LoRA adapter, got {type(peft_model).__name__}; make one with "
                "peft.get_peft_model(model, LoraConfig(...))."
            )
        held = cls.__new__(cls)
        held._hold(peft_model.get_base_model(), peft_model.active_adapter)
        _check_unshared(held.modules, _sharing(held.model))
        return held

    def _hold(self, model: nn.Module, adapter: str) -> None:
        self.model, self._adapter = model, adapter
        self.modules = _adapted_modules(model, adapter)
        self.trainable: Trainable = "AB"
        self._offset: dict[str, Factors] = {}
        self._carry: Update = {}

    def shard(self, processes: Processes) -> None:
        """Split the base's weights over the processes; every process keeps the whole adapter.

        Raises:
            ConfigError: the base is quantised, or there is one process only.
        """
        if not self.dense_base:
            raise ConfigError("shard=true splits dense weights; a quantised base stays whole. Use one of the two.")
        processes.shard(self.model, {p for module in self.modules.values() for p in (module.A, module.B)})
        self.modules = _adapted_modules(self.model, self._adapter)  # the pretrained values: this process's part of them

    @property
    def device(self) -> torch.device:
        """Where the factors are, and what is computed with them."""
        return next(iter(self.modules.values())).A.device

    @property
    def dense_base(self) -> bool:
        """Whether every target's weight is stored dense, so that updates can be folded into it."""
        return all(module.pretrained_OI is not None for module in self.modules.values())

    @property
    def fan_in_fan_out(self) -> bool:
        """Whether the base stores any target's weight as [I, O] (Conv1D of GPT-2), as adapters say it."""
        return any(module.transposed for module in self.modules.values())

    @property
    def smallest_rank(self) -> int:
        """Of the adapter's modules."""
        return min(module.A.shape[0] for module in self.modules.values())

    def enable(self, on: bool) -> None:
        """Switch the adapter on (training) or off (the base alone answers)."""
        for module in self.modules.values():
            module.layer.enable_adapters(on)
            module.A.requires_grad_(on and "A" in self.trainable)
            module.B.requires_grad_(on and "B" in self.trainable)

    def factors(self) -> dict[str, Factors]:
        """The live factors, with the offset they started from; detached views that follow the training."""
        return {
            name: Factors(
                module.A.detach(),
                module.B.detach(),
                module.scaling,
                *((start.A0, start.B0) if (start := self._offset.get(name)) else (None, None)),
            )
            for name, module in self.modules.items()
        }

    def parameters(self) -> list[nn.Parameter]:
        """The factors that are trained, in a fixed order."""
        pairs = (p for module in self.modules.values() for p in (module.A, module.B))
        return [p for p in pairs if p.requires_grad]

    def gradients(self) -> Gradients:
        """Module name -> the gradients of A and B that backward left."""
        return {name: (module.A.grad, module.B.grad) for name, module in self.modules.items()}

    def set_gradients(self, grads: Gradients) -> None:
        """Put gradients where the optimiser looks for them; None for a frozen factor."""
        for name, (grad_A, grad_B) in grads.items():
            self.modules[name].A.grad, self.modules[name].B.grad = grad_A, grad_B

    def weight(self, module: str) -> Tensor:
        """pretrained + carry of one module, [O, I] in fp32.

        Raises:
            UnmetNeed: the base is quantised.
        """
        stored = self.modules[module].pretrained_OI
        if stored is None:
            raise UnmetNeed(f"'{module}' is stored quantised and has no dense weight; load the base in bf16 or fp32.")
        pretrained = gathered(stored)
        if module not in self._carry:
            return pretrained.clone()
        return pretrained + dense(self._carry[module].to(pretrained.device))

    def fold(self, carry: Update) -> None:
        """Begin a stage: `carry` folded into the base, adapter off, no offset."""
        self._carry, self._offset = carry, {}
        self._write_base(carry)
        self.enable(False)

    def start(self, start: Start) -> None:
        """Begin training: the adapter holds `start.factors`, the base is offset where they say so."""
        self.trainable = start.trainable
        self._offset = {name: pair.copied() for name, pair in start.factors.items() if pair.A0 is not None}
        with torch.no_grad():
            for name, pair in start.factors.items():
                module = self.modules[name]
                module.A.copy_(pair.A)
                module.B.copy_(pair.B)
        if self._offset:
            self._write_base(self._carry)
        self.enable(True)

    @contextmanager
    def deployed(self, update: Update) -> Iterator[None]:
        """Within: the base is pretrained + `update` and the adapter is off. Afterwards everything is as before."""
        was_on = any(not module.layer.disable_adapters for module in self.modules.values())
        offset, self._offset = self._offset, {}
        self._write_base(update)
        self.enable(False)
        try:
            yield
        finally:
            self._offset = offset
            self._write_base(self._carry)
            self.enable(was_on)

    @contextmanager
    def holding(self, factors: Mapping[str, Factors]) -> Iterator[None]:
        """Within: the adapter holds copies of other factors (of the same shapes). Afterwards its own again."""
        kept = {name: (module.A.detach().clone(), module.B.detach().clone()) for name, module in self.modules.items()}
        try:
            self._copy({name: (pair.A, pair.B) for name, pair in factors.items()})
            yield
        finally:
            self._copy(kept)

    def _copy(self, pairs: Mapping[str, tuple[Tensor, Tensor]]) -> None:
        for name, (A, B) in pairs.items():  # through .data: a graph that waits for backward must not see a change,
            self.modules[name].A.data.copy_(A)  # and none is left when the own values are back
            self.modules[name].B.data.copy_(B)

    @torch.no_grad()
    def _write_base(self, update: Update) -> None:
        for name, module in self.modules.items():
            if module.side is not None:
                module.side.delta = self._beside(name, update)
            if module.pretrained_OI is None:
                continue
            pretrained = gathered(module.pretrained_OI)  # of one module at a time
            weight = pretrained + dense(update[name].to(pretrained.device)) if name in update else pretrained
            if (start := self._offset.get(name)) and start.A0 is not None and start.B0 is not None:
                weight = torch.addmm(weight, start.B0.to(weight), start.A0.to(weight), alpha=-start.scaling)
            module.set_base(weight)

    def _beside(self, name: str, update: Update) -> LowRank | None:
        """What a quantised module adds to its output: its update less the offset, or None.

        Raises:
            UnmetNeed: the update is dense.
        """
        delta = update.get(name)
        if isinstance(delta, Tensor):
            raise UnmetNeed(
                f"'{name}' is stored quantised and can carry a low-rank update only, but this one is dense: merged entry by "
                "entry, or the sum of so many adapters that their factors are larger than the matrix. Load the base dense, "
                "or choose a method that sums, a lower rank or fewer tasks."
            )
        terms = [] if delta is None else [delta]
        if (start := self._offset.get(name)) and start.A0 is not None and start.B0 is not None:
            terms.append(LowRank(start.A0, start.B0 * -start.scaling))
        if not terms:
            return None
        return LowRank(torch.cat([term.A for term in terms]), torch.cat([term.B for term in terms], dim=1))

    def fingerprint(self) -> str:
        """sha256 over name, shape and the first 4,096 values of every pretrained tensor: tells whether a base is the same one."""
        digest = hashlib.sha256()
        with self.deployed({}):
            for name, tensor in sorted(self.plain_state_dict().items()):
                digest.update(f"{name}{tuple(tensor.shape)}".encode())
                sample = tensor.detach().flatten()[:4096].cpu()
                digest.update((sample.float() if sample.is_floating_point() else sample).numpy().tobytes())
        return digest.hexdigest()

    def plain_state_dict(self) -> dict[str, Tensor]:
        """The bare model's state dict as it stands now: no adapter, names as before it was attached."""
        return {
            name.replace(".base_layer.", "."): gathered(tensor)
            for name, tensor in self.model.state_dict().items()
            if ".lora_" not in name
        }

    @contextmanager
    def weights_of(self, deployed: Update | PerTask) -> Iterator[dict[str, Tensor]]:
        """The bare model's state dict with a dense update in it; empty for what plain adapters can hold."""
        if isinstance(deployed, PerTask) or all(isinstance(delta, LowRank) for delta in deployed.values()):
            yield {}
        else:
            with self.deployed(deployed):
                yield {name: tensor.cpu() for name, tensor in self.plain_state_dict().items()}


def _with_adapter(config: LoraConfig, model: nn.Module) -> nn.Module:
    """The model with an adapter, its factors in fp32 or better whatever the base is stored in (PEFT takes the base's dtype)."""
    adapted = inject_adapter_in_model(config, model, ADAPTER)
    for name, parameter in adapted.named_parameters():
        if ".lora_" in name and parameter.dtype in (torch.float16, torch.bfloat16):
            parameter.data = parameter.data.float()
    return adapted


def _adapted_modules(model: nn.Module, adapter: str) -> dict[str, AdaptedModule]:
    layers = {name: layer for name, layer in model.named_modules() if isinstance(layer, LoraLayer)}
    return {name: _adapted(name, layer, adapter) for name, layer in layers.items()}


def _adapted(name: str, layer: Any, adapter: str) -> AdaptedModule:
    if layer.merged or adapter not in layer.lora_A or layer.lora_A[adapter].weight.ndim != 2:
        raise ConfigError(
            f"The adapter '{adapter}' at '{name}' is merged into the base, or does not adapt a linear layer's weight; give "
            "an unmerged model with LoRA on linear layers."
        )
    base = layer.get_base_layer()
    weight = base.weight.detach()
    transposed = bool(getattr(layer, "fan_in_fan_out", False))
    A, B = layer.lora_A[adapter].weight, layer.lora_B[adapter].weight
    is_dense = weight.is_floating_point() and weight.ndim == 2
    pretrained = (weight.mT if transposed else weight).float().clone() if is_dense else None
    side = None if is_dense else SidePath(base)
    return AdaptedModule(layer, A, B, float(layer.scaling[adapter]), pretrained, transposed, side)


def _shape(module: nn.Module) -> tuple[int, ...] | None:
    """(O, I) of a layer with a matrix, told by the layer itself where its weight is packed; None for another module."""
    weight = getattr(module, "weight", None)
    if not isinstance(weight, Tensor) or weight.ndim != 2:
        return None
    return (module.out_features, module.in_features) if isinstance(module, nn.Linear) else tuple(weight.shape)


def _check_targets(model: nn.Module, targets: tuple[str, ...], rank: int) -> None:
    """Every target matches a module, none shares its weight with another one, and no rank is above a layer's."""
    sharing = _sharing(model)
    linear = {n: s for n, m in model.named_modules() if not isinstance(m, nn.Embedding) and (s := _shape(m))}
    for target in targets:
        matched = {name: s for name, s in linear.items() if name == target or name.endswith(f".{target}")}
        if not matched:
            kinds = sorted({name.rsplit(".", 1)[-1] for name in linear.keys() - sharing})
            raise ConfigError(
                f"lora.targets: no layer of the model is called '{target}'. Candidates: {', '.join(kinds)}."
            )
        _check_unshared(matched, sharing)
        for name, shape in matched.items():
            if rank > min(shape):
                raise ConfigError(
                    f"lora.rank: {rank} is above the rank of '{name}' ({min(shape)}); choose a smaller rank."
                )


def _sharing(model: nn.Module) -> set[str]:
    """Names of the modules whose weight is another module's too, such as an output head tied to the input embedding."""
    holders: dict[int, set[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        module, _, kind = name.rpartition(".")
        if kind == "weight":
            holders.setdefault(id(parameter), set()).add(module.removesuffix(".base_layer"))
    return {name for names in holders.values() if len(names) > 1 for name in names}


def _check_unshared(names: Iterable[str], sharing: set[str]) -> None:
    if tied := sorted(sharing.intersection(names)):
        raise ConfigError(
            f"lora.targets (PEFT's target_modules): '{tied[0]}' shares its weight with another module, as tied embeddings do; an "
            "update written into the one would change the other too. Choose other layers, or untie the model first."
        )
