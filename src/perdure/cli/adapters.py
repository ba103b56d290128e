"""Commands on existing adapters: diagnose, merge, export. Heavy modules are imported only when needed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Literal

import typer

from perdure.cli import options
from perdure.files.terminal import visible

Adapters = typer.Argument(help="Adapter folders or hub ids, in training order.")
Base = Annotated[str | None, typer.Option(help="Base model: a folder, a known name, or a hub id.")]
Rank = Annotated[int | None, typer.Option(help="Rank of the written adapter. [default: the smallest exact one]")]
Dtype = Annotated[
    Literal["fp32", "bf16", "fp16"] | None,
    typer.Option(help="Data type of the written weights. [default: fp32, or the base's own]"),
]


def add_commands(app: typer.Typer) -> None:
    """Register diagnose, merge, export and push."""
    for command in (diagnose, merge, export, push):
        app.command()(command)


def diagnose(
    adapters: Annotated[list[str], Adapters],
    base: Base = None,
    top: Annotated[float, typer.Option(help="Share of positions that count as large.")] = 0.2,
    threshold: Annotated[float, typer.Option(help="Smallest non-zero entry, as a multiple of the RMS.")] = 0.1,
    sample: Annotated[
        float | None, typer.Option(help="Use this share of the rows; gives a confidence interval.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Random seed for --sample.")] = 0,
    history: Annotated[bool, typer.Option("--history", help="Compare each with the SUM of those before it.")] = False,
    html: Annotated[Path | None, typer.Option(help="Also write an HTML page with heat maps.")] = None,
    overwrite: options.Overwrite = False,
    as_json: options.AsJson = False,
) -> None:
    """Diagnose how adapters of one base interfere: sign conflicts, collisions, subspaces, magnitudes."""
    from perdure.commands.merge import base_folder
    from perdure.diagnostics.folders import diagnose_folders
    from perdure.diagnostics.positions import PositionSettings
    from perdure.files.durable import make_folder, write_text
    from perdure.files.output import check_file
    from perdure.report.diagnosis import page

    if html is not None:  # fail before the computation
        check_file(html, [*adapters, base], overwrite)
        make_folder(html.parent)
    positions = PositionSettings(top, threshold, sample, seed)
    found = diagnose_folders(adapters, positions, history=history, base=base_folder(base) if base else None)
    if html is not None:
        write_text(html, page(found.diagnosis))
    if as_json:
        options.print_json(found.as_json())
        return
    from rich.console import Console

    from perdure.diagnostics.text import tables
    from perdure.diagnostics.words import sentences

    console = Console()
    for table in tables(found.diagnosis):
        console.print(table)
    for line in (*sentences(found.diagnosis), *found.notes):
        console.print(visible(line), markup=False, highlight=False)


def merge(
    adapters: Annotated[list[str] | None, Adapters] = None,
    rule: Annotated[
        str | None, typer.Option(help="Merge rule, see docs/merging.md; 'guarded' needs --tasks and --backbone.")
    ] = None,
    like: Annotated[
        Literal["peft", "mergekit"] | None,
        typer.Option(
            help="Take --rule and --set by the names, options and defaults of this tool, see docs/merging.md."
        ),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder to write.")] = None,
    set_: Annotated[list[str] | None, typer.Option("--set", help="Setting of the rule, such as density=0.3.")] = None,
    base: Base = None,
    rank: Rank = None,
    dtype: Dtype = None,
    file: Annotated[Path | None, typer.Option(help="Merge file (YAML) with rule, adapters and overrides.")] = None,
    into: Annotated[Path | None, typer.Option(help="Merge ONE adapter into this state, in constant memory.")] = None,
    weight: Annotated[float, typer.Option(help="With --into: weight of the adapter.")] = 1.0,
    again: Annotated[bool, typer.Option("--again", help="With --into: allow an adapter it already holds.")] = False,
    moments: Annotated[list[Path] | None, typer.Option(help="Input second moments, one file per adapter.")] = None,
    tasks: Annotated[str | None, typer.Option(help="Suite (name or YAML): one task per adapter, in order.")] = None,
    order: Annotated[str | None, typer.Option(help="Task order of the suite.")] = None,
    backbone: Annotated[str | None, typer.Option(help="Base to score or measure on: a name or a folder.")] = None,
    kind: Annotated[str | None, typer.Option(help="Kind of the backbone: encoder, causal, seq2seq, vision.")] = None,
    tolerance: Annotated[
        float | None, typer.Option(help="guarded: total loss allowed for an earlier task. [default: 0.01]")
    ] = None,
    confidence: Annotated[
        float | None,
        typer.Option(help="guarded: confidence, per task, that validation shows no greater loss. [default: 0.95]"),
    ] = None,
    overwrite: options.Overwrite = False,
    as_json: options.AsJson = False,
) -> None:
    """Merge adapters of one base into one adapter or into the base's weights."""
    from perdure.commands.merge import DTYPES, Request, run_merge

    request = Request(
        adapters=tuple(adapters or ()),
        rule=rule,
        like=like,
        out=out,
        settings=tuple(set_ or ()),
        base=base,
        rank=rank,
        dtype=DTYPES[dtype] if dtype else None,
        file=file,
        into=into,
        weight=weight,
        again=again,
        moments=tuple(moments or ()),
        tasks=tasks,
        order=order,
        backbone=backbone,
        kind=kind,
        tolerance=tolerance,
        confidence=confidence,
        overwrite=overwrite,
    )
    outcome = run_merge(request)
    typer.echo(json.dumps(outcome.as_json(), indent=1) if as_json else visible("\n".join(outcome.lines())))


def export(
    folder: Annotated[Path, typer.Argument(help="Run folder, or state of `perdure merge --into`.")],
    out: Annotated[Path, typer.Option(help="Folder to write.")],
    form: Annotated[
        Literal["adapter", "model", "gguf", "gguf-model"],
        typer.Option("--as", help="What to write; gguf: the adapter or the model for llama.cpp, by its converter."),
    ] = "adapter",
    rank: Rank = None,
    dtype: Dtype = None,
    base: Base = None,
    task: Annotated[str | None, typer.Option(help="Task whose adapter to export, if the run has one per task.")] = None,
    overwrite: options.Overwrite = False,
    as_json: options.AsJson = False,
) -> None:
    """Export what a run or a merge state deploys as a plain adapter or a whole model, also as GGUF."""
    from perdure.commands.export import export as write
    from perdure.commands.merge import DTYPES, lines_of

    report = write(
        folder, out, form, rank=rank, dtype=DTYPES[dtype] if dtype else None, base=base, task=task, overwrite=overwrite
    )
    typer.echo(json.dumps(report.as_json(), indent=1) if as_json else visible("\n".join(lines_of(report))))


def push(
    run: options.Run,
    repo: Annotated[str, typer.Argument(help="ORG/NAME on the Hugging Face hub.")],
    form: Annotated[
        Literal["adapter", "model"] | None,
        typer.Option("--as", help="What to upload. [default: an adapter where the run deploys one]"),
    ] = None,
    task: Annotated[str | None, typer.Option(help="Task whose adapter to push, if the run has one per task.")] = None,
    base_id: Annotated[
        str | None, typer.Option(help="The base's name on the hub, if the run learnt on a folder.")
    ] = None,
    public: Annotated[bool, typer.Option("--public", help="Make a new repository public. [default: private]")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Export and check, list the files, upload nothing.")
    ] = False,
) -> None:
    """Upload what a run deploys to the Hugging Face hub, with its model card and perdure.json; private by default."""
    from perdure.commands.push import push as upload

    found = upload(run, repo, form=form, task=task, base_id=base_id, private=not public, dry_run=dry_run)
    typer.echo(visible("\n".join(found.lines())))
