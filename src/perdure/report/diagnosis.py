"""A diagnosis as one self-contained HTML page: sentences, totals, and a heat map by layer and module type for each pair."""

from __future__ import annotations

from typing import Any

from perdure.diagnostics.report import Both, Diagnosis, Pair
from perdure.diagnostics.words import number, percent, places, sentences
from perdure.report.html import Table, render

TOTALS = {
    "opposite signs": "opposite",
    "among the largest": "opposite_top",
    "weighted by size": "opposite_weighted",
    "sign flips": "flip",
    "collisions": "collision",
}


def page(diagnosis: Diagnosis) -> str:
    """The HTML text; needs no network and no script."""
    return render(
        "diagnosis.html",
        sentences=sentences(diagnosis),
        totals=_totals(diagnosis),
        updates=_updates(diagnosis),
        pairs=[_by_module(pair) for pair in diagnosis.pairs if pair.modules],
    )


def _totals(diagnosis: Diagnosis) -> Table:
    head = ["pair", *TOTALS, "cosine", "AWOM, normalised", "OO", "smallest input angle"]
    rows = []
    for pair in diagnosis.pairs:
        both = pair.overall
        numbers = map(number, (both.cosine, both.awom_normalised, both.oo, both.smallest_input_angle))
        rows.append([f"{pair.first} / {pair.second}", *_shares(both), *numbers])
    return Table("Every pair, over all modules.", head, rows)


def _shares(both: Both) -> list[str]:
    return [percent(getattr(both, name)) for name in TOTALS.values()]


def _updates(diagnosis: Diagnosis) -> Table:
    columns = {
        "norm": "frobenius",
        "nuclear norm": "nuclear_norm",
        "rank": "rank",
        "effective rank": "effective_rank",
        "mean |entry|": "mean_magnitude",
        "largest": "largest",
        "generalised sparsity": "generalised_sparsity",
    }
    rows = []
    for update in diagnosis.updates:
        values = (getattr(update.overall, name) for name in columns.values())
        rows.append([update.name, *(number(getattr(value, "value", value)) for value in values)])
    return Table("Every update, over all modules.", ["update", *columns], rows)


def _by_module(pair: Pair) -> dict[str, Any]:
    """The heat map, and as a table every module's numbers under its full name, which needs no pointer to read."""
    names = f"{pair.first} and {pair.second}"
    placed = places(pair.modules)
    kinds = dict.fromkeys(kind for kind, _ in placed.values())
    layers = sorted({layer for _, layer in placed.values()}, key=lambda layer: -1 if layer is None else layer)
    cells = {placed[module]: _cell(module, both) for module, both in pair.modules.items()}
    rows = [[module, *_shares(both)] for module, both in pair.modules.items()]
    return {
        "names": names,
        "columns": ["module", *("no layer" if layer is None else layer for layer in layers)],
        "heat_map": [(kind, [cells.get((kind, layer)) for layer in layers]) for kind in kinds],
        "modules": Table(f"{names}, every module.", ["module", *TOTALS], rows),
    }


def _cell(module: str, both: Both) -> dict[str, str] | None:
    value = both.opposite_weighted.value
    if value is None:
        return None
    tooltip = f"{module}: {percent(both.opposite_weighted)} opposite by size, {percent(both.opposite)} plain"
    return {"text": f"{100 * value:.0f}", "colour": colour(value), "tooltip": tooltip}


def colour(value: float) -> str:
    """White at one half, red towards 1, blue towards 0; saturated a quarter away from the middle."""
    strength = min(1.0, abs(value - 0.5) * 4)
    faded = round(255 * (1 - 0.7 * strength))
    return f"rgb(255,{faded},{faded})" if value > 0.5 else f"rgb({faded},{faded},255)"
