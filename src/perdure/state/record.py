"""What a run saves: of each stage the scores, predictions, log, adapter and state; at the end the deployed model."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import repeat
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from perdure.adapters.folder import open_adapter, own_update, write_adapter
from perdure.backbones.base import Backbone, Prediction
from perdure.config.run_config import EvaluationSettings
from perdure.errors import TrainingError
from perdure.files.durable import write_json, write_lines
from perdure.methods.contract.build import build_head
from perdure.methods.contract.parts import Head, Method
from perdure.methods.contract.past import Past, PerTask
from perdure.ops.finite import all_finite
from perdure.ops.lowrank import LowRank, Update
from perdure.state.answers import write_answers
from perdure.state.bounded import bounded, changed_answers
from perdure.state.checkpoint import CPU, checkpoint_deployed, checkpoint_head, load_checkpoint, save_checkpoint
from perdure.state.rank_file import FILE as RANK
from perdure.state.rank_file import bound_in_words
from perdure.state.store import STATE, Store
from perdure.tasks.task import Example, Task
from perdure.training.evaluation import answer, label_sets, own_task, score, score_and_outcomes, scored_examples
from perdure.training.heads import with_head
from perdure.training.lora import AdaptedModel
from perdure.training.processes import ALONE, Processes
from perdure.training.reporter import Reporter
from perdure.training.train import Step

KEPT = 300
"""Characters of a text that are kept beside its answer, once a task."""


@dataclass
class StageRecord:
    """The log of one stage while it is trained."""

    report: Reporter
    stage: str
    steps: list[Step] = field(default_factory=list)

    def step(self, step: Step, total: int) -> None:
        """Keep a step and report it."""
        self.steps.append(step)
        self.report.step(self.stage, step, total)


@dataclass(frozen=True)
class TaskScore:
    """A cell of the score matrix, and the answers behind it; `values`: one per answer, averaging to it; none for accuracy.

    `adapter`: the score without the method's head; None if there is none.
    """

    score: float | None
    examples: Sequence[Example] = ()
    predictions: Sequence[Prediction] = ()
    values: Sequence[float] = ()
    adapter: float | None = None


def score_tasks(
    tasks: Sequence[Task],
    learnt: Sequence[str],
    deployed: Update | PerTask,
    model: AdaptedModel,
    backbone: Backbone,
    settings: EvaluationSettings,
    report: Reporter,
    processes: Processes = ALONE,
    last: bool = False,
    head: Head | None = None,
) -> dict[str, TaskScore]:
    """One row of the score matrix: the deployed model on the chosen split of every task; `last`: the row of the last stage."""

    by_name = {task.name: task for task in tasks}

    def scored(task: Task) -> TaskScore:
        due = task.name in learnt[-1:] if settings.every_stage == "own" else settings.every_stage
        if not (due or last) or (learnt and not settings.future and task.name not in learnt):
            return TaskScore(None)
        examples = scored_examples(task, settings)
        asked = label_sets(task, learnt, settings)
        predictions, adapter = answer(model, backbone, deployed, examples, asked), None
        if head:
            adapter = score(task, examples, predictions)
            labels = {name: [*by_name[name].labels] for name in asked}
            predictions = with_head(head, model, backbone, examples, predictions, labels)
        now, values = score_and_outcomes(task, examples, predictions)
        return TaskScore(now, examples, predictions, () if task.metric == "accuracy" else values, adapter)

    row = dict(zip((task.name for task in tasks), processes.spread(scored, tasks), strict=True))
    report.scored(learnt, {name: cell.score for name, cell in row.items()})
    return row


def save_untrained(store: Store, scored: Mapping[str, TaskScore]) -> None:
    """Write stage 00, the untouched base."""
    with store.stage("untrained") as folder:
        _write_scores(folder, scored)


def save_stage(
    store: Store,
    name: str,
    past: Past,
    method: Method,
    update: Mapping[str, LowRank],
    record: StageRecord,
    notes: Mapping[str, float],
    scored: Mapping[str, TaskScore],
    model: AdaptedModel,
    base: str,
) -> None:
    """Save a finished stage; it counts as finished when this returns."""
    with store.stage(name) as folder:
        _write_adapter(folder / "adapter", update, model, base)
        save_checkpoint(folder / STATE, past, method)
        write_lines(folder / "log.jsonl", map(Step.row, record.steps))
        write_json(folder / "notes.json", dict(notes))
        _write_scores(folder, scored, with_texts=scored.keys() if name == "joint" else {name})


def score_cells(scored: Mapping[str, TaskScore]) -> dict[str, dict[str, Any]]:
    """A row of the score matrix as it is stored."""
    return {
        name: {"score": cell.score, "examples": len(cell.examples)}
        | ({} if cell.adapter is None else {"adapter": cell.adapter})
        for name, cell in scored.items()
    }


def _write_scores(folder: Path, scored: Mapping[str, TaskScore], with_texts: Collection[str] = ()) -> None:
    """Scores and answers; of the tasks `with_texts` also how each text begins, for reports on what changed since."""
    kept = {name: cell for name, cell in scored.items() if cell.examples}  # of hundreds of tasks most are not scored
    write_json(folder / "scores.json", score_cells(kept))
    write_answers(folder, ((name, _answer_rows(cell, name in with_texts)) for name, cell in kept.items()))


def _answer_rows(cell: TaskScore, texts: bool) -> Iterator[dict[str, Any]]:
    for e, p, value in zip(cell.examples, cell.predictions, cell.values or repeat(None), strict=False):
        yield {
            **({"text": e.text[:KEPT]} if texts and not e.text.startswith("data:") else {}),
            "label": p.wanted or e.label,
            "predicted": p.label,
            **({} if own_task(p, e) else {"predicted_task": p.task}),
            **({"probability": round(max(p.probabilities), 6)} if p.probabilities else {}),
            **({} if p.nats is None else {"nats": round(p.nats, 4), "tokens": p.tokens}),
            **({} if value is None else {"value": round(value, 6)}),
        }


def load_past(store: Store, method: Method, stages: int | None = None, device: torch.device = CPU) -> Past:
    """What the first `stages` finished stages left behind (default: all); the parts of `method` load their memory of it."""

    def load(index: int) -> dict[str, LowRank]:
        return {name: delta.to(device) for name, delta in load_stage_update(store, index).items()}

    count = len(store.stages()) if stages is None else stages
    if count == 0:
        return Past(load_update=load)
    return load_checkpoint(store.stage_folder(count) / STATE, method, load, device)


def load_deployed(store: Store, stages: int | None = None) -> Update | PerTask:
    """The update that answers queries after the first `stages` finished stages (default: all)."""
    return checkpoint_deployed(store.stage_folder(len(store.stages()) if stages is None else stages) / STATE)


def load_head(store: Store) -> Head | None:
    """The head of the run's method, as it answers after the last finished stage; None if it has none."""
    head = build_head(store.about["config"]["method"])
    return checkpoint_head(store.stage_folder(len(store.stages())) / STATE, head) if head else None


def load_stage_update(store: Store, index: int) -> dict[str, LowRank]:
    """The effective update of the stage at `index` (0 = the first one trained), from its adapter folder."""
    return own_update(open_adapter(store.stage_folder(index + 1) / "adapter"))


def save_deployed(
    store: Store,
    deployed: Update | PerTask,
    model: AdaptedModel,
    backbone: Backbone,
    base: str,
    processes: Processes = ALONE,
    *,
    rank: int | None = None,
    tasks: Sequence[Task] = (),
    settings: EvaluationSettings | None = None,
) -> str | None:
    """Write `deployed/`: a plain adapter if that is exact, or one adapter per task, else the merged model.

    Args:
        rank: `deploy.rank`.
        tasks, settings: what the bounded update is compared on; None: it is not.

    Returns:
        What a reached bound costs, in words.
    """
    less = bounded(deployed, rank)
    record = None
    if less:
        answers = settings and changed_answers(less, deployed, tasks, model, backbone, settings)
        record, deployed = less.record(answers), less.deployed

    def write(weights: dict[str, Tensor]) -> None:
        with store.deploying() as folder:
            write_deployed(folder, deployed, model, backbone, base, weights)
            if record:
                write_json(folder / RANK, record)

    with model.weights_of(deployed) as weights:
        processes.once(write, weights)
    return bound_in_words(record) if record else None


def write_deployed(
    folder: Path,
    deployed: Update | PerTask,
    model: AdaptedModel,
    backbone: Backbone,
    base: str | None,
    weights: dict[str, Tensor],
) -> None:
    """The same into any existing folder; `weights` are the merged model's, empty if an adapter is exact."""
    if isinstance(deployed, PerTask):
        for task, update in deployed.updates.items():
            _write_adapter(folder / task, update, model, base)
    elif weights:
        for module in deployed:
            stack = module.rpartition(".")[0]
            if not all_finite(weights[stack if stack in model.expert_parameters else f"{module}.weight"]):
                raise TrainingError(
                    f"The merged weight of '{module}' has NaN or Inf in the base's dtype; the model was not written, earlier "
                    "results are kept. Use a smaller training.lr or scale of the merge, or a base in bf16 or fp32."
                )
        backbone.save(folder, weights)
    else:
        _write_adapter(folder, deployed, model, base)


def _write_adapter(folder: Path, update: Update, model: AdaptedModel, base: str | None) -> None:
    folder.mkdir(exist_ok=True)
    low_rank = {name: delta for name, delta in update.items() if isinstance(delta, LowRank)}
    rank = max((delta.rank for delta in low_rank.values()), default=1)
    experts = model.expert_parameters
    write_adapter(folder, low_rank, rank=rank, base=base, fan_in_fan_out=model.fan_in_fan_out, experts=experts)
