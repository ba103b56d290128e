"""Write merged deltas, as an adapter or into a base model, with a card and a record beside them.

An adapter is exact where the deltas are low rank (QR of the stacked factors), else of the rank asked for, with the energy
it keeps; a model is always exact.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from perdure.adapters.folder import write_adapter
from perdure.adapters.weights import FROZEN, FrozenTensor
from perdure.errors import AdapterError, ConfigError
from perdure.files.output import check_new, new_folder
from perdure.merging.base import Addition, Base, Target, write_with
from perdure.merging.base_files import copy_tokenizer
from perdure.merging.beside import check_embeddings, heads_in
from perdure.merging.card import card
from perdure.merging.conversion import Converted
from perdure.merging.fold import RowsOf
from perdure.merging.sources import ModuleInfo, transposed
from perdure.ops.decompose import compress, squared_norm, truncate
from perdure.ops.finite import finite
from perdure.ops.lowrank import Delta, LowRank, dense
from perdure.ops.tiling import tile

SAY_FROM, WARN_FROM = 0.001, 0.3
"""Share of the update's norm lost to rounding, from which on a user is told, and warned."""
WARN_BELOW = 0.95
"""Share of the energy below which a user is warned that the adapter is not what was merged."""


@dataclass(frozen=True)
class MergeReport:
    """What a merge or an export wrote.

    Args:
        form: 'adapter' or 'model'.
        rank: of the adapter; None for a model.
        energy: share of the merged update's squared norm that was kept, in total and per module; 1 where exact.
        dtype: of the adapter's factors; None for a model.
        rounded: of a model: norm of what rounding to the stored dtype changed, relative to the update's.
        notes: warnings and facts for the user.
    """

    out: Path
    form: str
    rank: int | None
    energy: float
    energies: Mapping[str, float] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    dtype: str | None = None
    rounded: float = 0.0

    def as_json(self) -> dict[str, Any]:
        """Plain values."""
        return {**self.__dict__, "out": str(self.out), "energies": dict(self.energies), "notes": list(self.notes)}


class Mergeable:
    """Anything with a merged delta for every module."""

    def merge(self, module: str) -> Delta:
        """The merged delta [O, I] of a module."""
        raise NotImplementedError

    def rows(self, module: str) -> RowsOf:
        """The same, by rows."""
        return partial(tile, self.merge(module))


@dataclass(frozen=True)
class Facts:
    """What else is known of a result, for the card, the record and the adapter's configuration.

    Args:
        frozen, heads: whole tensors to go with it; see `frozen_beside`, `heads_beside`.
        head_names: the modules that `heads` belong to.
        folders: of the adapters, whose tokenizers go with it.
        generation: what a model's generation_config.json says instead of the base's.
        beside: more small files of a run, name -> content.
        shown_base, programs: what the card of a run says of its base, and of ways to use it: (title, language, text).
    """

    modules: Mapping[str, ModuleInfo]
    base: str | None
    task_type: str | None
    record: Mapping[str, Any]
    notes: tuple[str, ...] = ()
    frozen: Mapping[str, FrozenTensor] = field(default_factory=dict)
    revision: str | None = None
    auto_mapping: Mapping[str, Any] | None = None
    heads: Mapping[str, FrozenTensor] = field(default_factory=dict)
    head_names: tuple[str, ...] = ()
    folders: tuple[Path, ...] = ()
    generation: Mapping[str, Any] | None = None
    beside: Mapping[str, str] = field(default_factory=dict)
    shown_base: str | None = None
    programs: Sequence[tuple[str, str, str]] = ()


def write_result(
    merger: Mergeable,
    facts: Facts,
    out: Path,
    *,
    base: str | Path | None = None,
    rank: int | None = None,
    dtype: torch.dtype | None = None,
    overwrite: bool = False,
) -> MergeReport:
    """Write merged deltas into a model (`base`) or as an adapter, with a card and a record."""
    with new_folder(out, overwrite) as made:
        if base is not None:
            report = _into_model(merger, facts, Base(base), made, dtype)
        else:
            report = _into_adapter(merger, facts, made, rank, dtype or torch.float32)
        notes = facts.notes + report.notes + copy_tokenizer(facts.folders, made)
        report = replace(report, out=out, notes=notes)
        record = {**facts.record, "perdure": version("perdure"), "torch": torch.__version__, **report.as_json()}
        (made / "merge.json").write_text(json.dumps(record, indent=1) + "\n")
        for name, content in facts.beside.items():
            (made / name).write_text(content, encoding="utf-8")
        named = facts.shown_base if facts.beside else facts.base if base is None else str(base)
        (made / "README.md").write_text(card(record, named, facts.programs), encoding="utf-8")
    return report


def check_result(
    modules: Mapping[str, ModuleInfo], out: Path, base: str | Path | None, rank: int | None, overwrite: bool
) -> None:
    """Raise the errors of `write_result` for a result of these modules, before a long computation."""
    check_new(out, overwrite)
    if base is not None:
        _targets(Base(base), modules)
    elif rank is not None:
        _check_rank(rank, modules)


def _targets(base: Base, modules: Mapping[str, ModuleInfo]) -> dict[str, Target]:
    """Module -> the weight it changes, no two the same."""
    targets: dict[str, Target] = {}
    owners: dict[str, tuple[str, Target]] = {}
    for module, info in modules.items():
        target = targets[module] = base.target(module, info.shape, info.kind, info.transposed)
        for name in target.files:
            other, owner = owners.setdefault(name, (module, target))
            if other != module and (owner.tensor == target.tensor or owner.converted is not target.converted):
                raise AdapterError(
                    f"Modules '{other}' and '{module}' both stand for '{name}' in '{base.folder}': the adapters were saved "
                    "under different model classes. Save them under one."
                )
    return targets


def _into_model(merger: Mergeable, facts: Facts, base: Base, out: Path, dtype: torch.dtype | None) -> MergeReport:
    additions = _additions(merger, _targets(base, facts.modules))
    check_embeddings(base, facts.frozen)
    replaced, notes = heads_in(base, facts.heads)
    rounding = write_with(base, out, additions, dtype, replaced)
    if facts.generation is not None:
        (out / "generation_config.json").write_text(json.dumps(facts.generation, indent=2) + "\n")
    if rounding.share >= SAY_FROM:
        lost = f"{100 * rounding.share:.2g} %"
        warning = "WARNING: " if rounding.share >= WARN_FROM else ""
        notes += (
            f"{warning}Rounding to the stored dtype changed the update by {lost} of its norm. --dtype fp32 keeps it, as does an "
            "adapter on the base.",
        )
    return MergeReport(out, "model", None, 1.0, notes=notes, rounded=rounding.share)


def _additions(merger: Mergeable, targets: Mapping[str, Target]) -> dict[str, Addition]:
    """Tensor of the base's files -> what is added to it."""

    def columns(module: str) -> RowsOf:  # of a weight stored as [I, O]; a dense update is held in memory for that
        return partial(tile, transposed(merger.merge(module)))

    def converted(
        name: str, group: Converted, modules: Sequence[str]
    ) -> RowsOf:  # here all updates that `name` is part of
        changes: dict[str, Tensor] = {}
        for module in modules:
            merged, target = merger.merge(module), targets[module]
            changes[target.tensor] = dense(transposed(merged) if target.transposed else merged)
        return partial(tile, group.to_file(changes)[name])

    additions: dict[str, Addition] = {}
    groups: dict[Converted, list[str]] = {}
    for module, target in targets.items():
        if target.converted is None:
            additions[target.tensor] = partial(columns if target.transposed else merger.rows, module)
        else:
            groups.setdefault(target.converted, []).append(module)
    return additions | {
        name: partial(converted, name, group, held) for group, held in groups.items() for name in group.files
    }


def _into_adapter(merger: Mergeable, facts: Facts, out: Path, rank: int | None, dtype: torch.dtype) -> MergeReport:
    if rank is not None:
        _check_rank(rank, facts.modules)
    kept: dict[str, LowRank] = {}
    parts: dict[str, tuple[float, float]] = {}  # energy kept, energy
    for module in facts.modules:
        merged = merger.merge(module)
        if not finite(merged):  # a decomposition of it would fail, or give NaN without a word
            raise AdapterError(
                f"What was merged overflows at module '{module}': it has NaN or Inf. The adapters' updates, their weights or the "
                "scale are too large. Nothing was written."
            )
        energy = float(squared_norm(merged))
        kept[module], share = (compress(merged), 1.0) if rank is None else truncate(merged, rank)
        parts[module] = (share * energy, energy)
    common = rank or max(delta.rank for delta in kept.values())
    write_adapter(
        out,
        kept,
        rank=common,
        dtype=dtype,
        base=facts.base,
        revision=facts.revision,
        task_type=facts.task_type,
        auto_mapping=facts.auto_mapping,
        fan_in_fan_out=any(info.transposed and info.kind == "linear" for info in facts.modules.values()),
        embeddings=[module for module, info in facts.modules.items() if info.kind == "embedding"],
        experts={module.rpartition(".")[0] for module, info in facts.modules.items() if info.kind == "expert"},
        frozen={
            n: one for n, one in facts.frozen.items() if FROZEN not in n or n.rpartition(FROZEN)[0] in facts.modules
        }
        | dict(facts.heads),
        heads=facts.head_names,
    )
    total = sum(energy for _, energy in parts.values())
    energy = sum(kept for kept, _ in parts.values()) / total if total > 0 else 1.0
    energies = {module: kept / energy if energy > 0 else 1.0 for module, (kept, energy) in parts.items()}
    notes = []
    if energy < WARN_BELOW:
        worst = min(energies, key=lambda module: energies[module])
        notes.append(
            f"WARNING: at rank {common} the adapter keeps {100 * energy:.1f} % of the energy of what was merged "
            f"(least in '{worst}': {100 * energies[worst]:.1f} %). A higher --rank keeps more; merged weights keep "
            "all of it (`merge --base`, `export --as model`)."
        )
    return MergeReport(out, "adapter", common, energy, energies, tuple(notes), str(dtype).removeprefix("torch."))


def _check_rank(rank: int, modules: Mapping[str, ModuleInfo]) -> None:
    if rank < 1:
        raise ConfigError(f"The rank of an adapter is 1 or more, not {rank}.")
    for module, info in modules.items():
        if rank > min(info.shape):
            raise AdapterError(
                f"Rank {rank} is above the maximum of module '{module}' ({info.shape[0]} x {info.shape[1]}); "
                f"ask for {min(info.shape)} at most."
            )
