"""A diagnosis as one self-contained HTML page: sentences, totals, and a heat map by layer and module type for each pair."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape

from perdure.diagnostics.report import Both, Diagnosis, Pair
from perdure.diagnostics.words import percent, places, sentences

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 70rem; padding: 0 1rem }
body { color: #1b1b1b; background: #fff }
table { border-collapse: collapse; margin: .5rem 0 1.5rem; font-variant-numeric: tabular-nums }
th, td { padding: .2rem .5rem; text-align: right; border: 1px solid #ddd } th { font-weight: 600; background: #f6f6f6 }
th:first-child, td:first-child { text-align: left } .scroll { overflow-x: auto } .note { color: #555 }
"""
TOTALS = (
    ("opposite signs", "opposite"),
    ("among the largest", "opposite_top"),
    ("weighted by size", "opposite_weighted"),
    ("sign flips", "flip"),
    ("collisions", "collision"),
)


def page(diagnosis: Diagnosis) -> str:
    """The HTML text; needs no network and no script."""
    body = [
        "<h1>What these updates do to each other</h1>",
        *(f"<p>{escape(line)}</p>" for line in sentences(diagnosis)),
        "<h2>In all</h2>",
        _totals(diagnosis),
        _singles(diagnosis),
        *(_heat_map(pair) for pair in diagnosis.pairs if pair.modules),
    ]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>perdure diagnose</title>'
        f"<style>{STYLE}</style></head><body>\n" + "\n".join(body) + "\n</body></html>\n"
    )


def _totals(diagnosis: Diagnosis) -> str:
    head = ["pair", *(title for title, _ in TOTALS), "cosine", "AWOM, normalised", "OO", "smallest input angle"]
    rows = []
    for pair in diagnosis.pairs:
        both = pair.overall
        shares = [percent(getattr(both, name)) for _, name in TOTALS]
        numbers = [_number(value) for value in (both.cosine, both.awom_normalised, both.oo, both.smallest_input_angle)]
        rows.append([f"{pair.first} / {pair.second}", *shares, *numbers])
    return _table(head, rows)


def _singles(diagnosis: Diagnosis) -> str:
    head = [
        "update",
        "norm",
        "nuclear norm",
        "rank",
        "effective rank",
        "mean |entry|",
        "largest",
        "generalised sparsity",
    ]
    rows = []
    for single in diagnosis.updates:
        own = single.overall
        values = (own.frobenius, own.nuclear_norm, own.rank, own.effective_rank, own.mean_magnitude.value, own.largest)
        rows.append([single.name, *map(_number, values), _number(own.generalised_sparsity)])
    return _table(head, rows)


def _heat_map(pair: Pair) -> str:
    placed = places(pair.modules)
    kinds = list(dict.fromkeys(kind for kind, _ in placed.values()))
    layers = sorted({layer for _, layer in placed.values()}, key=lambda layer: -1 if layer is None else layer)
    cells = {placed[module]: (module, both) for module, both in pair.modules.items()}
    rows = [
        f"<tr><th>{escape(kind)}</th>" + "".join(_cell(cells.get((kind, layer))) for layer in layers) + "</tr>"
        for kind in kinds
    ]
    head = "".join(f"<th>{'' if layer is None else layer}</th>" for layer in layers)
    return (
        f"<h2>{escape(pair.first)} and {escape(pair.second)}, by layer and module</h2>"
        '<p class="note">Opposite signs in percent, weighted by size: red they fight, blue they agree, white unrelated (50).</p>'
        f'<div class="scroll"><table><tr><th></th>{head}</tr>{"".join(rows)}</table></div>'
    )


def _cell(found: tuple[str, Both] | None) -> str:
    if found is None or found[1].opposite_weighted.value is None:
        return "<td></td>"
    module, both = found
    value = both.opposite_weighted.value
    assert value is not None
    tooltip = escape(
        f"{module}: {percent(both.opposite_weighted)} opposite by size, {percent(both.opposite)} plain", quote=True
    )
    return f'<td style="background:{colour(value)}" title="{tooltip}">{100 * value:.0f}</td>'


def colour(value: float) -> str:
    """White at one half, red towards 1, blue towards 0; full colour a quarter away from the middle."""
    strength = min(1.0, abs(value - 0.5) * 4)
    faded = round(255 * (1 - 0.7 * strength))
    return f"rgb(255,{faded},{faded})" if value > 0.5 else f"rgb({faded},{faded},255)"


def _table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    lines = ["".join(f"<th>{escape(title)}</th>" for title in head)]
    lines += ["".join(f"<td>{escape(value)}</td>" for value in row) for row in rows]
    return '<div class="scroll"><table>' + "".join(f"<tr>{line}</tr>" for line in lines) + "</table></div>"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"
