"""Commands on an existing run: scores, show, add, rollback, predict, repair. Heavy modules are imported only when needed."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from perdure.cli import options
from perdure.errors import ConfigError, DataError
from perdure.files.terminal import visible

SHOWN = 20  # rows that could not be read


def add_commands(app: typer.Typer) -> None:
    """Register every command on a run."""
    for command in (scores, show, add, rollback, predict, repair):
        app.command()(command)


def add(
    run: Annotated[Path, typer.Argument(help="Folder of a finished run; with --history, of a new one.")],
    task: Annotated[Path, typer.Argument(help="YAML file of the task, or its data file alone.")],
    settings: Annotated[
        list[str] | None,
        typer.Argument(help="training.KEY=value for this task; with --history, any key=value settings."),
    ] = None,
    max_forgetting: options.MaxForgetting = None,
    max_drop: options.MaxDrop = None,
    min_gain: options.MinGain = None,
    bad_rows: options.BadRows = None,
    history: Annotated[
        list[str] | None,
        typer.Option(help="Start a new run from this PEFT adapter. Repeatable, oldest first."),
    ] = None,
    dry_run: options.DryRun = False,
    backbone: Annotated[str | None, typer.Option(help="With --history: base model of the adapters.")] = None,
    method: Annotated[str | None, typer.Option(help="With --history: method; see `perdure methods`.")] = None,
    progress: options.Progress = "auto",
    quiet: options.IsQuiet = False,
    verbose: options.IsVerbose = False,
    tracker: options.Tracker = None,
) -> None:
    """Learn one more task on a finished run, or on top of existing adapters."""
    from perdure.settings.read import parse_overrides
    from perdure.tasks.sources.files import task_spec

    mode = options.progress_mode(progress, quiet, verbose)
    report = options.progress_reporter(mode, run.name, run, tracker)
    spec = task_spec(task)  # first: what is wrong with it is said before models are imported
    spec = spec.with_bad_rows(bad_rows) if bad_rows else spec
    if not history:
        own = parse_overrides(settings or [])
        if backbone or method or any(not key.startswith("training.") for key in own):
            raise ConfigError(
                "An existing run keeps its settings; only those of `training` may be given for this task (training.epochs=6). "
                "Others need --history, which starts a new run."
            )
        from perdure.commands.grow import add as add_task
        from perdure.commands.grow import preview_add

        training = {key.partition(".")[2]: value for key, value in own.items()}
        if dry_run:
            options.show_lines(preview_add(run, spec, training=training))
            return
        found = add_task(
            run,
            spec,
            max_forgetting=max_forgetting,
            max_drop=max_drop,
            min_gain=min_gain,
            training=training,
            report=report,
        )
        options.show_scores(found, mode)
        return
    if backbone is None:
        raise ConfigError("--history needs the base model of the adapters. Give it with --backbone.")
    from perdure.commands.learn import preview, run_config
    from perdure.config.run_config import load_config, located
    from perdure.state.gate import Gate

    given = {
        "tasks": [spec.model_dump()],
        "history": [located(place) for place in history],
        "backbone": backbone,
        **({"method": method} if method else {}),
    }
    config = load_config(given, parse_overrides(settings or []))
    if dry_run:
        options.show_lines(preview(config, run))
        return
    options.show_scores(run_config(config, run, gate=Gate(max_forgetting, max_drop, min_gain), report=report), mode)


def rollback(run: options.Run, to: Annotated[str, typer.Option(help="Last task to keep.")]) -> None:
    """Restore a run to its state after a task; later stages are moved to its folder `aside`."""
    from perdure.commands.grow import rollback as roll_back

    options.show_scores(roll_back(run, to))


def predict(
    run: options.Run,
    file: Annotated[
        Path,
        typer.Argument(help="Inputs: .jsonl, .json, .csv, .tsv or .parquet, labels optional; - for standard input."),
    ],
    task: Annotated[str | None, typer.Option(help="Task whose labels to choose from.")] = None,
    out: Annotated[Path | None, typer.Option(help="JSONL file to write. [default: standard output]")] = None,
    text_field: Annotated[str | None, typer.Option(help="Name of the text field, if it is not a usual one.")] = None,
    encoding: Annotated[str, typer.Option(help="Encoding of the input file.")] = "utf-8",
    overwrite: options.Overwrite = False,
) -> None:
    """Predict with the run's deployed model: one JSON object per input, with probabilities.

    Rows that cannot be read are left out and named; the exit status is then 4.
    """
    from perdure.commands.predict import as_line, share_right, write_predictions
    from perdure.commands.predict import predict as answer_all
    from perdure.files.output import check_file

    if out is not None:
        check_file(out, [run, file], overwrite)
    bad: list[str] = []
    rows = answer_all(run, file, task=task, text_field=text_field, encoding=encoding, bad=bad)
    if out is None:
        for row in rows:
            typer.echo(visible(as_line(row)))
    elif rows:
        write_predictions(out, rows, overwrite)
        known = share_right(rows)
        accuracy = f"; {100 * known[0]:.1f} % of {known[1]} labelled inputs correct" if known else ""
        typer.echo(f"Wrote {len(rows)} predictions to {out}{accuracy}")
    if bad:
        more = f"\n... and {len(bad) - SHOWN} more" if len(bad) > SHOWN else ""
        raise DataError("\n".join(bad[:SHOWN]) + f"{more}\n{len(bad)} rows were left out, {len(rows)} answered.")


def scores(run: options.Run, as_json: options.AsJson = False) -> None:
    """Show the score matrix and metrics of a run."""
    from perdure.state.scores import class_scores, read_scores

    found = read_scores(run)
    if as_json:
        options.print_json({**found.as_dict(), "classes": class_scores(run)})
    else:
        options.show_scores(found)


def show(
    run: options.Run,
    as_json: options.AsJson = False,
    serve: Annotated[bool, typer.Option(help="Print how to serve its chats, for transformers and vLLM.")] = False,
    task: Annotated[str | None, typer.Option(help="With --serve: the task to answer.")] = None,
    texts: Annotated[
        bool, typer.Option("--texts", help="Print the texts that are answered otherwise than when learnt.")
    ] = False,
) -> None:
    """Show a run: method, model, tasks with scores, sizes, warnings, and possible next commands."""
    if task is not None and not serve:
        raise ConfigError("--task chooses what --serve shows; add --serve.")
    if serve:
        from perdure.commands.serve import serving

        typer.echo(visible(serving(run, task)))
        return
    if texts:
        from perdure.report.texts import text_lines

        typer.echo(visible("\n".join(text_lines(run))))
        return
    from perdure.commands.show import describe_run, run_lines

    found = describe_run(run)
    if as_json:
        options.print_json(found)
    else:
        typer.echo(visible("\n".join(run_lines(found))))


def repair(run: options.Run) -> None:
    """Rebuild the missing manifest.json of a run from its complete stages; the others are moved to its folder `aside`."""
    from perdure.commands.repair import repair as rebuild

    typer.echo(visible("\n".join(rebuild(run).lines())))
