"""Merge adapter folders into a new adapter or into a base model: `perdure merge A B --rule R --out DIR [--base MODEL]`.

Modules are merged one at a time: factors are read, merged and written before the next.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from perdure.adapters.beside import frozen_beside, heads_beside
from perdure.adapters.weights import FrozenTensor
from perdure.errors import ConfigError
from perdure.files.output import check_apart
from perdure.merging.covariance_gain import Moments
from perdure.merging.fold import RowsOf
from perdure.merging.merge_file import Override, rules_by_module
from perdure.merging.result import Facts, Mergeable, MergeReport, write_result
from perdure.merging.rules import Prepared, Rule, name_of
from perdure.merging.sources import Only, Sources, agreed, open_sources
from perdure.ops.lowrank import Delta


class Merger(Mergeable):
    """Sources and rules, ready to give any module's merged delta.

    Args:
        overrides: other rules for some modules; the first whose pattern matches a module applies.
    """

    def __init__(
        self, sources: Sources, rule: Rule, overrides: Sequence[Override] = (), moments: Sequence[Moments] | None = None
    ) -> None:
        self.sources = sources
        self._prepared: dict[str, Prepared] = {}
        rules = rules_by_module(sources.modules, rule, overrides)
        for chosen in {id(chosen): chosen for chosen in rules.values()}.values():
            own = [module for module in rules if rules[module] is chosen]
            prepared = chosen.prepare([Only(update, own) for update in sources.updates], moments)
            self._prepared |= dict.fromkeys(own, prepared)

    def merge(self, module: str) -> Delta:
        return self._prepared[module].merge(module, self.sources.deltas(module))

    def rows(self, module: str) -> RowsOf:
        return self._prepared[module].rows(module, self.sources.deltas(module))


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
    """Merge adapters in folders (or on a hub) into `out`.

    Args:
        places: adapter folders or hub ids, in the order they were trained.
        base: the base model's folder: writes the whole model with the merged update in its weights, always exact.
        rank: of the adapter; required for rules whose result is not low rank, else the smallest exact one.
        dtype: of what is written; default fp32 for an adapter, the base's own for a model.
        moments: input second moments for `covariance-gain`, one per adapter.

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
    """Raise a ConfigError for a dense result without `base` or `rank`, or for both of them."""
    if base is not None and rank is not None:
        raise ConfigError("`base` writes merged weights and `rank` an adapter; give one of them.")
    dense = [name_of(chosen) for chosen in (rule, *(o.chosen(rule) for o in overrides)) if not chosen.low_rank]
    if dense and base is None and rank is None:
        raise ConfigError(
            f"The result of '{dense[0]}' is not low rank. Give the base model (--base) to write merged weights, which is exact, "
            "or a rank (--rank) to write the nearest adapter; the energy it keeps is reported."
        )


def facts_of(sources: Sources, record: Mapping[str, Any], frozen: Mapping[str, FrozenTensor]) -> Facts:
    """What the adapters say about themselves, where all that say it agree; the base, where the first does."""
    configs = [adapter.config for adapter in sources.updates]
    named = [config for config in configs if config.base]
    heads, notes = heads_beside(sources.updates)
    return Facts(
        sources.modules,
        named[0].base if named else None,
        agreed(config.task_type for config in configs),
        record,
        sources.notes + notes,
        frozen,
        agreed(config.revision or "" for config in named) or None,
        agreed(config.auto_mapping for config in configs),
        heads,
        tuple(dict.fromkeys(name for config in configs for name in config.heads)) if heads else (),
        tuple(adapter.folder for adapter in sources.updates),
    )
