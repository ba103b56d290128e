"""Diagnose several updates: every module, every pair, and in total.

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
    ModulePositions,
    PositionSettings,
    Share,
    count_positions,
    share,
)
from perdure.diagnostics.spaces import Between, Sizes, between, generalised_sparsity, space
from perdure.errors import ConfigError
from perdure.merging.linear import weighted_sum
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

    looking: PositionSettings
    updates: Sequence[Single]
    pairs: Sequence[Pair]
    average_collision_rate: float | None

    def as_json(self) -> dict[str, Any]:
        """Plain dictionaries, lists, strings and finite numbers."""
        return dataclasses.asdict(self)


def diagnose(
    updates: Mapping[str, Update], looking: PositionSettings | None = None, *, history: bool = False
) -> Diagnosis:
    """Compare every pair of `updates`, in the order given.

    Args:
        updates: name -> update, oldest first; read module by module, each once.
        looking: which positions count as large and as non-zero, and how many rows are sampled.
        history: compare each update with the SUM of all before it instead of with each of them (what a
            penalty on the past sees).

    Raises:
        ConfigError: fewer than two updates, or settings out of range.
        AdapterError: updates of different bases; the first differing module is named.
    """
    looking = looking or PositionSettings()
    if len(updates) < 2:
        raise ConfigError("A diagnosis compares updates; give at least two.")
    if not 0 < looking.top <= 1 or looking.threshold < 0 or (looking.rows is not None and not 0 < looking.rows <= 1):
        raise ConfigError("--top and --sample (`rows`) are shares in (0, 1], --threshold is 0 or more.")
    names, parts = list(updates), list(updates.values())
    count = len(parts)
    pairs = [(i, j) for j in range(count) for i in range(j)]
    if history:  # update t from the third on is compared with update count + t - 2: the sum of those before it
        names += [" + ".join(names[:t]) for t in range(2, count)]
        pairs = [(0, 1)] + [(count + t - 2, t) for t in range(2, count)]
    measured = {module: _measure(module, parts, pairs, looking, history) for module in module_names(parts)}
    singles, compared = [], []
    for i in range(count):
        here = {module: each for module, each in measured.items() if i in each.sizes}
        by_module = {module: _own(i, [each]) for module, each in here.items()}
        singles.append(Single(names[i], _own(i, list(here.values())), by_module))
    for pair in pairs:
        here = {module: each for module, each in measured.items() if pair in each.between}
        by_module = {module: _both(pair, [each]) for module, each in here.items()}
        compared.append(Pair(names[pair[0]], names[pair[1]], _both(pair, list(here.values())), by_module))
    return Diagnosis(looking, singles, compared, _mean([pair.overall.collision.value for pair in compared]))


@dataclass(frozen=True)
class _Measured:
    """One module: its positions, and sizes and comparisons by update and pair."""

    positions: ModulePositions
    sizes: Mapping[int, Sizes]
    between: Mapping[tuple[int, int], Between]


def _measure(
    module: str, updates: Sequence[Update], pairs: Sequence[tuple[int, int]], looking: PositionSettings, history: bool
) -> _Measured:
    with on_one_core():
        deltas = at_module(updates, module)
        if history:
            deltas += [_sum(deltas[:t]) for t in range(2, len(updates))]
        spaces = {i: space(delta) for i, delta in enumerate(deltas) if delta is not None}
        compared = {(i, j): between(spaces[i], spaces[j]) for i, j in pairs if i in spaces and j in spaces}
    sizes = {i: each.sizes for i, each in spaces.items()}
    return _Measured(count_positions(deltas, pairs, looking, module), sizes, compared)


def _sum(deltas: Sequence[Delta | None]) -> Delta | None:
    present = [delta for delta in deltas if delta is not None]
    return weighted_sum(present, [1.0] * len(present)) if present else None


def _own(index: int, modules: Sequence[_Measured]) -> Own:
    sizes = [each.sizes[index] for each in modules]
    shares = {name: share([each.positions.own[index][name] for each in modules]) for name in OWN_SHARES}
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
        **{name: share([each.positions.pairs[pair][name] for each in modules]) for name in PAIR_SHARES},
        cosine=sum(each.inner for each in compared) / norms if norms > 0 else None,
        oo=sum(overlaps) if len(overlaps) == len(compared) else None,
        awom=awom,
        awom_normalised=awom / products if products > 0 else None,
        smallest_input_angle=smallest[0],
        smallest_output_angle=smallest[1],
        input_overlap=_mean([each.input_overlap for each in compared]),
        output_overlap=_mean([each.output_overlap for each in compared]),
    )


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None
