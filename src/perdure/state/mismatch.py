"""What of a run is no longer as it was begun, in words: settings, data, base model, versions, files of parts of your own.

`begun` and `now` are what run.json says, and what it would say of the run as it is asked for now.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

from perdure.config.run_config import load_config
from perdure.errors import RunMismatch

Said = Mapping[str, Any]


def check_same(folder: Path, begun: Said, now: Said, learnt: Collection[str]) -> None:
    """The run in `folder`, whose stages `learnt` are finished, is the one that `now` says, in the parts that it has.

    Raises:
        RunMismatch: names everything that differs; the order of the tasks counts.
    """
    known = dict(begun)
    if "config" in known:  # a setting that did not exist yet has its default
        known["config"] = load_config(known["config"]).model_dump(mode="json")
    if not _differing(known, now, ("config", "history")) and (changed := _changed_since(folder, known, now, learnt)):
        raise RunMismatch("\n".join(changed))
    found = _differing(known, now, ("config", "tasks", "base", "history"))
    if not found and [*known["tasks"]] != (tasks := [*now.get("tasks", known["tasks"])]):
        found = [f"the order of its tasks was {', '.join(known['tasks'])}, now {', '.join(tasks)}"]
    if found:
        raise RunMismatch(
            f"'{folder}' holds a run of another configuration: {'; '.join(found)}. "
            "Choose another folder, or give the settings it was begun with."
        )


def _changed_since(folder: Path, begun: Said, now: Said, learnt: Collection[str]) -> list[str]:
    """What the same settings name, and is no longer what it was: the data of tasks of the same names, the base model."""
    old, new = begun.get("tasks", {}), now.get("tasks", {})
    if "tasks" in now and old.keys() != new.keys():
        return []
    sizes = begun.get("sizes", {}), now.get("sizes", {})
    found = [data_changed(folder, name, name in learnt, *sizes) for name in new if old[name] != new[name]]
    if _differing(begun, now, ("base",)):
        found.append(base_changed(folder, begun, now["base"]))
    return found


def data_changed(folder: Path, task: str, learnt: bool, was: Said, now: Said) -> str:
    """That a task's data are not those the run was begun with, or that were added to it; `was`, `now`: sizes of the splits."""
    old, new = was.get(task, {}), now.get(task, {})
    counts = ", ".join(f"{old[s]} {s} examples, now {new[s]}" for s in old if s in new and old[s] != new[s])
    return (
        f"The data of task '{task}' changed since {'it was learnt' if learnt else 'the run began'} in '{folder}' (tasks.{task}: "
        f"{f'it had {counts}' if counts else 'as many examples, but not the same ones, or other labels'}). Restore the old "
        "data: scores would not compare. To learn new data of the same task, keep them in files of their own and `perdure "
        "add`; to begin anew with them, choose another folder."
    )


def base_changed(folder: Path, begun: Said, now: str) -> str:
    """That the weights of the base model are not those the run was begun on; `now`: their fingerprint."""
    return (
        f"The base model '{begun['config']['backbone']['model']}' changed since the run in '{folder}' began: its "
        f"fingerprint was {begun['base'][:12]}, now {now[:12]}. What the run learnt is right on the old weights only: "
        "restore them, or begin a new run in another folder."
    )


def other_versions(begun: Said, now: Said) -> list[str]:
    """Warnings that versions of packages, or files with parts of your own, are not those the run was begun with."""
    versions, files = now.get("versions", {}), now.get("own_parts", {})
    changed = [
        f"{name} {was} (now {versions[name]})"
        for name, was in begun.get("versions", {}).items()
        if versions.get(name, was) != was
    ]
    found = [f"the run was begun with {', '.join(changed)}: its numbers may differ from those made with one version"]
    return (found if changed else []) + [
        f"the file of your own part's module '{module}' changed since the run began: what was learnt before and after is "
        "not of one method. Restore the file and learn the later tasks again, or begin anew in another folder"
        for module, digest in begun.get("own_parts", {}).items()
        if files.get(module, digest) != digest
    ]


def _differing(begun: Said, now: Said, parts: Iterable[str]) -> list[str]:
    """What differs, in words; a part that was not recorded or is not asked does not."""
    asked = [part for part in parts if part in begun and part in now]
    return [line for part in asked for line in _differences(begun[part], json.loads(json.dumps(now[part])), part)]


def _differences(old: Any, new: Any, where: str) -> list[str]:
    """Every place where two values differ, in words; the order of a mapping's keys does not count."""
    if isinstance(old, dict) and isinstance(new, dict):
        return [
            line for key in sorted({*old, *new}) for line in _differences(old.get(key), new.get(key), f"{where}.{key}")
        ]
    return [] if old == new else [f"{where} was {old!r:.80}, now {new!r:.80}"]
