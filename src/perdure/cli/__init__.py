"""The command line: argv -> configuration -> one call. No logic lives here, and nothing heavy is imported before it is needed."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from perdure.cli.adapters import add_commands as add_adapter_commands
from perdure.cli.runs import MaxForgetting, Progress, Tracker, reporter_of, show_scores
from perdure.cli.runs import add_commands as add_run_commands
from perdure.cli.studies import add_commands as add_study_commands
from perdure.errors import ConfigError, PerdureError

app = typer.Typer(
    help="Teach a transformer one task after another with LoRA, without forgetting.",
    epilog="An error is one message; PERDURE_TRACEBACK=1 shows where it came from.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

AsJson = Annotated[bool, typer.Option("--json", help="Machine-readable output.")]


@app.command()
def run(
    settings: Annotated[list[str] | None, typer.Argument(help="[CONFIG.yaml] and key=value settings.")] = None,
    out: Annotated[Path, typer.Option(help="The run's folder.")] = Path("runs/run"),
    suite: Annotated[str | None, typer.Option(help="Tasks by name, see `perdure suites`.")] = None,
    order: Annotated[str | None, typer.Option(help="The order of the suite's tasks.")] = None,
    data: Annotated[str | None, typer.Option(help="Folder with the suite's files, if it needs one.")] = None,
    method: Annotated[str | None, typer.Option(help="See `perdure methods`.")] = None,
    backbone: Annotated[str | None, typer.Option(help="A model: minilm, a folder, or a hub id.")] = None,
    seed: Annotated[int | None, typer.Option(help="Of everything random in training.")] = None,
    max_forgetting: MaxForgetting = None,
    progress: Progress = "auto",
    tracker: Tracker = None,
) -> None:
    """Learn the tasks of a suite or a configuration one after another."""
    from perdure.config.run_config import load_config
    from perdure.settings.read import parse_overrides

    given = list(settings or [])
    source: Any = given.pop(0) if given and "=" not in given[0] else {}
    named = {"suite": suite, "order": order, "data": data, "method": method, "backbone": backbone, "seed": seed}
    overrides = {key: value for key, value in named.items() if value is not None} | parse_overrides(given)
    config = load_config(source, overrides)

    from perdure.commands.learn import run_config

    RUN_FOLDERS.append(out)
    telling = reporter_of(progress, config.method_name, out, tracker)
    show_scores(run_config(config, out, max_forgetting=max_forgetting, report=telling), progress)


@app.command()
def init(file: Annotated[Path, typer.Argument(help="The configuration file to write.")] = Path("perdure.yaml")) -> None:
    """Write a commented configuration for your own data, to be edited and given to `perdure run`."""
    from perdure.cli.template import write_template

    write_template(file)
    typer.echo(f"Wrote {file}. Edit its tasks, then: perdure run {file}")


@app.command()
def resume(
    folder: Path, max_forgetting: MaxForgetting = None, progress: Progress = "auto", tracker: Tracker = None
) -> None:
    """Go on with a run after its last finished task."""
    from perdure.commands.learn import resume as resume_run

    RUN_FOLDERS.append(folder)
    telling = reporter_of(progress, folder.name, folder, tracker)
    show_scores(resume_run(folder, max_forgetting=max_forgetting, report=telling), progress)


@app.command()
def scores(folder: Path, as_json: AsJson = False) -> None:
    """The score matrix and metrics of a run."""
    from perdure.state.scores import read_scores

    found = read_scores(folder)
    if as_json:
        _print_json(found.as_dict())
    else:
        show_scores(found)


@app.command()
def sweep(
    file: Annotated[Path, typer.Argument(help="SWEEP.yaml: methods x orders x seeds x settings.")],
    out: Annotated[Path | None, typer.Option(help="Default: runs/<name of the sweep>.")] = None,
    processes: Annotated[int, typer.Option(help="Runs at once.")] = 2,
) -> None:
    """Many runs from one file, on local processes, resumable; one JSON record each. Ends with 1 if a run failed."""
    from perdure.sweeps.plan import load_sweep
    from perdure.sweeps.sweep import failures, run_sweep

    chosen = load_sweep(file)
    out = out or Path("runs") / chosen.name
    run_sweep(chosen, out, processes, typer.echo)
    if failed := failures(chosen, out):
        typer.echo(f"{len(failed)} failed, see {out / 'failed'}")
        raise typer.Exit(1)


@app.command()
def report(
    runs: Annotated[list[Path], typer.Argument(help="Run folders to compare, or the folder of one sweep.")],
    out: Annotated[Path, typer.Option(help="Folder for report.html, report.md and report.json.")] = Path("report"),
    against: Annotated[
        str | None, typer.Option(help="Of a sweep: compare with this method (default: the best).")
    ] = None,
) -> None:
    """One self-contained page about one run or several: matrices, forgetting, losses, what became wrong.

    Of a sweep (Markdown and JSON): means, intervals, paired comparisons, cost.
    """
    from perdure.report.page import write_report
    from perdure.report.sweeps import is_sweep, write_sweep_report

    sweeps = len(runs) == 1 and is_sweep(runs[0])
    if against is not None and not sweeps:
        raise ConfigError("--against compares the methods of one sweep; leave it out for run folders.")
    for path in (write_sweep_report(runs[0], out, against) if sweeps else write_report(runs, out)).values():
        typer.echo(path)


add_run_commands(app)
add_adapter_commands(app)
add_study_commands(app)
methods_app = typer.Typer(invoke_without_command=True)
app.add_typer(methods_app, name="methods")


@methods_app.callback()
def methods(ctx: typer.Context, as_json: AsJson = False) -> None:
    """Every preset, one a line; `perdure methods show NAME` for its parts and their settings."""
    from perdure.config.composition import wanted_settings
    from perdure.methods.table import PRESETS

    if ctx.invoked_subcommand is not None:
        return
    if as_json:
        rows = {
            name: {"promise": p.promise, "source": p.source, **p.composition(), "settings": wanted_settings(name)}
            for name, p in PRESETS.items()
        }
        _print_json(rows)
        return
    width = max(map(len, PRESETS))
    for name, preset in PRESETS.items():
        typer.echo(f"{name:<{width}}  {preset.promise}  [{preset.source}]")


@methods_app.command("show")
def show_method(name: str) -> None:
    """The parts of a preset, or one part: every setting with its default, what may stand there, and what it means."""
    from perdure.report.methods import method_lines

    for line in method_lines(name):
        typer.echo(line)


suites_app = typer.Typer(invoke_without_command=True)
app.add_typer(suites_app, name="suites")


@suites_app.callback()
def suites(ctx: typer.Context) -> None:
    """Every suite, one a line; `perdure suites show NAME` for its tasks."""
    from perdure.tasks.suites import describe, suite_names

    if ctx.invoked_subcommand is None:
        for name in suite_names():
            typer.echo(f"{name:<16} {describe(name)['about']}")


@suites_app.command("show")
def show_suite(
    name: str, data: Annotated[str | None, typer.Option(help="Folder with the suite's files.")] = None
) -> None:
    """Tasks of one suite with labels and licence; with --data (or cached files) also sizes, and what is odd about them."""
    from perdure.report.suites import suite_lines

    for line in suite_lines(name, data):
        typer.echo(line)


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Where the runs go.")] = Path("runs/demo"),
    seed: int = 0,
    progress: Progress = "auto",
) -> None:
    """Five real tasks with seq-lora, inc-lora and ps-lora, side by side; about five minutes on two cores."""
    from perdure.cli.demonstration import run_demo

    run_demo(out, seed, progress)


def _print_json(value: Any) -> None:
    typer.echo(json.dumps(value, indent=1, ensure_ascii=False))


GOES_ON = {
    **dict.fromkeys(
        ("run", "resume"),
        "Finished tasks, and what was written down of the next, are kept; go on with `perdure resume {run}`.",
    ),
    **dict.fromkeys(("sweep", "demo"), "Finished runs are kept; the same command goes on."),
    "add": "The run holds what it held before; give the same command again.",
}
"""Command -> what was kept when it was interrupted, and how to go on."""
STARTS_AGAIN = "Nothing was changed half; start it again."
INTERRUPTED, TERMINATED = 128 + signal.SIGINT, 128 + signal.SIGTERM
RUN_FOLDERS: list[Path] = []
"""The folder of the run that this command learns, once it is known."""
UsageError: Any = typer.BadParameter.__bases__[0]
"""What the parser raises for an unknown option or a wrong value; typer gives it no public name."""


def main() -> None:
    """Run the command line; a user's error is one message on stderr and an exit code (see `perdure.errors`).

    With PERDURE_TRACEBACK=1 the whole traceback is shown.
    """
    # perdure shows its own progress; the bars transformers draws while loading would cut through it
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    if (here := os.getcwd()) not in sys.path:
        sys.path.append(here)  # for a part of your own, `module:Class`; a sweep's processes inherit it
    RUN_FOLDERS.clear()
    try:
        code = app(standalone_mode=False)
    except SystemExit as ended:
        if ended.code == TERMINATED:
            _tell_stopped()
        raise
    except PerdureError as error:
        if os.environ.get("PERDURE_TRACEBACK"):
            raise
        typer.echo(f"perdure: {error}", err=True)
        sys.exit(error.exit_code)
    except UsageError as error:
        error.show()
        sys.exit(ConfigError.exit_code)  # not the parser's 2, which says that a quality gate was not met
    if code == INTERRUPTED:
        _tell_stopped()
    if code:
        sys.exit(code)


def _tell_stopped() -> None:
    """How to go on with a command that was stopped; of several processes the first one speaks."""
    if os.environ.get("RANK", "0") != "0":
        return
    run = RUN_FOLDERS[-1] if RUN_FOLDERS else None
    begun = run is None or (run / "run.json").is_file()
    how = GOES_ON.get(sys.argv[1], STARTS_AGAIN).format(run=run or "RUN") if begun else STARTS_AGAIN
    typer.echo(f"perdure: stopped. {how}", err=True)
