"""One adapter a task, chosen by the text and not by the task's name: that of the nearest class, in the untouched base's vectors.

    PERDURE_CL_BENCHMARK=PATH/CL_Benchmark python benchmarks/attempts/router.py [--out benchmarks/attempts/router.json]
    make tables

Five minutes on one core. Validation examples of the leaderboard's screening sequences, one seed: nothing here is a result. An
example goes to the task of the class with the highest density (means and one shared covariance, perdure.ops.nearest_mean); where
even that class is farther than all but 1 % of its task's own training examples, the untouched base answers. The labels asked are
the task's own, as for every other row.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parents[1]))

from benchmarks.head.run import Densities, mean, share_right, sums_of  # noqa: E402

from perdure import learn  # noqa: E402
from perdure.methods.contract.past import PerTask  # noqa: E402
from perdure.methods.discriminant import logs  # noqa: E402
from perdure.state.record import load_deployed  # noqa: E402
from perdure.state.reopen import reopened_model  # noqa: E402
from perdure.state.store import Store  # noqa: E402
from perdure.tasks.suites import load_suite  # noqa: E402
from perdure.tasks.task import Task  # noqa: E402
from perdure.training.evaluation import answer  # noqa: E402
from perdure.training.heads import base_vectors  # noqa: E402

SEQUENCES = {"standard-cl": "agnews,yahoo,dbpedia,amazon", "quickstart": "r8,amazon,20newsgroups,bbc,rotten-tomatoes"}
RUN: dict[str, Any] = {
    "method": "per-task",
    "backbone": "minilm",
    "precision": "bf16",
    "threads": 1,
    "seed": 100,
    "training": {"learning_rate": 0.0053, "average": "last-half", "epochs": 3, "batch_size": 16},
    "evaluation": {"split": "validation", "every_stage": False},
}
"""per-task with the settings that the leaderboard's tuning chose."""
BUDGET: dict[str, Any] = {"train": 256, "validation": 500, "test": 1}
FALLBACK = 0.99
"""Of a task's own training examples, left out of their class, this share lies nearer than where the base takes over."""


def routes(tasks: Sequence[Task], densities: Densities, known: dict[str, Tensor], asked: Tensor) -> list[str | None]:
    """The task whose adapter answers each vector; None: the untouched base."""
    odds = torch.stack([densities.odds(task, asked).max(dim=1).values for task in tasks], dim=1)
    limits = []
    for task in tasks:
        left = densities.odds(task, known[task.name], [example.label for example in task.train])
        limits.append(left.max(dim=1).values.quantile(1 - FALLBACK))
    best, place = odds.max(dim=1)
    return [tasks[i].name if score >= limits[i] else None for score, i in zip(best, place.tolist(), strict=True)]


def routed(suite: str, order: str) -> dict[str, float]:
    """Average accuracy with the right adapter, the routed one, and both with the head beside; shares of routes."""
    tasks = load_suite(suite, order=order, **BUDGET, seed=0).tasks
    with tempfile.TemporaryDirectory() as place:
        run = Path(place) / "run"
        learn(out=run, suite=suite, order=order, budget=BUDGET, **RUN)
        model, backbone = reopened_model(Store(run))
        backbone.prepare(tasks)
        deployed = load_deployed(Store(run))
        assert isinstance(deployed, PerTask)
        known = {task.name: base_vectors(model, backbone, task.train) for task in tasks}
        densities = Densities(sums_of(tasks, known))
        found: dict[str, list[float]] = {}
        for task in tasks:
            asked = base_vectors(model, backbone, task.validation)
            chosen = routes(tasks, densities, known, asked)
            by_route = {}
            for name in {*chosen, task.name}:
                answers = answer(model, backbone, deployed.updates.get(name or "", {}), task.validation, [task.name])
                by_route[name] = logs(torch.tensor([each.probabilities for each in answers]))
            told = by_route[task.name]
            picked = torch.stack([by_route[name][i] for i, name in enumerate(chosen)])
            odds = densities.odds(task, asked)
            for name, scores in {"told": told, "routed": picked, "head": odds}.items():
                found.setdefault(name, []).append(share_right(task, scores))
            for weight in (0.1, 0.3):
                found.setdefault(f"routed + {weight:g} head", []).append(share_right(task, picked + weight * odds))
            found.setdefault("sent to its task", []).append(mean([float(name == task.name) for name in chosen]))
            found.setdefault("sent to the base", []).append(mean([float(name is None) for name in chosen]))
    return {name: mean(shares) for name, shares in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=HERE / "router.json")
    args = parser.parse_args()
    torch.set_num_threads(1)
    record = {"settings": RUN | BUDGET, "found": {suite: routed(suite, order) for suite, order in SEQUENCES.items()}}
    args.out.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
