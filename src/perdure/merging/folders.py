"""Merge adapter folders into a new adapter or into a base model: `perdure merge A B --rule R --out DIR [--base MODEL]`.

Every module passes through on its own: its factors are read, merged, and written before the next. An adapter comes out
exact where the rule's result is low rank (QR of the stacked factors), else at the rank asked for, with the energy it keeps;
merged weights (`base`) are always exact.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol

import torch

from perdure.adapters.folder import FrozenTensor, frozen_beside, write_adapter
from perdure.adapters.format import FROZEN
from perdure.errors import AdapterError, ConfigError
from perdure.files.output import check_apart, check_new, new_folder
from perdure.merging.base import Addition, Base, Target, write_with
from perdure.merging.card import card
from perdure.merging.covariance_gain import Moments
from perdure.merging.fold import RowsOf
from perdure.merging.merge_file import Override, rules_by_module
from perdure.merging.rules import Prepared, Rule, name_of
from perdure.merging.sources import ModuleInfo, Only, Sources, open_sources, turned
from perdure.ops.decompose import compress, squared_norm, truncate
from perdure.ops.lowrank import Delta, LowRank
from perdure.ops.tiling import tile

ENOUGH = 0.95
"""Share of the energy below which a user is warned that the adapter is not what was merged."""
RECORD = "merge.json"


@dataclass(frozen=True)
class MergeReport:
    """What a merge or an export wrote.

    Args:
        out: the folder.
        form: 'adapter' or 'model'.
        rank: of the adapter; None for a model.
        energy: share of the merged update's squared norm that was kept, in all and per module; 1 where it is exact.
        dtype: of the adapter's factors; None for a model.
        notes: warnings and facts a user should read.
    """

    out: Path
    form: str
    rank: int | None
    energy: float
    energies: Mapping[str, float] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    dtype: str | None = None

    def as_json(self) -> dict[str, Any]:
        """Plain values."""
        return {**self.__dict__, "out": str(self.out), "energies": dict(self.energies), "notes": list(self.notes)}


class Merger:
    """Sources and rules, ready to give any module's merged delta.

    Args:
        overrides: other rules for some modules; the first whose pattern matches a module counts.
    """

    def __init__(
        self,
        sources: Sources,
        rule: Rule,
        overrides: Sequence[Override] = (),
        moments: Sequence[Moments] | None = None,
    ) -> None:
        self.sources = sources
        self.rules = rules_by_module(sources.modules, rule, overrides)
        self._prepared: dict[int, Prepared] = {}
        for chosen in {id(chosen): chosen for chosen in self.rules.values()}.values():
            own = [module for module in sources.modules if self.rules[module] is chosen]
            self._prepared[id(chosen)] = chosen.prepare([Only(update, own) for update in sources.updates], moments)

    @property
    def low_rank(self) -> bool:
        """Whether every module's result is low rank."""
        return all(rule.low_rank for rule in self.rules.values())

    def merge(self, module: str) -> Delta:
        """The merged delta [O, I] of a module."""
        return self._prepared[id(self.rules[module])].merge(module, self.sources.deltas(module))

    def rows(self, module: str) -> RowsOf:
        """The same, by rows."""
        return self._prepared[id(self.rules[module])].rows(module, self.sources.deltas(module))


def merge_folders(
    places: Sequence[str | Path],
    out: str | Path,
    rule: Rule,
    *,
    base: str | Path | None = None,
    rank: int | None = None,
    dtype: torch.dtype | None = None,
    overrides: Sequence[Override] = (),
    moments: Sequence[Moments] | None = None,
    overwrite: bool = False,
) -> MergeReport:
    """Merge adapters in folders (or of a hub) into `out`.

    Args:
        places: adapter folders or hub ids, in the order they were trained.
        base: the base model's folder: writes the whole model with the merged update in its weights, always exact.
        rank: of the adapter; needed for rules whose result is not low rank, else the smallest exact one.
        dtype: of what is written; default fp32 for an adapter, the base's own for a model.
        moments: input second moments for `covariance-gain`, one an adapter.

    Raises:
        AdapterError: an adapter or the base cannot be used; a rank above a layer's.
        ConfigError: the rule's result has no exact rank and neither `base` nor `rank` is given.
        StoreError: `out` exists, or writing there would destroy or change what is read.
    """
    sources = open_sources(places)
    check_form(rule, overrides, base, rank)
    check_apart(Path(out), [*places, base])
    frozen = frozen_beside(sources.updates)
    merger = Merger(sources, rule, overrides, moments)
    record = {
        "rule": name_of(rule),
        "settings": rule.model_dump(mode="json"),
        "overrides": [override.model_dump(mode="json") for override in overrides],
        "adapters": {name: adapter.place for name, adapter in sources.adapters.items()},
    }
    facts = facts_of(sources, record, frozen)
    return write_result(merger, facts, Path(out), base=base, rank=rank, dtype=dtype, overwrite=overwrite)


def check_form(rule: Rule, overrides: Sequence[Override], base: object, rank: int | None) -> None:
    """What is asked for can be written.

    Raises:
        ConfigError: a dense result without `base` or `rank`, or both of them.
    """
    if base is not None and rank is not None:
        raise ConfigError("`base` writes merged weights and `rank` an adapter; give one of them.")
    dense = [name_of(chosen) for chosen in (rule, *(o.chosen(rule) for o in overrides)) if not chosen.low_rank]
    if dense and base is None and rank is None:
        raise ConfigError(
            f"The result of '{dense[0]}' is not low rank. Give the base model (--base) to write merged weights, which is exact, "
            "or a rank (--rank) to write the nearest adapter; the energy it keeps is reported."
        )


class Mergeable(Protocol):
    """Whatever has a merged delta for every module."""

    def merge(self, module: str) -> Delta:
        """The merged delta [O, I] of a module."""
        ...

    def rows(self, module: str) -> RowsOf:
        """The same, by rows."""
        ...


@dataclass(frozen=True)
class Facts:
    """What is known of a result beside its numbers: for the card, the record and the adapter's configuration.

    Args:
        frozen: what an adapter brings of its base; see `perdure.adapters.folder.frozen_beside`.
    """

    modules: Mapping[str, ModuleInfo]
    base: str | None
    task_type: str | None
    record: Mapping[str, Any]
    notes: tuple[str, ...] = ()
    frozen: Mapping[str, FrozenTensor] = field(default_factory=dict)
    revision: str | None = None
    auto_mapping: Mapping[str, Any] | None = None


def facts_of(sources: Sources, record: Mapping[str, Any], frozen: Mapping[str, FrozenTensor]) -> Facts:
    """What the adapters say of themselves, as far as they agree."""
    return Facts(
        sources.modules,
        sources.base,
        sources.task_type,
        record,
        sources.notes,
        frozen,
        sources.revision,
        sources.auto_mapping,
    )


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
    """Write merged deltas into a model (`base`) or as an adapter, with a card and a record beside them."""
    with new_folder(out, overwrite) as made:
        if base is not None:
            report = _into_model(merger, facts, Base(base), made, dtype)
        else:
            report = _into_adapter(merger, facts, made, rank, dtype or torch.float32)
        report = replace(report, out=out, notes=facts.notes + report.notes)
        facts_json = {**facts.record, "perdure": version("perdure"), "torch": torch.__version__, **report.as_json()}
        (made / RECORD).write_text(json.dumps(facts_json, indent=1) + "\n")
        (made / "README.md").write_text(card(facts_json, facts.base if base is None else str(base)), encoding="utf-8")
    return report


def check_result(
    modules: Mapping[str, ModuleInfo], out: Path, base: str | Path | None, rank: int | None, overwrite: bool
) -> None:
    """A result of these modules can be written so: for a caller that has much to do before it calls `write_result`.

    Raises:
        StoreError: `out` exists; AdapterError: the base or the rank does not fit; ConfigError: the rank is none.
    """
    check_new(out, overwrite)
    if base is not None:
        _targets(Base(base), modules)
    elif rank is not None:
        _check_rank(rank, modules)


def _targets(base: Base, modules: Mapping[str, ModuleInfo]) -> dict[str, Target]:
    """Module -> the weight it changes, each another one."""
    targets: dict[str, Target] = {}
    owners: dict[str, str] = {}
    for module, info in modules.items():
        target = targets[module] = base.target(module, info.shape, info.kind, info.transposed)
        if (other := owners.setdefault(target.tensor, module)) != module:
            raise AdapterError(
                f"Modules '{other}' and '{module}' both stand for '{target.tensor}' in '{base.folder}': the adapters were saved "
                "under different model classes. Save them under one."
            )
    return targets


def _into_model(merger: Mergeable, facts: Facts, base: Base, out: Path, dtype: torch.dtype | None) -> MergeReport:
    additions: dict[str, Addition] = {
        target.tensor: partial(_turned, merger, module) if target.transposed else partial(merger.rows, module)
        for module, target in _targets(base, facts.modules).items()
    }
    write_with(base, out, additions, dtype)
    return MergeReport(out, "model", None, 1.0)


def _turned(merger: Mergeable, module: str) -> RowsOf:
    """The merged update's columns, for a weight stored as [I, O]; a dense one is held for that."""
    merged = merger.merge(module)
    return partial(tile, turned(merged) if isinstance(merged, LowRank) else merged.mT)


def _into_adapter(merger: Mergeable, facts: Facts, out: Path, rank: int | None, dtype: torch.dtype) -> MergeReport:
    if rank is not None:
        _check_rank(rank, facts.modules)
    kept: dict[str, LowRank] = {}
    shares: dict[str, tuple[float, float]] = {}
    for module in facts.modules:
        merged: Delta = merger.merge(module)
        total = float(squared_norm(merged))
        kept[module], share = _factors(merged, rank)
        shares[module] = (share * total, total)
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
        frozen={name: one for name, one in facts.frozen.items() if name.rpartition(FROZEN)[0] in facts.modules},
    )
    total = sum(part for _, part in shares.values())
    energy = sum(part for part, _ in shares.values()) / total if total > 0 else 1.0
    energies = {module: part / whole if whole > 0 else 1.0 for module, (part, whole) in shares.items()}
    warnings = tuple(_warnings(energy, energies, common))
    return MergeReport(out, "adapter", common, energy, energies, warnings, str(dtype).removeprefix("torch."))


def _factors(merged: Delta, rank: int | None) -> tuple[LowRank, float]:
    return (compress(merged), 1.0) if rank is None else truncate(merged, rank)


def _check_rank(rank: int, modules: Mapping[str, ModuleInfo]) -> None:
    if rank < 1:
        raise ConfigError(f"The rank of an adapter is 1 or more, not {rank}.")
    for module, info in modules.items():
        if rank > min(info.shape):
            raise AdapterError(
                f"Rank {rank} is above what module '{module}' ({info.shape[0]} x {info.shape[1]}) can have; "
                f"ask for {min(info.shape)} at most."
            )


def _warnings(energy: float, energies: Mapping[str, float], rank: int) -> Iterator[str]:
    if energy < ENOUGH:
        worst = min(energies, key=lambda module: energies[module])
        yield (
            f"WARNING: at rank {rank} the adapter keeps {100 * energy:.1f} % of the energy of what was merged "
            f"(least in '{worst}': {100 * energies[worst]:.1f} %). A higher --rank keeps more; merged weights keep "
            "all of it (`merge --base`, `export --as model`)."
        )
