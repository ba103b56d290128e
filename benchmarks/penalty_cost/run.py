"""Time and peak memory of PS-LoRA's penalty and its gradient: naive autograd, closed form on tiles, torch.compile.

    python benchmarks/penalty_cost/run.py [--shapes t5-large llama-2-7b] [--rounds 3] [--threads 2] [--out record.json]
    make tables

Variants, each giving value and gradients of A and B for every module:
    naive           the equation with autograd, tanh(alpha H) computed in it; backward module by module
    naive-kept      the same, but tanh(alpha H) is computed once beforehand
    naive-compiled  naive-kept, forward and backward built by torch.compile
    tiled           perdure's default: closed form on row tiles
    compiled        perdure's tiles, each fused by torch.compile

Times are taken in rounds, every variant in every round on the same tensors; a ratio is the median over rounds of a
variant's time over naive's in the same round. Times are CPU seconds of this process (all threads together), so that
other work on the machine hardly counts; wall seconds are recorded too. Memory is the rise of the process's resident peak
above what it held before, in a fresh process for every variant, after a warm-up whose memory is given back.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from perdure.ops.factors import Factors
from perdure.ops.sign_magnitude import Form, reference, tiled
from perdure.ops.sign_magnitude_compiled import compiled_tile
from perdure.ops.through_factors import Scratch

HERE = Path(__file__).parent
FORM = Form(alpha=1000.0)
RANK = 8
SHAPES = {"minilm": (12, 384), "t5-large": (144, 1024), "llama-2-7b": (64, 4096)}
"""Name -> number of query and value modules, width of each (square)."""
DISTINCT_BYTES = 1 << 28
"""Histories kept apart (256 MB, far beyond any cache); further modules use them again, so that 64 x 4096 x 4096 fits."""

Results = tuple[Tensor, Tensor, Tensor]
Variant = Callable[[Factors, Tensor, Tensor], Results]
"""(factors, history H, its signs tanh(alpha H)) -> value and gradients of A and B; a variant reads one of the two."""


@dataclass(frozen=True)
class Inputs:
    """A shape's modules: factors each, histories H and signs tanh(alpha H) taken in turn."""

    factors: list[Factors]
    histories: list[Tensor]
    signs: list[Tensor]

    def run(self, variant: Variant) -> tuple[float, float]:
        """CPU and wall seconds for value and gradients of all modules."""
        started = time.process_time(), time.perf_counter()
        for number, factors in enumerate(self.factors):
            slot = number % len(self.histories)
            variant(factors, self.histories[slot], self.signs[slot])
        return time.process_time() - started[0], time.perf_counter() - started[1]


def make_inputs(count: int, width: int) -> Inputs:
    """`count` modules [width, width] whose updates and histories have entries of about 1e-3."""
    draw = torch.Generator().manual_seed(0)
    distinct = max(1, min(count, DISTINCT_BYTES // (4 * width * width)))
    factors = [
        Factors(
            torch.randn(RANK, width, generator=draw) * 0.02,
            torch.randn(width, RANK, generator=draw) * 0.01,
            scaling=2.0,
        )
        for _ in range(count)
    ]
    histories = [torch.randn(width, width, generator=draw).mul_(1e-3) for _ in range(distinct)]
    return Inputs(factors, histories, [torch.tanh(FORM.alpha * history) for history in histories])


def naive_kept_loss(A: Tensor, B: Tensor, scaling: float, signs: Tensor) -> Tensor:
    """The elementwise penalty with its history's signs given."""
    W = scaling * (B @ A)
    return (W.square() * (1 - torch.tanh(FORM.alpha * W) * signs)).sum()


def with_autograd(loss: Callable[[Tensor, Tensor, float, Tensor], Tensor]) -> Variant:
    """Value and gradients of a loss of A and B."""

    def run(factors: Factors, _: Tensor, signs: Tensor) -> Results:
        A, B = factors.A.detach().requires_grad_(), factors.B.detach().requires_grad_()
        value = loss(A, B, factors.scaling, signs)
        return value.detach(), *torch.autograd.grad(value, (A, B))

    return run


def make_variant(name: str) -> Variant:
    """The variant of that name."""
    scratch = Scratch()
    match name:
        case "naive":
            return lambda factors, history, _: reference(factors, history, FORM)
        case "naive-kept":
            return with_autograd(naive_kept_loss)
        case "naive-compiled":
            return with_autograd(torch.compile(naive_kept_loss, dynamic=False))
        case "tiled":
            return lambda factors, _, signs: tiled(factors, signs, FORM, scratch=scratch)
        case _:
            return lambda factors, _, signs: tiled(factors, signs, FORM, scratch=scratch, elementwise=compiled_tile)


VARIANTS = ("naive", "naive-kept", "naive-compiled", "tiled", "compiled")


def largest_error(variant: Variant, width: int) -> float:
    """Largest relative error of the gradients against naive in float64."""
    inputs = make_inputs(1, width)
    factors = inputs.factors[0]
    exact = Factors(factors.A.double(), factors.B.double(), factors.scaling)
    wanted = reference(exact, inputs.histories[0].double(), FORM)[1:]
    got = variant(factors, inputs.histories[0], inputs.signs[0])[1:]
    return max(float((g.double() - w).abs().max() / w.abs().max()) for g, w in zip(got, wanted, strict=True))


def times(shape: str, rounds: int) -> dict[str, dict[str, float]]:
    """Variant -> seconds (median over rounds) and ratio to naive, its least and largest over rounds."""
    count, width = SHAPES[shape]
    variants = {name: make_variant(name) for name in VARIANTS}
    errors = {name: largest_error(variant, width) for name, variant in variants.items()}  # also warms up and compiles
    inputs = make_inputs(count, width)
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in VARIANTS}
    for _ in range(rounds):
        for name, variant in variants.items():
            taken[name].append(inputs.run(variant))
    record = {}
    for name, seconds in taken.items():
        ratios, wall_ratios = (
            [mine[clock] / naive[clock] for mine, naive in zip(seconds, taken["naive"], strict=True)]
            for clock in (0, 1)
        )
        record[name] = {
            "seconds": statistics.median(cpu for cpu, _ in seconds),
            "wall_seconds": statistics.median(wall for _, wall in seconds),
            "time_ratio": statistics.median(ratios),
            "time_ratio_min": min(ratios),
            "time_ratio_max": max(ratios),
            "wall_ratio": statistics.median(wall_ratios),
            "gradient_error": errors[name],
        }
    return record


def resident(field: str) -> int:
    """Bytes the process holds (VmRSS) or has held at most (VmHWM)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) * 1024
    raise SystemExit("Peak memory is read from /proc/self/status, which this system does not have.")


def extra_memory(shape: str, name: str) -> int:
    """Bytes by which the resident peak rises while three modules are worked on; call it in a fresh process."""
    width = SHAPES[shape][1]
    make_inputs(1, width).run(make_variant(name))  # libraries and the compiler load; none of that is part of a step
    inputs, variant = make_inputs(3, width), make_variant(name)
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # what was freed so far must not serve the step
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from what is held now
    before = resident("VmRSS")
    inputs.run(variant)
    return resident("VmHWM") - before


def measure_memory(shape: str, name: str) -> int:
    """`extra_memory` in a process of its own."""
    command = [sys.executable, __file__, "--memory-of", shape, name]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def measure(shape: str, rounds: int) -> dict[str, dict[str, float]]:
    """Everything about one shape, variant by variant."""
    record = times(shape, rounds)
    memory = {name: measure_memory(shape, name) for name in VARIANTS}
    for name, row in record.items():
        row |= {"extra_bytes": memory[name], "memory_ratio": memory[name] / memory["naive"]}
        print(
            f"{shape:11} {name:15} {row['seconds'] * 1e3:9.1f} ms  {row['time_ratio']:6.3f} x "
            f"[{row['time_ratio_min']:.3f}, {row['time_ratio_max']:.3f}] (wall {row['wall_ratio']:.3f})  "
            f"{memory[name] / 1e6:7.1f} MB  {row['memory_ratio']:6.3f} x  error {row['gradient_error']:.1e}",
            flush=True,
        )
    return record


def commit() -> str:
    """The commit this was run on, '+' appended when files differ from it."""
    run = subprocess.run(["git", "describe", "--always", "--dirty=+"], capture_output=True, text=True, check=False)
    return run.stdout.strip() or "unknown"


def main() -> None:
    """Parse, measure, print, record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=list(SHAPES))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--memory-of", nargs=2, metavar=("SHAPE", "VARIANT"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    if given.memory_of:
        print(extra_memory(*given.memory_of))
        return
    started = time.time()
    record: dict[str, Any] = {
        "question": "time and memory of the PS-LoRA penalty",
        "commit": commit(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "device": platform.processor() or platform.machine(),
        "threads": given.threads,
        "rounds": given.rounds,
        "shapes": {shape: {"modules": SHAPES[shape][0], "width": SHAPES[shape][1]} for shape in given.shapes},
        "results": {},
    }
    for shape in given.shapes:
        record["results"][shape] = measure(shape, given.rounds)
        record["wall_seconds"] = time.time() - started
        if given.out:
            given.out.write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
