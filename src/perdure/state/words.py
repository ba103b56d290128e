"""What became of a run's tasks, in words: one sentence of state, and up to three next steps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from perdure.state.outcomes import TaskOutcome
from perdure.training.paired import Change

MOST_STEPS = 3
MOST_NAMED = 3
"""Tasks that a sentence names; of more it gives the number."""
BASELINE = "Baseline: the better of the untouched model and always answering the most frequent label"


def points(fraction: float | None) -> str:
    """A fraction of 1 in points with one decimal; '-' for None; never '-0.0'.

    >>> points(0.744), points(-0.0001), points(None)
    ('74.4', '0.0', '-')
    """
    if fraction is None:
        return "-"
    text = f"{100 * fraction:.1f}"
    return "0.0" if text == "-0.0" else text


def interval(bounds: Sequence[float] | None) -> str:
    """The ends of a 95 % interval in points: '-3.1 to 1.2'; '-' without one."""
    return "-" if bounds is None else " to ".join(map(points, bounds))


def compared(outcome: TaskOutcome | None) -> dict[str, Any]:
    """How a task stands against when it was learnt, and against doing nothing, for JSON; None where it is unknown."""
    change, baseline = (outcome.since_learnt, outcome.baseline) if outcome else (None, None)
    return {
        "change": change.mean if change else None,
        "interval": [change.low, change.high] if change else None,
        "became_worse": change.worse if change else None,
        "became_better": change.better if change else None,
        "baseline": baseline[1] if baseline else None,
        "baseline_is": baseline[0] if baseline else None,
        "standing": standing(outcome) if outcome else "",
    }


def change_in_words(change: Change | None) -> str:
    """' (3 of 200 answers became wrong, 1 right; 95 % interval -3.1 to 1.2)', to follow a number."""
    if change is None:
        return ""
    moved = f"{change.worse} of {change.examples} answers became worse, {change.better} better"
    return f" ({moved}; 95 % interval {interval((change.low, change.high))})"


def standing(outcome: TaskOutcome) -> str:
    """What is to be said about a task in a few words; empty if it was just learnt, and well."""
    if not_learnt(outcome):
        return "not above the baseline"
    change = outcome.since_learnt
    if change is None:
        return ""
    return "within noise" if change.may_be_noise else "lost" if change.mean < 0 else "gained"


def not_learnt(outcome: TaskOutcome) -> bool:
    """Whether the score may be that of doing nothing: the interval of its gain over the baseline holds 0, or lies below."""
    above = outcome.above_baseline
    return above is not None and above.low <= 0


def state_sentence(outcomes: Sequence[TaskOutcome]) -> str:
    """One sentence on all tasks learnt so far."""
    if not outcomes:
        return "No task was learnt and scored yet."
    lost = [o for o in outcomes if o.since_learnt and not o.since_learnt.may_be_noise and o.since_learnt.mean < 0]
    compared = [o for o in outcomes if o.since_learnt]
    weak = [o for o in outcomes if not_learnt(o)]
    parts = []
    if lost:
        falls = _some([f"{o.task} {points(o.since_learnt.mean)}" for o in lost if o.since_learnt])
        parts.append(f"{len(lost)} of {len(compared)} earlier tasks lost more than noise explains ({falls})")
    elif compared:
        parts.append("no earlier task lost more than noise explains")
    if weak:
        parts.append(f"{_some([o.task for o in weak])} cannot be told from doing nothing")
    if not parts:
        only = outcomes[-1]
        parts.append(f"{only.task} was learnt: {points(only.now.score)}")
    return f"{'; '.join(parts)}.".replace("no earlier", "No earlier", 1) + adapter_alone(outcomes)


def adapter_alone(outcomes: Sequence[TaskOutcome]) -> str:
    """A sentence on what the adapter scores without the method's head, with a space before it; empty without a head."""
    pairs = [(o.now.adapter, o.now.score) for o in outcomes if o.now.adapter is not None]
    if not pairs:
        return ""
    alone, both = (points(sum(scores) / len(pairs)) for scores in zip(*pairs, strict=True))
    return (
        f" The adapter alone, which is what other programs load, scores {alone} on average; with its head, which answers in "
        f"`perdure predict`, the method scores {both}."
    )


def next_steps(outcomes: Sequence[TaskOutcome], folder: str) -> list[str]:
    """Up to three things to do, the most urgent first."""
    weak = [(o.task, points(o.now.score), *o.baseline) for o in outcomes if not_learnt(o) and o.baseline]
    listed = _some([f"{task} scores {score} and {what} {points(least)}" for task, score, what, least in weak], "; ")
    steps = [f"{listed}: give more rows or more training.epochs, and check the labels."] if weak else []
    fallen: dict[str, list[str]] = {}
    for outcome in outcomes:
        if outcome.since_learnt and outcome.since_learnt.high < 0:
            worst, before = _steepest(outcome)
            fallen.setdefault(worst, []).append(f"{outcome.task} (from {before})")
    for stage, tasks in fallen.items():
        steps.append(
            f"{_some(tasks)} lost most by {stage}: `perdure show {folder} --texts` lists the answers that changed; or go "
            f"back to before {stage} with `perdure rollback` and learn it with a method that forgets less."
        )
    for outcome in outcomes:
        change = outcome.since_learnt
        if change and change.high - change.low > 0.2:
            steps.append(
                f"{outcome.task} is scored on {change.examples} examples: changes of less than "
                f"{points((change.high - change.low) / 2)} points cannot be told from noise. Give it more test examples."
            )
    return steps[:MOST_STEPS]


def _some(named: Sequence[str], between: str = ", ") -> str:
    """The first of them, and how many more there are.

    >>> _some(["a", "b", "c", "d", "e"])
    'a, b, c and 2 more'
    """
    more = len(named) - MOST_NAMED
    return between.join(named) if more <= 1 else f"{between.join(named[:MOST_NAMED])} and {more} more"


def _steepest(outcome: TaskOutcome) -> tuple[str, str]:
    """The stage that cost the task most, and the score before it."""
    pairs = zip(outcome.scored, outcome.scored[1:], strict=False)
    before, after = max(pairs, key=lambda pair: pair[0].score - pair[1].score)
    return after.stage, points(before.score)
