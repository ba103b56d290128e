"""The protocol: learn the stages one after another, and score every task after each.

This is the whole loop. No method is named here: what a method does, its parts do (perdure.methods.contract.parts).
"""

from __future__ import annotations

from pathlib import Path

import torch

from perdure.backbones.base import Backbone
from perdure.backbones.memory import memory_explained
from perdure.backbones.models import public_name
from perdure.config.run_config import RunConfig
from perdure.loop.adapter_history import history_stages
from perdure.methods.contract import calls
from perdure.methods.contract.parts import Method
from perdure.methods.contract.past import Past
from perdure.methods.contract.unsaved import check_saved, marks
from perdure.state.record import StageRecord, load_past, save_deployed, save_stage, save_untrained, score_tasks
from perdure.state.shared import sharing
from perdure.state.store import Store
from perdure.state.unfinished import Unfinished
from perdure.tasks.task import Task, stages
from perdure.training.context import StageContext, derived_seed
from perdure.training.lora import AdaptedModel
from perdure.training.processes import ALONE, Processes
from perdure.training.reporter import Reporter
from perdure.training.train import train


def run_sequence(
    tasks: tuple[Task, ...],
    method: Method,
    model: AdaptedModel,
    backbone: Backbone,
    config: RunConfig,
    store: Store,
    report: Reporter,
    processes: Processes = ALONE,
    shared: Path | None = None,
) -> Past:
    """Learn `tasks` with `method`, going on where the store's last checkpoint stands; return what is left behind.

    `report` knows already that it begins (`perdure.commands.learn.reporting`: taking in a history comes before). `shared` is a
    folder of trainings that runs have in common (perdure.state.shared); None = everything is trained here.
    Everything random depends on the seed and the stage only, so a run that was stopped gives the bits of one that was not.
    """
    past, base = load_past(store, method, device=model.device), public_name(config.backbone["model"])
    sequence = (*history_stages(config.history), *stages(tasks, method.stream))
    if not store.manifest["stages"]:
        scored = score_tasks(tasks, (), {}, model, backbone, config.evaluation, report, processes)
        processes.once(save_untrained, store, scored)

    for index, stage in enumerate(sequence[len(past) :], start=len(past)):
        purpose = "dropout" if processes.main else f"dropout {processes.rank}"
        torch.manual_seed(derived_seed(config.seed, index, purpose))
        buffer = method.replay.buffer() if method.replay else {}
        ctx = StageContext(stage, index, past, buffer, model, backbone, {t.name: t for t in tasks}, config.seed)
        record = StageRecord(report, stage.name)

        model.fold(past.carry)  # 1. the next task trains on what the past carries
        calls.before_task(method, ctx)
        begun = marks(method)
        unfinished = Unfinished(store, method, model, ctx, record.steps, _minutes(config, processes), processes)
        start = unfinished.start() or calls.started(method.init, ctx)
        processes.align(start.tensors())  # measured alike everywhere, but not every kernel gives the same bits twice
        model.start(start)  # 2. its adapter starts
        ctx.started = {name: pair.copied() for name, pair in model.factors().items()}
        with memory_explained(f"training task '{stage.name}'"), unfinished.checkpoint_on_signal():
            # 3. loss + penalties -> step
            checkpoints = sharing(shared, config, method, ctx, unfinished, record.steps)
            train(model, backbone, method, ctx, config.training, record.step, checkpoints, processes)

        factors = {name: pair.copied() for name, pair in model.factors().items()}
        update = {name: pair.update() for name, pair in factors.items()}
        calls.after_task(method.parts().values(), ctx, update)
        folded = calls.consolidated(method.consolidate, ctx, past, update)  # 4. carry and deployed
        if method.replay:
            method.replay.remember(ctx, stage.train)
        check_saved(method, begun, stage.name)
        past = past.after(stage.name, update, folded, factors)
        learnt = [task.name for done in sequence[: index + 1] for task in done.tasks]
        # 5. evaluate
        last = len(past) == len(sequence)
        scored = score_tasks(tasks, learnt, past.deployed, model, backbone, config.evaluation, report, processes, last)
        processes.once(save_stage, store, stage.name, past, method, update, record, ctx.notes, scored, model, base)
        # go on from what was written: a resumed run then cannot differ
        past = load_past(store, method, device=model.device)

    save_deployed(store, past.deployed, model, backbone, base, processes)
    return past


def _minutes(config: RunConfig, processes: Processes) -> float | None:
    """Minutes between checkpoints; None where several processes use dropout."""
    own_randomness = processes.count > 1 and config.lora.dropout > 0  # one process's random state is not the others'
    return None if own_randomness else config.training.checkpoint_minutes
