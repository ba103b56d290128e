"""Outcomes of the claims, and the rows that they compare, from the records."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import yaml
from benchmarks.records import HERE, in_common, records, spread

from perdure.report.sweeps import cell_of, outcome
from perdure.report.text import markdown_table
from perdure.sweeps.comparison import Comparison, OrderAndSeed, compare, holm

Record = Mapping[str, Any]
NOTHING = "No run is recorded yet."
INTERFERENCE = {
    "opposite signs, weighted": "opposite_signs_weighted",
    "collisions": "collision_rate",
    "overlap of A": "overlap",
}


def claims() -> dict[str, Any]:
    """claims.yaml."""
    return yaml.safe_load((HERE / "claims" / "claims.yaml").read_text(encoding="utf-8"))


def table(rows: Mapping[str, Sequence[Record]] | None = None) -> str:
    """Each claim, the result, and whether it holds here; `rows`: the records of each sweep."""
    rows = rows or {name: records(f"claims/{name}/records") for name in ("compare", "many")}
    stated = claims()["claims"]
    if not any(rows.values()):
        return NOTHING
    own = [about(claim, rows) for claim in stated]
    missing = [planned(claim) - {cell_of(row) for row in own[i]} for i, claim in enumerate(stated)]
    better = [i for i, claim in enumerate(stated) if "better" in claim]
    compared = {i: difference(own[i], stated[i]["better"]) for i in better if not missing[i]}
    # corrected over every claim, run or not: a later run can then only make a claim harder to show
    corrected = dict(zip(better, holm([compared[i].p if i in compared else 1.0 for i in better]), strict=True))
    lines = ["| paper | says | here | outcome |", "|---|---|---|---|"]
    for i, claim in enumerate(stated):
        if missing[i]:
            count = len(planned(claim))
            here, verdict = "-", f"{count - len(missing[i])} of {count} pairs run" if own[i] else "not run yet"
        else:
            here, verdict = judged(compared[i], corrected[i]) if i in compared else measured(own[i], claim)
            verdict += " (one seed)" if i in compared and len({row["config"]["seed"] for row in own[i]}) == 1 else ""
        lines.append(f"| {claim['paper']} | {claim['says']} | {here} | {verdict} |")
    return "\n".join(lines)


def about(claim: Mapping[str, Any], rows: Mapping[str, Sequence[Record]]) -> list[Record]:
    """The records of the claim's two rows, in the cells that both have; none where one of them has no run."""
    pair = {*(claim.get("better") or claim["smaller"])}
    return in_common(rows[claim.get("sweep", "compare")], pair)


def planned(claim: Mapping[str, Any]) -> set[OrderAndSeed]:
    """The orders and seeds in which the claim's two rows are compared."""
    cells = claims()["many" if claim.get("sweep") == "many" else "cells"]
    return {(f"{s['suite']} {s['order']}", seed) for s in cells["sequences"] for seed in cells["seeds"]}


def difference(rows: Sequence[Record], pair: Sequence[str]) -> Comparison:
    """The first row minus the second."""
    return compare([outcome(row) for row in rows], pair[0]).comparisons[0]


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
    told = {"holds": claim["times"], "smaller, but less": 1.05, "not shown": 1 / 1.05}
    verdict = next((verdict for verdict, least in told.items() if times >= least), "the opposite")
    return f"{large:.3g} to {small:.3g}: {times:.2f} x", verdict


def mean(rows: Sequence[Record], row: str, metric: str) -> float:
    """Of a diagnostic over a row's runs."""
    return statistics.mean(r["diagnostics"][metric] for r in rows if r["method"] == row)


def rows(found: Sequence[Record] | None = None) -> str:
    """The rows compared: accuracy, forgetting, interference."""
    return _listing(records("claims/compare/records") if found is None else found, list(claims()["rows"]))


def many(found: Sequence[Record] | None = None) -> str:
    """The rows on more than fifteen tasks."""
    found = records("claims/many/records") if found is None else found
    return _listing(found, claims()["many"]["rows"]) + still_to_come("many", len(found))


def grids(found: Sequence[Record] | None = None) -> str:
    """The rows with one setting varied, below the same row as tuned, with the same seed."""
    found = records("claims/grids/records") if found is None else found
    seeds = {row["config"]["seed"] for row in found}
    tuned = [row for row in records("claims/compare/records") if row["config"]["seed"] in seeds]
    names = list(dict.fromkeys(row["method"] for row in found))
    listed = [(name, [row for row in tuned if row["method"] == name]) for name in claims()["grids"]]
    ranked = [name for base, _ in listed for name in (base, *(n for n in names if n.startswith(f"{base}, ")))]
    told = _listing([*found, *(row for _, own in listed for row in own)], ranked) if found else NOTHING
    return told + still_to_come("grids", len(found))


def still_to_come(sweep: str, done: int) -> str:
    """How many runs of a started sweep are missing, as a paragraph; nothing before the first and after the last."""
    about = yaml.safe_load((HERE / "claims" / f"{sweep}.yaml").read_text(encoding="utf-8"))
    planned = len(about["methods"]) * len(about["seeds"]) * len(about["sequences"])
    return f"\n\nIncomplete: {planned - done} of the {planned} runs are missing." if 0 < done < planned else ""


def _listing(found: Sequence[Record], names: Sequence[str]) -> str:
    """A row a line: scores on every suite (mean ± standard deviation over orders and seeds), interference."""
    if not found:
        return NOTHING
    suites = sorted({row["config"]["suite"] for row in found})
    head = ["", *(f"{suite}: {what}" for suite in suites for what in ("average accuracy", "forgetting")), *INTERFERENCE]
    lines = []
    for name in names:
        own = [row for row in found if row["method"] == name]
        if own:
            scores = [
                spread([row["scores"][metric] for row in own if row["config"]["suite"] == suite])
                for suite in suites
                for metric in ("average_accuracy", "forgetting")
            ]
            lines.append([name, *scores, *(f"{mean(own, name, metric):.3g}" for metric in INTERFERENCE.values())])
    return "\n".join(markdown_table(head, lines))
