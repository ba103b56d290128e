"""The commands for adapters people already have: diagnose, merge, export. Functions parse and call; nothing heavy is imported
before it is needed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

if TYPE_CHECKING:
    import torch


Adapters = Annotated[list[str], typer.Argument(help="Adapter folders or hub ids, in the order they were trained.")]
AsJson = Annotated[bool, typer.Option("--json", help="Machine-readable output.")]
Base = Annotated[str | None, typer.Option(help="The base model: a folder, a known name, or a hub id.")]
Rank = Annotated[int | None, typer.Option(help="Rank of the adapter to write; default: the smallest exact one.")]
Dtype = Annotated[
    Literal["fp32", "bf16", "fp16"] | None, typer.Option(help="Of what is written; default fp32, or the base's own.")
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace the output folder if it exists.")]


def add_commands(app: typer.Typer) -> None:
    """Put diagnose, merge and export on the command line."""
    for command in (diagnose, merge, export):
        app.command()(command)


def diagnose(
    adapters: Adapters,
    base: Base = None,
    top: Annotated[float, typer.Option(help="Which share of positions counts as large.")] = 0.2,
    threshold: Annotated[float, typer.Option(help="What counts as non-zero, times the root mean square.")] = 0.1,
    sample: Annotated[float | None, typer.Option(help="Look at this share of the rows; gives an interval.")] = None,
    seed: Annotated[int, typer.Option(help="Which rows are sampled.")] = 0,
    history: Annotated[bool, typer.Option("--history", help="Compare each with the SUM of those before it.")] = False,
    html: Annotated[Path | None, typer.Option(help="Also write a page with heat maps.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the page if it exists.")] = False,
    as_json: AsJson = False,
) -> None:
    """What adapters of one base do to each other: signs, collisions, subspaces, magnitudes."""
    from perdure.commands.merge import base_folder
    from perdure.diagnostics.folders import diagnose_folders
    from perdure.diagnostics.positions import Looking
    from perdure.report.diagnosis import page

    if html is not None:
        from perdure.files.durable import make_folder
        from perdure.files.output import check_file

        check_file(html, [*adapters, base], overwrite)
        make_folder(html.parent)  # before the work, not behind it
    looking = Looking(top, threshold, sample, seed)
    found = diagnose_folders(adapters, looking, history=history, base=base_folder(base) if base else None)
    if html is not None:
        from perdure.files.durable import write_text

        write_text(html, page(found.diagnosis))
    if as_json:
        typer.echo(json.dumps(found.as_json(), indent=1, ensure_ascii=False))
        return
    from rich.console import Console

    from perdure.diagnostics.text import tables
    from perdure.diagnostics.words import sentences

    console = Console()
    for table in tables(found.diagnosis):
        console.print(table)
    for line in (*sentences(found.diagnosis), *found.notes):
        console.print(line, markup=False, highlight=False)


def merge(
    adapters: Annotated[
        list[str] | None, typer.Argument(help="Adapter folders or hub ids, in the order they were trained.")
    ] = None,
    rule: Annotated[
        str | None, typer.Option(help="See docs/merging.md; 'guarded' needs --tasks and --backbone.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="The folder to write.")] = None,
    set_: Annotated[list[str] | None, typer.Option("--set", help="A setting of the rule, like density=0.3.")] = None,
    base: Base = None,
    rank: Rank = None,
    dtype: Dtype = None,
    file: Annotated[Path | None, typer.Option(help="A merge file in YAML: rule, adapters, overrides.")] = None,
    into: Annotated[Path | None, typer.Option(help="Merge ONE adapter into this state, in constant memory.")] = None,
    weight: Annotated[float, typer.Option(help="Of the adapter merged --into a state.")] = 1.0,
    again: Annotated[bool, typer.Option("--again", help="Merge --into a state what it already holds.")] = False,
    moments: Annotated[list[Path] | None, typer.Option(help="Input second moments, one file an adapter.")] = None,
    tasks: Annotated[str | None, typer.Option(help="Suite (name or YAML): one task an adapter, in order.")] = None,
    order: Annotated[str | None, typer.Option(help="The order of the suite's tasks.")] = None,
    backbone: Annotated[str | None, typer.Option(help="The base to score or measure on: a name or a folder.")] = None,
    kind: Annotated[str | None, typer.Option(help="Its kind: encoder, causal, seq2seq, vision.")] = None,
    tolerance: Annotated[
        float | None, typer.Option(help="guarded: what an earlier task may lose in all; default 0.01.")
    ] = None,
    confidence: Annotated[
        float | None,
        typer.Option(help="guarded: that it loses no more, for each by itself, as validation shows; default 0.95."),
    ] = None,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
) -> None:
    """Merge adapters of one base into an adapter or into the base's weights."""
    from perdure.commands.merge import Request, run_merge

    request = Request(
        adapters=tuple(adapters or ()),
        rule=rule,
        out=out,
        settings=tuple(set_ or ()),
        base=base,
        rank=rank,
        dtype=_dtype(dtype),
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
    typer.echo(json.dumps(outcome.as_json(), indent=1) if as_json else "\n".join(outcome.lines()))


def export(
    folder: Annotated[Path, typer.Argument(help="A run's folder, or the state of `perdure merge --into`.")],
    out: Annotated[Path, typer.Option(help="The folder to write.")],
    form: Annotated[Literal["adapter", "model"], typer.Option("--as", help="What to write.")] = "adapter",
    rank: Rank = None,
    dtype: Dtype = None,
    base: Base = None,
    task: Annotated[str | None, typer.Option(help="Which adapter, of a run with one for each task.")] = None,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
) -> None:
    """Write what a run or a merge state deploys as a plain adapter or a whole model."""
    from perdure.commands.export import export as write
    from perdure.commands.merge import lines_of

    report = write(folder, out, form, rank=rank, dtype=_dtype(dtype), base=base, task=task, overwrite=overwrite)
    typer.echo(json.dumps(report.as_json(), indent=1) if as_json else "\n".join(lines_of(report)))


def _dtype(name: str | None) -> torch.dtype | None:
    from perdure.commands.merge import DTYPES

    return DTYPES[name] if name else None
