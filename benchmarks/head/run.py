"""What a head's choices rest on: where a language model is read, one covariance or one a task, and how much say it gets.

    PERDURE_CL_BENCHMARK=PATH/CL_Benchmark python benchmarks/head/run.py [--out benchmarks/head/record.json]
    make tables

A quarter of an hour on one core. Validation examples of sequences that tuning uses, one seed: nothing here is a result.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parents[1]))

from perdure import learn  # noqa: E402
from perdure.backbones import load_backbone  # noqa: E402
from perdure.methods.discriminant import logs  # noqa: E402
from perdure.ops.nearest_mean import Sums, left_out, oas_shrinkage, shrunk, squared_distances  # noqa: E402
from perdure.ops.powers import fitted_powers  # noqa: E402
from perdure.state.record import load_deployed  # noqa: E402
from perdure.state.reopen import reopened_model  # noqa: E402
from perdure.state.store import Store  # noqa: E402
from perdure.tasks.suites import load_suite  # noqa: E402
from perdure.tasks.task import Task  # noqa: E402
from perdure.training.evaluation import answer  # noqa: E402
from perdure.training.heads import base_vectors  # noqa: E402

SMOLLM2 = {"model": "smollm2-135m", "chat": False, "max_length": 128, "packing": True}
LAYERS = (5, 10, 15, 18, 20, 25, 30)
READ: dict[str, dict[str, Any]] = {
    "first": {"suite": "text-24", "order": "intents,tweets,r8,nyt", "train": 96, "validation": 64},
    "second": {"suite": "text-24", "order": "yelp,20newsgroups,SST-2", "train": 160, "validation": 100},
}
"""The language leaderboard's tuning sequences."""
ENCODER: dict[str, Any] = {
    "method": {"preset": "perdure", "penalties": {"score-drift": {"weight": 1.9}}},
    "backbone": "minilm",
    "training": {"learning_rate": 2e-3, "epochs": 3},
}
BESIDE: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "MiniLM, quickstart": (
        {"suite": "quickstart", "order": "r8,amazon,20newsgroups,rotten-tomatoes", "train": 256, "validation": 128},
        ENCODER,
    ),
    "MiniLM, standard-cl": (
        {"suite": "standard-cl", "order": "agnews,yahoo,dbpedia,amazon", "train": 256, "validation": 128},
        ENCODER,
    ),
    "SmolLM2-135M, text-24": (
        READ["first"],
        {
            "method": {"preset": "ps-lora", "penalties": {"sign-magnitude": {"weight": 0.011}}},
            "backbone": SMOLLM2,
            "training": {"learning_rate": 1.7e-3, "epochs": 1, "batch_size": 4},
        },
    ),
}
"""Name -> sequence, and the run whose adapter the head stands beside."""
FIXED = (0.1, 0.3, 1.0)


def tasks_of(sequence: Mapping[str, Any]) -> Sequence[Task]:
    sizes = {split: sequence[split] for split in ("train", "validation")}
    return load_suite(sequence["suite"], order=sequence["order"], **sizes, test=1, seed=0).tasks


def sums_of(tasks: Sequence[Task], vectors: Mapping[str, Tensor]) -> Sums:
    """Sums over the training examples of all classes of all tasks."""
    sums = Sums.empty(next(iter(vectors.values())).shape[1])
    for task in tasks:
        for label in task.labels:
            rows = [i for i, example in enumerate(task.train) if example.label == label]
            sums = sums.with_vectors((task.name, label), vectors[task.name][rows]) if rows else sums
    return sums


@dataclass
class Densities:
    """The densities of the classes of some tasks."""

    sums: Sums

    def __post_init__(self) -> None:
        self.count = sum(self.sums.counts.values())
        self.share = oas_shrinkage(self.sums.within(), self.count)
        self.cov_DD = shrunk(self.sums.within(), self.share)
        self.place = {group: i for i, group in enumerate(self.sums.counts)}

    def odds(self, task: Task, x_ND: Tensor, right: Sequence[str] | None = None) -> Tensor:
        """-1/2 of the squared distances to the means of the task's labels; `right`: each vector left out of its own class."""
        labels = [label for label in task.labels if (task.name, label) in self.place]
        own_G = [self.place[task.name, label] for label in labels]
        mean_GD = self.sums.means()[own_G]
        d_NG = squared_distances(x_ND, mean_GD, self.cov_DD)
        if right is not None:
            counts = torch.tensor([self.sums.counts[task.name, label] for label in labels])
            own_N = torch.tensor([labels.index(label) for label in right])
            between_GG = squared_distances(mean_GD, mean_GD, self.cov_DD)
            d_NG = left_out(d_NG, between_GG, own_N, counts, (1 - self.share) / self.count)
        least_N1 = -d_NG.max(dim=1, keepdim=True).values / 2  # of a label without training examples
        odds_NL = least_N1.expand(-1, len(task.labels)).clone()
        odds_NL[:, [[*task.labels].index(label) for label in labels]] = -d_NG / 2
        return odds_NL


def share_right(task: Task, score_NL: Tensor) -> float:
    labels = [*task.labels]
    found = [
        labels[i] == example.label for i, example in zip(score_NL.argmax(1).tolist(), task.validation, strict=True)
    ]
    return sum(found) / len(found)


def mean(shares: Sequence[float]) -> float:
    return sum(shares) / len(shares)


def read_at(sequence: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The head alone, by layer: the mean over tokens with one covariance and with one a task, and the last token's vector."""
    tasks = tasks_of(sequence)
    learner: Any = load_backbone({**SMOLLM2, "packing": False})
    learner.prepare(tasks)
    kinds = ("mean", "last token")
    found: dict[tuple[str, str, str, int], Tensor] = {}
    for task in tasks:
        for split in ("train", "validation"):
            rows: dict[tuple[str, int], list[Tensor]] = {}
            for example in getattr(task, split):
                with torch.no_grad():
                    ids = torch.tensor([learner._asked(example)])
                    states = learner.model.base_model(input_ids=ids, output_hidden_states=True).hidden_states
                for layer in LAYERS:
                    rows.setdefault(("mean", layer), []).append(states[layer][0].mean(dim=0))
                    rows.setdefault(("last token", layer), []).append(states[layer][0, -1])
            found |= {(task.name, split, *key): torch.stack(vectors) for key, vectors in rows.items()}
    lines = []
    for layer in LAYERS:
        line: dict[str, Any] = {"layer": layer}
        for kind in kinds:
            every = Densities(sums_of(tasks, {task.name: found[task.name, "train", kind, layer] for task in tasks}))
            asked = {task.name: found[task.name, "validation", kind, layer] for task in tasks}
            line[kind] = mean([share_right(task, every.odds(task, asked[task.name])) for task in tasks])
            own = [Densities(sums_of([t], {t.name: found[t.name, "train", kind, layer]})) for t in tasks]
            shares = [share_right(t, each.odds(t, asked[t.name])) for t, each in zip(tasks, own, strict=True)]
            line[f"{kind}, own covariance"] = mean(shares)
        lines.append(line)
    return lines


def beside(sequence: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, float]:
    """Average accuracy of the last model of a run alone and with the head, by how much say each gets."""
    budget = {"train": sequence["train"], "validation": sequence["validation"], "test": 1}
    fixed = {
        "precision": "fp32",
        "threads": 1,
        "seed": 100,
        "evaluation": {"split": "validation", "every_stage": False},
    }
    tasks = tasks_of(sequence)
    with tempfile.TemporaryDirectory() as place:
        run = Path(place) / "run"
        learn(out=run, suite=sequence["suite"], order=sequence["order"], budget=budget, **fixed, **settings)
        model, backbone = reopened_model(Store(run))
        backbone.prepare(tasks)
        deployed = load_deployed(Store(run))

        def probabilities(task: Task, split: str) -> Tensor:
            answers = answer(model, backbone, deployed, getattr(task, split), [task.name])
            return logs(torch.tensor([p.probabilities for p in answers]))

        known = {task.name: base_vectors(model, backbone, task.train) for task in tasks}
        densities = Densities(sums_of(tasks, known))
        found: dict[str, list[float]] = {}
        for task in tasks:
            log_p, odds = (
                probabilities(task, "validation"),
                densities.odds(task, base_vectors(model, backbone, task.validation)),
            )
            learnt, right = probabilities(task, "train"), [example.label for example in task.train]
            left = densities.odds(task, known[task.name], right)
            own_N = torch.tensor([[*task.labels].index(label) for label in right])
            ways = {"adapter alone": log_p, "head alone": odds}
            ways |= {f"a = 1, w = {w:g}": log_p + w * odds for w in FIXED}
            _, alone = fitted_powers(torch.zeros_like(learnt), left, own_N)
            ways["a = 1, w fitted to the head alone"] = log_p + alone * odds
            a, w = fitted_powers(learnt, left, own_N)
            ways["both fitted"] = a * log_p + w * odds
            for name, scores in ways.items():
                found.setdefault(name, []).append(share_right(task, scores))
    return {name: mean(shares) for name, shares in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=HERE / "record.json")
    args = parser.parse_args()
    torch.set_num_threads(1)
    record = {
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "read_at": {name: read_at(sequence) for name, sequence in READ.items()},
        "beside": {name: beside(*each) for name, each in BESIDE.items()},
    }
    args.out.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
