"""Merge adapter folders such that no earlier task loses more than a tolerance: `perdure merge A B --rule guarded --tasks SUITE`.

The i-th adapter learnt the i-th task. Adapters are added one after another, each by the guarded search on validation
examples (perdure.merging.guarded); test examples are only scored, before and after each step, and never chosen by. A task's
loss is counted from when its own adapter had just been added (the first's: from that adapter alone), over all steps since.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

from perdure.adapters.folder import frozen_beside
from perdure.errors import ConfigError
from perdure.files.output import check_apart
from perdure.merging.fold import RowsOf
from perdure.merging.folders import MergeReport, check_form, check_result, facts_of, write_result
from perdure.merging.guarded import Guard, Guarded, Outcomes, guarded
from perdure.merging.paired_loss import PairedLoss
from perdure.merging.rules import Sum
from perdure.merging.sources import open_sources
from perdure.ops.lowrank import Delta, Update, add_updates
from perdure.ops.tiling import tile
from perdure.tasks.task import Split, Task
from perdure.training.workbench import Workbench

SPLITS: tuple[Split, ...] = ("validation", "test")
Entered = dict[Split, dict[str, Outcomes]]
"""Split -> task -> its outcomes when its adapter had just been added."""


@dataclass(frozen=True)
class AddedAdapter:
    """One adapter added.

    Args:
        task: what it learnt.
        scales: group of modules -> how much of it was taken.
        validation, test: 'before', 'after' and 'unguarded' -> task -> score; the unguarded one is the plain sum's.
        losses: 'validation' and 'test' -> earlier task -> what it lost between 'before' and 'after'.
        totals: the same, lost since its own adapter was added: what the tolerance is of.
        evaluations: how many scores the search computed.
        needed: the fewest validation examples that would show a larger part to hold; None: more would not help.
    """

    task: str
    scales: Mapping[str, float]
    validation: Mapping[str, Mapping[str, float]]
    test: Mapping[str, Mapping[str, float]]
    losses: Mapping[str, Mapping[str, PairedLoss]]
    totals: Mapping[str, Mapping[str, PairedLoss]]
    evaluations: int
    needed: int | None

    def kept_gain(self) -> float | None:
        """Share of the new task's unguarded gain on test examples that the guarded merge keeps; None where there was no gain."""
        before, after, unguarded = (self.test[state][self.task] for state in ("before", "after", "unguarded"))
        return (after - before) / (unguarded - before) if unguarded > before else None

    def largest_loss(self, split: str = "test") -> PairedLoss:
        """What the earlier task that lost most has lost since its adapter was added (negative: all gained)."""
        return max(self.totals[split].values(), key=lambda loss: loss.mean)

    def refusal(self, guard: Guard) -> str | None:
        """Why nothing of the adapter was taken, and what would help; None where something was."""
        if any(self.scales.values()):
            return None
        if self.needed is None and guard.tolerance == 0 and guard.confidence is not None:
            why = (
                f"no number of examples shows with confidence {guard.confidence:g} that the earlier tasks lose nothing at all. "
                "Give a larger tolerance, or confidence=null to go by the validation scores as they are."
            )
        elif self.needed is None:
            why = f"with every part that was tried an earlier task has lost {guard.tolerance:g} or more on validation."
        else:
            examples = min(loss.examples for loss in self.losses["validation"].values())
            why = (
                f"{examples} validation examples cannot show with confidence {guard.confidence:g} that any part costs the "
                f"earlier tasks at most {guard.tolerance:g}; about {self.needed} could. Give more, or a larger tolerance."
            )
        return f"Nothing of '{self.task}' was taken: {why}"


@dataclass(frozen=True)
class GuardedReport:
    """What was written, and how each step went."""

    written: MergeReport
    steps: tuple[AddedAdapter, ...]

    def as_json(self) -> dict[str, Any]:
        """Plain values."""
        return {**self.written.as_json(), "steps": [asdict(step) for step in self.steps]}


def guarded_folders(
    places: Sequence[str | Path],
    tasks: Sequence[Task],
    backbone: str | Mapping[str, Any],
    out: str | Path,
    guard: Guard | None = None,
    *,
    base: str | Path | None = None,
    rank: int | None = None,
    dtype: torch.dtype | None = None,
    overwrite: bool = False,
) -> GuardedReport:
    """Merge adapters one after another under a guard, and write the result.

    Args:
        tasks: one an adapter, in the same order, each with validation and test examples.
        backbone: the base model, to score on.
        base: write merged weights into this folder's model instead of an adapter.

    Raises:
        ConfigError: not one task an adapter, one without examples, or both `base` and `rank`.
        AdapterError, StoreError: see `merge_folders`.
    """
    guard = guard or Guard()
    sources = open_sources(places, at_least=2)
    _check_tasks(tasks, len(places))
    # what cannot be written is said before hours of scoring
    check_form(Sum(), (), base, rank)
    check_apart(Path(out), [*places, base])
    frozen = frozen_beside(sources.updates)
    check_result(sources.modules, Path(out), base, rank, overwrite)
    bench = Workbench(backbone, tasks, sources.modules)
    names = [task.name for task in tasks]
    updates = sources.updates
    deployed: Update = dict(updates[0])
    entered: Entered = {split: {names[0]: bench.outcomes(deployed, names[0], split)} for split in SPLITS}
    steps = []
    for index in range(1, len(updates)):
        update = dict(updates[index])
        found = guarded(
            deployed, update, names[:index], names[index], bench.outcomes, guard, entered=entered["validation"]
        )
        steps.append(_step(bench, deployed, update, found, names[: index + 1], entered))
        deployed = found.update
    record = {
        "rule": "guarded",
        "settings": asdict(guard),
        "adapters": {name: adapter.place for name, adapter in sources.adapters.items()},
        "tasks": names,
        "steps": [asdict(step) for step in steps],
    }
    # a module of which nothing was taken has no update
    modules = {module: info for module, info in sources.modules.items() if module in deployed}
    facts = replace(facts_of(sources, record, frozen), modules=modules)
    written = write_result(_Fixed(deployed), facts, Path(out), base=base, rank=rank, dtype=dtype, overwrite=overwrite)
    return GuardedReport(written, tuple(steps))


def _check_tasks(tasks: Sequence[Task], adapters: int) -> None:
    """One task an adapter, each with examples to guard by and to report on.

    Raises:
        ConfigError: another number, or a task without them.
    """
    if len(tasks) != adapters:
        raise ConfigError(f"A guarded merge needs the task of every adapter: {adapters} adapters, {len(tasks)} tasks.")
    for task in tasks:
        for split in SPLITS:
            if not getattr(task, split):
                raise ConfigError(
                    f"Task '{task.name}' has no {split} examples; a guarded merge needs them for every task."
                )


def _step(
    bench: Workbench, deployed: Update, update: Update, found: Guarded, names: Sequence[str], entered: Entered
) -> AddedAdapter:
    """What a step did; the new task, the last of `names`, is put into `entered`."""
    states = {"before": deployed, "after": found.update, "unguarded": add_updates(deployed, update)}
    seen = {
        "validation": {"before": found.before, "after": found.after, "unguarded": found.unguarded},
        "test": {at: {name: bench.outcomes(value, name, "test") for name in names} for at, value in states.items()},
    }
    scores = {
        split: {at: {name: fmean(values) for name, values in by_task.items()} for at, by_task in by_state.items()}
        for split, by_state in seen.items()
    }
    losses = {
        split: {name: PairedLoss.of(at["before"][name], at["after"][name]) for name in names[:-1]}
        for split, at in seen.items()
    }
    totals = {
        split: {name: PairedLoss.of(entered[split][name], seen[split]["after"][name]) for name in names[:-1]}
        for split in SPLITS
    }
    for split in SPLITS:
        entered[split][names[-1]] = seen[split]["after"][names[-1]]
    return AddedAdapter(
        names[-1],
        dict(found.scales),
        **scores,
        losses=losses,
        totals=totals,
        evaluations=found.evaluations,
        needed=found.needed,
    )


@dataclass(frozen=True)
class _Fixed:
    """An update in memory as something that can be written."""

    update: Update

    def merge(self, module: str) -> Delta:
        return self.update[module]

    def rows(self, module: str) -> RowsOf:
        return partial(tile, self.update[module])
