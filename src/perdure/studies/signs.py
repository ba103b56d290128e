"""Which part of an update does what? Studies on a finished run: its updates taken apart position by position, and scored.

    sign_split   PS-LoRA's second figure (arXiv 2512.08960): of each stage's update only the k % smallest (or largest) entries in
                 magnitude, split by agreement of sign with the history: what does each part do to the old tasks and the new?
    signs        its open question 2: how much of an update's effect do its signs alone, its magnitudes alone and its top k %
                 carry?

Both add a part of stage t's update W_t to what stage t was trained on, deploy that, and score. History H = sum_{i<t} W_i.
The paper gives neither k nor how the parts were deployed; here k is a list, and every other setting is named in the rows.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from perdure.backbones.base import Backbone
from perdure.config.run_config import EvaluationSettings, load_config
from perdure.errors import ConfigError, StoreError
from perdure.methods.contract.build import build_method
from perdure.methods.measured.history_update import no_history
from perdure.ops.lowrank import Update, add_updates, dense
from perdure.ops.selection import Agreement, Side, by_magnitude, by_sign, magnitudes_only, signs_only
from perdure.report.pictures import line_chart_svg
from perdure.state.record import load_past, load_stage_update, score_tasks
from perdure.state.store import Store
from perdure.tasks.task import Task
from perdure.training.context import derived_seed
from perdure.training.lora import AdaptedModel
from perdure.training.reporter import Quiet

SHARES = (0.2, 0.4, 0.6, 0.8, 1.0)
NO_PART, WHOLE = "nothing", "whole update"


@dataclass(frozen=True)
class ScoredPart:
    """One part of one stage's update, deployed and scored.

    Args:
        stage: whose update.
        part: what was kept of it.
        share: k / 100, the share of positions kept by magnitude.
        positions, energy: share of the positions that were kept in the end, and of the update's squared norm.
        new: score on the stage's own task.
        old: mean score on the tasks learnt before; None on the first stage.
    """

    stage: str
    part: str
    share: float
    positions: float
    energy: float
    new: float
    old: float | None


@dataclass(frozen=True)
class Study:
    """A finished study.

    Args:
        name: "sign split" or "signs".
        rows: in the order of stages; the first two of each stage keep nothing and everything.
        settings: those of the study.
    """

    name: str
    rows: Sequence[ScoredPart]
    settings: Mapping[str, Any] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {"study": self.name, "settings": dict(self.settings), "rows": [asdict(row) for row in self.rows]}

    def as_markdown(self) -> str:
        """Every row; scores are fractions of 1."""
        lines = ["| stage | part | k | positions | energy | new task | old tasks |", "|---|---|---|---|---|---|---|"]
        for row in self.rows:
            old = "" if row.old is None else f"{row.old:.3f}"
            numbers = f"{row.share:.2f} | {row.positions:.3f} | {row.energy:.3f} | {row.new:.3f} | {old}"
            lines.append(f"| {row.stage} | {row.part} | {numbers} |")
        return "\n".join(lines) + "\n"

    def as_svg(self, which: str = "old") -> str:
        """Mean score over the stages on `old` or `new` tasks against k, one line for each part; constants as level lines.

        If no stage has old tasks, on `new` ones.
        """
        which = which if _means(self.rows, which) else "new"
        means = _means(self.rows, which)
        shares = [x for points in means.values() for x, _ in points if len(points) > 1] or [0.0, 1.0]
        lines = {part: points for part, points in means.items() if len(points) > 1}
        levels = {part: points[0][1] for part, points in means.items() if len(points) == 1}
        lines |= {part: [(min(shares), level), (max(shares), level)] for part, level in levels.items()}
        title = f"{self.name}: mean score on the {which} task{'s' if which == 'old' else ''}"
        return line_chart_svg(title, "share of positions (by magnitude)", "score", lines)


@dataclass(frozen=True, eq=False)
class OpenRun:
    """A run's folder with its model and tasks. Use `open_run`."""

    store: Store
    tasks: Sequence[Task]
    model: AdaptedModel
    backbone: Backbone
    evaluation: EvaluationSettings
    seed: int
    examples: int | None = None

    def score(self, deployed: Update, task: Task, learnt: Sequence[str]) -> float:
        """Score on one task's examples (the run's split and label sets) under a deployed update."""
        examples = getattr(task, self.evaluation.split)
        if self.examples is not None and len(examples) > self.examples:
            spread = [examples[i * len(examples) // self.examples] for i in range(self.examples)]
            task = dataclasses.replace(task, **{self.evaluation.split: spread})
        cells = score_tasks([task], learnt, deployed, self.model, self.backbone, self.evaluation, Quiet(), last=True)
        score = cells[task.name].score
        if score is None:
            raise ConfigError(f"Task '{task.name}' has no {self.evaluation.split} examples to score on.")
        return score


def open_run(
    folder: str | Path, tasks: Sequence[Task], model: AdaptedModel, backbone: Backbone, examples: int | None = None
) -> OpenRun:
    """The run in `folder`, checked against the tasks it was made with.

    Args:
        model, backbone: those of the run, freshly loaded and prepared for the tasks; the backbone gets the run's precision.
        examples: score on at most so many examples of each task, spread evenly; None: on all.

    Raises:
        StoreError: no run in `folder`, or no finished stage.
        ConfigError: other tasks, or a method whose updates are not separate from the past (see `no_history`).
    """
    store = Store(Path(folder))
    about = store.about
    learnt = _task_stages(store)
    if not learnt:
        raise StoreError(f"No stage of the run in '{folder}' is finished; continue it with `perdure resume {folder}`.")
    config = load_config(about["config"])
    if reason := no_history(build_method(config.method), "A study puts a part of a task's update on the past"):
        raise ConfigError(f"The run in '{folder}' cannot be studied. {reason}.")
    for task in tasks:
        if about["tasks"].get(task.name, task.fingerprint()) != task.fingerprint():
            raise ConfigError(f"Task '{task.name}' differs from the one the run in '{folder}' was made with.")
    if missing := [name for name in learnt if name not in {task.name for task in tasks}]:
        raise ConfigError(f"The run in '{folder}' learnt '{missing[0]}', which is not among the tasks given.")
    backbone.precision = about.get("precision", backbone.precision)  # that of the run's own scores
    return OpenRun(store, tasks, model, backbone, config.evaluation, config.seed, examples)


def sign_split(
    run: OpenRun, shares: Sequence[float] = SHARES, side: Side = "bottom", stages: Sequence[str] | None = None
) -> Study:
    """PS-LoRA's second figure: the k % smallest (or largest) entries of each update, split by sign agreement with the history.

    Args:
        shares: k / 100.
        side: bottom as in the paper, or top for the largest entries.
        stages: names; None: every stage with a history (from the second on).
    """
    parts: tuple[Agreement, ...] = ("same", "opposite", "both")
    rows: list[ScoredPart] = []
    for stage in _stages(run, stages, first=1):
        rows += stage.ends()
        for share in shares:
            for agreement in parts:
                kept = stage.masked(lambda w, h, s=share, a=agreement: by_magnitude(w, s, side) & by_sign(w, h, a))
                rows.append(stage.row(f"{agreement} sign" if agreement != "both" else "both signs", share, kept))
    return Study("sign split", rows, {"side": side, "shares": list(shares), "split": run.evaluation.split})


def signs(run: OpenRun, shares: Sequence[float] = SHARES[:-1], stages: Sequence[str] | None = None) -> Study:
    """How much of each update's effect is in its signs (one magnitude per module), its magnitudes (random signs), its top k %."""
    rows: list[ScoredPart] = []
    for stage in _stages(run, stages, first=0):
        generator = torch.Generator().manual_seed(derived_seed(run.seed, stage.index, "studies.signs"))
        rows += stage.ends()
        only_signs = {name: signs_only(w) for name, w in stage.update.items()}
        only_magnitudes = {name: magnitudes_only(w, generator) for name, w in stage.update.items()}
        rows += [stage.row("signs only", 1.0, only_signs), stage.row("magnitudes only", 1.0, only_magnitudes)]
        for share in shares:
            kept = stage.masked(lambda w, _, s=share: by_magnitude(w, s, "top"))
            rows.append(stage.row("top k %", share, kept))
            rows.append(stage.row("signs of top k %", share, {name: signs_only(w) for name, w in kept.items()}))
    return Study("signs", rows, {"shares": list(shares), "split": run.evaluation.split})


@dataclass(frozen=True, eq=False)
class _Stage:
    """One stage's update [O, I] by module, dense, its history, and what it was trained on."""

    run: OpenRun
    index: int
    task: Task
    learnt: Sequence[Task]
    update: Mapping[str, Tensor]
    history: Mapping[str, Tensor]
    carry: Update

    def masked(self, mask: Callable[[Tensor, Tensor], Tensor]) -> dict[str, Tensor]:
        """The update where mask(update, history) is true, 0 elsewhere, module by module."""
        return {name: w * mask(w, self.history[name]) for name, w in self.update.items()}

    def ends(self) -> list[ScoredPart]:
        """Nothing of the update, and all of it."""
        nothing = {name: torch.zeros_like(w) for name, w in self.update.items()}
        return [self.row(NO_PART, 0.0, nothing), self.row(WHOLE, 1.0, self.update)]

    def row(self, part: str, share: float, kept: Mapping[str, Tensor]) -> ScoredPart:
        """`kept` on the carry, scored on the new task and the old ones."""
        deployed = add_updates(self.carry, kept)
        learnt = [task.name for task in (*self.learnt, self.task)]
        old = [self.run.score(deployed, task, learnt) for task in self.learnt]
        new = self.run.score(deployed, self.task, learnt)
        positions = sum(int((w != 0).sum()) for w in kept.values()) / sum(w.numel() for w in kept.values())
        part_norm, norm = (sum(float(w.square().sum()) for w in update.values()) for update in (kept, self.update))
        energy = part_norm / norm if norm else 0.0
        return ScoredPart(self.task.name, part, share, positions, energy, new, sum(old) / len(old) if old else None)


def _stages(run: OpenRun, wanted: Sequence[str] | None, first: int) -> Iterator[_Stage]:
    """The stages to study, those `wanted` or all, starting at number `first` (1: only those with a past)."""
    names, by_name = run.store.stages(), {task.name: task for task in run.tasks}
    known = [name for name in _task_stages(run.store) if name in names[first:]]
    chosen = known if wanted is None else wanted
    method = build_method(load_config(run.store.about["config"]).method)
    if unknown := [name for name in chosen if name not in known]:
        kind = "a history" if first else "an update"
        raise ConfigError(f"No stage '{unknown[0]}' with {kind}. Stages: {', '.join(known)}.")
    if not chosen:
        raise ConfigError("The run has one stage and so no history; study a run with at least two.")
    for name in chosen:
        index = names.index(name)
        past = load_past(run.store, method, index)
        update = {module: dense(delta).float() for module, delta in load_stage_update(run.store, index).items()}
        history = {
            module: dense(past.total[module]).float() if module in past.total else torch.zeros_like(w)
            for module, w in update.items()
        }
        learnt = [by_name[earlier] for earlier in names[:index] if earlier in by_name]
        yield _Stage(run, index, by_name[name], learnt, update, history, past.carry)


def _task_stages(store: Store) -> list[str]:
    """The finished stages that learnt a task; adapters taken in as `history` have no task to score."""
    return [name for name in store.stages() if name not in store.about.get("history", {})]


def _means(rows: Sequence[ScoredPart], which: str) -> dict[str, list[tuple[float, float]]]:
    """Part -> (share, mean score over the stages that have one), shares ascending."""
    scores: dict[str, dict[float, list[float]]] = {}
    for row in rows:
        if (score := getattr(row, which)) is not None:
            scores.setdefault(row.part, {}).setdefault(row.share, []).append(score)
    return {part: [(x, sum(ys) / len(ys)) for x, ys in sorted(points.items())] for part, points in scores.items()}
