"""What `attach` takes must be new: a trainer that has not trained, an adapter that has learnt nothing, a base as in its files."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch

from perdure.errors import AdapterError, ConfigError
from perdure.merging.base import Base
from perdure.merging.tensor_files import TensorReader
from perdure.training.adapted_module import AdaptedModule
from perdure.training.lora import AdaptedModel

ATTACHED = "perdure_attached"
"""Set on a trainer that a Continual takes part in."""
FOLDED = "perdure_folded"
"""Set on a bare model whose weights are no longer the pretrained ones, which cannot be recovered from it."""


def check_new(trainer: Any, peft_model: Any, model: AdaptedModel) -> None:
    """Raise ConfigError if another Continual is attached, if training began, or if the adapter holds what was learnt before."""
    if getattr(trainer, ATTACHED, False):
        raise ConfigError(
            "Another Continual is attached to this trainer, and both would add their penalties. Make a new trainer, with a newly "
            "loaded model, for every Continual."
        )
    if trainer.state.global_step:
        raise ConfigError(
            f"The trainer has trained {trainer.state.global_step} steps already, and attach would start its adapter anew. Call "
            "attach before trainer.train(), also before resume_from_checkpoint."
        )
    if getattr(model.model, FOLDED, False):
        raise ConfigError(
            "This model's base weights already carry the earlier tasks (or an init's offset) of another Continual, and would "
            "carry them twice. Reload the base with from_pretrained for every trainer."
        )
    config = peft_model.peft_config[peft_model.active_adapter]
    begins_at_zero = config.init_lora_weights in (True, "gaussian")
    learnt = [name for name, module in model.modules.items() if bool(module.B.detach().any())]
    if begins_at_zero and learnt:
        raise ConfigError(
            f"The model's LoRA has learnt something already (B is not zero at '{learnt[0]}'), and attach would start it anew. "
            "Give the trainer a new LoRA; an earlier task's adapter belongs in `history`, as a folder."
        )


def check_base(peft_model: Any, model: AdaptedModel) -> None:
    """Raise ConfigError if an adapted weight differs from the base's files, of which its first row is compared.

    Nothing is compared where the files are not on this machine, are not safetensors, or hold the weight in another form.
    """
    config = peft_model.peft_config[peft_model.active_adapter]
    folder = _folder(config.base_model_name_or_path, config.revision)
    try:
        base = Base(folder) if folder else None
    except AdapterError:
        return  # quantised, pickled: nothing to compare with
    for name, module in model.modules.items() if base else ():
        if base and (row := _first_row(base, name, module)) is not None and not torch.equal(row, _first(module)):
            raise ConfigError(
                f"The weight of '{name}' differs from the one in '{folder}', which the model names as its base: it was changed "
                "in memory, for example by merge_and_unload(). Earlier adapters and the one that is learnt are right only on the "
                "base's own weights. Reload it with from_pretrained, or save the changed model and load it from that folder."
            )


def _folder(name: str | None, revision: str | None) -> str | None:
    """Where a base's files are: a folder, or the hub's cache; None if neither."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    if not name or os.path.isdir(name):
        return name or None
    try:
        found = try_to_load_from_cache(name, "config.json", revision=revision)
    except HFValidationError:
        return None
    return str(Path(found).parent) if isinstance(found, str) else None


def _first(module: AdaptedModule) -> torch.Tensor:
    return module.base.detach()[0].cpu()


def _first_row(base: Base, name: str, module: AdaptedModule) -> torch.Tensor | None:
    """The first row in the file as it is laid out there, in the dtype of the model's weight."""
    own = module.base
    if module.pretrained_OI is None or module.index is not None:
        return None
    try:
        target = base.weight_of(name, module.shape, "linear", module.transposed)
        file, stored = base.place[target.tensor]
    except (AdapterError, KeyError):
        return None
    if target.converted is not None or stored.shape != tuple(own.shape):
        return None
    with TensorReader(base.folder / file) as reader:
        return reader.rows(target.tensor, 0, 1)[0].to(own.dtype)
