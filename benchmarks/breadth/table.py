"""Tables of the breadth benchmark, from its records."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from benchmarks.breadth.architectures import KINDS
from benchmarks.records import records, row

LARGEST = 1e-5
"""Difference of log-probabilities, as a share of 1 + their size, that is rounding in fp32."""


def verdict(found: Mapping[str, Any]) -> str:
    """'works', 'differs', 'refused' or 'traceback'."""
    if "difference" in found:
        return "works" if found["difference"] <= LARGEST else "differs"
    return "refused" if "refused" in found else "traceback"


def architecture(record: Mapping[str, Any]) -> str:
    """How an architecture does with these targets: the worst verdict of its methods, where one works."""
    verdicts = {verdict(found) for found in record["methods"].values()}
    order = ("traceback", "differs", "works", "refused")
    return next(each for each in order if each in verdicts)


def table() -> str:
    """Counts of architectures by kind and targets."""
    counts: dict[tuple[str, str], Counter[str]] = {}
    for record in records("breadth/records"):
        counts.setdefault((record["kind"], record["targets"]), Counter())[architecture(record)] += 1
    total = sum(map(len, KINDS.values()))
    lines = [row(("kind", "targets", "works", "refused", "differs", "traceback")), "|---|---|---|---|---|---|"]
    for (kind, targets), found in sorted(counts.items()):
        lines.append(row((kind, targets, *(str(found[each]) for each in ("works", "refused", "differs", "traceback")))))
    for targets in ("default", "all-linear"):
        found = sum((own for (_, each), own in counts.items() if each == targets), Counter[str]())
        cells = (f"**{found[each]}**" for each in ("works", "refused", "differs", "traceback"))
        lines.append(row((f"all {total}", targets, *cells)))
    return "\n".join(lines)


def refusals() -> str:
    """Every refusal and fault, with the architectures it is of."""
    said: dict[str, list[str]] = {}
    for name, text in _refused():
        said.setdefault(text, []).append(name)
    lines = [row(("refusal", "of")), "|---|---|"]
    lines += [row((text, ", ".join(dict.fromkeys(names)))) for text, names in sorted(said.items())]
    return "\n".join(lines)


def _refused() -> Iterator[tuple[str, str]]:
    for record in records("breadth/records"):
        for method, found in record["methods"].items():
            if verdict(found) == "works":
                continue
            text = found.get("refused") or found.get("traceback") or f"differs by {found['difference']:.1e}"
            short = text.replace("|", "\\|").replace("\n", " ")
            alone = len({verdict(own) for own in record["methods"].values()}) > 1
            yield f"{record['name']} ({record['targets']}{', ' + method if alone else ''})", short[:220]
