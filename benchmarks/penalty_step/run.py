"""An optimiser step on MiniLM with each weight penalty against one without, at task 2 and at task 100.

    python benchmarks/penalty_step/run.py [--rounds 20] [--precision fp32] [--targets all-linear] [--out record.json]
    make tables

16 texts of 48 tokens, r 8, AdamW, clipping. A penalised step is the library's own: forward, backward,
`training.add_weight_penalties`, clip, step. Steps take turns: in every round one without and one with each penalty, in each of
their two pasts. Times are CPU seconds of this process on one thread, so that other work on the machine hardly counts.
A ratio is the median over rounds of (step + penalty) / step, where the step is the mean of the round's steps without their
penalty's part: a penalty takes milliseconds, and two steps alone differ by more than that. Memory: memory.py.
"""

from __future__ import annotations

import argparse
import functools
import json
import platform
import statistics
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from perdure.backbones import load_backbone
from perdure.config.composition import resolve_method
from perdure.config.lora_settings import LoraSettings
from perdure.methods.contract.build import build_method
from perdure.methods.contract.parts import Method, Start, WeightPenalty
from perdure.methods.contract.past import Past
from perdure.ops.factors import Factors
from perdure.ops.lowrank import LowRank, Update, add_updates
from perdure.tasks.suites import load_suite
from perdure.training.lora import AdaptedModel
from perdure.training.train import add_weight_penalties

PENALTIES: dict[str, dict[str, Any]] = {
    "l2": {"l2": {"weight": 0.01}},
    "sign-magnitude": {"sign-magnitude": {"weight": 0.01}},
    "sign-magnitude scalar": {"sign-magnitude": {"weight": 0.01, "reading": "scalar"}},
    "sparsity": {"sparsity": {"weight": 1e-4}},
    "sparsity released_code": {"sparsity": {"weight": 1e-4, "target": "released-code"}},
    "overlap": {"overlap": {"weight": 0.5}},
    "overlap absolute": {"overlap": {"weight": 0.5, "form": "absolute"}},
    "overlap + sparsity": {"overlap": {"weight": 0.5}, "sparsity": {"weight": 1e-4}},
    "past-energy": {"past-energy": {"weight": 1000.0}},
    "fisher": {"fisher": {"weight": 100.0}},
    "output-drift": {"output-drift": {"weight": 100.0}},
    "score-drift": {"score-drift": {"weight": 10.0}},
}
TARGETS = {"query-value": ("query", "value"), "all-linear": ("query", "key", "value", "dense")}
HERE = Path(__file__).parent
PASTS = (2, 100)
BATCH = 16


@dataclass(frozen=True)
class Case:
    """A penalty with the past it sees at a task."""

    method: Method
    past: Past


def update(model: AdaptedModel, seed: int) -> dict[str, LowRank]:
    """A task's update: entries of about 1e-3."""
    draw = torch.Generator().manual_seed(seed)
    return {
        name: LowRank(torch.randn(p.A.shape, generator=draw) * 0.05, torch.randn(p.B.shape, generator=draw) * 0.01)
        for name, p in model.factors().items()
    }


def sum_of(model: AdaptedModel, finished: int) -> Update:
    """The sum of the first updates, kept as a run keeps it: low rank until dense is smaller."""
    return functools.reduce(add_updates, (update(model, seed) for seed in range(finished)), {})


def make_case(model: AdaptedModel, penalties: dict[str, Any], task: int, total: Update) -> Case:
    """The penalty as it is when `task` (from 1) is being learnt; statistics are random, of the right shape."""
    method = build_method(resolve_method({"preset": "inc-lora", "penalties": penalties}))
    finished = task - 1
    past = Past(tuple(map(str, range(finished))), total, total, total)
    weight = lambda module: torch.randn(model.factors()[module].shape)  # noqa: E731
    for kind, penalty in method.penalties.items():
        if kind == "overlap":
            for seed in range(finished):
                penalty.after_task(None, update(model, seed))  # type: ignore[arg-type]
        shapes = {name: pair.shape for name, pair in model.factors().items()}
        if kind == "fisher":
            penalty.load({name: torch.rand(shape) for name, shape in shapes.items()})
        if kind == "output-drift":
            penalty.load({f"moment.{name}": torch.eye(shape[1]) for name, shape in shapes.items()})
        if kind == "score-drift":  # texts and labels
            sizes = {"outputs": 0, "inputs": 1}
            squares = {
                f"{s}.{use}.{n}": torch.eye(shapes[n][i]) for n in shapes for s, i in sizes.items() for use in (0, 1)
            }
            penalty.load(squares)
        penalty.before_task(SimpleNamespace(past=past, factors=model.factors(), weight=weight))  # type: ignore[arg-type]
        assert isinstance(penalty, WeightPenalty)
    return Case(method, past)


def step(backbone: Any, model: AdaptedModel, optimiser: Any, batch: Any, case: Case | None) -> tuple[float, float]:
    """CPU seconds of one step without its penalty's part, and of that part."""
    started, spent = time.process_time(), 0.0
    optimiser.zero_grad(set_to_none=True)
    backbone.forward(batch).loss.backward()
    if case is not None:
        before = time.process_time()
        add_weight_penalties(model, case.method, SimpleNamespace(past=case.past), {})  # type: ignore[arg-type]
        spent = time.process_time() - before
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimiser.step()
    return time.process_time() - started - spent, spent


def adapted(targets: str) -> tuple[Any, AdaptedModel]:
    """MiniLM with an adapter on these layers, its A drawn and its B zero."""
    backbone: Any = load_backbone({"model": "minilm", "max_length": 48})
    model = AdaptedModel(backbone.model, LoraSettings(rank=8, targets=TARGETS[targets]), backbone.default_targets)
    draw = torch.Generator().manual_seed(0)
    model.start(
        Start(
            {
                n: Factors(torch.randn(p.A.shape, generator=draw) * 0.05, torch.zeros_like(p.B), p.scaling)
                for n, p in model.factors().items()
            }
        )
    )
    return backbone, model


def penalties_for(targets: str) -> dict[str, dict[str, Any]]:
    """The released form of N-LoRA exists for square layers only."""
    return {n: p for n, p in PENALTIES.items() if targets == "query-value" or "released" not in n}


def measure(precision: str, targets: str, rounds: int) -> dict[str, Any]:
    """Penalty -> ratio of a step with it to one without, at task 2 and at task 100."""
    backbone, model = adapted(targets)
    task = load_suite("quickstart", train=256, validation=0, test=1).tasks[0]
    backbone.prepare([task])
    backbone.precision = precision
    long = sorted(task.train, key=backbone.length, reverse=True)[:BATCH]
    batch = backbone.collate(long)
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-3)
    fits, totals = penalties_for(targets), {at: sum_of(model, at - 1) for at in PASTS}
    cases = {(n, at): make_case(model, penalties, at, totals[at]) for n, penalties in fits.items() for at in PASTS}
    for case in cases.values():  # signs and energies of the past are computed once a task
        step(backbone, model, optimiser, batch, case)

    plain: list[float] = []
    spent: dict[tuple[str, int], list[float]] = {key: [] for key in cases}
    for _ in range(rounds):
        bare = [step(backbone, model, optimiser, batch, None)[0]]
        for key, case in cases.items():
            rest, own = step(backbone, model, optimiser, batch, case)
            bare.append(rest)
            spent[key].append(own)
        plain.append(statistics.mean(bare))
    return {
        "tokens": int(batch.inputs["input_ids"].shape[1]),
        "modules": len(model.modules),
        "step_seconds": statistics.median(plain),
        "ratios": {
            name: {
                f"task {at}": statistics.median(
                    1 + own / bare for own, bare in zip(spent[name, at], plain, strict=True)
                )
                for at in PASTS
            }
            for name in fits
        },
    }


def about() -> dict[str, Any]:
    """Commit, versions and machine, for a record."""
    commit = subprocess.run(["git", "describe", "--always", "--dirty=+"], capture_output=True, text=True, check=False)
    return {
        "commit": commit.stdout.strip(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "device": platform.machine(),
        "threads": 1,
    }


def main() -> None:
    """Parse, measure, print, record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--precision", nargs="+", choices=["fp32", "bf16"], default=["fp32", "bf16"])
    parser.add_argument("--targets", nargs="+", choices=TARGETS, default=list(TARGETS))
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(1)
    started, results = time.time(), {}
    for targets in given.targets:
        for precision in given.precision:
            found = results[f"{targets} {precision}"] = measure(precision, targets, given.rounds)
            print(f"{targets} {precision}: {found['modules']} modules, step {found['step_seconds'] * 1e3:.0f} ms")
            for name, ratios in found["ratios"].items():
                print(f"  {name:24}" + "".join(f"  {at}: {ratio:.3f} x" for at, ratio in ratios.items()), flush=True)
    record = {
        "question": "an optimiser step with a weight penalty against one without",
        **about(),
        "rounds": given.rounds,
        "wall_seconds": time.time() - started,
        "results": results,
    }
    if given.out:
        given.out.write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
