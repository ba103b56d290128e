"""The content of run.json: what a run began as."""

from __future__ import annotations

import importlib.metadata
import platform
from collections.abc import Sequence
from functools import reduce
from typing import Any, Literal

import torch

from perdure.backbones.base import Backbone
from perdure.backbones.device import choose_precision
from perdure.backbones.memory import memory_explained
from perdure.config.run_config import RunConfig
from perdure.errors import ConfigError
from perdure.loop.adapter_history import history_record, history_warnings
from perdure.methods.contract.own import sources
from perdure.methods.contract.parts import Method
from perdure.settings.read import Settings
from perdure.state.reopen import UNRECORDED, task_record
from perdure.state.store import Store
from perdure.tasks.chats import NO_CHAT
from perdure.tasks.splits import repeated_from_older
from perdure.tasks.task import Task
from perdure.training.coverage import coverage_line, coverage_warnings
from perdure.training.lora import AdaptedModel
from perdure.training.processes import Processes


def versions() -> dict[str, str]:
    """The versions here of the packages that a run's numbers depend on."""
    return {name: importlib.metadata.version(name) for name in ("perdure", "torch", "transformers", "peft")}


def same_libraries(store: Store) -> bool:
    """Whether a run is in the folder that began with the libraries of now: what it tried then holds."""
    return store.exists and store.about.get("versions") == versions()


def run_record(
    config: RunConfig,
    tasks: Sequence[Task],
    method: Method,
    model: AdaptedModel,
    suite_warnings: Sequence[str],
    store: Store,
    backbone: Backbone,
    processes: Processes,
) -> dict[str, Any]:
    """run.json; precision and threads are chosen when the run begins and kept when it resumes.

    `config` has the settings that were given for the backbone, by which runs are compared; `backbone` has all of them.
    """
    known = store.about if store.exists else None
    settings = getattr(backbone, "settings", None)
    warnings = [
        *(suite_warnings or [f"{task.name}: {note}" for task in tasks for note in task.notes]),
        *repeated_from_older(tasks),
        *history_warnings(config, store),
    ]
    if cut := backbone.truncated:
        length = getattr(settings, "max_length", None)
        limit = f" ({length})" if length else ""
        about = "about " if getattr(backbone, "sampled", False) else ""
        warnings.append(
            f"{about}{cut} texts are longer than backbone.max_length{limit} and are cut; increase it to read more"
        )
    if note := getattr(backbone, "padding_note", lambda: None)():
        warnings.append(note)
    reach = model.coverage()
    notes = [*coverage_warnings(reach), *model.left_out_notes()]
    if note := getattr(backbone, "attention_note", lambda: None)():
        notes.append(note)
    warnings += notes
    if (
        known
        and "ranking" in known
        and known["versions"] == versions()
        and (rank_as := getattr(backbone, "rank_as", None))
    ):
        rank_as(known["ranking"])
    ranked = getattr(backbone, "how_ranked", None)
    # several processes try packing together, at their first answer
    ranking = ranked(tried=processes.count == 1) if ranked else None
    return {
        "config": config.model_dump(mode="json"),
        **task_record(tasks),
        **({"backbone": _used(settings, backbone)} if isinstance(settings, Settings) else {}),
        **({"pooling": pools} if (pools := getattr(backbone, "pools", None)) else {}),
        **({"chat_template": template} if (template := getattr(backbone, "template", None)) else {}),
        "adapted": {"targets": model.targets, **reach.as_json(), "notes": notes},
        "base": model.fingerprint(),
        "history": history_record(config, store),
        "warnings": warnings,
        "precision": known["precision"] if known else _precision(config.precision, backbone, model, tasks, processes),
        "threads": known["threads"] if known else torch.get_num_threads(),
        "processes": processes.count,
        **{name: reduce(getattr, key.split("."), config) for name, key in UNRECORDED.items()},
        "machine": f"{platform.machine()}, {torch.backends.cpu.get_cpu_capability()}",
        "versions": versions(),
        **({"ranking": ranking} if ranking else {}),
        **({"own_parts": own} if (own := sources(method)) else {}),
        **({"grows": grows} if (grows := _growing(method)) else {}),
    }


def _growing(method: Method) -> list[str]:
    """What grows with the number of tasks, part by part."""
    return [f"{name}: {why}" for name, part in method.parts().items() if (why := part.grows())]


def _precision(
    wanted: str, backbone: Backbone, model: AdaptedModel, tasks: Sequence[Task], processes: Processes
) -> Literal["fp32", "bf16"]:
    """The precision for a run, tried on one example: DeBERTa and X-MOD mix number formats, which autocast cannot.

    Raises:
        ConfigError: bf16 is asked for, and the model does not compute in it. For 'auto' it is fp32 then.
    """
    chosen = choose_precision(wanted, model.device)
    task = next((task for task in tasks if task.train and task.train[0].text != NO_CHAT), None)
    if chosen == "fp32" or task is None or processes.count > 1:  # a sharded model answers in all processes or in none
        return chosen
    before, backbone.precision = backbone.precision, "bf16"
    try:
        with torch.no_grad(), torch.random.fork_rng(), memory_explained("trying bf16"):
            backbone.features(backbone.collate(task.train[:1]))
    except (RuntimeError, TypeError, ValueError, NotImplementedError) as error:
        if wanted == "auto":
            return "fp32"
        first = str(error).strip().partition("\n")[0].rstrip(".")
        raise ConfigError(
            f"precision=bf16: {type(model.model).__name__} does not compute in bf16: {first:.200}. Set precision=fp32."
        ) from error
    finally:
        backbone.precision = before
    return chosen


def _used(settings: Settings, backbone: Backbone) -> dict[str, Any]:
    """Every setting of the backbone as it is used: a default that the model cannot follow is replaced."""
    used = settings.model_dump(mode="json")
    return {**used, "attention": getattr(backbone, "attention", used["attention"])} if "attention" in used else used


def begin_lines(about: dict[str, Any]) -> list[str]:
    """What a run says before it begins: what grows with every task, its adapter (runs of 0.1 recorded neither), its warnings."""
    grows = [f"Grows with every task: {'; '.join(about['grows'])}"] if "grows" in about else []
    reach = [coverage_line(about["adapted"])] if "adapted" in about else []
    return [*grows, *reach, *(f"Warning: {line}" for line in about["warnings"])]
