"""Merging one by one: what a rule must remember, kept on disk in constant size (PS-LoRA's first open question).

    STATE/
      state.json                 rule and settings, what has been merged, every module's shape
      merged-<count>.safetensors <module>/<slot> [O, I] of a dense rule (fold.py), or <module>/A, B (or dense) of a linear one

`merge_into` reads one adapter and the old numbers in row tiles and writes the new ones to a new file; state.json names it
only once it is complete. A process killed at any point leaves the old state. Merging one by one gives what merging all
at once gives: the same operations in the same order on the same numbers.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from perdure.adapters.folder import Adapter, free_name, open_adapter
from perdure.adapters.format import natural
from perdure.errors import AdapterError, ConfigError, RunBusy, StoreError
from perdure.files.durable import disk_full_as_error, make_folder, remove_folder_on_refusal, sha256, write_text
from perdure.files.names import stored_name
from perdure.files.output import MERGE_STATE
from perdure.files.parsing import parse_json, read_limited
from perdure.merging.fold import RowsOf
from perdure.merging.result import Facts, Mergeable
from perdure.merging.rules import FoldRule, Rule, name_of, rule_named
from perdure.merging.slots import Added, keeper_for
from perdure.merging.sources import ModuleInfo, agreed, base_notes, check_one_class, check_related, differs, modules_of
from perdure.merging.tensor_files import TensorReader, TensorWriter
from perdure.ops.lowrank import Delta
from perdure.settings.read import Settings, validate

OWN = re.compile(rf"\.lock|\.partial-{re.escape(MERGE_STATE)}|merged-.*\.safetensors")
"""Files that a process killed before the first commit leaves."""


class About(Settings):
    """state.json."""

    rule: str
    settings: dict[str, Any]
    file: str
    adapters: tuple[str, ...]
    digests: tuple[str, ...]
    weight: float
    modules: dict[str, ModuleInfo]
    base: str | None
    task_type: str | None
    revision: str | None = None
    auto_mapping: dict[str, Any] | None = None
    notes: tuple[str, ...] = ()

    @property
    def count(self) -> int:
        """How many adapters have been merged."""
        return len(self.adapters)


class State(Mergeable):
    """A state folder, for reading; a StoreError if it holds no state, or its file is missing."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.about = _read_about(self.folder)
        self.rule = rule_named(self.about.rule, self.about.settings)
        self.keeper = keeper_for(self.rule)
        if not os.path.isfile(self.folder / self.about.file):
            raise StoreError(
                f"'{self.folder}' lacks '{self.about.file}', which {MERGE_STATE} names; restore it from a copy."
            )

    @property
    def facts(self) -> Facts:
        """What is known of the result, for its card and record."""
        about = self.about
        names = {name: name for name in about.adapters}
        record = {"rule": about.rule, "settings": about.settings, "adapters": names, "merged_one_by_one": True}
        named = about.base, about.task_type
        return Facts(about.modules, *named, record, about.notes, {}, about.revision, about.auto_mapping)

    def merge(self, module: str) -> Delta:
        return self.keeper.merge(self.reader(), module, self.about.modules[module].shape, self.about.weight)

    def rows(self, module: str) -> RowsOf:
        return self.keeper.rows(self.reader(), module, self.about.modules[module].shape, self.about.weight)

    def reader(self) -> TensorReader:
        """The file of kept numbers, opened."""
        return TensorReader(self.folder / self.about.file)


def merge_into(
    folder: str | Path, place: str | Path, rule: Rule | None = None, *, weight: float = 1.0, again: bool = False
) -> State:
    """Merge one more adapter into a state; a new folder becomes a new state.

    Args:
        rule: required for a new state; for an existing one the same rule, or None.
        weight: of this adapter, for rules that take weights.
        again: merge an adapter although the state already holds the very same file.

    Raises:
        ConfigError: no rule, another rule than the state's, one that cannot be merged one by one, or the adapter is in it.
        AdapterError: the adapter cannot be read, is of another base, or makes numbers that are not finite.
        StoreError: the folder holds something else, cannot be made, or has no space; RunBusy: another process writes to it.
    """
    folder = Path(folder)
    _state_and_rule(folder, rule, weight)  # a mistake leaves no folder behind
    adapter = open_adapter(place, beside=True)
    made = not os.path.exists(folder)
    make_folder(folder)
    try:
        with (
            disk_full_as_error(folder, "The state is unchanged; free some space, then merge again."),
            FileLock(folder / ".lock", timeout=0),
            remove_folder_on_refusal(folder, ".lock", made),
        ):
            known, chosen = _state_and_rule(folder, rule, weight)  # again: another process may have merged meanwhile
            _extend(folder, known, chosen, adapter, weight, again)
    except Timeout:
        raise RunBusy(f"Another process is merging into '{folder}'; wait for it.") from None
    return State(folder)


def _state_and_rule(folder: Path, rule: Rule | None, weight: float) -> tuple[State | None, Rule]:
    """The state in `folder`, None for a new one, and the rule to merge by; for errors see `merge_into`."""
    known = State(folder) if os.path.isfile(folder / MERGE_STATE) else None
    if (
        known is None
        and os.path.exists(folder)
        and not (os.path.isdir(folder) and all(OWN.fullmatch(p.name) for p in folder.iterdir()))
    ):
        raise StoreError(f"'{folder}' exists and holds no merge state; choose an empty or a new folder.")
    if known is not None and rule not in (None, known.rule):
        raise ConfigError(
            f"The state is kept for '{known.about.rule}' {known.about.settings}; "
            "other rules or settings need a separate state."
        )
    chosen = known.rule if known else rule
    if chosen is None:
        raise ConfigError("A new state needs a rule (--rule).")
    if not chosen.incremental:
        raise ConfigError(
            f"'{name_of(chosen)}' needs all updates at once, so it cannot be merged one by one in constant memory; "
            "merge all at once."
        )
    if getattr(chosen, "weights", None) is not None:
        raise ConfigError("One by one, give each adapter its own weight (--weight) instead of a list.")
    if not math.isfinite(weight):
        raise ConfigError(f"The weight of an adapter is a finite number, not {weight}.")
    if weight != 1.0 and "weights" not in type(chosen).model_fields:
        raise ConfigError(f"'{name_of(chosen)}' takes no weights.")
    return known, chosen


def _extend(folder: Path, known: State | None, rule: Rule, adapter: Adapter, weight: float, again: bool) -> None:
    digest = sha256(adapter.file)
    about = known.about if known else _empty(rule)
    if digest in about.digests and not again:
        name = about.adapters[about.digests.index(digest)]
        raise ConfigError(f"The state already holds this adapter (as '{name}'); use --again to merge it once more.")
    modules = _joined(about, adapter)
    file = f"merged-{about.count + 1}.safetensors"
    keeper = keeper_for(rule)
    with known.reader() if known else nullcontext() as reader:
        transform = rule.transform(adapter, about.count) if isinstance(rule, FoldRule) else None
        added = Added(adapter, about.count, weight, transform)
        layout = {
            key: part
            for module, info in modules.items()
            for key, part in keeper.layout(reader, module, info.shape, added).items()
        }
        try:
            with TensorWriter(folder / file, layout) as writer:
                for module, info in modules.items():
                    keeper.extend(reader, writer, module, info.shape, added)
        except AdapterError:  # such as numbers that overflow: the state stays as it was, to the file
            (folder / file).unlink()
            raise
    named = [one for one in (about, adapter.config) if one.base]
    new = {
        "file": file,
        "adapters": (*about.adapters, free_name(adapter.name, about.adapters)),
        "digests": (*about.digests, digest),
        "weight": about.weight + weight,
        "modules": modules,
        "base": about.base or adapter.config.base,
        "task_type": about.task_type or adapter.config.task_type,
        # None for good once two that name a base disagree
        "revision": agreed(one.revision or "" for one in named) or None,
        "auto_mapping": agreed(one.auto_mapping or {} for one in named) or None,
        "notes": tuple(dict.fromkeys((*about.notes, *_notes(about, adapter)))),
    }
    # atomic; from here on the old file is not needed
    write_text(folder / MERGE_STATE, about.model_copy(update=new).model_dump_json(indent=1) + "\n")
    for path in folder.glob("merged-*.safetensors"):
        if path.name != file:
            path.unlink()


def _empty(rule: Rule) -> About:
    nothing = {"file": "", "adapters": (), "digests": (), "weight": 0.0, "modules": {}, "base": None, "task_type": None}
    return About(rule=name_of(rule), settings=rule.model_dump(mode="json"), **nothing)


def _joined(about: About, adapter: Adapter) -> dict[str, ModuleInfo]:
    """The modules of the state and of the adapter, which must agree."""
    modules, own = dict(about.modules), modules_of(adapter)
    if about.count:
        check_related("The state", about.base, modules, str(adapter.folder), adapter)
        check_one_class({"the state": about.modules, f"'{adapter.folder}'": own})
    for module, info in own.items():
        if (known := modules.setdefault(module, info)) != info:
            raise differs(module, "The state", known, f"'{adapter.folder}'", info)
    return {module: modules[module] for module in sorted(modules, key=natural)}


def _notes(about: About, adapter: Adapter) -> Iterator[str]:
    """Notes on what of the adapter is not kept, and on bases of different names."""
    for module, entry in adapter.modules.items():
        if entry.frozen:
            yield (
                f"The adapters bring the base's own weight of '{module}', which a state does not keep. If the vocabulary was "
                "resized, the result is right on the resized base only: save that as a model and give it with --base, or "
                "merge all at once."
            )
    if adapter.beside:
        yield (
            f"The adapters bring whole tensors ('{adapter.beside[0]}' ...: a classifier's head, or embeddings), which a "
            "state does not keep. Merge all at once to keep them."
        )
    if about.count:
        config = adapter.config
        yield from base_notes({"the state": (about.base, about.revision), adapter.name: (config.base, config.revision)})


def _read_about(folder: Path) -> About:
    path = folder / MERGE_STATE
    if not os.path.isfile(path):
        raise StoreError(
            f"'{folder}' holds no merge state (no {MERGE_STATE}); give the folder of `perdure merge --into`."
        )
    try:
        raw = parse_json(read_limited(path))
    except ValueError as error:
        raise StoreError(f"{path}: not readable as JSON ({error}).") from error
    about = validate(About, raw, str(path))
    stored_name(about.file, path, "file")
    return about
