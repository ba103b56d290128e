"""What does not work inside another trainer: refused before anything is trained, with the reason."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from perdure.adapters.format import OFFSETTING, REFUSED
from perdure.errors import ConfigError, UnmetNeed
from perdure.methods.contract.parts import BatchPenalty, Method
from perdure.methods.replay import ExampleBuffer
from perdure.training.processes import ENGINES

STEP_INSIDE_BACKWARD = ("lomo", "layerwise")
"""Optimisers after whose backward no gradient is left to add a penalty to."""

HEAD = (
    "The model's LoraConfig has task_type SEQ_CLS or TOKEN_CLS, for which PEFT trains the classification head too; the history "
    "holds LoRA updates only, and every task needs the same head. Leave task_type out of LoraConfig, which keeps the head as it "
    "is, and load every task's model from one folder that holds the head: once "
    "AutoModelForSequenceClassification.from_pretrained(base, num_labels=...).save_pretrained(folder)."
)


def check_method(method: Method) -> None:
    """Raise ConfigError or UnmetNeed if a part works only in perdure's own loop."""
    for name, penalty in method.penalties.items():
        if isinstance(penalty, BatchPenalty) and penalty.weight != 0:
            raise UnmetNeed(
                f"Penalty '{name}' reads each batch's labels and scores, which only perdure's own loop has (`perdure run`). "
                "Penalties on weights work."
            )
    if method.head:
        raise UnmetNeed(
            f"Method '{method.name}' has a head, which answers among a task's labels in perdure's own loop (`perdure run`); your "
            "trainer's data have none. Leave it out (method: {head: null})."
        )
    if method.stream != "one-by-one":
        raise ConfigError(f"Method '{method.name}' trains all tasks at once: give your trainer all their data instead.")
    if isinstance(method.replay, ExampleBuffer) and method.replay.use == "mixed":
        raise ConfigError(
            f"Method '{method.name}' mixes old examples into the batches, but your trainer makes the batches: concatenate old "
            "and new data into its train_dataset and leave the replay part out (method: {replay: null})."
        )


def check_name(task: str, taken: Sequence[str]) -> None:
    """Raise ConfigError if the new task's name is taken or unfit for a folder (of a method with one adapter per task)."""
    if not re.fullmatch(r"[\w-][\w.@-]*", task):
        raise ConfigError(f"A task cannot be called {task!r}: use letters, digits, '.', '_' and '-'.")
    if task in taken:
        raise ConfigError(
            f"The new task cannot be called '{task}': an earlier adapter's folder has that name. Give Continual another `task`."
        )


def check_trainer(trainer: Any) -> None:
    """Raise ConfigError unless every process holds whole, reduced and unscaled gradients before the trainer clips them."""
    if not all(hasattr(trainer, name) for name in ("training_step", "accelerator", "callback_handler", "args")):
        raise ConfigError(f"Expected a transformers Trainer (or a subclass of it), got {type(trainer).__name__}.")
    if getattr(trainer, "model_init", None) is not None:
        raise ConfigError(
            "The trainer recreates its model when training begins (model_init). Give it the model itself."
        )
    engine = trainer.accelerator.distributed_type.value
    if engine in ENGINES:
        raise ConfigError(
            f"The trainer runs on {engine}, where penalties cannot be added: {ENGINES[engine]}. Use plain data parallelism "
            "(`accelerate launch --num_processes N` or torchrun)."
        )
    parallel = getattr(trainer.accelerator, "parallelism_config", None)
    if kinds := [kind for kind in ("tp", "cp", "sp", "dp_shard") if getattr(parallel, f"{kind}_size", 1) > 1]:
        raise ConfigError(
            f"The trainer splits the model or its sequences over processes ({kinds[0]}), so a process holds only part of the "
            "gradient. Use plain data parallelism."
        )
    model = getattr(trainer, "model", None)
    if model is not None and len(devices := {str(parameter.device) for parameter in model.parameters()}) > 1:
        raise ConfigError(
            f"The model is on several devices ({', '.join(sorted(devices))}; device_map), but penalties and measurements need "
            "the adapter on one. Load it without device_map, or smaller: in bf16, or quantised."
        )
    if trainer.args.fp16:
        raise ConfigError(
            "fp16 multiplies gradients by a changing factor until they are clipped, and penalties would need to follow it. Use "
            "bf16=True, or full precision."
        )
    if any(word in str(trainer.args.optim).lower() for word in STEP_INSIDE_BACKWARD):
        raise ConfigError(
            f"The optimiser '{trainer.args.optim}' steps inside backward, so no gradient is left to add a penalty to. Use "
            "another, such as adamw_torch."
        )


def check_weight_decay(trainer: Any, peft_model: Any) -> None:
    """Raise ConfigError if the trainer would spare LoRA factors the weight decay it is told to apply.

    transformers (5.23) searches whole parameter names, the adapter's name included, for "bias" and "norm": an adapter called
    "debias" trains as with weight_decay=0 (findings/adapter_name_decides_weight_decay.sh).
    """
    if not trainer.args.weight_decay:
        return
    decayed = set(trainer.get_decay_parameter_names(peft_model))
    factors = [
        name for name, parameter in peft_model.named_parameters() if parameter.requires_grad and ".lora_" in name
    ]
    if spared := [name for name in factors if name not in decayed]:
        raise ConfigError(
            f"transformers takes {len(spared)} LoRA factors such as '{spared[0]}' for biases or norms because of their names, "
            f"and would not apply weight_decay={trainer.args.weight_decay:g} to them. Give the adapter a name without 'bias' "
            "and 'norm', or set weight_decay=0."
        )


def check_adapter(peft_model: Any) -> None:
    """Raise ConfigError if anything but a plain LoRA is trained."""
    config = peft_model.peft_config[peft_model.active_adapter].to_dict()
    for setting, reason in REFUSED.items():
        if (
            setting == "modules_to_save"
            and config.get(setting)
            and str(config["task_type"]).endswith(("SEQ_CLS", "TOKEN_CLS"))
        ):
            raise ConfigError(HEAD)
        if config.get(setting):
            raise ConfigError(f"The model's LoraConfig sets {setting}; {reason}. Leave it out.")
    start = str(config.get("init_lora_weights")).lower()
    changes_base = start.startswith(OFFSETTING)
    if changes_base or start == "mica":
        raise ConfigError(
            f"The model's LoraConfig has init_lora_weights='{start}', which "
            f"{'has changed the base already' if changes_base else 'freezes B and trains only A'}. Leave it out and choose one "
            "of perdure's inits in the method."
        )
    others = [name for name, p in peft_model.named_parameters() if p.requires_grad and ".lora_" not in name]
    if others:
        raise ConfigError(
            f"The model also trains {len(others)} parameters that are not LoRA factors, such as '{others[0]}'. The history holds "
            "only LoRA updates: freeze them, or adapt their layer with LoRA."
        )
