"""The command line: turns arguments into a configuration and one library call. Heavy modules are imported only when needed."""

from __future__ import annotations

import io
import os
import signal
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from perdure.cli import adapters, listings, options, runs, studies
from perdure.errors import ConfigError, PerdureError
from perdure.files.terminal import WhileOpen, discard, visible

app = typer.Typer(
    epilog="Set PERDURE_TRACEBACK=1 to see the traceback of an error.",
    rich_markup_mode=None,  # rich would be most of the time of `--help`
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120},
)


def _show_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"perdure {version('perdure')}")
        raise typer.Exit


@app.callback()
def perdure(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Teach a transformer one task after another with LoRA, without forgetting."""


@app.command()
def run(
    settings: Annotated[list[str] | None, typer.Argument(help="[CONFIG.yaml] and key=value settings.")] = None,
    out: Annotated[Path, typer.Option(help="Run folder to write.")] = Path("runs/run"),
    suite: Annotated[str | None, typer.Option(help="Suite of tasks; see `perdure suites`.")] = None,
    order: Annotated[str | None, typer.Option(help="Task order of the suite.")] = None,
    data: options.SuiteData = None,
    method: Annotated[str | None, typer.Option(help="Method; see `perdure methods`.")] = None,
    backbone: Annotated[str | None, typer.Option(help="Model: a known name, a folder, or a hub id.")] = None,
    seed: Annotated[int | None, typer.Option(help="Random seed of the training.")] = None,
    max_forgetting: options.MaxForgetting = None,
    max_drop: options.MaxDrop = None,
    min_gain: options.MinGain = None,
    bad_rows: options.BadRows = None,
    dry_run: options.DryRun = False,
    progress: options.Progress = "auto",
    quiet: options.IsQuiet = False,
    verbose: options.IsVerbose = False,
    tracker: options.Tracker = None,
) -> None:
    """Learn the tasks of a suite or a configuration, one after another."""
    from perdure.config.run_config import load_config
    from perdure.settings.read import parse_overrides
    from perdure.state.gate import Gate

    mode = options.progress_mode(progress, quiet, verbose)
    given = list(settings or [])
    source: Any = given.pop(0) if given and "=" not in given[0] else {}
    named = {"suite": suite, "order": order, "data": data, "method": method, "backbone": backbone, "seed": seed}
    overrides = {key: value for key, value in named.items() if value is not None} | parse_overrides(given)
    config = load_config(source, overrides)
    if bad_rows:
        config = config.model_copy(update={"tasks": tuple(task.with_bad_rows(bad_rows) for task in config.tasks)})
    from perdure.commands.learn import preview, run_config

    if dry_run:
        options.show_lines(preview(config, out))
        return
    RUN_FOLDERS.append(out)
    report = options.progress_reporter(mode, config.method_name, out, tracker)
    gate = Gate(max_forgetting, max_drop, min_gain)
    options.show_scores(run_config(config, out, gate=gate, report=report), mode)


@app.command()
def init(
    files: Annotated[
        list[Path] | None,
        typer.Argument(help="[CONFIG.yaml] to write, and data files to write it for. [default: perdure.yaml]"),
    ] = None,
    text_field: Annotated[str | None, typer.Option(help="Field that holds the text. [default: found]")] = None,
    label_field: Annotated[
        str | None, typer.Option(help="Field that holds the label or answer. [default: found]")
    ] = None,
) -> None:
    """Write a configuration: for data files what suits their content, else a commented one to edit."""
    from perdure.files.durable import write_text

    given = list(files or [])
    named = [file for file in given if file.suffix in (".yaml", ".yml")]
    data = [file for file in given if file not in named]
    if len(named) > 1:
        raise ConfigError(f"Give one configuration file to write, not {len(named)}: {', '.join(map(str, named))}.")
    file = named[0] if named else Path("perdure.yaml")
    if file.exists():
        raise ConfigError(f"'{file}' already exists. Choose another name, or edit it.")
    asked = {"text_field": text_field, "label_field": label_field}
    fields = {name: field for name, field in asked.items() if field}
    if fields and not data:
        raise ConfigError("--text-field and --label-field say how to read data files: name a file.")
    schema = (Path(__file__).parents[1] / "config" / "perdure.schema.json").as_uri()
    if data:
        from perdure.commands.first_config import first_config

        text, said = first_config(data, file, fields)
        write_text(file, f"# yaml-language-server: $schema={schema}\n{text}")
        for line in said:
            typer.echo(visible(line))
        typer.echo(f"Wrote {file}. Look at it, then: perdure run {file} --dry-run")
        return
    template = Path(__file__).with_name("template.yaml").read_text(encoding="utf-8")
    write_text(file, template.replace("<file>", str(file)).replace("<schema>", schema))
    typer.echo(f"Wrote {file}. Edit its tasks, then: perdure run {file}")


@app.command()
def resume(
    folder: options.Run,
    max_forgetting: options.MaxForgetting = None,
    max_drop: options.MaxDrop = None,
    min_gain: options.MinGain = None,
    progress: options.Progress = "auto",
    quiet: options.IsQuiet = False,
    verbose: options.IsVerbose = False,
    tracker: options.Tracker = None,
) -> None:
    """Resume a stopped run after its last finished task or checkpoint."""
    from perdure.commands.learn import resume as resume_run

    RUN_FOLDERS.append(folder)
    mode = options.progress_mode(progress, quiet, verbose)
    report = options.progress_reporter(mode, folder.name, folder, tracker)
    found = resume_run(folder, max_forgetting=max_forgetting, max_drop=max_drop, min_gain=min_gain, report=report)
    options.show_scores(found, mode)


@app.command()
def sweep(
    file: Annotated[Path, typer.Argument(help="SWEEP.yaml: methods x orders x seeds x settings.")],
    out: Annotated[Path | None, typer.Option(help="Folder to write. [default: runs/NAME of the sweep]")] = None,
    processes: Annotated[int, typer.Option(help="Number of parallel runs, with engine local.")] = 2,
    engine: Annotated[str, typer.Option(help="Where runs are computed: local, ray or slurm.")] = "local",
    address: Annotated[str | None, typer.Option(help="Of the Ray cluster. [default: Ray on this machine]")] = None,
    cpus: Annotated[int, typer.Option(help="CPU cores of one run (ray, slurm).")] = 1,
    gpus: Annotated[float, typer.Option(help="GPUs of one run (ray, slurm); 0.5: two runs share one.")] = 0,
    memory: Annotated[float | None, typer.Option(help="Memory of one run in GB (ray, slurm).")] = None,
    hours: Annotated[float, typer.Option(help="The longest a run may take (slurm).")] = 24,
    shared_folder: Annotated[
        bool, typer.Option("--shared-folder", help="All nodes see --out: interrupted runs go on from checkpoints.")
    ] = False,
) -> None:
    """Run methods x orders x seeds from one file, resumable; one JSON record per run. Local processes, Ray or Slurm.

    Exits with status 1 if a run failed.
    """
    from perdure.sweeps.chosen_engine import engine_of
    from perdure.sweeps.engines import Resources
    from perdure.sweeps.plan import load_sweep
    from perdure.sweeps.search import best, rounds
    from perdure.sweeps.sweep import failures, run_sweep

    wanted = chosen = load_sweep(file)
    out = out or Path("runs") / wanted.name
    tell = WhileOpen("stdout")
    place = engine_of(engine, address, Resources(cpus, gpus, memory), out, hours, shared_folder)

    def say(line: str) -> None:
        print(visible(line), file=tell, flush=True)

    for chosen in rounds(wanted, out):
        run_sweep(chosen, out, processes, say, place, shared_folder)
    for line in best(chosen, out):
        say(line)
    if failed := failures(chosen, out):
        typer.echo(f"{len(failed)} failed, see {out / 'failed'}")
        raise typer.Exit(1)


@app.command()
def report(
    runs: Annotated[list[Path], typer.Argument(help="Run folders to compare, or the folder of one sweep.")],
    out: Annotated[Path, typer.Option(help="Folder for report.html, report.md and report.json.")] = Path("report"),
    against: Annotated[
        str | None, typer.Option(help="Sweeps only: method to compare with. [default: the best]")
    ] = None,
) -> None:
    """Write a self-contained page about runs: score matrices, forgetting, losses, what became wrong.

    For a sweep (Markdown and JSON): means, intervals, paired comparisons, cost.
    """
    from perdure.report.page import write_report
    from perdure.report.sweeps import is_sweep, write_sweep_report

    of_sweep = len(runs) == 1 and is_sweep(runs[0])
    if against is not None and not of_sweep:
        raise ConfigError("--against compares the methods of one sweep. Leave it out for run folders.")
    for path in (write_sweep_report(runs[0], out, against) if of_sweep else write_report(runs, out)).values():
        typer.echo(path)


for module in (runs, adapters, listings, studies):
    module.add_commands(app)


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder for the runs and the report.")] = Path("runs/demo"),
    seed: Annotated[int, typer.Option(help="Random seed of the training.")] = 0,
    progress: options.Progress = "auto",
) -> None:
    """Learn five real tasks with seq-lora, inc-lora and ps-lora, side by side; about five minutes on two cores."""
    from perdure.cli.demonstration import run_demo

    run_demo(out, seed, progress)


KEPT = {
    **dict.fromkeys(
        ("run", "resume"), "Finished tasks and the last checkpoint are kept; continue with `perdure resume {run}`."
    ),
    **dict.fromkeys(("sweep", "demo"), "Finished runs are kept; repeat the command to continue."),
    "add": "The run is unchanged; repeat the command to try again.",
}
"""Command -> what an interruption leaves, and how to continue."""
NOTHING_KEPT = "Nothing was changed; run the command again."
INTERRUPTED = 128 + signal.SIGINT
TERMINATED = (128 + signal.SIGTERM, 129)
"""After SIGTERM, and after SIGHUP, which Windows does not have."""
MISUSED = 2
"""A command line that cannot be read, as everywhere."""
PIPE_CLOSED = 141
"""As a shell reports a program that SIGPIPE ended."""
RUN_FOLDERS: list[Path] = []
"""The folder of the run being learnt, once known."""
UsageError: Any = typer.BadParameter.__bases__[0]
"""The parser's error for an unknown option or an invalid value; typer has no public name for it."""


def main() -> None:
    """Run the command line: a user's error becomes one message on stderr and an exit status (see `perdure.errors`).

    PERDURE_TRACEBACK=1 shows the traceback instead.
    """
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")  # they would break up perdure's own progress
    if (here := os.getcwd()) not in sys.path:
        sys.path.append(here)  # for a custom part, `module:Class`; a sweep's processes inherit it
    RUN_FOLDERS.clear()
    try:
        code = app(standalone_mode=False)
    except SystemExit as ended:
        # typer and rich end so when nobody reads the output any more, as after `| head`
        if ended.code == 1 and isinstance(ended.__context__, BrokenPipeError):
            for stream in (sys.stdout, sys.stderr):
                discard(stream)
            sys.exit(PIPE_CLOSED)
        if ended.code in TERMINATED:
            _explain_stop()
        raise
    except PerdureError as error:
        if os.environ.get("PERDURE_TRACEBACK"):
            raise
        typer.echo(visible(f"perdure: {error}"), err=True)
        sys.exit(error.exit_code)
    except UsageError as error:
        error.show(file := io.StringIO())
        typer.echo(visible(file.getvalue()), err=True, nl=False)
        sys.exit(MISUSED)
    if code == INTERRUPTED:
        _explain_stop()
    if code:
        sys.exit(code)


def _explain_stop() -> None:
    """Print how to continue a stopped command; of several processes only the first one does."""
    if os.environ.get("RANK", "0") != "0":
        return
    run = RUN_FOLDERS[-1] if RUN_FOLDERS else None
    exists = run is None or (run / "run.json").is_file()
    advice = KEPT.get(sys.argv[1], NOTHING_KEPT).format(run=run or "RUN") if exists else NOTHING_KEPT
    print(f"perdure: stopped. {advice}", file=WhileOpen("stderr"))  # which a closed terminal has taken along
