"""Who is told what happens while a run goes on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Protocol

from perdure.errors import ConfigError
from perdure.training.metrics import Scores

if TYPE_CHECKING:
    from perdure.training.train import Step


class Reporter(Protocol):
    """Told by the loop what happens."""

    def begin(self, stages: Sequence[str], finished: int) -> None:
        """The sequence begins (or goes on after `finished` stages)."""
        ...

    def step(self, stage: str, step: Step, total: int) -> None:
        """An optimiser step was made, one of `total` in this stage."""
        ...

    def scored(self, learnt: Sequence[str], scores: Mapping[str, float | None]) -> None:
        """Every task was scored after the tasks in `learnt` (none: the untrained model)."""
        ...

    def end(self, scores: Scores | None) -> None:
        """The run is finished and has these scores, or was stopped (None); nothing comes after."""
        ...


class Quiet:
    """Says nothing."""

    def begin(self, stages: Sequence[str], finished: int) -> None:
        pass

    def step(self, stage: str, step: Step, total: int) -> None:
        pass

    def scored(self, learnt: Sequence[str], scores: Mapping[str, float | None]) -> None:
        pass

    def end(self, scores: Scores | None) -> None:
        pass


def as_reporter(report: Reporter | None, main: bool = True) -> Reporter:
    """What was given as `report`, or one that says nothing; only the main process is told.

    Raises:
        ConfigError: it cannot be told anything.
    """
    if report is None:
        return Quiet()
    if isinstance(report, type) or not all(
        callable(getattr(report, name, None)) for name in ("begin", "step", "scored", "end")
    ):
        raise ConfigError(
            f"report={report!r:.80}: expected something with begin, step, scored and end, such as "
            "perdure.reporter('auto', 'my run') or perdure.Trackers(out, ['tensorboard'])."
        )
    return report if main else Quiet()
