"""What a person asks first: how every task stands, in one sentence, as a table, and what to do next."""

from __future__ import annotations

from typing import Any

from perdure.report.html import Table
from perdure.report.runs import Run
from perdure.state.outcomes import TaskOutcome
from perdure.state.words import BASELINE, interval, next_steps, points, standing, state_sentence

HEAD = ["Task", "In words", "When learnt", "Now", "Change", "95 % interval", "Worse", "Better", "Examples", "Baseline"]
CAPTION = f"{{name}}: scores in points; change, and answers that became worse or better, since the task was learnt. {BASELINE}."


def standing_of(run: Run) -> dict[str, Any]:
    """State, next steps, the table, and the stages that were refused or rolled back."""
    return {
        "state": state_sentence(run.outcomes),
        "steps": next_steps(run.outcomes, run.scores.folder),
        "table": Table(CAPTION.format(name=run.name), HEAD, [_row(outcome) for outcome in run.outcomes], text_columns=2)
        if run.outcomes
        else None,
        "aside": [f"{folder}: {why}" for folder, why in run.aside.items()],
    }


def as_values(outcome: TaskOutcome) -> dict[str, Any]:
    """One task as plain values for JSON; scores are fractions of 1."""
    change, baseline, then = outcome.since_learnt, outcome.baseline, outcome.then
    return {
        "task": outcome.task,
        "when_learnt": then.score if then else None,
        "now": outcome.now.score,
        "best": max(answered.score for answered in outcome.scored),
        "change": change.mean if change else None,
        "interval": [change.low, change.high] if change else None,
        "became_worse": change.worse if change else None,
        "became_better": change.better if change else None,
        "baseline": baseline[1] if baseline else None,
        "baseline_is": baseline[0] if baseline else None,
        "in_words": standing(outcome),
    }


def _row(outcome: TaskOutcome) -> list[str]:
    change, baseline = outcome.since_learnt, outcome.baseline
    return [
        outcome.task,
        standing(outcome) or "just learnt",
        points(outcome.then.score if outcome.then else None),
        points(outcome.now.score),
        points(change.mean if change else None),
        interval(change),
        *([str(change.worse), str(change.better)] if change else ["-", "-"]),
        str(len(outcome.now.rows) or "-"),
        points(baseline[1] if baseline else None),
    ]
