"""The sum of five rank-8 adapters as one adapter: through the factors against the dense SVD route.

    python benchmarks/merge_sum/run.py [--rounds 3] [--shrink 1] [--out record.json]

LLaMA-3.2-1B's linear layers (16 layers, 0.97 billion parameters). Both routes give exact factors of rank 40 for every module:
    factors   the stacked factors, QR of each stack, SVD of the 40 x 40 core (what `perdure merge --rule sum` does)
    dense     sum of the five B A, torch.linalg.svd, cut to rank 40 (what add_weighted_adapter's `svd` does)
One module of each shape is timed by both routes, in turn within a round; a route's time is the sum over shapes of seconds
times the number of such modules. The ratio is the median over rounds; processor time is stated beside wall time, which other
programs on the machine lengthen.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import time
from pathlib import Path

import torch

from perdure.merging.linear import stacked_sum
from perdure.ops.decompose import compress
from perdure.ops.lowrank import LowRank, dense

ADAPTERS, RANK, LAYERS = 5, 8, 16
SHAPES = {(2048, 2048): 2, (512, 2048): 2, (8192, 2048): 2, (2048, 8192): 1}
"""(out, in) -> how many such modules a layer has."""


def factors_route(adapters: list[LowRank]) -> LowRank:
    """The exact sum through the factors."""
    return compress(stacked_sum(adapters, [1.0] * len(adapters)))


def dense_route(adapters: list[LowRank]) -> LowRank:
    """The same through the dense matrix."""
    total = dense(adapters[0])
    for adapter in adapters[1:]:
        total += dense(adapter)
    U, s, Vt = torch.linalg.svd(total, full_matrices=False)
    keep = ADAPTERS * RANK
    return LowRank(Vt[:keep], U[:, :keep] * s[:keep])


def main() -> None:
    """Parse, measure, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--shrink", type=int, default=1, help="divide both sides of every shape, for a quick look")
    parser.add_argument("--out", type=Path)
    chosen = parser.parse_args()
    draw = torch.Generator().manual_seed(0)
    shapes = {(o // chosen.shrink, i // chosen.shrink): n * LAYERS for (o, i), n in SHAPES.items()}
    for route in (
        factors_route,
        dense_route,
    ):  # once before the clock runs: libraries load their kernels when first called
        route([LowRank(torch.ones(RANK, 64), torch.ones(64, RANK))] * ADAPTERS)
    rounds: list[dict[str, float]] = []
    processor: list[dict[str, float]] = []
    errors = []
    for _ in range(chosen.rounds):
        seconds, worked = ({"factors": 0.0, "dense": 0.0} for _ in range(2))
        for (out_features, in_features), count in shapes.items():
            adapters = [
                LowRank(torch.randn(RANK, in_features, generator=draw), torch.randn(out_features, RANK, generator=draw))
                for _ in range(ADAPTERS)
            ]
            results = {}
            for name, route in (("factors", factors_route), ("dense", dense_route)):
                started, began = time.perf_counter(), time.process_time()
                results[name] = route(adapters)
                worked[name] += count * (time.process_time() - began)
                seconds[name] += count * (time.perf_counter() - started)
            exact = sum(dense(LowRank(a.A.double(), a.B.double())) for a in adapters)
            norm = torch.linalg.norm(exact)
            errors.append({n: float(torch.linalg.norm(dense(r).double() - exact) / norm) for n, r in results.items()})
        rounds.append(seconds)
        processor.append(worked)
        print({name: round(value, 3) for name, value in seconds.items()}, flush=True)
    ratios, processor_ratios = ([each["dense"] / each["factors"] for each in times] for times in (rounds, processor))
    commit = subprocess.run(["git", "describe", "--always", "--dirty=+"], capture_output=True, text=True, check=False)
    record = {
        "question": "sum of five rank-8 adapters: through the factors against a dense SVD",
        "commit": commit.stdout.strip() or "unknown",
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
        "machine": {"cpus": os.cpu_count(), "threads": torch.get_num_threads(), "processor": platform.machine()},
        "parameters": sum(o * i * count for (o, i), count in shapes.items()),
        "rounds": chosen.rounds,
        "seconds": {name: statistics.median(each[name] for each in rounds) for name in ("factors", "dense")},
        "processor_seconds": {
            name: statistics.median(each[name] for each in processor) for name in ("factors", "dense")
        },
        "times_faster_by_processor_time": statistics.median(processor_ratios),
        "times_faster": statistics.median(ratios),
        "times_faster_min": min(ratios),
        "largest_relative_error": {n: max(error[n] for error in errors) for n in ("factors", "dense")},
    }
    print(json.dumps({key: record[key] for key in ("times_faster", "largest_relative_error")}), flush=True)
    if chosen.out:
        chosen.out.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
