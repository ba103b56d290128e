"""The report of one or several runs: a self-contained HTML page, the same as Markdown, and as JSON.

The page embeds everything it needs; plotly, 4.8 MB of text, compressed: the browser unpacks it. The content security policy
forbids every request, and every script but the page's own two (by their hash), whatever a task or a label is called.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

from markupsafe import Markup

from perdure.errors import ConfigError
from perdure.files.durable import finite_or_none, write_json, write_text
from perdure.report import sections
from perdure.report.html import render, source
from perdure.report.own import check_own
from perdure.report.runs import Run, read_runs
from perdure.report.summary import summary
from perdure.report.tasks import as_values, standing_of
from perdure.report.texts import changed_texts
from perdure.report.words import headings
from perdure.training.metrics import FORMULAS


def write_report(run_folders: Sequence[str | Path], out: str | Path) -> dict[str, Path]:
    """Write report.html, report.md and report.json into the folder `out`; returns their paths by 'html', 'md', 'json'.

    Raises:
        ConfigError: no run, a run given twice, or plotly is not installed.
        StoreError: a folder without a run or a finished stage, a damaged file, or a file in `out` that no report wrote.
    """
    plotly = _plotly()
    runs = read_runs(run_folders)
    folder = Path(out)
    check_own(folder)
    paths = {kind: folder / f"report.{kind}" for kind in ("html", "md", "json")}
    html, md = page(runs, plotly), summary(runs)  # before anything is written
    write_json(paths["json"], {"formulas": dict(FORMULAS), "runs": [_values(run) for run in runs]})
    write_text(paths["md"], md)
    write_text(paths["html"], html)
    return paths


def page(runs: Sequence[Run], plotly: str) -> str:
    """The whole page; `plotly` is plotly.js."""
    figures, scores, lead = sections.Figures(), runs[0].scores, f"{len(runs)} runs compared."
    if len(runs) == 1:
        lead = f"{len(scores.tasks)} tasks, seed {scores.seed}, scored on the {scores.split} split."
    # the line ends that a browser sees, which is what it hashes
    plotly, script = (text.replace("\r\n", "\n").replace("\r", "\n") for text in (plotly, source("page.js")))
    policy = (
        f"default-src 'none'; style-src 'unsafe-inline'; img-src data:; script-src {_hash(plotly)} {_hash(script)}; "
        "base-uri 'none'; form-action 'none'"
    )
    return render(
        "report.html",
        title="perdure: " + (", ".join(run.name for run in runs) if len(runs) <= 3 else f"{len(runs)} runs"),
        lead=lead,
        policy=policy,
        style=Markup(source("page.css")),
        standing=standing_of(runs[0]) if len(runs) == 1 else None,
        **sections.comparison(runs, figures),
        sequence=sections.over_the_sequence(runs, figures),
        runs=[sections.one_run(run, _score_range(runs), figures) for run in runs],
        **sections.what_was_run(runs),
        formulas=[(title, FORMULAS[metric]) for metric, title in headings([run.scores for run in runs]).items()],
        version=version("perdure"),
        charts=Markup(embedded(figures.by_id())),
        plotly=Markup(base64.b64encode(gzip.compress(plotly.encode(), mtime=0)).decode()),
        script=Markup(script),
    )


def _values(run: Run) -> dict[str, Any]:
    standing = finite_or_none([as_values(outcome) for outcome in run.outcomes])
    changed = [asdict(text) for outcome in run.outcomes for text in changed_texts(outcome)]
    return {**run.as_dict(), "standing": standing, "changed_texts": changed}


def _score_range(runs: Sequence[Run]) -> tuple[float, float]:
    """The lowest and highest score of all runs, so that the colours of their heat maps compare."""
    cells = [
        v for r in runs for row in (r.scores.untrained_scores, *r.scores.score_matrix) for v in row if v is not None
    ]
    return (min(cells), max(cells)) if cells and min(cells) < max(cells) else (0.0, 1.0)


def embedded(value: Mapping[str, Any]) -> str:
    """JSON that cannot end the script element it is in."""
    text = json.dumps(finite_or_none(value), allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _plotly() -> str:
    try:
        from plotly.offline import get_plotlyjs
    except ImportError as error:
        raise ConfigError("The report's charts need plotly. Install it: pip install 'perdure[report]'.") from error
    return get_plotlyjs()


def _hash(script: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"
