"""The tables of README.md, from the records beside it."""

from __future__ import annotations

import statistics

from benchmarks.records import record


def table() -> str:
    """Time, and memory, as Markdown."""
    lines = [
        "| size (layers measured) | modules | targets | plain, s | dense | sketched |",
        "|---|---|---|---|---|---|",
    ]
    for size in ("minilm", "smollm2"):
        for run in record(f"slice_init/{size}.json")["runs"]:
            plain_seconds = statistics.median(run["seconds"]["plain"])
            ratios = (f"{run['ratios'][f'slice {storage}']:.2f} x" for storage in ("dense", "sketched"))
            name = f"{run['size']} ({run['layers']})"
            cells = (name, str(run["modules"]), ", ".join(run["targets"]), f"{plain_seconds:.1f}", *ratios)
            lines.append(f"| {' | '.join(cells)} |")
    memory = record("slice_init/memory.json")
    lines += ["", "| LLaMA-2-7B shapes | dense | sketched |", "|---|---|---|"]
    one, whole = memory["one layer"], memory["all layers"]
    lines.append(
        f"| one layer, measured rise | {one['dense']['rise_mb']:.0f} MB | {one['sketched']['rise_mb']:.0f} MB |"
    )
    lines.append(f"| 32 layers, by formula | {whole['dense_gb']:.1f} GB | {whole['sketched_gb']:.2f} GB |")
    seconds = [f"{one[storage]['seconds_per_layer_and_batch']:.2f} s" for storage in ("dense", "sketched")]
    lines.append(f"| adding up, a layer and batch, one core | {seconds[0]} | {seconds[1]} |")
    return "\n".join(lines)
