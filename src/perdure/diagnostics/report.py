"""Diagnose several updates: every module, every pair, and in all.

Totals are over all positions of all modules (not means of modules' means), except angles (the smallest) and
overlaps (the mean of the modules').
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from perdure.diagnostics.positions import (
    OWN_SHARES,
    PAIR_SHARES,
    Looking,
    ModulePositions,
    RowCounts,
    Share,
    count_positions,
    share,
)
from perdure.diagnostics.spaces import Between, Space, between, generalised_sparsity, space
from perdure.errors import ConfigError
from perdure.merging.linear import sum_updates
from perdure.merging.modules import at_module, module_names
from perdure.ops.lowrank import Delta, Update
from perdure.ops.parallel import on_one_core


@dataclass(frozen=True)
class Own:
    """One update, at one module or in all."""

    frobenius: float
    nuclear_norm: float
    rank: int
    effective_rank: float
    root_mean_square: float
    mean_magnitude: Share
    largest: float
    nonzero: Share
    generalised_sparsity: float | None


@dataclass(frozen=True)
class Both:
    """Two updates, at one module or in all; definitions in positions.py and spaces.py."""

    opposite: Share
    opposite_top: Share
    opposite_weighted: Share
    flip: Share
    collision: Share
    cosine: float | None
    oo: float | None
    awom: float
    awom_normalised: float | None
    smallest_input_angle: float | None
    smallest_output_angle: float | None
    input_overlap: float | None
    output_overlap: float | None


@dataclass(frozen=True)
class Pair:
    """Two updates compared: `first` is the earlier (or the history), `second` the later."""

    first: str
    second: str
    overall: Both
    modules: Mapping[str, Both]


@dataclass(frozen=True)
class Single:
    """One update described."""

    name: str
    overall: Own
    modules: Mapping[str, Own]


@dataclass(frozen=True)
class Diagnosis:
    """All of it. `average_collision_rate` is N-LoRA's ACR: the mean of the pairs' collision rates."""

    looking: Looking
    updates: Sequence[Single]
    pairs: Sequence[Pair]
    average_collision_rate: float | None

    def as_json(self) -> dict[str, Any]:
        """Plain dictionaries, lists, strings and finite numbers."""
        return dataclasses.asdict(self)


def diagnose(updates: Mapping[str, Update], looking: Looking | None = None, *, history: bool = False) -> Diagnosis:
    """Compare every pair of `updates`, in their order.

    Args:
        updates: name -> update, oldest first; read module by module, each at most twice.
        looking: which positions count as large and as non-zero, and how many rows are looked at.
        history: compare each update with the SUM of all before it instead of with each of them (what a
            penalty on the past sees).

    Raises:
        ConfigError: fewer than two updates, or settings out of range.
        AdapterError: updates of different bases; the first differing module is named.
    """
    looking = _checked(looking or Looking(), len(updates))
    names, parts = list(updates), list(updates.values())
    pairs = [(i, j) for j in range(len(names)) for i in range(j)]
    if history:
        names, parts, pairs = _with_histories(names, parts)
    collected = _Collected(names, pairs)
    for module in module_names(parts):
        with on_one_core():
            deltas = at_module(parts, module)
            collected.add_spaces(module, deltas)
        collected.add_positions(module, deltas, looking)
    return collected.diagnosis(looking, len(updates))


def _checked(looking: Looking, count: int) -> Looking:
    if count < 2:
        raise ConfigError("A diagnosis compares updates; give at least two.")
    if not 0 < looking.top <= 1 or looking.threshold < 0 or (looking.rows is not None and not 0 < looking.rows <= 1):
        raise ConfigError("--top and --sample (`rows`) are shares in (0, 1], --threshold is 0 or more.")
    return looking


class _History(Mapping[str, Delta]):
    """The sum of several updates, formed module by module when it is read."""

    def __init__(self, updates: Sequence[Update]) -> None:
        self._updates = updates

    def __iter__(self):
        return iter(module_names(self._updates))

    def __len__(self) -> int:
        return len(module_names(self._updates))

    def __getitem__(self, module: str) -> Delta:
        present = [{module: update[module]} for update in self._updates if module in update]
        if not present:
            raise KeyError(module)
        return sum_updates(present)[module]


def _with_histories(names: list[str], parts: list[Update]) -> tuple[list[str], list[Update], list[tuple[int, int]]]:
    """The updates, then for each from the third on the sum of those before; and the pairs (history, update)."""
    count = len(names)
    names = names + [" + ".join(names[:t]) for t in range(2, count)]
    parts = parts + [_History(parts[:t]) for t in range(2, count)]
    return names, parts, [(0, 1)] + [(count + t - 2, t) for t in range(2, count)]


class _Collected:
    """What has been counted so far, module by module."""

    def __init__(self, names: Sequence[str], pairs: Sequence[tuple[int, int]]) -> None:
        self.names, self.pairs = names, pairs
        self.positions: dict[str, ModulePositions] = {}
        self.spaces: dict[str, dict[int, _Sizes]] = {}
        self.betweens: dict[str, dict[tuple[int, int], Between]] = {}

    def add_positions(self, module: str, deltas: Sequence[Delta | None], looking: Looking) -> None:
        """Count one module of all updates, entry by entry."""
        self.positions[module] = count_positions(deltas, self.pairs, looking, module)

    def add_spaces(self, module: str, deltas: Sequence[Delta | None]) -> None:
        """Directions and sizes of one module of all updates."""
        spaces = {i: space(delta) for i, delta in enumerate(deltas) if delta is not None}
        self.betweens[module] = {
            (i, j): between(spaces[i], spaces[j]) for i, j in self.pairs if i in spaces and j in spaces
        }
        self.spaces[module] = {i: _Sizes.of(part) for i, part in spaces.items()}

    def diagnosis(self, looking: Looking, count: int) -> Diagnosis:
        """Everything put together."""
        pairs = [self._pair(pair) for pair in self.pairs]
        rates = [pair.overall.collision.value for pair in pairs if pair.overall.collision.value is not None]
        average = sum(rates) / len(rates) if rates else None
        return Diagnosis(looking, [self._single(i) for i in range(count)], pairs, average)

    def _pair(self, pair: tuple[int, int]) -> Pair:
        modules = [module for module, found in self.betweens.items() if pair in found]
        return Pair(
            self.names[pair[0]],
            self.names[pair[1]],
            self._both(pair, modules),
            {module: self._both(pair, [module]) for module in modules},
        )

    def _single(self, index: int) -> Single:
        modules = [module for module, found in self.spaces.items() if index in found]
        return Single(
            self.names[index], self._own(index, modules), {module: self._own(index, [module]) for module in modules}
        )

    def _own(self, index: int, modules: Sequence[str]) -> Own:
        sizes = [self.spaces[module][index] for module in modules]
        shares = _shares(OWN_SHARES, [self.positions[module].own[index] for module in modules])
        count, frobenius = sum(size.count for size in sizes), math.sqrt(sum(size.squared for size in sizes))
        mean = shares["mean_magnitude"].value or 0.0
        return Own(
            frobenius=frobenius,
            nuclear_norm=sum(size.nuclear_norm for size in sizes),
            rank=max((size.rank for size in sizes), default=0),
            effective_rank=sum(size.effective_rank for size in sizes) / max(len(sizes), 1),
            root_mean_square=frobenius / math.sqrt(max(count, 1)),
            largest=max((self.positions[module].largest[index] for module in modules), default=0.0),
            generalised_sparsity=generalised_sparsity(mean * count, frobenius, count),
            **shares,
        )

    def _both(self, pair: tuple[int, int], modules: Sequence[str]) -> Both:
        found = [self.betweens[module][pair] for module in modules]
        squares = [[self.spaces[module][i].squared for module in modules] for i in pair]
        norms = math.sqrt(sum(squares[0]) * sum(squares[1]))
        products = sum(one * two for one, two in zip(*squares, strict=True))
        overlaps = [part.oo for part in found if part.oo is not None]
        return Both(
            **_shares(PAIR_SHARES, [self.positions[module].pairs[pair] for module in modules]),
            cosine=sum(part.inner for part in found) / norms if norms > 0 else None,
            oo=sum(overlaps) if len(overlaps) == len(found) else None,
            awom=sum(part.awom for part in found),
            awom_normalised=sum(part.awom for part in found) / products if products > 0 else None,
            smallest_input_angle=_least([part.smallest_input_angle for part in found]),
            smallest_output_angle=_least([part.smallest_output_angle for part in found]),
            input_overlap=_mean([part.input_overlap for part in found]),
            output_overlap=_mean([part.output_overlap for part in found]),
        )


@dataclass(frozen=True)
class _Sizes:
    """The numbers of a `Space` without its matrices."""

    count: int
    squared: float
    nuclear_norm: float
    rank: int
    effective_rank: float

    @classmethod
    def of(cls, part: Space) -> _Sizes:
        return cls(math.prod(part.delta.shape), part.squared, part.nuclear_norm, part.rank, part.effective_rank)


def _shares(names: Sequence[str], rows: Sequence[Mapping[str, RowCounts]]) -> dict[str, Share]:
    return {name: share([counted[name] for counted in rows]) for name in names}


def _least(values: Sequence[float | None]) -> float | None:
    return min((value for value in values if value is not None), default=None)


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None
