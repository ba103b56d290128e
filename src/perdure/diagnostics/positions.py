"""What two updates do at every position: opposite signs, flips, collisions. Counted on row tiles.

Legend: O output features, I input features, N rows counted. X the earlier update (or history), Y the later one, [O, I].

    opposite            share of positions with X Y < 0                                     (unrelated updates: 50 %)
    opposite, top       the same among positions where |X| and |Y| are both in their module's largest k %
    opposite, weighted  sum of |X Y| where X Y < 0, over sum of |X Y|                       (unrelated updates: 50 %)
    flip                share of positions with sign(X + Y) != sign(X)                      (equal scales: 25 %)
    collision           share of positions where |X| and |Y| both exceed `threshold` times their own root mean square
                        (CR of N-LoRA, arXiv 2410.10179; its ACR is the mean over pairs)

PS-LoRA (arXiv 2512.08960) publishes an opposite-sign ratio without a definition, so the candidates are all reported. N-LoRA
publishes no threshold for its collisions; one relative to the root mean square does not depend on the update's scale.
A position where either is exactly 0 is not opposite; in a flip 0 counts as a third sign, so a zero of X that Y writes to is
one. Unless k is 100, 0 is never among the largest.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from perdure.ops.decompose import squared_norm
from perdure.ops.lowrank import Delta, LowRank, scale
from perdure.ops.magnitude import magnitude_threshold
from perdure.ops.parallel import over_rows
from perdure.ops.tiling import Arena, tile, widened

PAIR_SHARES = ("opposite", "opposite_top", "opposite_weighted", "flip", "collision")
OWN_SHARES = ("mean_magnitude", "nonzero")


@dataclass(frozen=True)
class PositionSettings:
    """Which positions are counted, and as what.

    Args:
        top: k, as a share: the largest positions count as large.
        threshold: in units of the update's root mean square at the module: larger entries count as non-zero.
        rows: share of each module's rows to sample (at least 8 rows); None: all rows, exactly.
        seed: of the sample.
    """

    top: float = 0.2
    threshold: float = 0.1
    rows: float | None = None
    seed: int = 0


@dataclass(frozen=True, eq=False)
class RowCounts:
    """Numerator and denominator of a share for each sampled row [N], out of `population` rows.

    An exact count is a single row with population 1.
    """

    numerator: Tensor
    denominator: Tensor
    population: int


@dataclass(frozen=True)
class Share:
    """A share, and the half width of its 95 % confidence interval (0 when every position was counted).

    `value` is None if the denominator is zero.
    """

    value: float | None
    half_width: float = 0.0


def share(parts: Sequence[RowCounts]) -> Share:
    """The ratio of totals over all `parts` (modules), as a stratified ratio estimate with rows as units.

    With w = population / N and e = numerator - R denominator:
    R = sum w numerator / sum w denominator,  Var R = sum population^2 (1 - N / population) var(e) / N / (sum w denominator)^2.
    """
    weights = [part.population / part.numerator.numel() for part in parts]
    total = sum(w * float(part.denominator.sum()) for w, part in zip(weights, parts, strict=True))
    if total <= 0:
        return Share(None)
    value = sum(w * float(part.numerator.sum()) for w, part in zip(weights, parts, strict=True)) / total
    variance = 0.0
    for part in parts:
        count = part.numerator.numel()
        if count < part.population:
            error = part.numerator - value * part.denominator
            variance += part.population**2 * (1 - count / part.population) * float(error.var()) / count
    return Share(value, 1.96 * math.sqrt(variance) / total)


@dataclass(frozen=True, eq=False)
class ModulePositions:
    """One module's counts for every update (by index) and every pair (i, j), and the largest magnitude of every update."""

    own: dict[int, dict[str, RowCounts]]
    pairs: dict[tuple[int, int], dict[str, RowCounts]]
    largest: dict[int, float]


def count_positions(
    deltas: Sequence[Delta | None], pairs: Sequence[tuple[int, int]], looking: PositionSettings, module: str = ""
) -> ModulePositions:
    """Everything this file defines, at one module, for all updates that have it.

    Args:
        deltas: one per update, None where it lacks the module.
        pairs: (earlier, later) to compare; pairs with a missing side are skipped.
    """
    present = {index: widened(delta) for index, delta in enumerate(deltas) if delta is not None}
    pairs = [(i, j) for i, j in pairs if i in present and j in present]
    if not present:
        return ModulePositions({}, {}, {})
    rms = {i: math.sqrt(float(squared_norm(delta)) / math.prod(delta.shape)) for i, delta in present.items()}
    unit = 1 / (max(rms.values()) or 1.0)  # entries around 1, so that products neither under- nor overflow
    scaled = {i: scale(delta, unit) for i, delta in present.items()}
    if looking.rows is not None:
        scaled = _sampled(scaled, looking.rows, looking.seed, module)
    # where fewer than k % are nonzero, the k-th largest is 0, which every position would reach
    least = torch.finfo(torch.float32).tiny if looking.top < 1 else 0.0
    bounds = {
        i: (looking.threshold * (rms[i] * unit), max(least, magnitude_threshold([delta], looking.top)))
        for i, delta in scaled.items()
    }
    height, width = next(iter(scaled.values())).shape
    keys: list[tuple] = [("own", i, name) for i in scaled for name in OWN_SHARES] + [
        (*ij, name) for ij in pairs for name in PAIR_SHARES
    ]
    counted = {key: torch.empty(2, height, dtype=torch.float64) for key in keys}
    largest_OU = torch.zeros(height, len(scaled))

    def work(start: int, stop: int, arena: Arena) -> None:
        X = {i: tile(delta, start, stop, arena) for i, delta in scaled.items()}
        for key, (numerator, denominator) in _count_tile(X, pairs, bounds, largest_OU[start:stop], arena).items():
            counted[key][0, start:stop] = numerator
            counted[key][1, start:stop] = denominator

    over_rows((height, width), work)
    population = next(iter(present.values())).shape[0] if looking.rows is not None else 1

    def joined(*key: int | str) -> RowCounts:
        """One share over all rows; products and magnitudes are converted back to the updates' own units."""
        power = {"mean_magnitude": (1, 0), "opposite_weighted": (2, 2)}.get(str(key[-1]), (0, 0))
        numerator, denominator = (counted[key][side] / unit ** power[side] for side in (0, 1))
        if looking.rows is None:
            numerator, denominator = numerator.sum(dim=0, keepdim=True), denominator.sum(dim=0, keepdim=True)
        return RowCounts(numerator, denominator, population)

    own = {i: {name: joined("own", i, name) for name in OWN_SHARES} for i in present}
    both = {(i, j): {name: joined(i, j, name) for name in PAIR_SHARES} for i, j in pairs}
    largest = zip(scaled, largest_OU.amax(dim=0).tolist(), strict=True)
    return ModulePositions(own, both, {i: value / unit for i, value in largest})


def _count_tile(
    X: dict[int, Tensor],
    pairs: Sequence[tuple[int, int]],
    bounds: dict[int, tuple[float, float]],
    largest_NU: Tensor,
    arena: Arena,
) -> dict[tuple, tuple[Tensor, Tensor]]:
    """Key -> numerators and denominators [N] for tiles [N, I]; fills in the rows' largest magnitudes.

    Args:
        bounds: update -> the magnitudes from which entries count as non-zero and as large.
    """
    counted: dict[tuple, tuple[Tensor, Tensor]] = {}
    nonzero, large = {}, {}
    for place, (i, x) in enumerate(X.items()):
        magnitude = torch.abs(x, out=arena.like(x))
        all_N = torch.full((x.shape[0],), float(x.shape[1]), dtype=torch.float64)
        nonzero[i] = torch.gt(magnitude, bounds[i][0], out=arena.like(x))
        large[i] = torch.ge(magnitude, bounds[i][1], out=arena.like(x))
        largest_NU[:, place] = magnitude.amax(dim=1)
        counted["own", i, "mean_magnitude"] = (_total(magnitude), all_N)
        counted["own", i, "nonzero"] = (_total(nonzero[i]), all_N)
    work = [arena.like(next(iter(X.values()))) for _ in range(3)]
    for i, j in pairs:
        shares = _pair(X[i], X[j], (nonzero[i], nonzero[j]), (large[i], large[j]), work)
        counted |= {(i, j, name): value for name, value in shares.items()}
    return counted


def _pair(
    x: Tensor, y: Tensor, nonzero: tuple[Tensor, Tensor], large: tuple[Tensor, Tensor], work: Sequence[Tensor]
) -> dict[str, tuple[Tensor, Tensor]]:
    """Numerators and denominators [N] of `PAIR_SHARES` for tiles [N, I]; masks are 0.0 or 1.0, `work` three tiles of memory."""
    all_N = torch.full((x.shape[0],), float(x.shape[1]), dtype=torch.float64)
    product, opposite, other = torch.mul(x, y, out=work[0]), work[1], work[2]
    opposite_N = _total(torch.lt(product, 0, out=opposite))
    signed_N, absolute_N = _total(product), _total(product.abs_())
    large_N = _total(torch.mul(*large, out=other))
    opposite_large_N = _total(opposite.mul_(other))
    collision_N = _total(torch.mul(*nonzero, out=other))
    flipped = torch.ne(torch.add(x, y, out=other).sign_(), torch.sign(x, out=opposite), out=product)
    return {
        "opposite": (opposite_N, all_N),
        "opposite_top": (opposite_large_N, large_N),
        "opposite_weighted": ((absolute_N - signed_N) / 2, absolute_N),
        "flip": (_total(flipped), all_N),
        "collision": (collision_N, all_N),
    }


def _total(tile: Tensor) -> Tensor:
    """Row sums [N] in float64; a single row is short enough to sum in the tile's own dtype."""
    return tile.sum(dim=1).double()


def _sampled(deltas: dict[int, Delta], share: float, seed: int, module: str) -> dict[int, Delta]:
    """The same random rows of all updates."""
    height = next(iter(deltas.values())).shape[0]
    count = min(height, max(8, round(share * height)))
    own_seed = zlib.crc32(f"{seed}/{module}".encode())  # modules must not share their choice of rows
    generator = torch.Generator().manual_seed(own_seed)
    rows = torch.randperm(height, generator=generator)[:count].sort().values
    return {
        i: LowRank(delta.A, delta.B[rows]) if isinstance(delta, LowRank) else delta[rows] for i, delta in deltas.items()
    }
