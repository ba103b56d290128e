"""Reporters: objects that follow a run and show or record its progress."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Protocol

from perdure.errors import ConfigError
from perdure.training.metrics import Scores

if TYPE_CHECKING:
    from perdure.training.train import Step


class Reporter(Protocol):
    """What the loop calls as a run progresses."""

    def note(self, line: str) -> None:
        """A line about the run that is about to begin, such as what its adapter reaches. May be missing."""

    def begin(self, stages: Sequence[str], finished: int) -> None:
        """The sequence begins, or resumes after `finished` stages."""

    def step(self, stage: str, step: Step, total: int) -> None:
        """An optimiser step was made, one of `total` in this stage."""

    def scored(self, learnt: Sequence[str], scores: Mapping[str, float | None]) -> None:
        """Every task was scored after the tasks in `learnt` (none: the untrained model)."""

    def end(self, scores: Scores | None) -> None:
        """The run finished with these scores, or was stopped (None). The last call."""


class Quiet(Reporter):
    """Reports nothing."""


def as_reporter(report: Reporter | None, main: bool = True) -> Reporter:
    """`report`, or a quiet reporter without it and on all but the main process; ConfigError if it lacks methods."""
    if report is None:
        return Quiet()
    methods = [getattr(report, name, None) for name in ("begin", "step", "scored", "end")]
    if isinstance(report, type) or not all(map(callable, methods)):
        raise ConfigError(
            f"report={report!r:.80}: expected an object with begin, step, scored and end, such as "
            "perdure.reporter('auto', 'my run') or perdure.Trackers(out, ['tensorboard'])."
        )
    return report if main else Quiet()
