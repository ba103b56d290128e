"""Which method when: the best of the methods that each case allows, from the screening's records.

A case rules methods out by what their parts need and do, not by name; the others are ranked by average accuracy.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from perdure.config.composition import resolve_method
from perdure.methods.contract.build import build_method
from perdure.methods.contract.context import Need
from perdure.methods.contract.parts import Method
from perdure.report.sweeps import interval, mean
from perdure.report.text import markdown_table

Record = Mapping[str, Any]


def keeps_examples(method: Method) -> bool:
    """Old examples are stored."""
    return method.replay is not None


def needs_past_data(method: Method) -> bool:
    """A part stores something computed from every task's examples, which an adapter alone does not contain."""
    return any(Need.PAST_DATA in part.requires() for part in method.parts().values())


def is_incremental(method: Method) -> bool:
    """Tasks come one after another, and a query does not name its task."""
    return method.stream == "one-by-one" and method.consolidate.keeps != "per-task"


CASES: Mapping[str, Callable[[Method], bool]] = {
    "all data is available at once": lambda m: m.stream == "joint",
    "every query names its task": lambda m: m.consolidate.keeps == "per-task",
    "tasks come one by one, anything may be kept": is_incremental,
    "no old example may be kept": lambda m: is_incremental(m) and not keeps_examples(m),
    "old tasks exist only as adapters, without data": lambda m: (
        is_incremental(m) and not keeps_examples(m) and not needs_past_data(m) and not m.init.continues
    ),
    "adapters are trained separately and merged": lambda m: (
        is_incremental(m) and m.consolidate.keeps == "merged" and not m.init.continues
    ),
    "one adapter, trained on and on": lambda m: m.init.continues and not keeps_examples(m),
}


def fitting(case: str, names: Sequence[str]) -> list[str]:
    """The presets among `names` that a case allows."""
    return [name for name in names if CASES[case](build_method(resolve_method(name)))]


def rows(records: Sequence[Record], intervals: Mapping[str, Any], confirmed: Mapping[str, float]) -> list[list[str]]:
    """One row for each case: the best method, its cost, and the fastest within half a point.

    Args:
        confirmed: method -> average accuracy on held-back sequences, for the few compared there.
    """
    own = {name: [row for row in records if row["method"] == name] for name in intervals}
    seconds = {
        name: statistics.mean(
            [row["processor_seconds"] for row in rows if "processor_seconds" in row] or [float("inf")]
        )
        for name, rows in own.items()
    }
    found = []
    for case in CASES:
        left = sorted(fitting(case, list(intervals)), key=lambda name: -intervals[name].mean)
        if not left:
            continue
        best = left[0]
        close = min((n for n in left if intervals[n].mean > intervals[best].mean - 0.005), key=seconds.__getitem__)
        kept = statistics.mean(row["bytes"]["state"] for row in own[best]) / 1e6
        found.append(
            [
                case,
                best,
                interval(intervals[best]),
                mean(own[best], "forgetting"),
                f"{seconds[best]:.0f}",
                f"{kept:.1f}",
                "-" if close == best else f"{close} ({100 * intervals[close].mean:.1f}, {seconds[close]:.0f} s)",
                ", ".join(f"{name} {100 * confirmed[name]:.1f}" for name in ranked_in(confirmed, left)) or "-",
            ]
        )
    return found


def ranked_in(confirmed: Mapping[str, float], left: Sequence[str]) -> list[str]:
    """The three best of a case's methods on held-back sequences, best first."""
    return sorted((name for name in left if name in confirmed), key=lambda name: -confirmed[name])[:3]


COLUMNS = (
    "if",
    "take",
    "average accuracy",
    "forgetting",
    "CPU s",
    "kept, MB",
    "within half a point, faster",
    "the best of these on held-back sequences",
)


def as_table(records: Sequence[Record], intervals: Mapping[str, Any], confirmed: Mapping[str, float]) -> str:
    """The rows as Markdown."""
    return "\n".join(markdown_table(list(COLUMNS), rows(records, intervals, confirmed)))
