"""A run that starts from adapters people already have: each becomes a finished stage without scores, oldest first.

Only the updates are known, not the data they were trained on. A part that measures something on old tasks (`Need.PAST_DATA`), or
replays them from the first stage on, is refused before anything is trained.

Legend: R rank, O output features, I input features.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path

import torch
from torch import nn

from perdure.adapters.beside import frozen_beside, same_values
from perdure.adapters.folder import Adapter, adapter_names, open_adapter, own_update
from perdure.backbones.base import Backbone
from perdure.backbones.models import public_name
from perdure.config.run_config import RunConfig
from perdure.errors import AdapterError, ConfigError, UnmetNeed
from perdure.files.durable import sha256
from perdure.loop.base_task import holding, measuring_on, own_stage
from perdure.merging.conversion import name_now
from perdure.methods.contract.build import build_method
from perdure.methods.contract.calls import after_task, consolidated
from perdure.methods.contract.context import Context
from perdure.methods.contract.parts import Method, Part
from perdure.methods.contract.past import Past
from perdure.ops.factors import Factors
from perdure.ops.lowrank import LowRank, add_updates
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
    """Raise ConfigError if a task has the name of a stage of the history, whose scores are not counted."""
    if taken := [task.name for task in tasks if task.name in history]:
        raise ConfigError(
            f"A task cannot be called '{taken[0]}': the stage of an adapter in `history` has that name, and no scores. Rename "
            "one of them."
        )


def history_record(config: RunConfig, store: Store) -> dict[str, str]:
    """Stage -> sha256 of its adapter; read from the run once it has all the adapters, which may then be deleted."""
    stages = history_stages(config.history)
    if store.exists and len(store.stages()) >= len(stages):
        return store.initial.get("history", {})
    adapters = {stage.name: _opened(place) for stage, place in zip(stages, config.history, strict=True)}
    return {name: hashlib.sha256(f"{sha256(a.file)}{a.config}".encode()).hexdigest() for name, a in adapters.items()}


def history_warnings(config: RunConfig, store: Store) -> list[str]:
    """What may be wrong with the adapters of a new run: another base's name, or that they do not build on each other."""
    if store.exists:
        return []
    base = public_name(str(config.backbone["model"]))
    adapters = {place: _opened(place) for place in config.history}
    named = [(place, adapters[place].config.base) for place in config.history]
    warnings = [
        f"adapter '{place}' names the base '{name}', this run uses '{base}'"
        for place, name in named
        if name and Path(name).name != Path(base).name
    ]
    warnings += [
        f"adapter '{place}' brings a head ({', '.join(adapter.config.heads)}), which a run does not use"
        for place, adapter in adapters.items()
        if adapter.config.heads
    ]
    if len(named) > 1 and build_method(config.method).init.continues:
        warnings.append(
            f"{config.method_name} continues from the last adapter: what the others learnt is kept only if each was trained "
            "from the one before it"
        )
    return warnings


def check_history(config: RunConfig, method: Method, model: AdaptedModel, store: Store) -> None:
    """Raise AdapterError or UnmetNeed if the model or the method cannot use an adapter that the store does not hold yet."""
    if len(store.stages()) >= len(config.history):
        return
    if method.consolidate.keeps == "per-task":
        raise UnmetNeed(
            f"Method '{method.name}' answers each task with its own adapter; adapters without a task would never "
            "answer. Choose a method that merges."
        )
    adapters = [as_called_here(_opened(place), model) for place in config.history]
    check_fits(adapters, model)
    _check_embeddings(adapters, model)
    check_continues(adapters, method, model)


def _opened(place: str) -> Adapter:
    """An adapter of the history; `_check_embeddings` deals with what lies beside its update."""
    return open_adapter(place, beside=True)


def as_called_here(adapter: Adapter, model: AdaptedModel) -> Adapter:
    """The adapter under the model's own names, where an earlier transformers had others for the same linear layers.

    Raises:
        AdapterError: it names one layer in both ways.
    """
    linear = {n for n, module in model.model.named_modules() if isinstance(module, nn.Linear)} | model.modules.keys()
    names: dict[str, str] = {}
    for module in adapter.modules:
        if module not in linear and (found := name_now(model.model, f"{module}.weight", linear)) and found[1]:
            names[module] = found[0].removesuffix(".weight")
    here = [names.get(module, module) for module in adapter.modules]
    if twice := next((name for name in here if here.count(name) > 1), None):
        raise AdapterError(f"'{adapter.folder}' changes '{twice}' twice, under its name and that of transformers 4.")
    return adapter.called(names) if names else adapter


def _check_embeddings(history: Sequence[Adapter], model: AdaptedModel) -> None:
    """Raise AdapterError for an adapter that brings other embeddings than the model's, which its update belongs to."""
    own = model.plain_state_dict() if any(adapter.beside for adapter in history) else {}
    for name, brought in frozen_beside(history).items():
        if name not in own or not same_values(brought.read(), own[name].cpu()):
            raise AdapterError(
                f"'{brought.file.parent}' brings '{name}' of the model it was trained on, and the run's model has another: "
                "its vocabulary was resized, or it was trained. Save that model (save_pretrained) and give it as --backbone."
            )


def learn_history(
    config: RunConfig,
    tasks: Sequence[Task],
    method: Method,
    model: AdaptedModel,
    backbone: Backbone,
    store: Store,
    report: Reporter,
) -> None:
    """Make a stage of each adapter that the store does not hold yet; `check_history` has passed."""
    stages = history_stages(config.history)
    if len(store.stages()) >= len(stages):
        return
    if not store.manifest["stages"]:
        save_untrained(store, score_tasks(tasks, (), {}, model, backbone, config.evaluation, report))
    for index in range(len(store.stages()), len(stages)):
        past, stage = load_past(store, method), stages[index]
        adapter = as_called_here(_opened(config.history[index]), model)
        update = own_update(adapter, torch.float32)
        remembering = [part for part in method.parts().values() if remembers(part)]  # needs of data were refused before
        factors = own_factors(adapter, model, torch.float32) if method.init.continues else {}
        # what answers with this adapter; where a part measures, texts that the model writes so replace the task's data
        answers = {n: d.to(model.device) for n, d in add_updates(past.carry, update).items()}
        with measuring_on(model, answers) if holding(method) else nullcontext():
            if holding(method):
                stage = own_stage(stage.name, config, backbone, index)
            ctx = StageContext(stage, index, past, {}, model, backbone, {}, config.seed)
            past = with_stage(past, ctx, method, remembering, update, factors)
        record = StageRecord(report, stage.name)
        save_stage(
            store, stage.name, past, method, update, record, {}, {}, model, public_name(config.backbone["model"])
        )


def check_fits(history: Sequence[Adapter], model: AdaptedModel) -> None:
    """Raise AdapterError unless the model's LoRA targets every module that the adapters change, in the same shape."""
    present = dict(model.model.named_modules()).keys() | model.modules.keys()
    for adapter, module, entry in ((a, module, entry) for a in history for module, entry in a.modules.items()):
        changes = f"'{adapter.folder}' changes '{module}'"
        named = f", such as '{adapter.config.base}', which it names" if adapter.config.base else ""
        if module not in present and (now := name_now(model.model, f"{module}.weight", present)):
            raise AdapterError(
                f"{changes}, which this version of transformers holds in '{now[0]}', so a run cannot start from it. Merge it "
                f"into the base (perdure merge {adapter.folder} --rule sum --base MODEL --out DIR) and learn on the result."
            )
        if module not in present:
            raise AdapterError(f"{changes}, which the model does not have. Use another base (--backbone){named}.")
        if module not in model.modules or entry.kind == "embedding":
            targets = ",".join(sorted({name.rpartition(".")[2] for name in (*adapter.modules, *model.modules)}))
            raise AdapterError(
                f"{changes}, which the model's LoRA does not target. Give all layers that the past changed: "
                f"lora.targets=[{targets}] (target_modules of your own LoraConfig)"
                + ("; but training cannot continue from an adapted embedding." if entry.kind == "embedding" else ".")
            )
        if entry.shape != (shape := model.modules[module].shape):
            raise AdapterError(
                f"{changes}: its update is {entry.shape[0]} x {entry.shape[1]}, the model's weight is {shape[0]} x {shape[1]}. "
                f"Use another base (--backbone){named}."
            )


def remembers(part: Part) -> bool:
    """Whether the part has memory of its own."""
    return type(part).state is not Part.state


def with_stage(
    past: Past,
    ctx: Context,
    method: Method,
    remembering: Iterable[Part],
    update: Mapping[str, LowRank],
    factors: Mapping[str, Factors],
) -> Past:
    """The past after an adapter that was trained elsewhere: seen by the parts in `remembering`, and consolidated."""
    after_task(remembering, ctx, update)
    return past.after(ctx.stage.name, update, consolidated(method.consolidate, ctx, past, update), factors)


def own_factors(adapter: Adapter, model: AdaptedModel, dtype: torch.dtype | None = None) -> dict[str, Factors]:
    """The adapter's A and B at the scaling of the model's LoRA and on its device, for an init that continues from them."""
    factors: dict[str, Factors] = {}
    for name in adapter:
        module, stored = model.modules[name], adapter.factors(name)
        A, B = (tensor.to(module.A.device, dtype, copy=True) for tensor in (stored.A, stored.B))
        factors[name] = Factors(A, B * (stored.scaling / module.scaling), module.scaling)
    return factors


def check_continues(history: Sequence[Adapter], method: Method, model: AdaptedModel) -> None:
    """Raise AdapterError if the init continues from adapters (the last; to merge factors, all) of another rank."""
    if not method.init.continues:
        return
    for adapter in history if method.consolidate.keeps == "merged" else history[-1:]:
        for name, module in model.modules.items():
            if name not in adapter.modules or adapter.modules[name].rank != module.A.shape[0]:
                has = f"has rank {adapter.modules[name].rank}" if name in adapter.modules else "changes nothing"
                raise AdapterError(
                    f"Method '{method.name}' continues from an earlier adapter's factors, but '{adapter.folder}' {has} at "
                    f"'{name}', where the model's LoRA has rank {module.A.shape[0]}. Set lora.rank and lora.targets (of your "
                    "own LoraConfig: r and target_modules) to the adapter's, or choose a method that starts a new adapter "
                    "(inc-lora, ps-lora)."
                )
