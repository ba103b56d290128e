"""One more task in your own trainer, with any of perdure's inits, weight penalties, step rules on weights and consolidations.

A trainer clips gradients before it calls `on_pre_optimizer_step`, so no callback can add to what is clipped. `attach` therefore
wraps the trainer's public `training_step`: when it returns from the last micro-batch of an optimiser step, `.grad` holds the
accumulated gradient, reduced over processes, the same on every process. At that point, once and before clipping:

    g <- g + sum over weight penalties of weight * grad(penalty);   g <- step rule(g)             perdure.training.train
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback

from perdure.adapters.folder import adapter_names, open_adapter, write_adapter
from perdure.config.composition import resolve_method
from perdure.errors import ConfigError
from perdure.files.output import new_folder
from perdure.integrations.earlier import digests, earlier_past, measures, save_memory
from perdure.integrations.reference import check_reference, give_reference, keep_frozen
from perdure.integrations.refusals import check_adapter, check_method, check_name, check_trainer, check_weight_decay
from perdure.integrations.trainer_context import (
    DatasetRows,
    TrainerBackbone,
    TrainerContext,
    TrainerStage,
    old_rows,
    training_rows,
)
from perdure.integrations.untouched import ATTACHED, FOLDED, check_base, check_new
from perdure.integrations.written import check_losses
from perdure.loop.adapter_history import as_called_here, check_continues, check_fits
from perdure.methods.contract import calls
from perdure.methods.contract.build import build_method, check_needs
from perdure.methods.contract.context import Need
from perdure.methods.contract.past import Folded, Past
from perdure.methods.contract.unsaved import check_saved, marks
from perdure.ops.lowrank import LowRank
from perdure.state.record import write_deployed
from perdure.training.lora import AdaptedModel
from perdure.training.train import add_weight_penalties


class Continual:
    """A method and the adapters of earlier tasks, for one new task in one trainer.

    Args:
        method: a preset's name, or a composition of parts (as in `perdure.learn`).
        history: folders of the earlier tasks' adapters, oldest first; any plain PEFT LoRA, right on the untouched base.
        old_examples: task name -> rows of old tasks in the form the trainer's collator takes, for SLICE and A-GEM.
        task: the new task's name; earlier ones are named after their folders.
        seed: of the init.

    Raises:
        ConfigError: an unknown method, a part that works only in perdure's own loop, or an unusable name; says why.
        AdapterError: a folder is not a plain LoRA adapter.
    """

    def __init__(
        self,
        method: str | Mapping[str, Any] = "ps-lora",
        history: Sequence[str | Path] = (),
        *,
        old_examples: Mapping[str, Sequence[Any]] | None = None,
        task: str = "new",
        seed: int = 0,
    ) -> None:
        built = build_method(resolve_method(method))
        check_method(built)
        self.method = dataclasses.replace(built, replay=None)  # the old examples are given, not kept
        self.history = [open_adapter(folder) for folder in history]
        self.names = adapter_names(history)
        """The earlier tasks' names."""
        check_name(task, self.names)
        self.task, self.seed = task, seed
        self.penalties: dict[str, float] = {}
        """In the last step: 'penalty/<name>', its weighted value; 'share/<name>', its gradient's norm over the task's."""
        self._old = old_rows(old_examples or {})
        self._trainer: Any = None

    def attach(self, trainer: Any) -> None:
        """Start the adapter of `trainer.model` and take part in its training; call it before `trainer.train()`.

        The past's carry is folded into the base weights in memory; the trainer's own checkpoints hold only A and B.

        Raises:
            ConfigError: the trainer, its engine or its model does not fit, or its base already carries a past; says why.
            AdapterError: an earlier adapter does not fit the model's LoRA in modules, or in the rank that the method continues.
        """
        if self._trainer is not None:
            raise ConfigError("This Continual is attached already. Make a new one for every trainer.")
        check_trainer(trainer)
        peft_model = trainer.accelerator.unwrap_model(trainer.model)
        self.model = AdaptedModel.around(peft_model)
        check_adapter(peft_model)
        check_new(trainer, peft_model, self.model)
        check_weight_decay(trainer, peft_model)
        check_reference(trainer)
        self.history = [as_called_here(adapter, self.model) for adapter in self.history]
        check_fits(self.history, self.model)
        check_continues(self.history, self.method, self.model)
        check_needs(self.method, self._offered(trainer))
        check_losses(trainer, self.method)
        check_base(peft_model, self.model)
        self._context(trainer, peft_model)
        self._begin()
        keep_frozen(trainer, peft_model, self.model)
        give_reference(trainer, peft_model, self.model)
        self._trainer = trainer
        setattr(trainer, ATTACHED, True)
        self._wrap(trainer)

    def save(self, folder: str | Path, overwrite: bool = False) -> None:
        """Write the new task's adapter on the main process: a plain PEFT folder, the next entry of `history`.

        Raises:
            StoreError: the folder exists. ConfigError: not attached.
        """
        if not self._attached().is_world_process_zero():
            return
        update, config = self._update(), self._peft_config()
        with new_folder(Path(folder), overwrite) as made:
            write_adapter(
                made,
                update,
                rank=max(delta.rank for delta in update.values()),
                dtype=torch.float64 if next(iter(update.values())).A.dtype == torch.float64 else torch.float32,
                base=config.base_model_name_or_path,
                revision=config.revision,
                task_type=config.task_type and str(getattr(config.task_type, "value", config.task_type)),
                fan_in_fan_out=self.model.fan_in_fan_out,
            )
            folded = self._folded or Folded({}, {})
            after = self.ctx.past.after(self.task, update, folded, self.model.copied_factors())
            save_memory(made, after, self.method, self._digests)

    def save_deployed(self, folder: str | Path, overwrite: bool = False) -> None:
        """Write the model that answers queries: an adapter if that is exact, else the merged model; for errors see `save`."""
        trainer = self._attached()
        folded = self._folded or self._consolidated(self._update())
        if trainer.is_world_process_zero():
            base = self._peft_config().base_model_name_or_path
            with new_folder(Path(folder), overwrite) as made, self.model.weights_of(folded.deployed) as weights:
                write_deployed(made, folded.deployed, self.model, self.ctx.backbone, base, weights)

    @property
    def notes(self) -> Mapping[str, float]:
        """Numbers that parts noted (cosines, thresholds, sparsity reached)."""
        return self._attached() and self.ctx.notes

    def _attached(self) -> Any:
        if self._trainer is None:
            raise ConfigError("Call attach(trainer) and train first.")
        return self._trainer

    def _offered(self, trainer: Any) -> set[Need]:
        conditions = {
            Need.PAST_DATA: True,  # as the memory beside the last adapter, which `earlier_past` requires
            Need.LABELS: True,  # the trainer's own targets
            Need.FULL_GRADIENTS: True,
            Need.MODULE_INPUTS: True,
            Need.DENSE_BASE: self.model.dense_base,
            Need.RANK_OF_TWO: self.model.smallest_rank > 1,
            Need.TRAINING_DATA: trainer.train_dataset is not None,
            Need.OLD_EXAMPLES: bool(self._old) or not self.history,
        }
        return {need for need, met in conditions.items() if met}

    def _context(self, trainer: Any, peft_model: Any) -> None:
        """Set `ctx`, what the parts can read; data is opened only for a method that measures something on it."""
        reads = any(part.needs & {Need.TRAINING_DATA, Need.OLD_EXAMPLES} for part in self.method.parts().values())
        rows, collate = training_rows(trainer) if reads else (DatasetRows(()), trainer.data_collator)
        backbone = TrainerBackbone(trainer, peft_model, collate)
        for measured in (rows, *self._old.values()) if reads else ():
            backbone.check_readable(measured[:2], self.method.name)

        def context(name: str, index: int, past: Past) -> TrainerContext:
            stage = TrainerStage.named(name, rows)
            return TrainerContext(stage, index, past, self._old, self.model, backbone, {}, self.seed)

        keeps = any(map(measures, self.method.parts().values()))
        self._digests = digests(self.history) if keeps else []
        past = earlier_past(self.history, self.names, self.method, self.model, context)
        self.ctx = context(self.task, len(past), past)

    def _begin(self) -> None:
        """Fold and start: steps 1 and 2 of perdure.loop.sequence."""
        past = self.ctx.past
        setattr(self.model.model, FOLDED, bool(past.carry))
        self.model.fold(past.carry)
        calls.before_task(self.method, self.ctx)
        self._memory_marks = marks(self.method)
        start = calls.start_adapter(self.method.init, self.ctx)
        if any(pair.A0 is not None for pair in start.factors.values()):
            setattr(self.model.model, FOLDED, True)
        self.model.start(start)
        self.ctx.started = self.model.copied_factors()
        self._memory = {name: dict(part.state()) for name, part in self.method.parts().items()}
        self._folded: Folded | None = None

    def _wrap(self, trainer: Any) -> None:
        """Hook into the trainer: before clipping, after each optimiser step, when it logs, and when training begins and ends."""
        step, log = trainer.training_step, trainer.log

        def training_step(*args: Any, **kwargs: Any) -> Any:
            loss = step(*args, **kwargs)
            if trainer.accelerator.sync_gradients:
                self._gradients()
            return loss

        def logged(logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
            log({**logs, **self.penalties} if "loss" in logs else logs, *args, **kwargs)

        trainer.training_step, trainer.log = training_step, logged
        trainer.add_callback(_Events(self))

    def _gradients(self) -> None:
        """Penalties and step rule, once per optimiser step, on the whole gradient."""
        values: dict[str, float] = {}
        shares = add_weight_penalties(self.model, self.method, self.ctx, values)
        self.penalties = {f"penalty/{name}": value for name, value in values.items()}
        self.penalties |= {f"share/{name}": share for name, share in shares.items() if share is not None}
        if self.method.step_rule:
            self.model.set_gradients(calls.step_gradients(self.method.step_rule, self.ctx, self.model.gradients()))

    def _finish(self) -> None:
        update = self._update()
        calls.after_task(self.method.parts().values(), self.ctx, update)
        # a consolidation that measures needs the model as trained; any other waits for `save_deployed`
        self._folded = self._consolidated(update) if measures(self.method.consolidate) else None
        check_saved(self.method, self._memory_marks, self.task)

    def _consolidated(self, update: dict[str, LowRank]) -> Folded:
        return calls.consolidated(self.method.consolidate, self.ctx, self.ctx.past, update)

    def _update(self) -> dict[str, LowRank]:
        return {name: pair.update() for name, pair in self.model.copied_factors().items()}

    def _peft_config(self) -> Any:
        peft_model: Any = self.ctx.backbone.model
        return peft_model.peft_config[peft_model.active_adapter]


class _Events(TrainerCallback):
    def __init__(self, continual: Continual) -> None:
        self._continual = continual

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Parts remember only the earlier tasks, also if training begins again."""
        for name, part in self._continual.method.parts().items():
            part.load(self._continual._memory[name])

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """The step rule may change the factors."""
        rule, model, rate = (
            self._continual.method.step_rule,
            self._continual.model,
            float(kwargs["optimizer"].param_groups[0]["lr"]),
        )
        if rule:
            calls.after_step(rule, self._continual.ctx, model.factors(), rate)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Parts measure what they must remember."""
        self._continual._finish()
