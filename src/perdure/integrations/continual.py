"""One more task in your own trainer: any init, weight penalty, step rule on weights and consolidation of perdure.

A trainer clips gradients before it calls `on_pre_optimizer_step`, so no callback can add to what is clipped. `attach` therefore
wraps the trainer's public `training_step`: when it returns from the last micro-batch of an optimiser step, `.grad` holds the
accumulated gradient, reduced over processes, on every process alike. There, once, and before clipping:

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
from perdure.integrations.earlier import check_fits, digests, earlier_past, measures, save_memory
from perdure.integrations.refusals import check_adapter, check_method, check_name, check_trainer
from perdure.integrations.trainer_context import (
    DatasetRows,
    TrainerBackbone,
    TrainerContext,
    TrainerStage,
    old_rows,
    training_rows,
)
from perdure.loop.adapter_history import check_continues
from perdure.methods.contract import calls
from perdure.methods.contract.build import build_method, check_needs
from perdure.methods.contract.context import Need
from perdure.methods.contract.past import Folded, Past
from perdure.methods.contract.unsaved import check_saved, marks
from perdure.ops.factors import Factors
from perdure.ops.lowrank import LowRank
from perdure.state.record import write_deployed
from perdure.training.lora import AdaptedModel
from perdure.training.train import add_weight_penalties

FOLDED = "perdure_folded"
"""Set on a bare model whose weights are no longer the pretrained ones: what they were is not known any more."""


class Continual:
    """A method of perdure, and the adapters of the tasks learnt before; for one new task in one trainer.

    Args:
        method: a preset's name, or a composition of parts (as in `perdure.learn`).
        history: folders of the earlier tasks' adapters, oldest first; any plain PEFT LoRA, right on the untouched base.
        old_examples: task name -> rows of old tasks in the form the trainer's collator takes, for SLICE and A-GEM.
        task: the new task's name; earlier ones are called after their folders.
        seed: of the init.

    Raises:
        ConfigError: an unknown method, a part that works in perdure's own loop only, or a name that will not do; says why.
        AdapterError: a folder is no plain LoRA adapter.
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
        """Of the earlier tasks."""
        check_name(task, self.names)
        self.task, self.seed = task, seed
        self.penalties: dict[str, float] = {}
        """Of the last step: 'penalty/<name>', its weighted value; 'share/<name>', its gradient's norm over the task's."""
        self._old = old_rows(old_examples or {})
        self._trainer: Any = None

    def attach(self, trainer: Any) -> None:
        """Start the adapter of `trainer.model` and take part in its training; call it before `trainer.train()`.

        What the past carries is folded into the base weights in memory; the trainer's own checkpoints hold A and B alone.

        Raises:
            ConfigError: the trainer, its engine or its model does not fit, or its base was folded into before; says why.
            AdapterError: an earlier adapter changes modules that the model's LoRA does not target, or is of another rank where
                the method goes on from its factors.
        """
        if self._trainer is not None:
            raise ConfigError("This Continual is attached already; make a new one for every trainer.")
        check_trainer(trainer)
        peft_model = trainer.accelerator.unwrap_model(trainer.model)
        self.model = AdaptedModel.around(peft_model)
        check_adapter(peft_model)
        for adapter in self.history:
            check_fits(adapter, self.model)
        check_continues(self.history, self.method, self.model)
        check_needs(self.method, self._offered(trainer))
        if getattr(self.model.model, FOLDED, False):
            raise ConfigError(
                "This model's base weights already carry the earlier tasks (or an init's offset) of another Continual, and would "
                "carry them twice. Load the base anew, with from_pretrained, for every trainer."
            )
        self._context(trainer, peft_model)
        self._begin()
        self._trainer = trainer
        self._wrap(trainer)

    def save(self, folder: str | Path, overwrite: bool = False) -> None:
        """Write the new task's adapter: a plain PEFT folder, the next entry of `history`; on the main process only.

        Raises:
            StoreError: the folder exists.
            ConfigError: nothing is attached.
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
            after = self.ctx.past.after(self.task, update, self._folded or Folded({}, {}), self._factors())
            save_memory(made, after, self.method, self._digests)

    def save_deployed(self, folder: str | Path, overwrite: bool = False) -> None:
        """Write what the method answers queries with: an adapter where that is exact, else the merged model.

        Raises:
            StoreError: the folder exists.
        """
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
        # The past's data as the memory beside the last adapter: `earlier_past` asks for it. Labels as the trainer's own targets.
        offered = {Need.PAST_DATA, Need.LABELS, Need.FULL_GRADIENTS}
        if self.model.dense_base:
            offered.add(Need.DENSE_BASE)
        if self.model.smallest_rank > 1:
            offered.add(Need.RANK_OF_TWO)
        if trainer.train_dataset is not None:
            offered.add(Need.TRAINING_DATA)
        return offered | ({Need.OLD_EXAMPLES} if self._old or not self.history else set())

    def _context(self, trainer: Any, peft_model: Any) -> None:
        """`ctx`: what the parts may look at; data is opened only for a method that measures something on it."""
        reads = any(part.needs & {Need.TRAINING_DATA, Need.OLD_EXAMPLES} for part in self.method.parts().values())
        rows, collate = training_rows(trainer) if reads else (DatasetRows(()), trainer.data_collator)
        backbone = TrainerBackbone(trainer, peft_model, collate)

        def context(name: str, index: int, past: Past) -> TrainerContext:
            stage = TrainerStage.named(name, rows)
            return TrainerContext(stage, index, past, self._old, self.model, backbone, {}, self.seed)

        keeps = any(map(measures, self.method.parts().values()))
        self._digests = digests(self.history) if keeps else []
        past = earlier_past(self.history, self.names, self.method, self.model, context)
        self.ctx = context(self.task, len(past), past)

    def _begin(self) -> None:
        """Fold, let the parts look, start the adapter: steps 1 and 2 of perdure.loop.sequence."""
        past, parts = self.ctx.past, self.method.parts()
        setattr(self.model.model, FOLDED, bool(past.carry))
        self.model.fold(past.carry)
        calls.before_task(self.method, self.ctx)
        self._begun = marks(self.method)
        start = calls.started(self.method.init, self.ctx)
        if any(pair.A0 is not None for pair in start.factors.values()):
            setattr(self.model.model, FOLDED, True)
        self.model.start(start)
        self.ctx.started = self._factors()
        self._memory = {name: dict(part.state()) for name, part in parts.items()}
        self._folded: Folded | None = None

    def _wrap(self, trainer: Any) -> None:
        """Come in after backward of every optimiser step, after the step, when logs are written and when training ends."""
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
        known = {f"share/{name}": share for name, share in shares.items() if share is not None}
        self.penalties = {f"penalty/{name}": value for name, value in values.items()} | known
        if self.method.step_rule:
            self.model.set_gradients(calls.stepping(self.method.step_rule, self.ctx, self.model.gradients()))

    def stepped(self, learning_rate: float) -> None:
        """The optimiser has stepped: the step rule may change the factors."""
        if self.method.step_rule:
            calls.stepped(self.method.step_rule, self.ctx, self.model.factors(), learning_rate)

    def begin(self) -> None:
        """Training begins, perhaps once more: parts remember the earlier tasks, and nothing of this one."""
        for name, part in self.method.parts().items():
            part.load(self._memory[name])

    def finish(self) -> None:
        """Training has ended: parts measure what they must remember."""
        update = self._update()
        calls.after_task(self.method.parts().values(), self.ctx, update)
        # folded now if it measures, with the model as trained; else when asked for
        self._folded = self._consolidated(update) if measures(self.method.consolidate) else None
        check_saved(self.method, self._begun, self.task)

    def _consolidated(self, update: dict[str, LowRank]) -> Folded:
        return calls.consolidated(self.method.consolidate, self.ctx, self.ctx.past, update)

    def _update(self) -> dict[str, LowRank]:
        return {name: pair.update() for name, pair in self._factors().items()}

    def _factors(self) -> dict[str, Factors]:
        """The factors as they are now; they no longer follow the training."""
        factors = self.model.factors()
        return {n: dataclasses.replace(pair, A=pair.A.clone(), B=pair.B.clone()) for n, pair in factors.items()}

    def _peft_config(self) -> Any:
        peft_model: Any = self.ctx.backbone.model
        return peft_model.peft_config[peft_model.active_adapter]


class _Events(TrainerCallback):
    """What the trainer itself tells."""

    def __init__(self, continual: Continual) -> None:
        self._continual = continual

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._continual.begin()

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._continual.stepped(float(kwargs["optimizer"].param_groups[0]["lr"]))

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._continual.finish()
