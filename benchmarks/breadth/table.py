"""Tables of the breadth benchmark, from its records."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from benchmarks.breadth.architectures import KINDS
from benchmarks.records import records, row

LARGEST = 1e-5
"""Difference of log-probabilities, as a share of 1 + their size, that is rounding in fp32."""
EQUAL = 1e-10
"""The same in float64, beyond which two ways of computing are not the same function."""
VERDICTS = ("works", "rounding", "refused", "differs", "traceback")


def verdict(found: Mapping[str, Any]) -> str:
    """One of `VERDICTS`. 'rounding': a larger difference in fp32, and none in float64 from the same weights."""
    if "difference" in found:
        if found["difference"] <= LARGEST:
            return "works"
        return "rounding" if found.get("in_float64", 1.0) <= EQUAL else "differs"
    return "refused" if "refused" in found else "traceback"


def architecture(record: Mapping[str, Any]) -> str:
    """How an architecture does with these targets: the worst verdict of its methods, where one works."""
    verdicts = {verdict(found) for found in record["methods"].values()}
    order = ("traceback", "differs", "rounding", "works", "refused")
    return next(each for each in order if each in verdicts)


def table() -> str:
    """Counts of architectures by kind and targets."""
    counts: dict[tuple[str, str], Counter[str]] = {}
    for record in records("breadth/records"):
        counts.setdefault((record["kind"], record["targets"]), Counter())[architecture(record)] += 1
    total = sum(map(len, KINDS.values()))
    lines = [row(("kind", "targets", *VERDICTS)), "|---|---|---|---|---|---|---|"]
    for (kind, targets), found in sorted(counts.items()):
        lines.append(row((kind, targets, *(str(found[each]) for each in VERDICTS))))
    for targets in ("default", "all-linear"):
        found = sum((own for (_, each), own in counts.items() if each == targets), Counter[str]())
        cells = (f"**{found[each]}**" for each in VERDICTS)
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
            text = found.get("refused") or found.get("traceback") or _differing(found)
            short = text.replace("|", "\\|").replace("\n", " ")
            alone = len({verdict(own) for own in record["methods"].values()}) > 1
            yield f"{record['name']} ({record['targets']}{', ' + method if alone else ''})", short[:220]


def _differing(found: Mapping[str, Any]) -> str:
    text = f"differs by {found['difference']:.1e}"
    if "in_float64" not in found:
        return text
    return (
        f"{text} in fp32 and by {found['in_float64']:.0e} in float64, from which the run's own fp32 is "
        f"{found['run_from_float64']:.1e} off and the deployed adapter's {found['deployed_from_float64']:.1e}"
    )


def bf16() -> str:
    """Labels changed in bf16, by kind, targets and how answers are computed."""
    names = ("measured", "packed", "texts", "changed", "ties", "refused", "traceback")
    heads = ("architectures", "packed", "answers", "changed", "of them near ties", "refused", "traceback")
    lines = [row(("kind", "targets", *heads)), "|" + "---|" * (2 + len(heads))]
    counts: dict[tuple[str, str], Counter[str]] = {}
    for record in records("breadth/records"):
        if found := record.get("bf16"):
            counts.setdefault((record["kind"], record["targets"]), Counter()).update(_counted(found))
    together = sum(counts.values(), Counter[str]())
    for (kind, targets), found in [*sorted(counts.items()), (("all", ""), together)]:
        lines.append(row((kind, targets, *(str(found[each]) for each in names))))
    return "\n".join(lines)


def stored() -> str:
    """Labels changed with bases stored in bf16, by architecture."""
    heads = ("answers", "changed", "of them near ties", "labels ranked")
    lines = [row(("kind", "architecture", *heads)), "|" + "---|" * (2 + len(heads))]
    for record in records("breadth/records"):
        if found := record.get("stored_in_bf16"):
            if "texts" not in found:
                cells = ("", "", "", next(iter(found.values()))[:120].replace("|", "\\|"))
            else:
                own = _counted(found)
                ranked = str(found["ranked"] or "by classes").partition(":")[0]
                cells = (str(own["texts"]), str(own["changed"]), str(own["ties"]), ranked)
            lines.append(row((record["kind"], record["name"], *cells)))
    return "\n".join(lines)


def _counted(found: Mapping[str, Any]) -> dict[str, int]:
    if "texts" not in found:
        return {next(iter(found)): 1}
    packed = str(found["ranked"]).startswith("packed")
    ties = found["changed"] - found["beyond_rounding"]
    return {"measured": 1, "packed": int(packed), "texts": found["texts"], "changed": found["changed"], "ties": ties}
