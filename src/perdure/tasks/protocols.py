"""By whose rules a suite's tasks are read and scored: perdure's own, or those of its paper's released code."""

from __future__ import annotations

from typing import Any

from perdure.errors import UnknownName

OWN = "perdure"
"""The protocol that all suites have: tasks are read and scored as perdure does."""


def protocols(about: dict[str, Any]) -> list[str]:
    """The protocols a described suite can be learnt and scored by; the first is its default."""
    known = [OWN, *about.get("protocols", {})]
    return sorted(known, key=lambda one: one != about.get("protocol", OWN))


def under_protocol(about: dict[str, Any], protocol: str | None) -> dict[str, Any]:
    """A described suite whose tasks are read and scored by `protocol`; None: its default.

    Raises:
        UnknownName: the suite has no such protocol.
    """
    known = protocols(about)
    if protocol is not None and protocol not in known:
        raise UnknownName(f"protocol of suite '{about['name']}'", protocol, known)
    if (chosen := protocol or known[0]) == OWN:
        return about
    how = about["protocols"][chosen]
    tasks = {}
    for task, entry in about["tasks"].items():
        metric = how.get("metrics", {}).get(task)
        tasks[task] = {**entry, **({"metric": metric} if metric else {})}
        if "source" in entry:
            tasks[task]["source"] = {**entry["source"], **how.get("source", {})}
    return {**about, "tasks": tasks}
