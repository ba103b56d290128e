"""Guarded merge: as much of a new update as fits while no earlier task loses more than a tolerance on validation.

Symbols: W the update deployed so far, D the step a merge wants to take (for a sum: the new task's update), g groups of modules
(usually layers), s_g in [0, 1] the scale of D in group g, v(., t) the validation score of task t, W_t what was deployed right
after t's update was added (W itself if not given), so that the losses of many merges do not add up.

    find s  that maximises  v(W + sum_g s_g D_g, new task)   subject to   v(W + sum_g s_g D_g, t) >= v(W_t, t) - tolerance
                                                                          for every earlier task t

Source: PS-LoRA's open question 3 (arXiv 2512.08960), answered here by a search that costs few evaluations:
    1. s = 1 everywhere: if it holds, nothing needs guarding.
    2. bisection for one scale of all groups that holds (s = 0 always does).
    3. every group alone raised to 1: what it gains, and what it costs the task that suffers most.
    4. groups in the order of gain minus cost, each raised to 1 and kept there if everything still holds.
Tasks are checked in the order of their losses so far, so that most failing candidates cost a single evaluation.

Scores on validation are estimates, so the tolerance applies to a one-sided confidence bound on the loss over paired examples
(perdure.merging.paired_loss), not to the difference itself. What too few examples cannot show is not taken; `needed` says
how many would do.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean

from perdure.errors import ConfigError
from perdure.merging.paired_loss import PairedLoss
from perdure.ops.lowrank import Delta, Update, add, scale

Outcomes = Sequence[float]
"""One value in [0, 1] per example, always in the same order; their mean is the score, higher is better."""
Score = Callable[[Update, str], Outcomes]
"""(update, task) -> outcomes on validation examples."""


@dataclass(frozen=True)
class Guarded:
    """The result of the search.

    Args:
        update: W + sum_g s_g D_g.
        scales: group -> s_g.
        before, after, unguarded: task -> outcomes on validation of W, of `update`, and of W + D.
        evaluations: how many scores were computed.
        needed: the fewest validation examples that would show a larger part to hold, if the losses seen are the true ones;
            None: every part not taken loses more than the tolerance already.
    """

    update: Update
    scales: Mapping[str, float]
    before: Mapping[str, Outcomes]
    after: Mapping[str, Outcomes]
    unguarded: Mapping[str, Outcomes]
    evaluations: int
    needed: int | None


@dataclass(frozen=True)
class Guard:
    """Settings of the search.

    Args:
        tolerance: what an earlier task may lose in total since its update was added, in units of its score.
        confidence: that it loses no more than that, for every candidate and every earlier task separately; None: go by the loss
            on validation itself.
        bisections: of the common scale; 5 find it to 1/32.
        refine: also search group by group (steps 3 and 4).
    """

    tolerance: float = 0.01
    confidence: float | None = 0.95
    bisections: int = 5
    refine: bool = True

    def __post_init__(self) -> None:
        if not self.tolerance >= 0 or self.bisections < 0:
            raise ConfigError("tolerance and bisections of a guarded merge are 0 or more.")
        if self.confidence is not None and not 0.5 <= self.confidence < 1:
            raise ConfigError(f"confidence is at least 0.5 and below 1 (or null), not {self.confidence}.")


def guarded(
    deployed: Update,
    step: Update,
    earlier: Sequence[str],
    new: str,
    score: Score,
    guard: Guard,
    entered: Mapping[str, Outcomes] | None = None,
) -> Guarded:
    """The largest part of `step` that keeps every earlier task within the tolerance.

    Args:
        deployed: W; may be empty.
        step: D, module -> delta.
        earlier: tasks to protect.
        new: the task whose score should rise.
        score: on validation data; called with whole updates.
        entered: earlier task -> its outcomes with W_t, from which its loss is counted; default: those with W.
    """
    return _Search(deployed, step, list(earlier), new, score, guard, by_layer(step), entered or {}).run()


def by_layer(modules: Iterable[str]) -> dict[str, str]:
    """Module -> its name up to the first number ('model.layers.8'), or the whole name if it has none."""
    return {module: match[0] if (match := re.match(r"(.*?\.)?\d+(?=\.|$)", module)) else module for module in modules}


def blend(deployed: Update, step: Update, scales: Mapping[str, float], groups: Mapping[str, str]) -> dict[str, Delta]:
    """W + sum_g s_g D_g; a module scaled by 0 costs nothing."""
    merged = dict(deployed)
    for module, delta in step.items():
        factor = scales.get(groups[module], 0.0)
        if factor == 0:
            continue
        part = scale(delta, factor) if factor != 1 else delta
        merged[module] = add(merged[module], part) if module in merged else part
    return merged


@dataclass
class _Search:
    deployed: Update
    step: Update
    earlier: list[str]
    new: str
    score: Score
    guard: Guard
    groups: Mapping[str, str]
    entered: Mapping[str, Outcomes]
    evaluations: int = 0
    known: dict[tuple[tuple[float, ...] | None, str], Outcomes] = field(default_factory=dict)
    worst: dict[str, float] = field(default_factory=dict)
    needed: list[int] = field(default_factory=list)

    def run(self) -> Guarded:
        names = sorted({self.groups[module] for module in self.step})
        whole = dict.fromkeys(names, 1.0)
        self.worst = {task: self._loss(whole, task).mean for task in self.earlier}
        if self._holds(whole):
            return self._result(whole)
        scales = dict.fromkeys(names, self._common_scale(names))
        return self._result(self._refined(scales) if self.guard.refine else scales)

    def _common_scale(self, names: Sequence[str]) -> float:
        """The largest scale tried for all groups that holds."""
        low, high = 0.0, 1.0
        for _ in range(self.guard.bisections):
            middle = (low + high) / 2
            low, high = (middle, high) if self._holds(dict.fromkeys(names, middle)) else (low, middle)
        return low

    def _refined(self, scales: dict[str, float]) -> dict[str, float]:
        """Raise groups to 1, best gain minus cost first; keep each where everything holds."""
        current = self._score(scales, self.new)
        victim = max(self.earlier, key=lambda task: self.worst[task])
        reference = self._score(scales, victim)
        worth = {}
        for name in scales:
            raised = {**scales, name: 1.0}
            cost = min(0.0, self._score(raised, victim) - reference)
            worth[name] = self._score(raised, self.new) - current + cost
        for name in sorted(worth, key=lambda name: -worth[name]):
            raised = {**scales, name: 1.0}
            if self._holds(raised) and (reached := self._score(raised, self.new)) >= current:
                scales, current = raised, reached
        return scales

    def _holds(self, scales: Mapping[str, float]) -> bool:
        """Whether every earlier task stays within the tolerance; those that lost most so far are checked first."""
        return all(self._held(scales, task) for task in sorted(self.earlier, key=lambda task: -self.worst[task]))

    def _held(self, scales: Mapping[str, float], task: str) -> bool:
        loss, guard = self._loss(scales, task), self.guard
        self.worst[task] = max(self.worst[task], loss.mean)
        held = loss.bound(guard.confidence) <= guard.tolerance
        if not held and (needed := loss.needed(guard.tolerance, guard.confidence)):
            self.needed.append(needed)
        return held

    def _loss(self, scales: Mapping[str, float], task: str) -> PairedLoss:
        """What a task has lost in total since its update was added."""
        before = self.entered[task] if task in self.entered else self._outcomes({}, task)
        return PairedLoss.of(before, self._outcomes(scales, task))

    def _score(self, scales: Mapping[str, float], task: str) -> float:
        return fmean(self._outcomes(scales, task))

    def _outcomes(self, scales: Mapping[str, float], task: str) -> Outcomes:
        """Outcomes of W + sum_g s_g D_g (of W alone where all s_g are 0) on a task, computed once."""
        key = (tuple(scales.values()) if any(scales.values()) else None, task)
        if key not in self.known:
            self.evaluations += 1
            self.known[key] = self.score(self._candidate(scales), task)
        return self.known[key]

    def _candidate(self, scales: Mapping[str, float]) -> dict[str, Delta]:
        return blend(self.deployed, self.step, scales, self.groups)

    def _result(self, scales: dict[str, float]) -> Guarded:
        before, after, unguarded = (
            {task: self._outcomes(at, task) for task in (*self.earlier, self.new)}
            for at in ({}, scales, dict.fromkeys(scales, 1.0))
        )
        needed = min(self.needed, default=None)
        return Guarded(self._candidate(scales), scales, before, after, unguarded, self.evaluations, needed)
