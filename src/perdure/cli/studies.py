"""The commands that look into conflict: mine a suite for it, study what signs and magnitudes of a run's updates carry."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

study_app = typer.Typer(
    help="What parts of a finished run's updates carry: `sign-split`, `signs`.", no_args_is_help=True
)

Out = Annotated[
    Path | None, typer.Option(help="Folder for the data (JSON), the table (Markdown) and the picture (SVG).")
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace the files if they exist.")]
WRITTEN: Mapping[str, Callable[[Any], str]] = {
    "json": lambda found: json.dumps(found.as_dict(), indent=1),
    "md": lambda found: found.as_markdown(),
    "svg": lambda found: found.as_svg(),
}
"""Ending of a file -> what is written into it; one after another, the picture last: what goes wrong with it takes no data
along."""
Examples = Annotated[int | None, typer.Option(help="Score on at most so many examples a task.")]


def add_commands(app: typer.Typer) -> None:
    """Put mine, ability and study on the command line."""
    app.command()(mine)
    app.command()(ability)
    app.add_typer(study_app, name="study")


def mine(
    suite: Annotated[str, typer.Argument(help="See `perdure suites`.")],
    settings: Annotated[list[str] | None, typer.Argument(help="key=value settings, as backbone.kind=encoder.")] = None,
    length: Annotated[int, typer.Option(help="Tasks in a sequence.")] = 5,
    data: Annotated[str | None, typer.Option(help="Folder with the suite's files, if it needs one.")] = None,
    backbone: Annotated[
        str, typer.Option(help="A model: minilm, or a folder or hub id with its backbone.kind.")
    ] = "minilm",
    out: Out = None,
    overwrite: Overwrite = False,
) -> None:
    """Which tasks of a suite conflict: cosines of their gradients, the most and the least conflicting sequences."""
    from perdure.commands.learn import load_configured_suite, load_learner
    from perdure.config.run_config import load_config
    from perdure.settings.read import parse_overrides
    from perdure.studies.mining import mine as find

    _ready(out, "mined", overwrite)
    config = load_config({"suite": suite, "data": data, "backbone": backbone}, parse_overrides(settings or []))
    tasks = load_configured_suite(config).tasks
    _give(find(tasks, *load_learner(config, tasks), length, seed=config.seed), out, "mined")


def ability(
    run: Path,
    shots: Annotated[
        list[int] | None, typer.Option(help="Examples in the prompt; may be given several times [0, 5].")
    ] = None,
    examples: Examples = None,
    task: Annotated[str | None, typer.Option(help="Whose update, of a run that deploys one for each task.")] = None,
    harness: Annotated[
        list[str] | None, typer.Option(help="Tasks of lm-evaluation-harness instead of the offline set.")
    ] = None,
    include: Annotated[Path | None, typer.Option(help="Folder with harness tasks of your own.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Machine-readable output.")] = False,
) -> None:
    """General ability before and after a run: tasks it never learnt, without and with examples in the prompt."""
    from perdure.studies.ability import general_ability

    found = general_ability(
        run, shots=shots or [0, 5], examples=examples, task=task, harness=harness or [], include=include
    )
    typer.echo(json.dumps(found.as_dict(), indent=1) if as_json else found.as_markdown())
    if found.left_out and not as_json:
        typer.echo(f"Left out, since the run learnt from the same data: {', '.join(found.left_out)}.")


@study_app.command("sign-split")
def sign_split(run: Path, examples: Examples = None, out: Out = None, overwrite: Overwrite = False) -> None:
    """PS-LoRA's second figure: the smallest k % of an update, split by sign agreement with the past, each part scored."""
    from perdure.studies.signs import sign_split as study

    _ready(out, "sign-split", overwrite)
    _give(study(_opened(run, examples)), out, "sign-split")


@study_app.command("signs")
def signs(run: Path, examples: Examples = None, out: Out = None, overwrite: Overwrite = False) -> None:
    """How much of each update's effect its signs, its magnitudes and its largest k % carry."""
    from perdure.studies.signs import signs as study

    _ready(out, "signs", overwrite)
    _give(study(_opened(run, examples)), out, "signs")


def _opened(folder: Path, examples: int | None) -> Any:
    from perdure.config.run_config import load_config
    from perdure.state.reopen import check_base, check_base_there, load_learner, recorded_tasks
    from perdure.state.store import Store
    from perdure.studies.signs import open_run

    store = Store(folder)
    config, tasks = load_config(store.about["config"]), recorded_tasks(store)
    store.verify()
    check_base_there(store)
    model, backbone = load_learner(config, tasks)
    check_base(store, model)
    return open_run(folder, tasks, model, backbone, examples)


def _ready(out: Path | None, name: str, overwrite: bool) -> None:
    """Before anything is computed: the folder can be made, pictures drawn, and nothing finished is in the way."""
    from perdure.files.durable import make_folder
    from perdure.files.output import check_file
    from perdure.report.pictures import check_pictures

    if out is not None:
        check_pictures()
        for suffix in WRITTEN:
            check_file(out / f"{name}.{suffix}", overwrite=overwrite)
        make_folder(out)


def _give(found: Any, out: Path | None, name: str) -> None:
    from perdure.files.durable import write_text

    typer.echo(found.as_markdown())
    if out is None:
        return
    for suffix, text_of in WRITTEN.items():
        write_text(out / f"{name}.{suffix}", text_of(found))
        typer.echo(out / f"{name}.{suffix}")
