"""The reference model of TRL's preference and reinforcement trainers: the model as this task's training begins.

Given a PEFT model and no `ref_model`, TRL takes the adapter named "ref" for the reference, or all adapters off where there is
none. All off is the start only if B A = 0: not after an init that goes on from the last adapter or offsets the base. So `attach`
adds "ref", a frozen copy of the factors that training starts from.
"""

from __future__ import annotations

import copy
from typing import Any

from perdure.errors import ConfigError
from perdure.training.lora import AdaptedModel

REFERENCE = "ref"
"""What TRL calls the adapter it takes for the reference."""
KNOWN = ("DPOTrainer", "KTOTrainer", "GRPOTrainer", "RLOOTrainer")
"""Trainers of TRL, with their subclasses, that look for this adapter."""


def check_reference(trainer: Any) -> None:
    """The trainer's reference can be made the start of this task's training, or was given by the user.

    Raises:
        ConfigError: it was computed before, or is taken from elsewhere; says what to do.
    """
    kind = type(trainer).__name__
    given = getattr(trainer, "ref_model", None) is not None
    if getattr(trainer.args, "precompute_ref_log_probs", False) and not given:
        raise ConfigError(
            f"{kind} computed its reference when it was made (precompute_ref_log_probs=True), before the earlier tasks and the "
            "init's start are in the model. Set precompute_ref_log_probs=False."
        )
    teacher = getattr(trainer.args, "teacher_model_kind", "live")
    if teacher != "live":
        raise ConfigError(
            f"{kind} has teacher_model_kind='{teacher}', which answers without the adapter or by a copy made before attach: not "
            "the model this task starts from. Set teacher_model_kind='live'."
        )
    if _of_trl(trainer) and hasattr(trainer, "ref_model") and not _looks_for_ref(trainer):
        raise ConfigError(
            f"{kind} takes its reference from a model that attach cannot set to this task's start. Use one of "
            f"{', '.join(KNOWN)}, or perdure's methods without it."
        )


def give_reference(trainer: Any, peft_model: Any, model: AdaptedModel) -> None:
    """Give a trainer that looks for it the adapter "ref", equal to the adapter as it is now, and frozen.

    A `ref_model` the user gave, or none needed (beta=0), is left alone.
    """
    if not _looks_for_ref(trainer) or trainer.ref_model is not None or getattr(trainer, "beta", None) == 0.0:
        return
    config = copy.deepcopy(peft_model.peft_config[peft_model.active_adapter])
    config.lora_dropout = 0.0  # a reference does not change from step to step
    if REFERENCE in peft_model.peft_config:  # TRL's own copy, made before the start
        peft_model.delete_adapter(REFERENCE)
    peft_model.add_adapter(REFERENCE, config)
    for module in model.modules.values():
        for factors, start in ((module.layer.lora_A, module.A), (module.layer.lora_B, module.B)):
            factors[REFERENCE].weight.data = start.detach().clone()
            factors[REFERENCE].weight.requires_grad_(False)


def keep_frozen(trainer: Any, peft_model: Any, model: AdaptedModel) -> None:
    """Tell PEFT which factors the method does not train: whoever switches adapters would make them trainable.

    Raises:
        ConfigError: the trainer switches adapters, and this PEFT does not know such a thing.
    """
    frozen = tuple(f"lora_{factor}" for factor in "AB" if factor not in model.trainable)
    for layer in [module.layer for module in model.modules.values()] if frozen else ():
        known = getattr(layer, "frozen_peft_weight_names", None)
        if known is not None:
            layer.frozen_peft_weight_names = {**known, peft_model.active_adapter: frozen}
        elif _looks_for_ref(trainer):
            raise ConfigError(
                "The method keeps a factor frozen, which this version of PEFT undoes: pip install -U peft."
            )


def _looks_for_ref(trainer: Any) -> bool:
    return any(one.__name__ in KNOWN and one.__module__.startswith("trl.") for one in type(trainer).__mro__)


def _of_trl(trainer: Any) -> bool:
    return any(one.__module__.startswith("trl.") for one in type(trainer).__mro__)
