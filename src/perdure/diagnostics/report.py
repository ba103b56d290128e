"""Diagnose several updates: every module, every pair, and in total.

Totals are over all positions of all modules (not means of modules' means), except angles (the smallest) and
overlaps (the mean of the modules').
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
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
from perdure.diagnostics.spaces import Between, Sizes, between, generalised_sparsity, space
from perdure.errors import ConfigError
from perdure.merging.linear import sum_updates
from perdure.merging.modules import at_module, module_names
from perdure.ops.lowrank import Delta, Update
from perdure.ops.parallel import on_one_core


@dataclass(frozen=True)
class Own:
    """One update, at one module or in total."""

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
    """Two updates, at one module or in total; definitions in positions.py and spaces.py."""

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
    """All updates and pairs. `average_collision_rate` is N-LoRA's ACR: the mean of the pairs' collision rates."""

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
        looking: which positions count as large and as non-zero, and how many rows are sampled.
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
    measured = {module: _measure(module, parts, pairs, looking) for module in module_names(parts)}
    singles, compared = [], []
    for i in range(len(updates)):
        here = {module: each for module, each in measured.items() if i in each.sizes}
        by_module = {module: _own(i, [each]) for module, each in here.items()}
        singles.append(Single(names[i], _own(i, list(here.values())), by_module))
    for pair in pairs:
        here = {module: each for module, each in measured.items() if pair in each.between}
        by_module = {module: _both(pair, [each]) for module, each in here.items()}
        compared.append(Pair(names[pair[0]], names[pair[1]], _both(pair, list(here.values())), by_module))
    return Diagnosis(looking, singles, compared, _mean([pair.overall.collision.value for pair in compared]))


def _checked(looking: Looking, count: int) -> Looking:
    if count < 2:
        raise ConfigError("A diagnosis compares updates; give at least two.")
    if not 0 < looking.top <= 1 or looking.threshold < 0 or (looking.rows is not None and not 0 < looking.rows <= 1):
        raise ConfigError("--top and --sample (`rows`) are shares in (0, 1], --threshold is 0 or more.")
    return looking


class _History(Mapping[str, Delta]):
    """The sum of several updates, formed module by module on access."""

    def __init__(self, updates: Sequence[Update]) -> None:
        self._updates = updates

    def __iter__(self) -> Iterator[str]:
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


@dataclass(frozen=True)
class _Measured:
    """One module: its positions, and sizes and comparisons by update and pair."""

    positions: ModulePositions
    sizes: Mapping[int, Sizes]
    between: Mapping[tuple[int, int], Between]


def _measure(module: str, updates: Sequence[Update], pairs: Sequence[tuple[int, int]], looking: Looking) -> _Measured:
    with on_one_core():
        deltas = at_module(updates, module)
        spaces = {i: space(delta) for i, delta in enumerate(deltas) if delta is not None}
        compared = {(i, j): between(spaces[i], spaces[j]) for i, j in pairs if i in spaces and j in spaces}
    sizes = {i: each.sizes for i, each in spaces.items()}
    return _Measured(count_positions(deltas, pairs, looking, module), sizes, compared)


def _own(index: int, modules: Sequence[_Measured]) -> Own:
    sizes = [each.sizes[index] for each in modules]
    shares = _shares(OWN_SHARES, [each.positions.own[index] for each in modules])
    count, frobenius = sum(size.count for size in sizes), math.sqrt(sum(size.squared for size in sizes))
    mean = shares["mean_magnitude"].value or 0.0
    return Own(
        frobenius=frobenius,
        nuclear_norm=sum(size.nuclear_norm for size in sizes),
        rank=max((size.rank for size in sizes), default=0),
        effective_rank=sum(size.effective_rank for size in sizes) / max(len(sizes), 1),
        root_mean_square=frobenius / math.sqrt(max(count, 1)),
        largest=max((each.positions.largest[index] for each in modules), default=0.0),
        generalised_sparsity=generalised_sparsity(mean * count, frobenius, count),
        **shares,
    )


def _both(pair: tuple[int, int], modules: Sequence[_Measured]) -> Both:
    compared = [each.between[pair] for each in modules]
    squares = [[each.sizes[i].squared for each in modules] for i in pair]
    norms = math.sqrt(sum(squares[0]) * sum(squares[1]))
    products = sum(one * two for one, two in zip(*squares, strict=True))
    overlaps = [each.oo for each in compared if each.oo is not None]
    awom = sum(each.awom for each in compared)
    angles = [[each.smallest_input_angle for each in compared], [each.smallest_output_angle for each in compared]]
    smallest = [min((angle for angle in each if angle is not None), default=None) for each in angles]
    return Both(
        **_shares(PAIR_SHARES, [each.positions.pairs[pair] for each in modules]),
        cosine=sum(each.inner for each in compared) / norms if norms > 0 else None,
        oo=sum(overlaps) if len(overlaps) == len(compared) else None,
        awom=awom,
        awom_normalised=awom / products if products > 0 else None,
        smallest_input_angle=smallest[0],
        smallest_output_angle=smallest[1],
        input_overlap=_mean([each.input_overlap for each in compared]),
        output_overlap=_mean([each.output_overlap for each in compared]),
    )


def _shares(names: Sequence[str], rows: Sequence[Mapping[str, RowCounts]]) -> dict[str, Share]:
    return {name: share([counted[name] for counted in rows]) for name in names}


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None
