"""The tables of README.md, from record.json (time) and memory.json."""

from __future__ import annotations

from typing import Any

from benchmarks.records import record


def table() -> str:
    """Time, as a Markdown table."""
    found = record("penalty_step/record.json")
    columns = list(found["results"])
    names = list(dict.fromkeys(name for case in found["results"].values() for name in case["ratios"]))
    lines = ["| penalty | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
    for name in names:
        cells = [found["results"][column]["ratios"].get(name) for column in columns]
        lines.append(
            f"| {name} | " + " | ".join(", ".join(f"{r:.3f}" for r in c.values()) if c else "-" for c in cells) + " |"
        )
    apart = {"the others": 0.0}
    for column in found["results"].values():
        for name, case in column["ratios"].items():
            who = f"`{name}`" if "overlap" in name else "the others"
            apart[who] = max(apart.get(who, 0.0), abs(case["task 100"] / case["task 2"] - 1))
    steps = ", ".join(f"{c} {case['step_seconds'] * 1e3:.0f} ms" for c, case in found["results"].items())
    differ = ", ".join(f"{who} {share:.1%}" for who, share in sorted(apart.items(), key=lambda item: -item[1]))
    notes = f"Ratios at task 2, at task 100. They differ by at most: {differ}."
    about = f"torch {found['torch']}, {found['device']}, one thread, {found['rounds']} rounds, commit {found['commit']}"
    return "\n".join(
        [
            *lines,
            "",
            f"{notes} A step without penalty: {steps}. {about}.",
        ]
    )


def memory() -> str:
    """Memory, as a Markdown table."""
    found = record("penalty_step/memory.json")
    columns = list(found["results"])
    lines = ["| penalty | " + " | ".join(f"{column}: held | temporary" for column in columns) + " |"]
    lines.append("|---" * (2 * len(columns) + 1) + "|")
    for name in found["results"][columns[0]]:
        cases = [found["results"][column].get(name) for column in columns]
        cells = [_growth(case, what) if case else "-" for case in cases for what in ("held", "temporary")]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    pasts = [f"{column} {_growth(found['results'][column]['sign-magnitude'], 'past')}" for column in columns]
    grows = [
        name
        for name in found["results"][columns[0]]
        if any(
            len({task[what] for task in found["results"][columns[0]][name].values()}) > 1
            for what in ("held", "temporary")
        )
    ]
    notes = (
        "One size where tasks 2, 3 and 100 agree within 5 %; a slope where the growth is the same every task; else all three. "
        f"To the byte agree all but {', '.join(f'`{name}`' for name in grows)}. "
        "`sign-magnitude` and `past-energy` also read the sum of the updates, which a run keeps whatever its method, as factors "
        f"until dense is smaller: {'; '.join(pasts)}."
    )
    return "\n".join([*lines, "", f"{notes} torch {found['torch']}, commit {found['commit']}."])


def _growth(case: dict[str, Any], what: str) -> str:
    """One size, or how it grows."""
    sizes = second, third, last = [case[f"task {task}"][what] for task in (2, 3, 100)]
    if max(sizes) <= 1.05 * min(sizes):
        return _size(max(sizes))
    if last - second == 98 * (third - second):
        return f"{_size(second)}, {_size(third - second, '+')} a task"
    return ", ".join(map(_size, sizes))


def _size(count: int, sign: str = "") -> str:
    return f"{count / 1e6:{sign}.2f} MB" if abs(count) >= 1e4 else f"{count / 1e3:{sign}.1f} kB" if count else "0"
