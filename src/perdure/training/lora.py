"""LoRA on a model: attach factors, start them, fold updates into the base, deploy. The only file that imports peft.

One adapter per module is active at any time: what earlier tasks left is folded into the base, so a training step costs the
same at task 100 as at task 2. The base is always recomputed from the pretrained weights in fp32, never updated in place,
so rounding errors do not accumulate:

    W = W_0 + carry - s B_0 A_0      while training (the offset only where an init asks for one)
    W = W_0 + deployed               while answering
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from peft import LoraConfig, PeftModel, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from peft.utils.transformers_weight_conversion import convert_peft_config_for_transformers
from torch import Tensor, nn

from perdure.config.lora_settings import LoraSettings, Targets
from perdure.errors import ConfigError
from perdure.methods.contract.context import Gradients
from perdure.methods.contract.parts import Start, Trainable
from perdure.methods.contract.past import PerTask
from perdure.ops.factors import Factors
from perdure.ops.lowrank import LowRank, Update
from perdure.training.adapted_module import AdaptedModule
from perdure.training.coverage import Coverage
from perdure.training.experts import Experts, chosen_parameters
from perdure.training.matrices import coverage
from perdure.training.processes import Processes
from perdure.training.sharding import gathered
from perdure.training.targets import check_unshared, chosen_modules

ADAPTER = "default"


class AdaptedModel:
    """A frozen model with one LoRA adapter, and the base weights it stands on. For errors see `chosen_modules`.

    Args:
        model: any module with linear layers; changed in place.
        settings: rank, alpha, dropout, targets.
        default_targets: used when `settings.targets` is empty.
    """

    def __init__(self, model: nn.Module, settings: LoraSettings, default_targets: Targets) -> None:
        chosen = chosen_modules(model, settings, default_targets, _unfit)
        parameters = chosen_parameters(model, settings)
        model.requires_grad_(False)
        config = LoraConfig(
            r=settings.rank,
            lora_alpha=settings.alpha,  # pyright: ignore[reportArgumentType]  (peft accepts a float)
            lora_dropout=settings.dropout,
            use_rslora=settings.rslora,
            target_modules=list(chosen.modules),
        )
        adapted = model
        if chosen.modules:
            with _refusals_explained(model):
                adapted = inject_adapter_in_model(config, model, ADAPTER)
        for name, parameter in adapted.named_parameters():  # PEFT takes the base's dtype; factors need fp32 or better
            if ".lora_" in name and parameter.dtype in (torch.float16, torch.bfloat16):
                parameter.data = parameter.data.float()
        stacks = {name: Experts(module, name.rpartition(".")[2], settings) for name, module in parameters}
        self._wrap(adapted, ADAPTER, stacks)
        self.targets, self._left_out = settings.targets or default_targets, chosen.left_out
        self.enable(False)

    @classmethod
    def around(cls, peft_model: Any) -> AdaptedModel:
        """The same view of what `peft.get_peft_model` returned, under the bare model's names; unchanged until `fold` and `start`.

        Raises:
            ConfigError: it is something else, is merged, or adapts other weights than those of linear layers, or shared ones.
        """
        if not isinstance(peft_model, PeftModel) or not isinstance(peft_model.active_adapter, str):
            raise ConfigError(
                f"Expected a PEFT model with one active LoRA adapter, got {type(peft_model).__name__}. Make one with "
                "peft.get_peft_model(model, LoraConfig(...))."
            )
        adapted = cls.__new__(cls)
        adapted._wrap(peft_model.get_base_model(), peft_model.active_adapter)
        check_unshared(adapted.model, adapted.modules)
        return adapted

    def _wrap(self, model: nn.Module, adapter: str, stacks: Mapping[str, Experts] | None = None) -> None:
        self.model, self._adapter, self._stacks = model, adapter, stacks or {}
        self._find_modules()
        self.trainable: Trainable = "AB"
        self._offset: dict[str, Factors] = {}
        self._carry: Update = {}
        self.targets: Targets = tuple(self.modules)
        self._left_out: Mapping[str, tuple[str, ...]] = {}

    def _find_modules(self) -> None:
        layers = {name: layer for name, layer in self.model.named_modules() if isinstance(layer, LoraLayer)}
        self.modules = {name: AdaptedModule.around(name, layer, self._adapter) for name, layer in layers.items()}
        for name, stack in self._stacks.items():
            self.modules |= {f"{name}.{e}": AdaptedModule.of_expert(stack, e) for e in range(len(stack.A))}

    def shard(self, processes: Processes) -> None:
        """Split the base over the processes, not the adapter; ConfigError if quantised, with experts, or with one process."""
        if self._stacks:
            raise ConfigError(
                "shard=true splits single layers; experts stay whole. Leave out it or lora.target_parameters."
            )
        if not self.dense_base:
            raise ConfigError("shard=true splits dense weights; a quantised base stays whole. Use one of the two.")
        processes.shard(self.model, {p for module in self.modules.values() for p in (module.A, module.B)})
        self._find_modules()  # again: of the pretrained values, this process now keeps its shard

    @property
    def device(self) -> torch.device:
        """Where the factors are, and where their computations run."""
        return next(iter(self.modules.values())).A.device

    @property
    def dense_base(self) -> bool:
        """Whether every target's weight is stored dense, so that updates can be folded into it."""
        return all(module.pretrained_OI is not None for module in self.modules.values())

    @property
    def fan_in_fan_out(self) -> bool:
        """Whether the base stores any target's weight as [I, O] (Conv1D of GPT-2); adapter files record it."""
        return any(module.transposed for module in self.modules.values() if module.index is None)

    @property
    def expert_parameters(self) -> tuple[str, ...]:
        """Names of the adapted parameters of many experts, each of which is a module NAME.e."""
        return tuple(self._stacks)

    @property
    def smallest_rank(self) -> int:
        """The lowest rank among the adapter's modules."""
        return min(module.A.shape[0] for module in self.modules.values())

    def coverage(self) -> Coverage:
        """How much of the model the adapter reaches."""
        linear = [name for name, module in self.modules.items() if module.index is None]
        return coverage(self.model, [*linear, *self._stacks])

    def left_out_notes(self) -> list[str]:
        """What 'all-linear' left out, one line for each reason."""
        return [
            f"lora.targets=all-linear leaves out {len(names)} layers ({', '.join(names[:2])}{', ...' * (len(names) > 2)}): they "
            f"{reason}"
            for reason, names in self._left_out.items()
        ]

    def enable(self, on: bool) -> None:
        """Switch the adapter on (training) or off (the base alone answers)."""
        for module in self.modules.values():
            module.layer.enable_adapters(on)
            module.A.requires_grad_(on and "A" in self.trainable)
            module.B.requires_grad_(on and "B" in self.trainable)

    def factors(self) -> dict[str, Factors]:
        """The live factors, with the offset they started from; detached views that follow the training."""
        offset = {name: (pair.A0, pair.B0) for name, pair in self._offset.items()}
        return {
            name: Factors(m.A.detach(), m.B.detach(), m.scaling, *offset.get(name, (None, None)))
            for name, m in self.modules.items()
        }

    def copied_factors(self) -> dict[str, Factors]:
        """Copies of the factors, which no longer follow the training."""
        return {name: pair.copied() for name, pair in self.factors().items()}

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
        """pretrained + carry of one module, [O, I] in fp32; UnmetNeed if the base is quantised."""
        return self.modules[module].weight(module, self._carry.get(module)).clone()

    def fold(self, carry: Update) -> None:
        """Begin a stage: `carry` folded into the base, adapter off, no offset."""
        self._carry, self._offset = carry, {}
        self._write_base(carry)
        self.enable(False)

    def start(self, start: Start) -> None:
        """Begin training: the adapter holds `start.factors`; the base is offset if they have A0 and B0."""
        self.trainable = start.trainable
        self._offset = {name: pair.copied() for name, pair in start.factors.items() if pair.A0 is not None}
        with torch.no_grad():
            for name, pair in start.factors.items():
                self.modules[name].A.copy_(pair.A)
                self.modules[name].B.copy_(pair.B)
        if self._offset:
            self._write_base(self._carry)
        self.enable(True)

    @contextmanager
    def deployed(self, update: Update) -> Iterator[None]:
        """Within: the base is pretrained + `update` and the adapter is off. Afterwards everything is restored."""
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
        own = {name: (module.A.detach().clone(), module.B.detach().clone()) for name, module in self.modules.items()}
        try:
            self._set_data({name: (pair.A, pair.B) for name, pair in factors.items()})
            yield
        finally:
            self._set_data(own)

    def _set_data(self, pairs: Mapping[str, tuple[Tensor, Tensor]]) -> None:
        """Through `.data`, so that a graph waiting for backward does not see a change (the own values are back by then)."""
        for name, (A, B) in pairs.items():
            self.modules[name].A.data.copy_(A)
            self.modules[name].B.data.copy_(B)

    def _write_base(self, update: Update) -> None:
        for name, module in self.modules.items():
            module.set_update(name, update.get(name), self._offset.get(name))

    def fingerprint(self) -> str:
        """sha256 over name, shape and the first 4,096 values of every pretrained tensor: identifies the base."""
        digest = hashlib.sha256()
        with self.deployed({}):
            for name, tensor in sorted(self.plain_state_dict().items()):
                digest.update(f"{name}{tuple(tensor.shape)}".encode())
                sample = tensor.detach().flatten()[:4096].cpu()
                digest.update((sample.float() if sample.is_floating_point() else sample).numpy().tobytes())
        return digest.hexdigest()

    def plain_state_dict(self) -> dict[str, Tensor]:
        """The bare model's current state dict: without the adapter, under the names from before it was attached."""
        return {
            name.replace(".base_layer.", "."): gathered(tensor)
            for name, tensor in self.model.state_dict().items()
            if ".lora_" not in name
        }

    @contextmanager
    def weights_of(self, deployed: Update | PerTask) -> Iterator[dict[str, Tensor]]:
        """The bare model's state dict with a dense update in it; empty if plain adapters can hold the update."""
        if isinstance(deployed, PerTask) or all(isinstance(delta, LowRank) for delta in deployed.values()):
            yield {}
        else:
            with self.deployed(deployed):
                yield {name: tensor.cpu() for name, tensor in self.plain_state_dict().items()}


def _unfit(model: nn.Module, name: str) -> str | None:
    """Why PEFT cannot adapt a linear layer of this model; None: it can."""
    if getattr(getattr(model, "config", None), "model_type", None) is None or not _is_redirected(model, name):
        return None
    return "have the name of this model's experts, among which PEFT would look for them"


def _is_redirected(model: nn.Module, name: str) -> bool:
    """Whether PEFT takes a layer's name for that of experts, which were layers of that name in transformers 4."""
    end = name.rpartition(".")[2]
    config = LoraConfig(target_modules=[end])
    try:
        convert_peft_config_for_transformers(config, model, None)
    except ValueError:  # it must not be named without the other one that was fused with it
        return True
    return end not in (config.target_modules or ())


@contextmanager
def _refusals_explained(model: nn.Module) -> Iterator[None]:
    """PEFT's own refusals as errors that name the setting."""
    try:
        yield
    except (ValueError, TypeError, AttributeError, NotImplementedError, RuntimeError, KeyError) as error:
        said = " ".join(str(error).split())
        raise ConfigError(
            f"lora.targets: PEFT cannot adapt the chosen layers of {type(model).__name__}: {said:.300} Choose others, or leave "
            "some out with lora.exclude."
        ) from error
