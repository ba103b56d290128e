"""Time and memory of `perdure diagnose` for two all-linear rank-16 adapters of LLaMA-2-7B's shapes.

    python benchmarks/merge_diagnose/run.py [--layers 32] [--sample 0.05] [--out record.json]

Random factors, 7 modules a layer, 224 in all, 6.5 billion positions; written as adapter folders and read back as a user's would
be. Exact, then from a sample of each module's rows; each in a fresh process, whose resident peak above what it held after
its imports is stated beside the adapters' size, and its processor time beside the wall time, which other programs lengthen. The
interval's half width and the sample's error are stated too.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from perdure.adapters.folder import write_adapter
from perdure.diagnostics.folders import diagnose_folders
from perdure.diagnostics.positions import PositionSettings
from perdure.ops.lowrank import LowRank

RANK, WIDTH, INNER = 16, 4096, 11008
LAYER = {
    "self_attn.q_proj": (WIDTH, WIDTH),
    "self_attn.k_proj": (WIDTH, WIDTH),
    "self_attn.v_proj": (WIDTH, WIDTH),
    "self_attn.o_proj": (WIDTH, WIDTH),
    "mlp.gate_proj": (INNER, WIDTH),
    "mlp.up_proj": (INNER, WIDTH),
    "mlp.down_proj": (WIDTH, INNER),
}


def make_inputs(folder: Path, layers: int) -> int:
    """Two adapters; returns the number of positions."""
    draw = torch.Generator().manual_seed(0)
    shapes = {f"model.layers.{i}.{name}": shape for i in range(layers) for name, shape in LAYER.items()}
    for number in (1, 2):
        update = {
            module: LowRank(
                torch.randn(RANK, width, generator=draw) * 0.02, torch.randn(height, RANK, generator=draw) * 0.01
            )
            for module, (height, width) in shapes.items()
        }
        (folder / f"adapter{number}").mkdir()
        write_adapter(folder / f"adapter{number}", update, rank=RANK)
    return sum(height * width for height, width in shapes.values())


def resident(field: str) -> int:
    """Bytes the process holds (VmRSS) or has held at most (VmHWM)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


def measured(folder: Path, sample: float | None) -> dict[str, object]:
    """Seconds, memory and shares of one diagnosis; call it in a fresh process."""
    before = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from what is held now
    started, began = time.perf_counter(), time.process_time()
    found = diagnose_folders([folder / "adapter1", folder / "adapter2"], PositionSettings(rows=sample)).diagnosis.pairs[
        0
    ]
    shares = {
        name: getattr(found.overall, name).__dict__
        for name in ("opposite", "opposite_top", "opposite_weighted", "flip", "collision")
    }
    seconds, processor = time.perf_counter() - started, time.process_time() - began
    return {
        "seconds": seconds,
        "processor_seconds": processor,
        "extra_bytes": resident("VmHWM") - before,
        "shares": shares,
    }


def main() -> None:
    """Parse, measure, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument("--sample", type=float, default=0.05)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--measure", nargs=2, metavar=("FOLDER", "SAMPLE"), help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.measure:
        sample = float(chosen.measure[1])
        print(json.dumps(measured(Path(chosen.measure[0]), sample or None)))
        return
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        positions = make_inputs(folder, chosen.layers)
        results = {}
        for name, sample in (("exact", 0.0), ("sampled", chosen.sample)):
            command = [sys.executable, __file__, "--measure", made, str(sample)]
            results[name] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
            print(name, results[name], flush=True)
        size = sum(path.stat().st_size for path in folder.glob("*/*.safetensors"))
    commit = subprocess.run(["git", "describe", "--always", "--dirty=+"], capture_output=True, text=True, check=False)
    record = {
        "question": "diagnose two rank-16 adapters of LLaMA-2-7B's shapes",
        "commit": commit.stdout.strip() or "unknown",
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
        "machine": {"cpus": os.cpu_count(), "threads": torch.get_num_threads(), "processor": platform.machine()},
        "load_average": os.getloadavg()[0],
        "positions": positions,
        "adapter_bytes": size,
        "sampled_rows": chosen.sample,
        "results": results,
    }
    if chosen.out:
        chosen.out.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
