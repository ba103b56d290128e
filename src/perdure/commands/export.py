"""Export what a run or a merge state deploys: `perdure export RUN|STATE --as adapter|model|gguf|gguf-model`.

An adapter has one rank, alpha = rank and the scaling inside B, and is right on the untouched base; a model has the update
inside the base's weights. Both come with a card that names tasks, method, scores and base.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import safe_open

from perdure.adapters.format import CONFIG_FILE, natural, read_config
from perdure.backbones import backbone_kind
from perdure.commands.answering import FILE, answering, card_facts
from perdure.commands.base_folder import base_folder
from perdure.commands.card_programs import programs
from perdure.commands.gguf import FORMS, convert, converter
from perdure.errors import ConfigError, RunMismatch, StoreError
from perdure.files.output import MERGE_STATE, check_apart, check_new, new_folder
from perdure.merging.result import Facts, Mergeable, MergeReport, check_result, write_result
from perdure.merging.sources import ModuleInfo
from perdure.merging.state import State
from perdure.ops.lowrank import Delta, LowRank
from perdure.state.checkpoint import damaged_as_error, read_metadata
from perdure.state.outcomes import task_outcomes
from perdure.state.rank_file import bound_in_words, read_bound
from perdure.state.reopen import check_base_there, learner_config, load_learner
from perdure.state.scores import read_scores
from perdure.state.store import DEPLOYED, STATE, Store
from perdure.state.words import adapter_alone

Form = Literal["adapter", "model", "gguf", "gguf-model"]


def export(
    folder: str | Path,
    out: str | Path,
    form: Form = "adapter",
    *,
    rank: int | None = None,
    dtype: torch.dtype | None = None,
    base: str | Path | None = None,
    task: str | None = None,
    overwrite: bool = False,
) -> MergeReport:
    """Write what the run or merge state in `folder` deploys.

    Args:
        form: a plain LoRA adapter, or the whole model; for llama.cpp the same as GGUF files (perdure.commands.gguf).
        rank: of the adapter; default: the smallest exact one.
        base: the base model's folder, for a model; default: the run's own.
        task: which adapter, if the run deploys one per task.

    Raises:
        StoreError: `folder` holds neither a run nor a state, or `out` exists or would destroy what is read;
            CorruptFile: a file of the run is damaged; RunMismatch: the base is not the one the run was trained on.
        ConfigError: no rank for an update that is not low rank; no base for a model.
        AdapterError: the base does not fit.
    """
    if form not in FORMS:
        return _plain(folder, out, form, form, rank, dtype, base, task, overwrite)
    out, script = Path(out), converter(form)
    check_new(out, overwrite)
    check_apart(out, [Path(folder), base])
    with tempfile.TemporaryDirectory() as scratch:
        plain = Path(scratch) / (out.name or "export")
        read = base if form == "gguf-model" else None
        report = _plain(folder, plain, FORMS[form], form, rank, dtype, read, task, False)
        with new_folder(out, overwrite) as made:
            convert(script, form, plain, _base_of(folder, base, task) if form == "gguf" else None, made)
    return replace(report, out=out, form=form)


def _base_of(folder: str | Path, base: str | Path | None, task: str | None) -> str:
    """The folder of the base, given or recorded."""
    is_state = os.path.isfile(Path(folder) / MERGE_STATE)
    return (
        base_folder(str(base))
        if base
        else _own_base(State(Path(folder)) if is_state else _Deployed(Path(folder), task))
    )


def _plain(
    folder: str | Path,
    out: str | Path,
    form: str,
    shown: str,
    rank: int | None,
    dtype: torch.dtype | None,
    base: str | Path | None,
    task: str | None,
    overwrite: bool,
) -> MergeReport:
    """`export` as an adapter or a model; `shown` is the form that the card's programs are for."""
    folder = Path(folder)
    is_state = os.path.isfile(folder / MERGE_STATE)
    if is_state and task is not None:
        raise ConfigError("A merge state deploys one update; leave --task out.")
    source = State(folder) if is_state else _Deployed(folder, task)
    bound = read_bound(source.store.folder / DEPLOYED) if isinstance(source, _Deployed) else None
    if form == "adapter" and rank is None and bound:
        rank = bound["rank"]
    if form == "model" and rank is not None:
        raise ConfigError("A model has no rank; leave --rank out.")
    if form == "adapter" and base is not None:
        raise ConfigError("An adapter holds no weights of its base; leave --base out, or add --as model.")
    if form == "model":
        base = base_folder(str(base)) if base else _own_base(source)
    elif rank is None and not (source.rule if isinstance(source, State) else source).low_rank:
        raise ConfigError(
            f"What '{folder}' deploys is not low rank. Export it as a model (--as model), which is exact, or give a --rank; "
            "the energy an adapter keeps is reported."
        )
    facts, out = source.facts, Path(out)
    if isinstance(source, _Deployed):
        about = answering(source.store)
        beside = {FILE: json.dumps(about, indent=1, ensure_ascii=False) + "\n"}
        ways = tuple(programs(about, shown, out.name, rank or source.rank))
        head = (without_head(source.store),) if learner_config(source.store).method.get("head") else ()
        facts = replace(facts, beside=beside, shown_base=about["base"], programs=ways, notes=(*facts.notes, *head))
        if bound and rank == bound["rank"]:
            said = f"deploy.rank: {bound_in_words(bound)}"
            facts = replace(
                facts, notes=(*facts.notes, said), record={**facts.record, "deploy.rank": bound_in_words(bound)}
            )
    check_apart(out, [folder, base])
    check_result(facts.modules, out, base, rank, overwrite)
    if base is not None and isinstance(source, _Deployed):
        notes, generation = _check_base(source.store, base)
        facts = replace(facts, notes=(*facts.notes, *notes), generation=generation)
    return write_result(source, facts, out, base=base, rank=rank, dtype=dtype, overwrite=overwrite)


def without_head(store: Store) -> str:
    """What is lost when the adapter answers without the method's head."""
    alone = adapter_alone(task_outcomes(store)).strip() or "It was not scored without it."
    method = store.about["config"]["method"]["name"]
    return f"The head of method '{method}' is not in what is written: only perdure answers with it. {alone}"


def _check_base(store: Store, base: str | Path) -> tuple[tuple[str, ...], dict[str, Any] | None]:
    """Compare the base's fingerprint with the run's; a note where that is not possible. And how a language model answered."""
    config, known = learner_config(store), store.initial.get("base")
    if known is None or config.backbone.get("quantization", "none") != "none":
        note = "Whether the base is the one the run was trained on was not checked: the run has no fingerprint of full weights."
        return (note,), None
    settings = {key: value for key, value in config.backbone.items() if key != "revision"}
    backbone = {**settings, "kind": backbone_kind(config.backbone), "model": str(base)}
    model, backbone_of_run = load_learner(config.model_copy(update={"backbone": backbone}), ())
    if (actual := model.fingerprint()) != known:
        raise RunMismatch(
            f"'{base}' is not the base that the run in '{store.folder}' was trained on: its fingerprint is {actual[:12]}, "
            f"the run's {known[:12]}. The result is right on that base only: give it with --base."
        )
    answering = getattr(backbone_of_run, "generation_settings", None)
    return (), answering() if answering else None


def _own_base(source: State | _Deployed) -> str:
    """The folder of the recorded base."""
    if isinstance(source, _Deployed):
        check_base_there(source.store)
    name = source.facts.base if isinstance(source, State) else source.base
    if name is None:
        raise ConfigError("The base of this update is not recorded; give it with --base.")
    return base_folder(name, source.facts.revision)


class _Deployed(Mergeable):
    """What a run deploys after its last finished stage, read module by module."""

    def __init__(self, folder: Path, task: str | None) -> None:
        self.store = store = Store(folder)
        stages = store.stages() if store.exists else []
        if not stages:
            hint = (
                f" It is an adapter: `perdure merge {folder} --rule sum --base MODEL --out DIR` writes it into a model."
            )
            adapter = (folder / CONFIG_FILE).is_file()
            raise StoreError(
                f"'{folder}' holds neither a merge state nor a run with a finished stage.{hint if adapter else ''}"
            )
        store.verify()
        self.file = store.stage_folder(len(stages)) / STATE
        with damaged_as_error(self.file), safe_open(self.file, framework="pt") as opened:
            deployed = read_metadata(self.file)["deployed"]
            self.group = _group(deployed, task)
            keys = [key.split("/") for key in opened.keys() if key.startswith(f"{self.group}/")]  # noqa: SIM118
            sizes = {
                (module, part): opened.get_slice(f"{self.group}/{module}/{part}").get_shape()
                for _, module, part in keys
            }
        with damaged_as_error(self.file):
            shapes = _shapes(sizes)
        self.low_rank = not any(part == "dense" for _, part in sizes)
        self.rank = max((size[0] for (_, part), size in sizes.items() if part == "A"), default=0)
        config = read_config(store.stage_folder(len(stages)) / "adapter")
        modules = {m: ModuleInfo(shapes[m], "linear", config.fan_in_fan_out) for m in sorted(shapes, key=natural)}
        backbone = store.about["config"]["backbone"]
        self.base, self.revision = str(backbone["model"]), backbone.get("revision")
        named = config.base or self.base
        scores = read_scores(folder)
        final = dict(zip(scores.tasks, scores.score_matrix[-1], strict=True))
        record = {
            "run": folder.name,
            "method": scores.method,
            "tasks": scores.stages,
            "seed": scores.seed,
            "scores": final,
            **card_facts(store.about),
        }
        self.facts = Facts(modules, named, config.task_type, record, revision=self.revision)

    def merge(self, module: str) -> Delta:
        key = f"{self.group}/{module}"
        with damaged_as_error(self.file), safe_open(self.file, framework="pt") as opened:
            if f"{key}/dense" in opened.keys():  # noqa: SIM118  (a safetensors handle is not a mapping)
                return opened.get_tensor(f"{key}/dense")
            return LowRank(opened.get_tensor(f"{key}/A"), opened.get_tensor(f"{key}/B"))


def _shapes(sizes: Mapping[tuple[str, str], list[int]]) -> dict[str, tuple[int, int]]:
    """Module -> (O, I) of its update, from the sizes of its tensors."""
    dense = {module: (size[0], size[1]) for (module, part), size in sizes.items() if part == "dense"}
    return dense | {module: (size[0], sizes[module, "A"][1]) for (module, part), size in sizes.items() if part == "B"}


def _group(deployed: str | list[str], task: str | None) -> str:
    """The checkpoint's key of the deployed update (see perdure.state.checkpoint)."""
    if isinstance(deployed, str):
        if task is not None:
            raise ConfigError("This run deploys one update for all tasks; leave --task out.")
        return "carry" if deployed == "carry" else "deployed"
    if task not in deployed:
        raise ConfigError(f"This run deploys one update per task; choose one with --task: {', '.join(deployed)}.")
    return f"deployed:{deployed.index(task)}"
