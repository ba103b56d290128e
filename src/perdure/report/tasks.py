"""What a person asks first: how every task stands, in one sentence, as a table, and what to do next."""

from __future__ import annotations

from typing import Any

from perdure.report.html import Table
from perdure.report.runs import Run
from perdure.report.texts import text_tables
from perdure.state.outcomes import TaskOutcome
from perdure.state.words import BASELINE, compared, interval, next_steps, points, standing, state_sentence

HEAD = ["Task", "In words", "When learnt", "Now", "Change", "95 % interval", "Baseline", "Worse", "Better", "Examples"]
TONES = {"not above the baseline": "bad", "lost": "bad", "gained": "good"}
CAPTION = f"{{name}}: scores in points; change, and answers that became worse or better, since the task was learnt. {BASELINE}."


def standing_of(run: Run) -> dict[str, Any]:
    """State, next steps, the table, texts whose answers changed, and the stages that were refused or rolled back."""
    return {
        "state": state_sentence(run.outcomes),
        "steps": next_steps(run.outcomes, run.scores.folder),
        "table": Table(
            CAPTION.format(name=run.name),
            HEAD,
            [_row(outcome) for outcome in run.outcomes],
            text_columns=2,
            tones=[TONES.get(standing(outcome), "") for outcome in run.outcomes],
        )
        if run.outcomes
        else None,
        "texts": text_tables(run.outcomes),
        "aside": [f"{folder}: {why}" for folder, why in run.aside.items()],
    }


def as_values(outcome: TaskOutcome) -> dict[str, Any]:
    """One task as plain values for JSON; scores are fractions of 1."""
    return {
        "task": outcome.task,
        "when_learnt": outcome.then.score if outcome.then else None,
        "now": outcome.now.score,
        "best": max(answered.score for answered in outcome.scored),
        **compared(outcome),
    }


def _row(outcome: TaskOutcome) -> list[str]:
    found = as_values(outcome)
    counts = (found["became_worse"], found["became_better"], len(outcome.now.rows) or None)
    return [
        outcome.task,
        found["standing"] or "just learnt",
        *(points(found[key]) for key in ("when_learnt", "now", "change")),
        interval(found["interval"]),
        points(found["baseline"]),
        *("-" if count is None else str(count) for count in counts),
    ]
