"""A diagnosis as one self-contained HTML page: sentences, totals, and a heat map by layer and module type for each pair."""

from __future__ import annotations

from perdure.diagnostics.report import Both, Diagnosis, Pair
from perdure.diagnostics.words import number, percent, places, sentences
from perdure.report.html import Html, framed, join, table, tag

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 70rem; padding: 0 1rem }
body { color: #1b1b1b; background: #fff }
table { border-collapse: collapse; margin: .5rem 0 1.5rem; font-variant-numeric: tabular-nums }
th, td { padding: .2rem .5rem; text-align: right; border: 1px solid #ddd } th { font-weight: 600; background: #f6f6f6 }
td { white-space: nowrap } th:first-child, caption { text-align: left } .scroll { overflow-x: auto } caption { color: #555 }
summary { cursor: pointer } :focus-visible { outline: 2px solid #0b5cad }
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
    title, style = tag("title", "perdure diagnose"), Html(f"<style>{STYLE}</style>")
    body = [
        tag("h1", "What these updates do to each other"),
        *(tag("p", line) for line in sentences(diagnosis)),
        tag("h2", "In all"),
        _totals(diagnosis),
        _singles(diagnosis),
        *(_by_module(pair) for pair in diagnosis.pairs if pair.modules),
    ]
    viewport = tag("meta", name="viewport", content="width=device-width, initial-scale=1")
    head = tag("head", tag("meta", charset="utf-8"), viewport, title, style)
    return "<!doctype html>\n" + tag("html", head, tag("body", join(body, "\n")), lang="en") + "\n"


def _totals(diagnosis: Diagnosis) -> Html:
    head = ["pair", *(title for title, _ in TOTALS), "cosine", "AWOM, normalised", "OO", "smallest input angle"]
    rows = []
    for pair in diagnosis.pairs:
        both = pair.overall
        numbers = [number(value) for value in (both.cosine, both.awom_normalised, both.oo, both.smallest_input_angle)]
        rows.append([f"{pair.first} / {pair.second}", *_shares(both), *numbers])
    return table("Every pair, over all modules.", head, rows)


def _shares(both: Both) -> list[str]:
    return [percent(getattr(both, name)) for _, name in TOTALS]


def _singles(diagnosis: Diagnosis) -> Html:
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
        rows.append([single.name, *map(number, values), number(own.generalised_sparsity)])
    return table("Every update, over all modules.", head, rows)


def _by_module(pair: Pair) -> Html:
    """The heat map, and behind a fold every module's numbers under its whole name, for who has no pointer to hover with."""
    names = f"{pair.first} and {pair.second}"
    rows = ([module, *_shares(both)] for module, both in pair.modules.items())
    numbers = table(f"{names}, every module.", ["module", *(title for title, _ in TOTALS)], rows)
    parts = [
        tag("h2", f"{names}, by layer and module"),
        _heat_map(pair, names),
        tag("details", tag("summary", "Every module by name"), numbers),
    ]
    return join(parts, "\n")


def _heat_map(pair: Pair, names: str) -> Html:
    placed = places(pair.modules)
    kinds = list(dict.fromkeys(kind for kind, _ in placed.values()))
    layers = sorted({layer for _, layer in placed.values()}, key=lambda layer: -1 if layer is None else layer)
    cells = {placed[module]: (module, both) for module, both in pair.modules.items()}
    columns = ("module", *("no layer" if layer is None else str(layer) for layer in layers))
    lines = [
        tag("tr", tag("th", kind, scope="row"), *(_cell(cells.get((kind, layer))) for layer in layers))
        for kind in kinds
    ]
    caption = (
        f"{names}: opposite signs in percent, weighted by size. Red they fight, blue they agree, white unrelated (50)."
    )
    return framed(caption, tag("tr", *(tag("th", name, scope="col") for name in columns)), lines)


def _cell(found: tuple[str, Both] | None) -> Html:
    if found is None or found[1].opposite_weighted.value is None:
        return tag("td")
    module, both = found
    value = both.opposite_weighted.value
    assert value is not None
    tooltip = f"{module}: {percent(both.opposite_weighted)} opposite by size, {percent(both.opposite)} plain"
    return tag("td", f"{100 * value:.0f}", style=f"background:{colour(value)}", title=tooltip)


def colour(value: float) -> str:
    """White at one half, red towards 1, blue towards 0; full colour a quarter away from the middle."""
    strength = min(1.0, abs(value - 0.5) * 4)
    faded = round(255 * (1 - 0.7 * strength))
    return f"rgb(255,{faded},{faded})" if value > 0.5 else f"rgb({faded},{faded},255)"
