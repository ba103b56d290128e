"""The tables of README.md: the attempts beside perdure, and the router."""

from __future__ import annotations

from benchmarks.recipe.table import candidates
from benchmarks.records import record, row


def table() -> str:
    return candidates("attempts/records")


def router() -> str:
    """One column a sequence: accuracies and where the examples went."""
    found = record("attempts/router.json")["found"]
    lines = [row(["", *found]), "|---" + "|---:" * len(found) + "|"]
    ways = dict.fromkeys(way for shares in found.values() for way in shares)
    return "\n".join(
        [*lines, *(row([way, *(f"{100 * shares[way]:.1f}" for shares in found.values())]) for way in ways)]
    )
