"""Guarded merge of real adapters: what earlier tasks lose, and how much of the new task's gain is kept, on test examples.

    python benchmarks/merge_guarded/run.py [--pairs bbc:amazon ...] [--seeds 0 1 2] [--tolerance 0.02] [--out FOLDER]

For every given pair of tasks of the quickstart suite (old:new) and every seed, one record: MiniLM, one rank-8 adapter a task,
trained apart on the pretrained base (`per-task`); then the second is added to the first under a guard, chosen by validation
examples only. Stated: the first task's loss and the second's gain on test examples, guarded and plainly summed.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import torch

from perdure.commands.guarded_merge import AddedAdapter, guarded_folders
from perdure.commands.learn import learn
from perdure.merging.guarded import Guard
from perdure.tasks.suites import load_suite

PAIRS = ("20newsgroups:bbc", "bbc:20newsgroups", "r8:20newsgroups", "amazon:20newsgroups", "rotten-tomatoes:bbc")


def one(pair: str, seed: int, guard: Guard, sizes: dict[str, int], rate: float, folder: Path) -> dict[str, object]:
    """Train the pair's adapters and merge them under the guard."""
    names = pair.split(":")
    train, validation, test = (sizes[split] for split in ("train", "validation", "test"))
    tasks = load_suite("quickstart", order=names, train=train, validation=validation, test=test, seed=seed).tasks
    run = folder / f"{names[0]}-{names[1]}-{seed}"
    training = {"learning_rate": rate, "epochs": 3, "batch_size": 16}
    unscored = [replace(task, test=task.test[:1]) for task in tasks]  # the run's own scores are not looked at
    learn(out=run, tasks=unscored, method="per-task", backbone="minilm", training=training, seed=seed)
    places = [run / "stages" / f"{i + 1:02d}-{name}" / "adapter" for i, name in enumerate(names)]
    started = time.process_time()
    (step,) = guarded_folders(places, tasks, "minilm", run / "merged", guard).steps
    return {"pair": pair, "seed": seed, "processor_seconds": time.process_time() - started, **summary(step, names[0])}


def summary(step: AddedAdapter, old: str) -> dict[str, object]:
    """The numbers of a step."""
    return {
        "old_loss_guarded": step.largest_loss().mean,
        "old_loss_guarded_error": step.largest_loss().standard_error,
        "old_loss_unguarded": step.test["before"][old] - step.test["unguarded"][old],
        "old_loss_guarded_validation": step.largest_loss("validation").mean,
        "old_loss_guarded_validation_error": step.largest_loss("validation").standard_error,
        "validation_examples_needed": step.needed,
        "new_gain_unguarded": step.test["unguarded"][step.task] - step.test["before"][step.task],
        "share_of_gain_kept": step.kept_gain(),
        "evaluations": step.evaluations,
        "scales": dict(step.scales),
        "test": {state: dict(scores) for state, scores in step.test.items()},
    }


def main() -> None:
    """Parse, measure, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", nargs="+", default=list(PAIRS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--tolerance", type=float, default=0.02)
    parser.add_argument("--confidence", type=float, default=0.95)
    parser.add_argument("--learning-rate", type=float, default=5e-3)
    for split, size in (("train", 256), ("validation", 500), ("test", 500)):
        parser.add_argument(f"--{split}", type=int, default=size)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("records"))
    chosen = parser.parse_args()
    sizes = {split: getattr(chosen, split) for split in ("train", "validation", "test")}
    guard = Guard(chosen.tolerance, chosen.confidence)
    chosen.out.mkdir(parents=True, exist_ok=True)
    for pair in chosen.pairs:
        for seed in chosen.seeds:
            with tempfile.TemporaryDirectory() as made:
                row = one(pair, seed, guard, sizes, chosen.learning_rate, Path(made))
            record = {
                "question": "guarded merge of adapters trained apart: loss of the old task, gain of the new one kept",
                **row,
                "tolerance": chosen.tolerance,
                "confidence": chosen.confidence,
                "learning_rate": chosen.learning_rate,
                "examples": sizes,
                "commit": commit(),
                "versions": {"python": platform.python_version(), "torch": torch.__version__},
                "machine": {
                    "cpus": os.cpu_count(),
                    "threads": torch.get_num_threads(),
                    "processor": platform.machine(),
                },
            }
            name = f"{pair.replace(':', '-')}-{100 * chosen.tolerance:g}-points-{seed}.json"
            (chosen.out / name).write_text(json.dumps(record, indent=1) + "\n")
            print(name, {key: row[key] for key in ("old_loss_guarded", "share_of_gain_kept")}, flush=True)


def commit() -> str:
    """The commit this was run on, '+' appended when files differ from it."""
    run = subprocess.run(["git", "describe", "--always", "--dirty=+"], capture_output=True, text=True, check=False)
    return run.stdout.strip() or "unknown"


if __name__ == "__main__":
    main()
