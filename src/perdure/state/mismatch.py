"""How a run differs from what it began with: settings, data, base model, versions, files of custom parts.

`begun` is run.json, `now` what run.json would be for the run that is requested.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

from perdure.config.run_config import load_config
from perdure.errors import RunMismatch

RunRecord = Mapping[str, Any]


def check_same(folder: Path, begun: RunRecord, now: RunRecord, learnt: Collection[str]) -> None:
    """Raise RunMismatch unless the run in `folder` (finished stages: `learnt`) has the entries and task order of `now`."""
    known = dict(begun)
    if "config" in known:  # a setting that did not exist yet has its default
        known["config"] = load_config(known["config"]).model_dump(mode="json")
    if not _differences_in(known, now, ("config", "history")) and (changed := _changed(folder, known, now, learnt)):
        raise RunMismatch("\n".join(changed))
    differences = _differences_in(known, now, ("config", "tasks", "base", "history"))
    if not differences and [*known["tasks"]] != (tasks := [*now.get("tasks", known["tasks"])]):
        differences = [f"the order of its tasks was {', '.join(known['tasks'])}, now {', '.join(tasks)}"]
    if differences:
        raise RunMismatch(
            f"'{folder}' holds a run of another configuration: {'; '.join(differences)}. "
            "Choose another folder, or give the settings it began with."
        )


def _changed(folder: Path, begun: RunRecord, now: RunRecord, learnt: Collection[str]) -> list[str]:
    """What changed though the settings are the same: the data of tasks of the same names, the base model."""
    old, new = begun.get("tasks", {}), now.get("tasks", {})
    if "tasks" in now and old.keys() != new.keys():
        return []
    sizes = begun.get("sizes", {}), now.get("sizes", {})
    changed = [data_changed(folder, name, name in learnt, *sizes) for name in new if old[name] != new[name]]
    if _differences_in(begun, now, ("base",)):
        changed.append(base_changed(folder, begun, now["base"]))
    return changed


def data_changed(folder: Path, task: str, learnt: bool, was: RunRecord, now: RunRecord) -> str:
    """The error that a task's data changed since the run began or the task was added; `was`, `now`: sizes of the splits."""
    old, new = was.get(task, {}), now.get(task, {})
    counts = ", ".join(f"{old[s]} {s} examples, now {new[s]}" for s in old if s in new and old[s] != new[s])
    return (
        f"The data of task '{task}' changed since {'it was learnt' if learnt else 'the run began'} in '{folder}' (tasks.{task}: "
        f"{f'it had {counts}' if counts else 'as many examples, but different ones, or other labels'}). Restore the old "
        "data: scores would not compare. To learn new data of the same task, put them in separate files and use `perdure "
        "add`; to start over with them, choose another folder."
    )


def base_changed(folder: Path, begun: RunRecord, now: str) -> str:
    """The error that the base model's weights changed since the run began; `now`: their fingerprint."""
    return (
        f"The base model '{begun['config']['backbone']['model']}' changed since the run in '{folder}' began: its "
        f"fingerprint was {begun['base'][:12]}, now {now[:12]}. What the run learnt is right only on the old weights: "
        "restore them, or start a new run in another folder."
    )


def other_versions(begun: RunRecord, now: RunRecord) -> list[str]:
    """Warnings that versions of packages, or files of custom parts, changed since the run began."""
    versions, files = now.get("versions", {}), now.get("own_parts", {})
    changed = [
        f"{name} {was} (now {versions[name]})"
        for name, was in begun.get("versions", {}).items()
        if versions.get(name, was) != was
    ]
    mixed = [f"the run began with {', '.join(changed)}: its numbers may differ from those of a single version"]
    return (mixed if changed else []) + [
        f"the file of the custom part's module '{module}' changed since the run began: tasks before and after it were "
        "learnt with different methods. Restore the file and learn the later tasks again, or start over in another folder"
        for module, digest in begun.get("own_parts", {}).items()
        if files.get(module, digest) != digest
    ]


def _differences_in(begun: RunRecord, now: RunRecord, entries: Iterable[str]) -> list[str]:
    """The differences in these entries; one that either side lacks is skipped."""
    common = [entry for entry in entries if entry in begun and entry in now]
    return [line for entry in common for line in _differences(begun[entry], json.loads(json.dumps(now[entry])), entry)]


def _differences(old: Any, new: Any, where: str) -> list[str]:
    """Every place where two values differ; the order of a mapping's keys does not count."""
    if isinstance(old, dict) and isinstance(new, dict):
        return [
            line for key in sorted({*old, *new}) for line in _differences(old.get(key), new.get(key), f"{where}.{key}")
        ]
    return [] if old == new else [f"{where} was {old!r:.80}, now {new!r:.80}"]
