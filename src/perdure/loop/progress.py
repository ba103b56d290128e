"""What a person sees while a run goes on: a live bar, plain lines, JSON lines, or nothing."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from perdure.errors import UnknownName
from perdure.training.metrics import FORMULAS, Scores
from perdure.training.reporter import Quiet, Reporter

if TYPE_CHECKING:
    from perdure.training.train import Step

if TYPE_CHECKING:
    from perdure.training.metrics import Scores


class CompositeReporter:
    """Passes everything on to several reporters, in their order."""

    def __init__(self, *reporters: Reporter) -> None:
        self._reporters = reporters

    def begin(self, stages: Sequence[str], finished: int) -> None:
        for reporter in self._reporters:
            reporter.begin(stages, finished)

    def step(self, stage: str, step: Step, total: int) -> None:
        for reporter in self._reporters:
            reporter.step(stage, step, total)

    def scored(self, learnt: Sequence[str], scores: Mapping[str, float | None]) -> None:
        for reporter in self._reporters:
            reporter.scored(learnt, scores)

    def end(self, scores: Scores | None) -> None:
        for reporter in self._reporters:
            reporter.end(scores)


class JsonLines:
    """One JSON object an event, for other programs."""

    def begin(self, stages: Sequence[str], finished: int) -> None:
        self._write(event="begin", stages=list(stages), finished=finished)

    def step(self, stage: str, step: Step, total: int) -> None:
        self._write(
            event="step",
            stage=stage,
            total=total,
            step=step.step,
            loss=step.loss,
            learning_rate=step.learning_rate,
            penalties=dict(step.penalties),
            shares=dict(step.shares),
        )

    def scored(self, learnt: Sequence[str], scores: Mapping[str, float | None]) -> None:
        self._write(event="scored", learnt=list(learnt), scores=dict(scores))

    def end(self, scores: Scores | None) -> None:
        metrics = None if scores is None else {name: getattr(scores, name) for name in FORMULAS}
        self._write(event="end", finished=scores is not None, metrics=metrics)

    def _write(self, **event: object) -> None:
        sys.stdout.write(json.dumps(event, allow_nan=False) + "\n")
        sys.stdout.flush()


class Plain:
    """A line when a stage begins and when it is scored, with the time left; also what a log file gets.

    Args:
        title: what is running.
    """

    def __init__(self, title: str) -> None:
        self._title = title
        self._stages: list[str] = []
        self._trained = ""
        self._began, self._at, self._finished = time.monotonic(), 0, 0

    def begin(self, stages: Sequence[str], finished: int) -> None:
        self._stages, self._at, self._finished = list(stages), finished, finished
        self._began = time.monotonic()
        if finished:
            self._say(f"goes on after {stages[finished - 1]} ({finished} of {len(stages)} stages are finished)")

    def step(self, stage: str, step: Step, total: int) -> None:
        if stage != self._trained or step.step == total:  # the first step made here: a resumed stage begins later
            self._trained = stage
            self._say(f"{stage}: step {step.step} of {total}, loss {step.loss:.3f}")

    def scored(self, learnt: Sequence[str], scores: Mapping[str, float | None]) -> None:
        row = "  ".join(f"{task} {100 * score:.1f}" for task, score in scores.items() if score is not None)
        if learnt:
            self._at += 1
        self._say(f"{'after ' + learnt[-1] if learnt else 'untrained'}: {row}{self._left()}")

    def end(self, scores: Scores | None) -> None:
        pass

    def _left(self) -> str:
        done, of = self._at - self._finished, len(self._stages) - self._finished
        if done <= 0 or done >= of:
            return ""
        return f"  (about {_duration((time.monotonic() - self._began) / done * (of - done))} left in this run)"

    def _say(self, text: str) -> None:
        sys.stderr.write(f"[{self._title}] {text}\n")
        sys.stderr.flush()


class Live:
    """A bar over the whole sequence, redrawn in place, with the time left; and a line for every row of scores."""

    def __init__(self, title: str) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

        self._title = title
        self._bar = Progress(
            TextColumn("{task.description}", markup=False),  # a name may hold square brackets
            BarColumn(),
            TextColumn("{task.percentage:>3.0f} %"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=Console(stderr=True),
            transient=True,
        )
        self._task = self._bar.add_task(title, total=None)
        self._stages: list[str] = []
        self._at = 0

    def begin(self, stages: Sequence[str], finished: int) -> None:
        self._stages, self._at = list(stages), finished
        self._bar.update(self._task, total=len(stages), completed=finished)
        self._bar.start()

    def step(self, stage: str, step: Step, total: int) -> None:
        # Scoring takes about a quarter of a stage, so training fills three quarters of its share of the bar.
        self._bar.update(
            self._task,
            completed=self._at + 0.75 * step.step / total,
            description=f"{self._title} · {stage} ({self._at + 1}/{len(self._stages)}) · loss {step.loss:.3f}",
        )

    def scored(self, learnt: Sequence[str], scores: Mapping[str, float | None]) -> None:
        row = "  ".join(f"{task} {100 * score:.1f}" for task, score in scores.items() if score is not None)
        self._bar.console.print(
            f"[{self._title}] {'after ' + learnt[-1] if learnt else 'untrained'}: {row}", markup=False
        )
        if learnt:
            self._at += 1
            self._bar.update(self._task, completed=self._at)

    def end(self, scores: Scores | None) -> None:
        self._bar.stop()  # also after an error: the cursor comes back


def reporter(mode: str, title: str, *others: Reporter) -> Reporter:
    """The reporter for `mode`: 'quiet', 'json', or 'auto' (a live bar on a terminal, plain lines elsewhere); and `others`.

    Raises:
        UnknownName: another mode.
    """
    return CompositeReporter(*others, _shown(mode, title)) if others else _shown(mode, title)


def _shown(mode: str, title: str) -> Reporter:
    if mode == "quiet":
        return Quiet()
    if mode == "json":
        return JsonLines()
    if mode != "auto":
        raise UnknownName("kind of progress", mode, ("auto", "json", "quiet"))
    return Live(title) if sys.stderr.isatty() else Plain(title)


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"
