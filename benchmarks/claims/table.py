"""Outcomes of the claims, and the rows they are about, from the records."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import yaml
from benchmarks.records import HERE, records, spread

from perdure.comparison import Comparison, holm, study
from perdure.report.sweeps import outcome

Record = Mapping[str, Any]
NOTHING = "No run is recorded yet."


def claims() -> dict[str, Any]:
    """claims.yaml."""
    return yaml.safe_load((HERE / "claims" / "claims.yaml").read_text(encoding="utf-8"))


def table(rows: Mapping[str, Sequence[Record]] | None = None) -> str:
    """Each claim, what came out, and whether it holds here; `rows`: the records of each sweep."""
    rows = rows or {name: records(f"claims/{name}/records") for name in ("compare", "many")}
    stated = claims()["claims"]
    if not any(rows.values()):
        return NOTHING
    own = [rows[claim.get("sweep", "compare")] for claim in stated]
    compared = {i: compare(own[i], claim["better"]) for i, claim in enumerate(stated) if "better" in claim and own[i]}
    corrected = dict(zip(compared, holm([found.p for found in compared.values()]), strict=True))
    lines = ["| paper | says | here | outcome |", "|---|---|---|---|"]
    for i, claim in enumerate(stated):
        if not own[i]:
            here, verdict = "-", "not run yet"
        else:
            here, verdict = judged(compared[i], corrected[i]) if i in compared else measured(own[i], claim)
        lines.append(f"| {claim['paper']} | {claim['says']} | {here} | {verdict} |")
    return "\n".join(lines)


def compare(rows: Sequence[Record], pair: Sequence[str]) -> Comparison:
    """The first row minus the second, on the cells both have."""
    chosen = [outcome(row) for row in rows if row["method"] in pair]
    return study(chosen, pair[0]).comparisons[0]


def judged(found: Comparison, p: float) -> tuple[str, str]:
    """A difference in points, and the verdict at 5 % after Holm."""
    difference = found.difference
    text = f"{100 * difference.mean:+.1f} ({100 * difference.low:+.1f} to {100 * difference.high:+.1f}), p = {p:.3f}"
    if p >= 0.05:
        return text, "not shown"
    return text, "holds" if difference.mean > 0 else "the opposite"


def measured(rows: Sequence[Record], claim: Mapping[str, Any]) -> tuple[str, str]:
    """Means of a metric in both rows, how many times smaller it is, and the verdict."""
    small, large = (mean(rows, row, claim["metric"]) for row in claim["smaller"])
    times = large / small if small else float("inf")
    verdict = "holds" if times >= claim["times"] else "smaller, but less" if times > 1.05 else "not shown"
    return f"{large:.3g} to {small:.3g}: {times:.2f} x", verdict


def mean(rows: Sequence[Record], row: str, metric: str) -> float:
    """Of a diagnostic over a row's runs."""
    return statistics.mean(r["diagnostics"][metric] for r in rows if r["method"] == row)


def rows(found: Sequence[Record] | None = None) -> str:
    """The rows compared: accuracy, forgetting, interference."""
    return _listing(records("claims/compare/records") if found is None else found, list(claims()["rows"]))


def many(found: Sequence[Record] | None = None) -> str:
    """The rows on more than fifteen tasks."""
    return _listing(records("claims/many/records") if found is None else found, claims()["many"]["rows"])


def grids(found: Sequence[Record] | None = None) -> str:
    """The rows with one setting varied."""
    found = records("claims/grids/records") if found is None else found
    return _listing(found, list(dict.fromkeys(row["method"] for row in found)))


def _listing(found: Sequence[Record], names: Sequence[str]) -> str:
    if not found:
        return NOTHING
    lines = [
        "| | average accuracy | forgetting | opposite signs, weighted | collisions | overlap of A |",
        "|---|---|---|---|---|---|",
    ]
    for name in names:
        own = [row for row in found if row["method"] == name]
        if own:
            scores = [spread([row["scores"][metric] for row in own]) for metric in ("average_accuracy", "forgetting")]
            found_here = [
                mean(own, name, metric) for metric in ("opposite_signs_weighted", "collision_rate", "overlap")
            ]
            lines.append(
                f"| {name} | {scores[0]} | {scores[1]} | " + " | ".join(f"{value:.3g}" for value in found_here) + " |"
            )
    return "\n".join(lines)
