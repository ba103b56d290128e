"""Time and memory of dense merge rules written into a base, against reading and writing the same bytes.

    python benchmarks/merge_dense/run.py [--parameters 1e9] [--rounds 5] [--out record.json]

A base in bf16 of LLaMA-3.2-1B's shapes (layers as many as `--parameters` needs) and two random rank-8 adapters on all its
linear layers. Every round, in turn and on the same files: the copy (every byte of the base read and a file of the same
size written, 16 MB at a time, synced), then each rule through `merge_folders(..., base=...)`. A ratio is the median over rounds
of a rule's time over the copy's in the same round. CPU time is stated too: on a busy machine it lengthens a rule's wall
time, but hardly the copy's. Memory is the rise of the resident peak in a fresh process.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from safetensors.torch import save_file

from perdure.adapters.folder import write_adapter
from perdure.merging.folders import merge_folders
from perdure.merging.rules import rule_named
from perdure.merging.tensor_files import CHUNK
from perdure.ops.lowrank import LowRank

WIDTH, KEYS, INNER, RANK, ADAPTERS = 2048, 512, 8192, 8, 2
LAYER = {
    "self_attn.q_proj": (WIDTH, WIDTH),
    "self_attn.k_proj": (KEYS, WIDTH),
    "self_attn.v_proj": (KEYS, WIDTH),
    "self_attn.o_proj": (WIDTH, WIDTH),
    "mlp.gate_proj": (INNER, WIDTH),
    "mlp.up_proj": (INNER, WIDTH),
    "mlp.down_proj": (WIDTH, INNER),
}
RULES = ("average", "max-magnitude", "ties")


def shapes(parameters: float) -> dict[str, tuple[int, int]]:
    """Module -> (out, in), whole layers."""
    layers = max(1, round(parameters / sum(height * width for height, width in LAYER.values())))
    return {f"model.layers.{i}.{name}": shape for i in range(layers) for name, shape in LAYER.items()}


def make_inputs(folder: Path, parameters: float) -> int:
    """Write the base and the adapters; returns the number of parameters."""
    draw = torch.Generator().manual_seed(0)
    modules = shapes(parameters)
    (folder / "base").mkdir()
    weights = {f"{m}.weight": (torch.randn(s, generator=draw) * 0.02).bfloat16() for m, s in modules.items()}
    save_file(weights, folder / "base" / "model.safetensors")
    (folder / "base" / "config.json").write_text('{"architectures": ["LlamaModel"]}')
    for number in range(ADAPTERS):
        update = {
            module: LowRank(
                torch.randn(RANK, width, generator=draw) * 0.02, torch.randn(height, RANK, generator=draw) * 0.01
            )
            for module, (height, width) in modules.items()
        }
        (folder / f"adapter{number}").mkdir()
        write_adapter(folder / f"adapter{number}", update, rank=RANK)
    return sum(height * width for height, width in modules.values())


def copy(folder: Path) -> None:
    """Read every byte of the base and write as many."""
    (folder / "out").mkdir()
    source = os.open(folder / "base" / "model.safetensors", os.O_RDONLY)
    target = os.open(folder / "out" / "model.safetensors", os.O_WRONLY | os.O_CREAT, 0o666)
    os.ftruncate(target, os.fstat(source).st_size)  # as the merges do: some disks are faster when the size is known
    while block := os.read(source, CHUNK):
        os.write(target, block)
    os.fsync(target)
    os.close(source)
    os.close(target)


def merge(folder: Path, rule: str) -> None:
    """The rule, into the base."""
    places = [folder / f"adapter{number}" for number in range(ADAPTERS)]
    merge_folders(places, folder / "out", rule_named(rule), base=folder / "base")


def seconds(folder: Path, what: str) -> tuple[float, float]:
    """Wall and processor time of one run; the output is removed afterwards."""
    started, began = time.perf_counter(), time.process_time()
    copy(folder) if what == "copy" else merge(folder, what)
    taken = time.perf_counter() - started, time.process_time() - began
    shutil.rmtree(folder / "out")
    return taken


def resident(field: str) -> int:
    """Bytes the process holds (VmRSS) or has held at most (VmHWM)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


def extra_memory(folder: Path, what: str) -> int:
    """Bytes by which the resident peak rises; call it in a fresh process."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from what is held now
    before = resident("VmRSS")
    seconds(folder, what)
    return resident("VmHWM") - before


def measure(folder: Path, rounds: int) -> dict[str, dict[str, float]]:
    """Copy and rules: seconds, ratios, memory."""
    taken: dict[str, list[tuple[float, float]]] = {what: [] for what in ("copy", *RULES)}
    for _ in range(rounds):
        for what in taken:
            taken[what].append(seconds(folder, what))
    record = {}
    for what, times in taken.items():
        ratios = [mine / base for (mine, _), (base, _) in zip(times, taken["copy"], strict=True)]
        command = [sys.executable, __file__, "--memory-of", what, str(folder)]
        memory = int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        record[what] = {
            "seconds": statistics.median(wall for wall, _ in times),
            "processor_seconds": statistics.median(processor for _, processor in times),
            "time_ratio": statistics.median(ratios),
            "time_ratio_min": min(ratios),
            "time_ratio_max": max(ratios),
            "extra_bytes": memory,
        }
        print(what, {key: round(value, 3) for key, value in record[what].items()}, flush=True)
    return record


def commit() -> str:
    """The commit this was run on, '+' appended when files differ from it."""
    run = subprocess.run(["git", "describe", "--always", "--dirty=+"], capture_output=True, text=True, check=False)
    return run.stdout.strip() or "unknown"


def main() -> None:
    """Parse, measure, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parameters", type=float, default=1e9)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", type=Path, help="where the files go; default: a temporary folder")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--memory-of", nargs=2, metavar=("WHAT", "FOLDER"), help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.memory_of:
        print(extra_memory(Path(chosen.memory_of[1]), chosen.memory_of[0]))
        return
    with tempfile.TemporaryDirectory(dir=chosen.folder) as made:
        count = make_inputs(Path(made), chosen.parameters)
        record = {
            "question": "dense merge rules into a base against reading and writing the same bytes",
            "commit": commit(),
            "versions": {"python": platform.python_version(), "torch": torch.__version__},
            "machine": {"cpus": os.cpu_count(), "threads": torch.get_num_threads(), "processor": platform.machine()},
            "parameters": count,
            "adapters": ADAPTERS,
            "rank": RANK,
            "rounds": chosen.rounds,
            "load_average": os.getloadavg()[0],
            "largest_tensor_bytes": 4 * INNER * WIDTH,
            "results": measure(Path(made), chosen.rounds),
        }
    if chosen.out:
        chosen.out.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
