"""Commands that list what there is: methods and suites. Heavy modules are imported only when needed."""

from __future__ import annotations

from typing import Annotated

import typer

from perdure.cli import options
from perdure.files.terminal import visible


def add_commands(app: typer.Typer) -> None:
    """Register `methods` and `suites` with what is below them."""
    app.add_typer(methods_app, name="methods")
    app.add_typer(suites_app, name="suites")


methods_app = typer.Typer(invoke_without_command=True)


@methods_app.callback()
def methods(ctx: typer.Context, as_json: options.AsJson = False) -> None:
    """List the presets; `perdure methods show NAME` for the parts and settings of one."""
    from perdure.config.composition import wanted_settings
    from perdure.methods.table import PRESETS

    if ctx.invoked_subcommand is not None:
        return
    if as_json:
        options.print_json(
            {
                name: {"summary": p.summary, "source": p.source, **p.composition(), "settings": wanted_settings(name)}
                for name, p in PRESETS.items()
            }
        )
        return
    width = max(map(len, PRESETS))
    for name, preset in PRESETS.items():
        typer.echo(f"{name:<{width}}  {preset.summary}  [{preset.source}]")


@methods_app.command("show")
def show_method(name: Annotated[str, typer.Argument(help="A preset, a part, or module:Class.")]) -> None:
    """Show the parts of a preset, or one part: every setting with its default, allowed values and meaning."""
    from perdure.report.methods import method_lines

    typer.echo("\n".join(method_lines(name)))


suites_app = typer.Typer(invoke_without_command=True)


@suites_app.callback()
def suites(ctx: typer.Context, as_json: options.AsJson = False) -> None:
    """List the suites; `perdure suites show NAME` for the tasks of one."""
    from perdure.tasks.suites import describe, suite_names

    if ctx.invoked_subcommand is None and as_json:
        options.print_json({name: describe(name) for name in suite_names()})
    elif ctx.invoked_subcommand is None:
        for name in suite_names():
            typer.echo(f"{name:<16} {describe(name)['about']}")


@suites_app.command("show")
def show_suite(
    name: Annotated[str, typer.Argument(help="Suite name or YAML file.")],
    data: options.SuiteData = None,
    as_json: options.AsJson = False,
) -> None:
    """Show a suite's tasks with labels and licence; with --data or cached files also sizes and oddities."""
    from perdure.report.suites import suite_lines
    from perdure.tasks.suites import describe

    if as_json:
        options.print_json(describe(name))
        return
    for line in suite_lines(name, data):
        typer.echo(visible(line))
