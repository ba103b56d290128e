"""What a person sees while a run is in progress: a live bar, plain lines, JSON lines, or nothing."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from typing import IO, TYPE_CHECKING, cast

from perdure.errors import UnknownName
from perdure.files.terminal import WhileOpen, visible
from perdure.training.metrics import FORMULAS, Scores
from perdure.training.reporter import Quiet, Reporter

if TYPE_CHECKING:
    from perdure.training.train import Step


EVERY = 30.0
"""Seconds between two lines of a stage that is being trained, where there is no terminal."""
MODES = ("auto", "json", "quiet", "verbose")

STDOUT, STDERR = WhileOpen("stdout"), WhileOpen("stderr")
"""Progress goes quiet when nobody reads it any more; the training goes on."""


class CompositeReporter(Reporter):
    """Passes everything on to several reporters, in their order."""

    def __init__(self, *reporters: Reporter) -> None:
        self._reporters = reporters

    def note(self, line: str) -> None:
        for reporter in self._reporters:
            tell(reporter, line)

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


def tell(reporter: Reporter, line: str) -> None:
    """Pass a line to a reporter that takes any; one of perdure 0.1's kind has no `note`."""
    getattr(reporter, "note", lambda _line: None)(line)


class JsonLines(Reporter):
    """One JSON object per event, for other programs."""

    def note(self, line: str) -> None:
        self._write(event="note", line=line)

    def begin(self, stages: Sequence[str], finished: int) -> None:
        self._write(event="begin", stages=list(stages), finished=finished)

    def step(self, stage: str, step: Step, total: int) -> None:
        self._write(event="step", stage=stage, total=total, **step.row())

    def scored(self, learnt: Sequence[str], scores: Mapping[str, float | None]) -> None:
        self._write(event="scored", learnt=list(learnt), scores=dict(scores))

    def end(self, scores: Scores | None) -> None:
        metrics = None if scores is None else {name: getattr(scores, name) for name in FORMULAS}
        self._write(event="end", finished=scores is not None, metrics=metrics)

    def _write(self, **event: object) -> None:
        STDOUT.write(json.dumps(event, allow_nan=False) + "\n")
        STDOUT.flush()


class Plain(Reporter):
    """Lines for a log file: when a stage begins, every `seconds` while it is trained, when it ends, and for every row of scores.

    Args:
        title: what is running.
        seconds: 0: a line for every step.
    """

    def __init__(self, title: str, seconds: float = EVERY, clock: Callable[[], float] = time.monotonic) -> None:
        self._title, self._seconds, self._clock = title, seconds, clock
        self._stages: list[str] = []
        self._trained = ""
        self._began, self._at, self._finished = clock(), 0, 0
        self._first, self._since, self._said = (
            0,
            0.0,
            0.0,
        )  # the stage's first step here, its time, that of the last line

    def note(self, line: str) -> None:
        self._print(line)

    def begin(self, stages: Sequence[str], finished: int) -> None:
        self._stages, self._at, self._finished = list(stages), finished, finished
        self._began = self._clock()
        if finished:
            self._print(f"resumes after {stages[finished - 1]} ({finished} of {len(stages)} stages are finished)")

    def step(self, stage: str, step: Step, total: int) -> None:
        now = self._clock()
        if stage != self._trained:  # the first step here: a resumed stage begins later
            self._trained, self._first, self._since = stage, step.step, now
        elif step.step < total and step.validation is None and now - self._said < self._seconds:
            return
        self._said = now
        left = ""
        if self._first < step.step < total:
            seconds = (now - self._since) / (step.step - self._first) * (total - step.step)
            left = f", about {duration(seconds)} left in this task"
        validated = "" if step.validation is None else f", validation {100 * step.validation:.1f}"
        self._print(f"{stage}: step {step.step} of {total}, loss {step.loss:.3f}{validated}{left}")

    def scored(self, learnt: Sequence[str], scores: Mapping[str, float | None]) -> None:
        self._at += bool(learnt)
        done, total = self._at - self._finished, len(self._stages) - self._finished
        left = ""
        if 0 < done < total:
            seconds = (self._clock() - self._began) / done * (total - done)
            left = f"  (about {duration(seconds)} left in this run)"
        self._print(_row(learnt, scores) + left)

    def _print(self, text: str) -> None:
        STDERR.write(visible(f"[{self._title}] {text}") + "\n")
        STDERR.flush()


def duration(seconds: float) -> str:
    """Seconds in the unit one would say.

    >>> duration(42.4), duration(600), duration(9000)
    ('42 s', '10 min', '2.5 h')
    """
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


class Live(Reporter):
    """A bar over the whole sequence, redrawn in place, with the time left; and a line for every row of scores."""

    def __init__(self, title: str) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

        self._title = title
        self._bar = Progress(
            TextColumn("{task.description}", markup=False),  # a name may contain square brackets
            BarColumn(),
            TextColumn("{task.percentage:>3.0f} %"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=Console(file=cast("IO[str]", STDERR)),
            transient=True,
        )
        self._task = self._bar.add_task(title, total=None)
        self._stages: list[str] = []
        self._at = 0

    def note(self, line: str) -> None:
        self._bar.console.print(visible(f"[{self._title}] {line}"), markup=False, highlight=False)

    def begin(self, stages: Sequence[str], finished: int) -> None:
        self._stages, self._at = list(stages), finished
        self._bar.update(self._task, total=len(stages), completed=finished)
        self._bar.start()

    def step(self, stage: str, step: Step, total: int) -> None:
        # Scoring takes about a quarter of a stage, so training fills three quarters of its share of the bar.
        self._bar.update(
            self._task,
            completed=self._at + 0.75 * step.step / total,
            description=visible(f"{self._title} · {stage} ({self._at + 1}/{len(self._stages)}) · loss {step.loss:.3f}"),
        )

    def scored(self, learnt: Sequence[str], scores: Mapping[str, float | None]) -> None:
        self._bar.console.print(visible(f"[{self._title}] {_row(learnt, scores)}"), markup=False)
        if learnt:
            self._at += 1
            self._bar.update(self._task, completed=self._at)

    def end(self, scores: Scores | None) -> None:
        self._bar.stop()  # also after an error: restores the cursor


def reporter(mode: str, title: str, *others: Reporter) -> Reporter:
    """The reporter for `mode`, after `others`.

    'auto' is a live bar on a terminal and plain lines elsewhere; 'verbose' a line for every step; 'json' JSON lines; 'quiet'
    nothing.
    """
    if mode not in MODES:
        raise UnknownName("kind of progress", mode, MODES)
    if mode == "json":
        shown = JsonLines()
    elif mode == "quiet":
        shown = Quiet()
    elif mode == "verbose":
        shown = Plain(title, 0)
    else:
        shown = Live(title) if STDERR.isatty() else Plain(title)
    return CompositeReporter(*others, shown) if others else shown


def _row(learnt: Sequence[str], scores: Mapping[str, float | None]) -> str:
    row = "  ".join(f"{task} {100 * score:.1f}" for task, score in scores.items() if score is not None)
    return f"{'after ' + learnt[-1] if learnt else 'untrained'}: {row}"
