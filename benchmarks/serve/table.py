"""The tables of docs/deployment.md, from record.json."""

from __future__ import annotations

from benchmarks.records import record, row

NEAR = 1e-3
NAMES = {
    "vllm": "vLLM ({vllm})",
    "llama.cpp": "llama.cpp ({llama.cpp})",
    "llama.cpp-cached": "llama.cpp, prompts cached",
}


def table() -> str:
    """Greedy answers equal to perdure's own, by what is served and by whom."""
    found = record("serve/record.json")
    rows, versions = found["rows"], found["versions"]
    heads = [
        text.replace("{vllm}", versions["vllm"]).replace("{llama.cpp}", versions["llama.cpp"])
        for text in NAMES.values()
    ]
    lines = [row(["served", *heads]), "|---|---|---|---|"]
    for case in [*dict.fromkeys(r["case"] for r in rows), "**all**"]:
        own = [[r for r in rows if r["server"] == name and case in (r["case"], "**all**")] for name in NAMES]
        lines.append(row([case, *(f"{sum(r['equal'] for r in part)} of {len(part)}" for part in own)]))
    parted = [r["gap"] for r in rows if not r["equal"]]
    if parted:
        near = sum(gap < NEAR for gap in parted)
        lines += [
            "",
            f"Of {len(parted)} unequal answers {near} part at two tokens whose logits are within {NEAR} nats.",
        ]
    return "\n".join(lines)
