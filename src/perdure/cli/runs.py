"""The commands for a run that exists: add, rollback, predict, show. Functions parse and call; nothing heavy is imported before
it is needed."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from perdure.errors import ConfigError

Run = Annotated[Path, typer.Argument(help="The run's folder.")]
MaxForgetting = Annotated[
    float | None,
    typer.Option(help="Points a task learnt before may lose; more ends with exit code 2 and changes nothing."),
]
Progress = Annotated[
    Literal["auto", "quiet", "json"],
    typer.Option(
        help="auto: a live bar on a terminal, plain lines elsewhere; quiet: only the result; json: JSON lines on standard "
        "output, and nothing else there."
    ),
]
Tracker = Annotated[
    list[str] | None, typer.Option(help="Also log to tensorboard, mlflow or wandb; may be given several times.")
]


def add_commands(app: typer.Typer) -> None:
    """Put add, rollback, predict and show on the command line."""
    for command in (add, rollback, predict, show):
        app.command()(command)


def add(
    run: Annotated[Path, typer.Argument(help="A finished run; with --history the folder of a new one.")],
    task: Annotated[Path, typer.Argument(help="The task's YAML file.")],
    settings: Annotated[list[str] | None, typer.Argument(help="With --history: key=value settings.")] = None,
    max_forgetting: MaxForgetting = None,
    history: Annotated[
        list[str] | None,
        typer.Option(help="A PEFT adapter the new run's past is made of, oldest first; once for each."),
    ] = None,
    backbone: Annotated[str | None, typer.Option(help="With --history: the adapters' base model.")] = None,
    method: Annotated[str | None, typer.Option(help="With --history: see `perdure methods`.")] = None,
    progress: Progress = "auto",
    tracker: Tracker = None,
) -> None:
    """Learn one more task on a finished run, or on adapters that exist already."""
    telling = reporter_of(progress, run.name, run, tracker)
    if not history:
        if settings or backbone or method:
            raise ConfigError("A run keeps the settings it was begun with; settings are for a new one, with --history.")
        from perdure.commands.grow import add as add_task

        show_scores(add_task(run, task, max_forgetting=max_forgetting, report=telling), progress)
        return
    if backbone is None:
        raise ConfigError("Say which model the adapters belong to with --backbone.")
    from perdure.commands.learn import run_config
    from perdure.config.run_config import load_config, located
    from perdure.settings.read import parse_overrides
    from perdure.tasks.sources.files import task_spec

    given = {
        "tasks": [task_spec(task).model_dump()],
        "history": [located(place) for place in history],
        "backbone": backbone,
        **({"method": method} if method else {}),
    }
    config = load_config(given, parse_overrides(settings or []))
    show_scores(run_config(config, run, max_forgetting=max_forgetting, report=telling), progress)


def rollback(run: Run, to: Annotated[str, typer.Option(help="The last task that stays.")]) -> None:
    """Take a run back to its state after a task; what came later is moved to the run's folder `aside`."""
    from perdure.commands.grow import rollback as roll_back

    show_scores(roll_back(run, to))


def predict(
    run: Run,
    file: Annotated[Path, typer.Argument(help="Inputs: .jsonl, .json, .csv, .tsv or .parquet; labels optional.")],
    task: Annotated[str | None, typer.Option(help="Whose labels to choose from.")] = None,
    out: Annotated[Path | None, typer.Option(help="A JSONL file; default: standard output.")] = None,
    text_field: Annotated[str | None, typer.Option(help="The text's field, if it has no usual name.")] = None,
    encoding: Annotated[str, typer.Option(help="Of the file.")] = "utf-8",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the output file if it exists.")] = False,
) -> None:
    """Answer every input of a file with the run's deployed model: one JSON object a line, with probabilities."""
    from perdure.commands.predict import as_line, share_right, write_predictions
    from perdure.commands.predict import predict as answer_all
    from perdure.files.output import check_file

    if out is not None:
        check_file(out, [run, file], overwrite)
    rows = answer_all(run, file, task=task, text_field=text_field, encoding=encoding)
    if out is None:
        for row in rows:
            typer.echo(as_line(row))
        return
    write_predictions(out, rows, overwrite)
    known = share_right(rows)
    typer.echo(
        f"{len(rows)} answers in {out}" + (f"; {100 * known[0]:.1f} % of {known[1]} as labelled" if known else "")
    )


def show(run: Run, as_json: Annotated[bool, typer.Option("--json", help="Machine-readable output.")] = False) -> None:
    """What a run is: method, model, tasks with scores, sizes, warnings, and what can be done next."""
    from perdure.commands.show import describe_run, run_lines

    found = describe_run(run)
    if as_json:
        typer.echo(json.dumps(found, indent=1, ensure_ascii=False))
        return
    for line in run_lines(found):
        typer.echo(line)


def reporter_of(progress: str, title: str, folder: Path, trackers: list[str] | None) -> Any:
    """Who is told about progress: the terminal, and trackers."""
    from perdure.loop.progress import reporter

    if not trackers:
        return reporter(progress, title)
    from perdure.loop.trackers import Trackers

    return reporter(progress, title, Trackers(folder, trackers))


def show_scores(found: Any, progress: str = "auto") -> None:
    """Score matrix and metrics on the terminal, and where the run lies."""
    if progress == "json" or os.environ.get("RANK", "0") != "0":
        return  # its last line holds the metrics; of several processes the first one speaks
    from perdure.report.text import print_scores
    from perdure.report.words import plain
    from perdure.state.store import Store

    print_scores(found)
    for text in Store(Path(found.folder)).about.get("warnings", ()):
        typer.echo(f"Noticed: {plain(text)}")
