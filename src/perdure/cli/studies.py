"""Commands that examine conflict between tasks, general ability, and what signs and magnitudes of updates carry."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from perdure.cli import options
from perdure.files.terminal import visible

study_app = typer.Typer(help="Score parts of a finished run's updates.", no_args_is_help=True)
Out = Annotated[
    Path | None, typer.Option(help="Folder for the data (JSON), the table (Markdown) and the picture (SVG).")
]
Examples = Annotated[int | None, typer.Option(help="Maximum number of examples to score per task.")]
FORMATS: Mapping[str, Callable[[Any], str]] = {
    "json": lambda found: json.dumps(found.as_dict(), indent=1),
    "md": lambda found: found.as_markdown(),
    "svg": lambda found: found.as_svg(),
}
"""File suffix -> its content. The picture comes last: if it fails, the data is already on disk."""


def add_commands(app: typer.Typer) -> None:
    """Register doctor, mine, ability and study."""
    app.command()(doctor)
    app.command()(mine)
    app.command()(ability)
    app.add_typer(study_app, name="study")


def doctor(
    model: Annotated[str, typer.Argument(help="Model: a known name, a folder, or a hub id.")],
    settings: Annotated[
        list[str] | None, typer.Argument(help="key=value settings, such as lora.targets=all-linear.")
    ] = None,
    kind: Annotated[str | None, typer.Option(help="Kind of the model: encoder, causal, seq2seq, vision.")] = None,
    as_json: options.AsJson = False,
) -> None:
    """Say what works for a model: loads it as a run would and tries layers, packing, batching, and deployment on a probe.

    Exits with status 1 if a run would fail, or answer otherwise than it learnt.
    """
    from perdure.commands.doctor import examine
    from perdure.config.run_config import load_config
    from perdure.settings.read import parse_overrides

    backbone = {"model": model} | ({"kind": kind} if kind else {})
    found = examine(load_config({"backbone": backbone}, parse_overrides(settings or [])))
    if as_json:
        options.print_json(found.as_json())
    else:
        for line in found.lines():
            typer.echo(visible(line))
    if not found.works:
        raise typer.Exit(1)


def mine(
    suite: options.Suite,
    settings: Annotated[
        list[str] | None, typer.Argument(help="key=value settings, such as backbone.kind=encoder.")
    ] = None,
    length: Annotated[int, typer.Option(help="Number of tasks in a sequence.")] = 5,
    data: options.SuiteData = None,
    backbone: Annotated[
        str, typer.Option(help="Model: a known name, or a folder or hub id with its backbone.kind.")
    ] = "minilm",
    out: Out = None,
    overwrite: options.Overwrite = False,
) -> None:
    """Find conflicting tasks in a suite: cosines of their gradients, the most and the least conflicting sequences."""
    from perdure.commands.learn import load_configured_suite, load_learner
    from perdure.config.run_config import load_config
    from perdure.settings.read import parse_overrides
    from perdure.studies.mining import mine as find

    _check_out(out, "mined", overwrite)
    config = load_config({"suite": suite, "data": data, "backbone": backbone}, parse_overrides(settings or []))
    tasks = load_configured_suite(config).tasks
    _write(find(tasks, *load_learner(config, tasks), length, seed=config.seed), out, "mined")


def ability(
    run: options.Run,
    shots: Annotated[list[int] | None, typer.Option(help="Examples in the prompt. Repeatable. [default: 0, 5]")] = None,
    examples: Examples = None,
    task: Annotated[str | None, typer.Option(help="Task whose adapter to use, if the run has one per task.")] = None,
    harness: Annotated[
        list[str] | None, typer.Option(help="Task of lm-evaluation-harness, instead of the offline set. Repeatable.")
    ] = None,
    include: Annotated[Path | None, typer.Option(help="Folder with custom harness tasks.")] = None,
    as_json: options.AsJson = False,
) -> None:
    """Measure general ability before and after a run, on tasks it never learnt, zero- and few-shot."""
    from perdure.studies.ability import general_ability

    found = general_ability(
        run, shots=shots or [0, 5], examples=examples, task=task, harness=harness or [], include=include
    )
    typer.echo(json.dumps(found.as_dict(), indent=1) if as_json else found.as_markdown())
    if found.left_out and not as_json:
        typer.echo(f"Skipped, because the run learnt from the same data: {', '.join(found.left_out)}.")


@study_app.command("sign-split")
def sign_split(
    run: options.Run, examples: Examples = None, out: Out = None, overwrite: options.Overwrite = False
) -> None:
    """Split the smallest k % of each update by sign agreement with the past, and score each part (PS-LoRA, figure 2)."""
    _study("sign-split", run, examples, out, overwrite)


@study_app.command("signs")
def signs(run: options.Run, examples: Examples = None, out: Out = None, overwrite: options.Overwrite = False) -> None:
    """Score how much of each update's effect its signs, its magnitudes and its largest k % carry."""
    _study("signs", run, examples, out, overwrite)


def _study(name: str, folder: Path, examples: int | None, out: Path | None, overwrite: bool) -> None:
    from perdure.state.reopen import (
        check_base,
        check_base_there,
        check_reading,
        learner_config,
        load_learner,
        recorded_tasks,
    )
    from perdure.state.store import Store
    from perdure.studies import signs as studies

    _check_out(out, name, overwrite)
    store = Store(folder)
    config, tasks = learner_config(store), recorded_tasks(store)
    store.verify()
    check_base_there(store)
    model, backbone = load_learner(config, tasks)
    check_base(store, model)
    check_reading(store, backbone)
    study = {"sign-split": studies.sign_split, "signs": studies.signs}[name]
    _write(study(studies.open_run(folder, tasks, model, backbone, examples)), out, name)


def _check_out(out: Path | None, name: str, overwrite: bool) -> None:
    """Fail before the computation if the results could not be written."""
    from perdure.files.durable import make_folder
    from perdure.files.output import check_file
    from perdure.report.pictures import check_pictures

    if out is not None:
        check_pictures()
        for suffix in FORMATS:
            check_file(out / f"{name}.{suffix}", overwrite=overwrite)
        make_folder(out)


def _write(found: Any, out: Path | None, name: str) -> None:
    from perdure.files.durable import write_text

    typer.echo(visible(found.as_markdown()))
    if out is None:
        return
    for suffix, text_of in FORMATS.items():
        write_text(out / f"{name}.{suffix}", text_of(found))
        typer.echo(out / f"{name}.{suffix}")
