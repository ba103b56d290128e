"""Merge adapter folders so that no earlier task loses more than a tolerance: `perdure merge A B --rule guarded --tasks SUITE`.

The i-th adapter learnt the i-th task. Adapters are added one after another, each by the guarded search on validation
examples (perdure.merging.guarded); test examples are only scored, before and after each step, never used to choose. A task's
loss is counted from right after its own adapter was added (the first's: from that adapter alone), over all steps since.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

from perdure.adapters.beside import frozen_beside
from perdure.errors import ConfigError
from perdure.files.output import check_apart
from perdure.merging.folders import check_form, facts_of
from perdure.merging.guarded import Guard, Guarded, Outcomes, guarded
from perdure.merging.paired_loss import PairedLoss
from perdure.merging.result import Mergeable, MergeReport, check_result, write_result
from perdure.merging.rules import Sum
from perdure.merging.sources import open_sources
from perdure.ops.lowrank import Delta, Update, add_updates
from perdure.tasks.task import Split, Task
from perdure.training.workbench import Workbench

SPLITS: tuple[Split, ...] = ("validation", "test")
Entered = dict[Split, dict[str, Outcomes]]
"""Split -> task -> its outcomes right after its adapter was added."""


@dataclass(frozen=True)
class AddedAdapter:
    """One step of a guarded merge.

    Args:
        task: learnt by the adapter that was added.
        scales: group of modules -> how much of the adapter was taken.
        validation, test: 'before', 'after' and 'unguarded' (of the plain sum) -> task -> score.
        losses: 'validation' and 'test' -> earlier task -> what it lost between 'before' and 'after'.
        totals: the same, lost since its own adapter was added, to which the tolerance applies.
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
        """Share of the new task's unguarded gain on test examples that the guarded merge keeps; None without a gain."""
        before, after, unguarded = (self.test[state][self.task] for state in ("before", "after", "unguarded"))
        return (after - before) / (unguarded - before) if unguarded > before else None

    def largest_loss(self, split: str = "test") -> PairedLoss:
        """The loss of the earlier task that lost most since its adapter was added (negative: all gained)."""
        return max(self.totals[split].values(), key=lambda loss: loss.mean)

    def refusal(self, guard: Guard) -> str | None:
        """Why nothing of the adapter was taken, and what would help; None if something was."""
        if any(self.scales.values()):
            return None
        why = f"with every part that was tried, an earlier task lost {guard.tolerance:g} or more on validation."
        if self.needed is not None:
            examples = min(loss.examples for loss in self.losses["validation"].values())
            why = (
                f"{examples} validation examples cannot show with confidence {guard.confidence:g} that any part costs the "
                f"earlier tasks at most {guard.tolerance:g}; about {self.needed} could. Give more, or a larger tolerance."
            )
        elif guard.tolerance == 0 and guard.confidence is not None:
            why = (
                f"no number of examples shows with confidence {guard.confidence:g} that the earlier tasks lose nothing at all. "
                "Give a larger tolerance, or confidence=null to trust the validation scores as they are."
            )
        return f"Nothing of '{self.task}' was taken: {why}"

    def lines(self, guard: Guard) -> list[str]:
        """The step in a sentence or two."""
        kept, refusal = self.kept_gain(), self.refusal(guard)
        share = "" if kept is None else f", {100 * kept:.0f} % of the unguarded gain"
        gain = self.test["after"][self.task] - self.test["before"][self.task]
        test, validation = (self.largest_loss(split) for split in SPLITS[::-1])
        line = (
            f"{self.task}: {gain:+.3f} on test{share}; the earlier task that lost most since it was added lost "
            f"{test.mean:+.3f} (standard error {test.standard_error:.3f}) on test and {validation.mean:+.3f} "
            f"({validation.standard_error:.3f}) on validation ({self.evaluations} evaluations)."
        )
        return [line, refusal] if refusal else [line]


@dataclass(frozen=True)
class GuardedReport:
    """What was written, and its steps."""

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
        tasks: one per adapter, in the same order, each with validation and test examples.
        backbone: the base model, to score with.
        base: write this folder's model with merged weights instead of an adapter.

    Raises:
        ConfigError: not one task per adapter, a task without examples, or both `base` and `rank`.
        AdapterError, StoreError: see `merge_folders`.
    """
    guard = guard or Guard()
    sources = open_sources(places, at_least=2)
    if len(tasks) != len(places):
        raise ConfigError(
            f"A guarded merge needs the task of every adapter: {len(places)} adapters, {len(tasks)} tasks."
        )
    for task in tasks:
        for split in SPLITS:
            if not getattr(task, split):
                raise ConfigError(
                    f"Task '{task.name}' has no {split} examples; a guarded merge needs them for every task."
                )
    # everything that can fail is checked before hours of scoring
    check_form(Sum(), (), base, rank)
    check_apart(Path(out), [*places, base])
    frozen = frozen_beside(sources.updates)
    check_result(sources.modules, Path(out), base, rank, overwrite)
    bench = Workbench(backbone, tasks, sources.modules)
    names = [task.name for task in tasks]
    first, *others = sources.updates
    deployed: Update = dict(first)
    entered: Entered = {split: {names[0]: bench.outcomes(deployed, names[0], split)} for split in SPLITS}
    steps = []
    for index, adapter in enumerate(others, 1):
        update = dict(adapter)
        result = guarded(deployed, update, names[:index], names[index], bench.outcomes, guard, entered["validation"])
        steps.append(_step(bench, deployed, update, result, names[: index + 1], entered))
        deployed = result.update
    record = {
        "rule": "guarded",
        "settings": asdict(guard),
        "adapters": {name: adapter.place for name, adapter in sources.adapters.items()},
        "tasks": names,
        "steps": [asdict(step) for step in steps],
    }
    # a module has no update if nothing of it was taken
    modules = {module: info for module, info in sources.modules.items() if module in deployed}
    facts = replace(facts_of(sources, record, frozen), modules=modules)
    written = write_result(
        _InMemory(deployed), facts, Path(out), base=base, rank=rank, dtype=dtype, overwrite=overwrite
    )
    return GuardedReport(written, tuple(steps))


def _step(
    bench: Workbench, deployed: Update, update: Update, result: Guarded, names: Sequence[str], entered: Entered
) -> AddedAdapter:
    """What a step did; adds the new task, the last of `names`, to `entered`."""
    states = {"before": deployed, "after": result.update, "unguarded": add_updates(deployed, update)}
    outcomes = {
        "validation": {"before": result.before, "after": result.after, "unguarded": result.unguarded},
        "test": {at: {name: bench.outcomes(value, name, "test") for name in names} for at, value in states.items()},
    }
    *earlier, new = names
    scores, losses, totals = {}, {}, {}
    for split in SPLITS:
        before, after = outcomes[split]["before"], outcomes[split]["after"]
        scores[split] = {at: {name: fmean(values[name]) for name in names} for at, values in outcomes[split].items()}
        losses[split] = {name: PairedLoss.of(before[name], after[name]) for name in earlier}
        totals[split] = {name: PairedLoss.of(entered[split][name], after[name]) for name in earlier}
        entered[split][new] = after[new]
    scales = dict(result.scales)
    return AddedAdapter(
        new, scales, scores["validation"], scores["test"], losses, totals, result.evaluations, result.needed
    )


@dataclass(frozen=True)
class _InMemory(Mergeable):
    """An update in memory, for `write_result`."""

    update: Update

    def merge(self, module: str) -> Delta:
        return self.update[module]
