"""The protocol: learn the stages one after another, and score every task after each.

    for each stage:
        1. fold          W <- W_0 + carry
        2. start         A, B <- init
        3. train         A, B <- steps on the gradient of loss + penalties, through the step rule
        4. consolidate   carry, deployed <- fold(past, update)
        5. evaluate      the score of W_0 + deployed on every task

This is the whole loop. It names no method: what a method does, its parts do (perdure.methods.contract.parts).
"""

from __future__ import annotations

from pathlib import Path

import torch

from perdure.backbones.base import Backbone
from perdure.backbones.memory import memory_explained
from perdure.backbones.models import public_name
from perdure.config.for_stage import for_stage
from perdure.config.run_config import RunConfig
from perdure.loop.adapter_history import history_stages
from perdure.loop.progress import tell
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
    """Learn `tasks` with `method` from the store's last checkpoint on, and return what they leave behind.

    The caller has called `report.begin`. `shared` is a folder of trainings that runs have in common (perdure.state.shared);
    None = everything is trained here. Everything random depends only on the seed and the stage, so a run that was stopped and
    resumed gives the same bits as one that was not.
    """
    base = public_name(config.backbone["model"])
    sequence = (*history_stages(config.history), *stages(tasks, method.stream))
    by_name = {task.name: task for task in tasks}
    dropout = "dropout" if processes.main else f"dropout {processes.rank}"
    # with dropout every process has its own random state, and a checkpoint holds that of the main one only
    minutes = None if processes.count > 1 and config.lora.dropout > 0 else config.training.checkpoint_minutes

    past = load_past(store, method, device=model.device)
    if not store.manifest["stages"]:
        scores = score_tasks(tasks, (), {}, model, backbone, config.evaluation, report, processes)
        processes.once(save_untrained, store, scores)

    for index, stage in enumerate(sequence[len(past) :], start=len(past)):
        torch.manual_seed(derived_seed(config.seed, index, dropout))
        buffer = method.replay.buffer() if method.replay else {}
        own = for_stage(config, stage.name)
        ctx = StageContext(stage, index, past, buffer, model, backbone, by_name, config.seed)
        record = StageRecord(report, stage.name)

        # 1. fold
        model.fold(past.carry)
        calls.before_task(method, ctx)
        before_training = marks(method)

        # 2. start
        unfinished = Unfinished(store, method, model, ctx, record.steps, minutes, processes)
        start = unfinished.start() or calls.start_adapter(method.init, ctx)
        # every process has computed it, but not every kernel gives the same bits twice
        processes.broadcast(start.tensors())
        model.start(start)
        ctx.started = model.copied_factors()

        # 3. train
        with memory_explained(f"training task '{stage.name}'"), unfinished.checkpoint_on_signal():
            checkpoints = sharing(shared, own, method, ctx, unfinished, record.steps)
            train(model, backbone, method, ctx, own.training, record.step, checkpoints, processes)
        factors = model.copied_factors()
        update = {name: pair.update() for name, pair in factors.items()}
        calls.after_task(method.parts().values(), ctx, update)

        # 4. consolidate
        folded = calls.consolidated(method.consolidate, ctx, past, update)
        if method.replay:
            method.replay.remember(ctx, stage.train)
        check_saved(method, before_training, stage.name)
        past = past.after(stage.name, update, folded, factors)

        # 5. evaluate
        learnt = [task.name for done in sequence[: index + 1] for task in done.tasks]
        last = len(past) == len(sequence)
        scores = score_tasks(
            tasks, learnt, past.deployed, model, backbone, config.evaluation, report, processes, last, method.head
        )

        processes.once(save_stage, store, stage.name, past, method, update, record, ctx.notes, scores, model, base)
        past = load_past(store, method, device=model.device)  # continue from the files, as a resumed run does

    known = {"rank": config.deploy.rank, "tasks": tasks, "settings": config.evaluation}
    if cost := save_deployed(store, past.deployed, model, backbone, base, processes, **known):
        tell(report, f"deployed with {cost} (deploy.rank)")
    return past
