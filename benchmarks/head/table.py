"""The tables of README.md, from record.json."""

from __future__ import annotations

from benchmarks.records import record, row

COVARIANCES = {"mean": "mean over tokens", "mean, own covariance": "a covariance a task", "last token": "last token"}


def read_at() -> str:
    """The head alone on SmolLM2-135M, by the layer that it reads."""
    found = record("head/record.json")["read_at"]
    heads = [f"{name}: {title}" for name in found for title in COVARIANCES.values()]
    lines = [row(["after layer", *heads]), "|---" + "|---:" * len(heads) + "|"]
    for cells in zip(*found.values(), strict=True):
        shares = [f"{100 * cell[way]:.1f}" for cell in cells for way in COVARIANCES]
        lines.append(row([f"{cells[0]['layer']} of 30", *shares]))
    return "\n".join(lines)


def beside() -> str:
    """The last model of a run alone and with the head, by how much say each gets."""
    found = record("head/record.json")["beside"]
    ways = list(next(iter(found.values())))
    lines = [row(["", *ways]), "|---" + "|---:" * len(ways) + "|"]
    lines += [row([name, *(f"{100 * shares[way]:.1f}" for way in ways)]) for name, shares in found.items()]
    return "\n".join(lines)
