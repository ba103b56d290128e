"""A run that starts from adapters people already have: each becomes a finished stage without scores, oldest first.

Only the updates are known, not the data they were trained on: a part of a method that measures something on old tasks
(`Need.PAST_DATA`), or replays them from the first stage on, is refused before anything is trained.

Legend: R rank, O output features, I input features.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path

import torch

from perdure.adapters.folder import Adapter, adapter_names, open_adapter, own_update
from perdure.backbones.base import Backbone
from perdure.backbones.models import public_name
from perdure.config.run_config import RunConfig
from perdure.errors import AdapterError, ConfigError, UnmetNeed
from perdure.files.durable import sha256
from perdure.methods.contract.build import build_method
from perdure.methods.contract.calls import after_task, consolidated
from perdure.methods.contract.context import Context
from perdure.methods.contract.parts import Method, Part
from perdure.methods.contract.past import Past
from perdure.ops.factors import Factors
from perdure.ops.lowrank import LowRank
from perdure.state.record import StageRecord, load_past, save_stage, save_untrained, score_tasks
from perdure.state.store import Store
from perdure.tasks.task import Stage, Task
from perdure.training.context import StageContext
from perdure.training.lora import AdaptedModel
from perdure.training.reporter import Reporter


def history_stages(places: Sequence[str]) -> tuple[Stage, ...]:
    """A stage without tasks for each adapter, named after its folder."""
    return tuple(Stage(f"history-{name}", ()) for name in adapter_names(places))


def check_names_apart(history: Collection[str], tasks: Sequence[Task]) -> None:
    """No task is called like a stage of the history, whose scores are not counted.

    Raises:
        ConfigError: one is.
    """
    if taken := [task.name for task in tasks if task.name in history]:
        raise ConfigError(
            f"A task cannot be called '{taken[0]}' here: so is the stage of an adapter of `history`, which has no scores. "
            "Rename one of them."
        )


def history_record(config: RunConfig, store: Store) -> dict[str, str]:
    """Stage -> sha256 of its adapter; as recorded once the adapters were taken in, so that they may go away."""
    stages = history_stages(config.history)
    if store.exists and len(store.stages()) >= len(stages):
        return store.begun.get("history", {})
    return {stage.name: _digest(open_adapter(place)) for stage, place in zip(stages, config.history, strict=True)}


def history_warnings(config: RunConfig, store: Store) -> list[str]:
    """What may be wrong with the adapters, and cannot be told from them: another base's name, and what each started from."""
    if store.exists:
        return []
    base = public_name(str(config.backbone["model"]))
    found = [(place, open_adapter(place).config.base) for place in config.history]
    warnings = [
        f"adapter '{place}' names the base '{named}', this run stands on '{base}'"
        for place, named in found
        if named and Path(named).name != Path(base).name
    ]
    if len(found) > 1 and build_method(config.method).init.continues:
        warnings.append(
            f"{config.method_name} goes on from the last adapter: what the others learnt is kept only where each was trained "
            "from the one before it"
        )
    return warnings


def check_history(config: RunConfig, method: Method, model: AdaptedModel, store: Store) -> None:
    """The adapters that the store does not hold yet can be taken in: asked before the run begins.

    Raises:
        AdapterError: an adapter changes a module that the model does not have, or that is no target of this run, or is of
            another rank where the method goes on from its factors.
        UnmetNeed: the method cannot make use of a past without tasks.
    """
    if len(store.stages()) >= len(config.history):
        return
    if method.consolidate.keeps == "per-task":
        raise UnmetNeed(
            f"Method '{method.name}' answers each task by its own adapter; adapters without a task would never "
            "answer. Choose a method that merges."
        )
    adapters = [open_adapter(place) for place in config.history]
    for adapter in adapters:
        _check_fits(adapter, model, config)
    check_continues(adapters, method, model)


def learn_history(
    config: RunConfig,
    tasks: Sequence[Task],
    method: Method,
    model: AdaptedModel,
    backbone: Backbone,
    store: Store,
    report: Reporter,
) -> None:
    """Take in the adapters that the store does not hold yet.

    Nothing is checked: `check_history` was asked before the run began.
    """
    stages = history_stages(config.history)
    if len(store.stages()) >= len(stages):
        return
    if not store.manifest["stages"]:
        save_untrained(store, score_tasks(tasks, (), {}, model, backbone, config.evaluation, report))
    for index in range(len(store.stages()), len(stages)):
        past, stage, adapter = load_past(store, method), stages[index], open_adapter(config.history[index])
        update = own_update(adapter, torch.float32)
        ctx = StageContext(stage, index, past, {}, model, backbone, {}, config.seed)
        remembering = [part for part in method.parts().values() if remembers(part)]  # needs of data were refused before
        factors = own_factors(adapter, model, torch.float32) if method.init.continues else {}
        past = with_stage(past, ctx, method, remembering, update, factors)
        record = StageRecord(report, stage.name)
        base = public_name(config.backbone["model"])
        save_stage(store, stage.name, past, method, update, record, {}, {}, model, base)


def _check_fits(adapter: Adapter, model: AdaptedModel, config: RunConfig) -> None:
    """The run adapts every module that the adapter changes.

    Raises:
        AdapterError: names the module, and what to set.
    """
    present = dict(model.model.named_modules())
    for module, entry in adapter.modules.items():
        if module not in present:
            named = f" It names '{adapter.config.base}' as its base." if adapter.config.base else ""
            raise AdapterError(
                f"'{adapter.folder}' changes '{module}', which '{config.backbone['model']}' does not have: it belongs to "
                f"another base.{named} Give that one with --backbone."
            )
        if module not in model.modules:
            targets = sorted({name.rpartition(".")[2] for name in (*adapter.modules, *model.modules)})
            raise AdapterError(
                f"'{adapter.folder}' changes '{module}', which is no target of this run. Give all layers that the past "
                f"changed: lora.targets=[{','.join(targets)}]"
                + (" (an adapted embedding cannot be gone on with)." if entry.kind == "embedding" else ".")
            )
        if (wanted := tuple(_shape(model, module))) != entry.shape:
            raise AdapterError(
                f"'{adapter.folder}': its update of '{module}' is {entry.shape[0]} x {entry.shape[1]}, the weight of "
                f"'{config.backbone['model']}' is {wanted[0]} x {wanted[1]}: it belongs to another base. Give that one with "
                "--backbone."
            )


def _shape(model: AdaptedModel, module: str) -> tuple[int, int]:
    """(O, I) of a target's weight."""
    return model.modules[module].B.shape[0], model.modules[module].A.shape[1]


def remembers(part: Part) -> bool:
    """Whether the part has a memory of its own."""
    return type(part).state is not Part.state


def with_stage(
    past: Past,
    ctx: Context,
    method: Method,
    remembering: Iterable[Part],
    update: Mapping[str, LowRank],
    factors: Mapping[str, Factors],
) -> Past:
    """The past after an adapter that was trained elsewhere: `remembering` parts look at it, and it is consolidated."""
    after_task(remembering, ctx, update)
    return past.after(ctx.stage.name, update, consolidated(method.consolidate, ctx, past, update), factors)


def own_factors(adapter: Adapter, model: AdaptedModel, dtype: torch.dtype | None = None) -> dict[str, Factors]:
    """The adapter's A and B at the scaling of the model's LoRA and on its device, for an init that goes on from them."""
    found: dict[str, Factors] = {}
    for name in adapter:
        module, stored = model.modules[name], adapter.factors(name)
        A, B = (tensor.to(module.A.device, dtype, copy=True) for tensor in (stored.A, stored.B))
        found[name] = Factors(A, B * (stored.scaling / module.scaling), module.scaling)
    return found


def check_continues(history: Sequence[Adapter], method: Method, model: AdaptedModel) -> None:
    """An init that goes on from the last adapter finds factors of the model's rank in every module; a merge of factors in all.

    Raises:
        AdapterError: it does not; names the module.
    """
    if not method.init.continues:
        return
    for adapter in history if method.consolidate.keeps == "merged" else history[-1:]:
        for name, module in model.modules.items():
            if name not in adapter.modules or adapter.modules[name].rank != module.A.shape[0]:
                has = f"has rank {adapter.modules[name].rank}" if name in adapter.modules else "does not change"
                raise AdapterError(
                    f"Method '{method.name}' goes on from an earlier adapter's factors, but '{adapter.folder}' {has} at "
                    f"'{name}', where the model's LoRA has rank {module.A.shape[0]}. Set lora.rank and lora.targets (of your "
                    "own LoraConfig: r and target_modules) to the adapter's, or choose a method that starts a new adapter "
                    "(inc-lora, ps-lora)."
                )


def _digest(adapter: Adapter) -> str:
    return hashlib.sha256(f"{sha256(adapter.file)}{adapter.config}".encode()).hexdigest()
