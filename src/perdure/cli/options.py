"""Options and output that several commands share."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from perdure.errors import ConfigError
from perdure.files.terminal import visible

Run = Annotated[Path, typer.Argument(help="Run folder.")]
Suite = Annotated[str, typer.Argument(help="Suite name or YAML file; see `perdure suites`.")]
SuiteData = Annotated[str | None, typer.Option(help="Folder with the suite's files, if it needs one.")]
MaxForgetting = Annotated[
    float | None,
    typer.Option(
        help="Points an earlier task may be below its best; if more, exit with status 2 and leave the run unchanged."
    ),
]
MaxDrop = Annotated[float | None, typer.Option(help="Points an earlier task may lose by the new task alone; the same.")]
MinGain = Annotated[
    float | None,
    typer.Option(
        help="Points above the untouched model and the most frequent label that the new task must reach; the same."
    ),
]
Progress = Annotated[
    Literal["auto", "quiet", "verbose", "json"],
    typer.Option(
        help="auto: a live bar on a terminal, elsewhere a line every 30 s; quiet: the result only; verbose: a line for every "
        "step; json: JSON lines on standard output, and nothing else there."
    ),
]
IsQuiet = Annotated[bool, typer.Option("--quiet", "-q", help="As --progress quiet.")]
IsVerbose = Annotated[bool, typer.Option("--verbose", "-v", help="As --progress verbose.")]
BadRows = Annotated[
    Literal["error", "skip"] | None,
    typer.Option(help="Rows of own files that cannot be read: an error that lists them, or left out; see `bad_rows`."),
]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Read, check and estimate everything, say so, and stop; nothing is written.")
]
Tracker = Annotated[list[str] | None, typer.Option(help="Also log to tensorboard, mlflow or wandb. Repeatable.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace existing output.")]


def print_json(value: Any) -> None:
    """Print a value as indented JSON."""
    typer.echo(visible(json.dumps(value, indent=1, ensure_ascii=False)))


def progress_mode(progress: str, quiet: bool, verbose: bool) -> str:
    """The kind of progress that --progress, --quiet and --verbose ask for together; ConfigError if that is more than one."""
    asked = {mode for mode, wanted in (("quiet", quiet), ("verbose", verbose)) if wanted}
    asked |= {progress} - {"auto"}
    if len(asked) > 1:
        raise ConfigError(f"Give one kind of progress, not {' and '.join(sorted(asked))}.")
    return next(iter(asked), "auto")


def progress_reporter(progress: str, title: str, folder: Path, trackers: list[str] | None) -> Any:
    """A reporter that writes to the terminal and to the trackers."""
    from perdure.loop.progress import reporter
    from perdure.loop.trackers import Trackers

    return reporter(progress, title, *([Trackers(folder, trackers)] if trackers else ()))


def show_lines(lines: list[str]) -> None:
    """Print what a dry run found."""
    from perdure.report.words import plain

    for line in lines:
        typer.echo(visible(plain(line)))


def show_scores(scores: Any, progress: str = "quiet") -> None:
    """Print a run's score matrix, metrics and how its tasks stand; its warnings only where no progress showed them before."""
    if progress == "json" or os.environ.get("RANK", "0") != "0":
        return  # the last JSON line holds the metrics; of several processes only the first one prints
    from perdure.report.text import print_scores
    from perdure.report.words import plain
    from perdure.state.outcomes import task_outcomes
    from perdure.state.store import Store
    from perdure.state.words import next_steps, state_sentence

    print_scores(scores)
    store = Store(Path(scores.folder))
    for text in store.about.get("warnings", ()) if progress == "quiet" else ():
        typer.echo(visible(f"Warning: {plain(text)}"))
    outcomes = task_outcomes(store)
    for line in (state_sentence(outcomes), *next_steps(outcomes, scores.folder)):
        typer.echo(visible(plain(line)))
