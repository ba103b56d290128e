"""A diagnosis as tables for a terminal: updates, pairs, and where each pair conflicts by module type."""

from __future__ import annotations

from collections.abc import Iterator

from rich.markup import escape
from rich.table import Table

from perdure.diagnostics.report import Diagnosis, Pair
from perdure.diagnostics.words import number, percent, places
from perdure.files.terminal import visible


def tables(diagnosis: Diagnosis) -> Iterator[Table]:
    """The tables, in reading order."""
    yield _updates(diagnosis)
    yield _pairs(diagnosis)
    for pair in diagnosis.pairs:
        if pair.modules:
            yield _kinds(pair)


def _updates(diagnosis: Diagnosis) -> Table:
    table = _table("Updates", "update", "norm", "nuclear norm", "rank", "eff. rank", "mean |entry|", "sparsity")
    for single in diagnosis.updates:
        own = single.overall
        numbers = (own.frobenius, own.nuclear_norm, own.rank, own.effective_rank, own.mean_magnitude.value)
        table.add_row(_shown(single.name), *map(number, (*numbers, own.generalised_sparsity)))
    return table


def _pairs(diagnosis: Diagnosis) -> Table:
    table = _table("Pairs", "pair", "opposite", "large", "by size", "flips", "collide", "cosine", "AWOM n.", "angle")
    for pair in diagnosis.pairs:
        both = pair.overall
        shares = (both.opposite, both.opposite_top, both.opposite_weighted, both.flip, both.collision)
        numbers = (both.cosine, both.awom_normalised, both.smallest_input_angle)
        table.add_row(_shown(f"{pair.first} / {pair.second}"), *map(percent, shares), *map(number, numbers))
    return table


def _kinds(pair: Pair) -> Table:
    """Opposite signs by size, for each module type: the least and the most over its layers."""
    title = _shown(f"{pair.first} / {pair.second}: opposite signs by size")
    table = _table(title, "module", "least", "most", "in layer")
    by_kind: dict[str, dict[int | None, float]] = {}
    for module, (kind, layer) in places(pair.modules).items():
        if (value := pair.modules[module].opposite_weighted.value) is not None:
            by_kind.setdefault(kind, {})[layer] = value
    for kind, shares in by_kind.items():
        most = max(shares, key=lambda layer: shares[layer])
        ends = (f"{100 * value:.1f} %" for value in (min(shares.values()), shares[most]))
        table.add_row(_shown(kind), *ends, "" if most is None else str(most))
    return table


def _shown(text: str) -> str:
    """A name for a table: neither rich's markup nor a terminal's control characters in it have an effect."""
    return escape(visible(text))


def _table(title: str, first: str, *others: str) -> Table:
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    table.add_column(first, overflow="fold")
    for name in others:
        table.add_column(name, justify="right", overflow="fold")
    return table
