"""The report of one or several runs: a self-contained HTML page, the same as Markdown, and as JSON.

The page holds everything it needs, plotly too, and asks nothing of a network: its content security policy forbids that,
and lets only the scripts of this file run (by their hash), whatever a task or a label is called.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from importlib import resources
from importlib.metadata import version
from pathlib import Path
from typing import Any

from perdure.errors import ConfigError
from perdure.files.durable import finite_or_none, write_json, write_text
from perdure.report import sections
from perdure.report.html import Html, join, tag
from perdure.report.runs import Run, read_runs
from perdure.report.summary import summary
from perdure.training.metrics import FORMULAS


def write_report(run_folders: Sequence[str | Path], out: str | Path) -> dict[str, Path]:
    """Write report.html, report.md and report.json into the folder `out`; returns their paths by 'html', 'md', 'json'.

    Raises:
        ConfigError: no run, a run twice, or plotly is not installed.
        StoreError: a folder holds no run, no finished stage, or a damaged file.
    """
    plotly = _plotly()
    runs = read_runs(run_folders)
    folder = Path(out)
    paths = {kind: folder / f"report.{kind}" for kind in ("html", "md", "json")}
    html, md = page(runs, plotly), summary(runs)  # before anything is written
    write_json(paths["json"], {"formulas": dict(FORMULAS), "runs": [run.as_dict() for run in runs]})
    write_text(paths["md"], md)
    write_text(paths["html"], html)
    return paths


def page(runs: Sequence[Run], plotly: str) -> str:
    """The whole page; `plotly` is plotly.js."""
    figures = sections.Figures()
    scale = _scale(runs)
    parts = [
        sections.comparison(runs, figures),
        sections.over_the_sequence(runs, figures),
        *(sections.one_run(run, number, scale, figures) for number, run in enumerate(runs, start=1)),
        sections.what_was_run(runs),
        sections.legend(),
    ]
    names = ", ".join(run.name for run in runs)
    title = f"perdure: {names}" if len(runs) <= 3 else f"perdure: {len(runs)} runs"
    scripts = [_lines(plotly), _lines(_resource("page.js"))]
    return "<!doctype html>\n" + tag(
        "html",
        _head(title, scripts),
        tag(
            "body",
            tag(
                "header", tag("h1", title), tag("p", _lead(runs), class_="lead"), _contents(runs, parts[1] is not None)
            ),
            tag("main", join(parts, "\n")),
            tag(
                "footer", tag("p", f"Written by perdure {version('perdure')}. This page is one file and works offline.")
            ),
            tag("noscript", tag("p", "Charts need JavaScript; every number is also in a table.", class_="warning")),
            Html(f'<script type="application/json" id="charts">{embedded(figures.drawn)}</script>'),
            *(Html(f"<script>{script}</script>") for script in scripts),
        ),
        lang="en",
    )


def _head(title: str, scripts: Sequence[str]) -> Html:
    policy = (
        f"default-src 'none'; style-src 'unsafe-inline'; img-src data:; script-src {' '.join(map(_hash, scripts))}; "
        "base-uri 'none'; form-action 'none'"
    )
    return tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=policy),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("title", title),
        Html(f"<style>{_resource('page.css')}</style>"),
    )


def _contents(runs: Sequence[Run], has_sequence: bool) -> Html:
    links = {"scores": "Scores"} | ({"sequence": "Over the sequence"} if has_sequence else {})
    links |= {f"run-{number}": run.name for number, run in enumerate(runs, start=1)}
    links |= {"what": "What was run", "legend": "Legend"}
    items = (tag("li", tag("a", text, href=f"#{name}")) for name, text in links.items())
    return tag("nav", tag("ul", join(items)), aria_label="Contents")


def _lead(runs: Sequence[Run]) -> str:
    if len(runs) > 1:
        return f"{len(runs)} runs compared."
    scores = runs[0].scores
    return (
        f"{len(scores.tasks)} tasks, seed {scores.seed}, scored on the {scores.split} split: {', '.join(scores.tasks)}."
    )


def _scale(runs: Sequence[Run]) -> tuple[float, float]:
    """The lowest and highest score of all runs, so that the heat maps' colours compare."""
    cells = [
        v for r in runs for row in (r.scores.untrained_scores, *r.scores.score_matrix) for v in row if v is not None
    ]
    return (min(cells), max(cells)) if cells and min(cells) < max(cells) else (0.0, 1.0)


def embedded(value: Mapping[str, Any]) -> str:
    """JSON that cannot end the script element it stands in."""
    text = json.dumps(finite_or_none(value), allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _plotly() -> str:
    try:
        from plotly.offline import get_plotlyjs
    except ImportError as error:
        raise ConfigError("The report's charts need plotly. Install it: pip install 'perdure[report]'.") from error
    return get_plotlyjs()


def _resource(name: str) -> str:
    return resources.files("perdure.report").joinpath(name).read_text(encoding="utf-8")


def _lines(script: str) -> str:
    """With the line ends a browser sees, so that the hash is that of what it runs."""
    return script.replace("\r\n", "\n").replace("\r", "\n")


def _hash(script: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"
