"""Scores as tables: for a terminal (rich, plain elsewhere) and as Markdown. Numbers are points, 100 x the fraction."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich import box
from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table
from rich.text import Text

from perdure.report.words import AFTER, headings, plain, rows, run_names, task_headings
from perdure.state.scores import class_scores
from perdure.state.store import DEPLOYED
from perdure.state.words import points
from perdure.training.metrics import FORMULAS, Scores

NAME_WIDTH = 16
"""Widest column; longer names are folded."""
GAP = 3
UNEVEN = 0.6
"""The share of a task's most frequent class from which accuracy alone says little."""
MARKS = {mark: f"\\{mark}" for mark in "\\`*_[]|#~$!"} | {"<": "&lt;", ">": "&gt;", "&": "&amp;"}


@dataclass(frozen=True)
class Column:
    """A column of numbers: its heading, one cell for each row, and which cells are dim."""

    heading: str
    cells: Sequence[str]
    dim: Sequence[bool]

    @property
    def width(self) -> int:
        """The widest line of the heading, within bounds, and the gap beside it."""
        return GAP + max(5, min(NAME_WIDTH, max(map(len, self.heading.split("\n")))))


@dataclass(frozen=True)
class WideTable:
    """A table for a console of any width: as many columns as fit, the others in blocks below; no number is ever cut."""

    title: str
    corner: str
    names: Sequence[str]
    columns: Sequence[Column]
    bold_last: bool = False

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        inside = options.max_width - 2  # a margin of one on each side
        widest = max((column.width for column in self.columns), default=0)
        names = max(4, min(max(map(len, (self.corner, *self.names))), inside - widest))
        blocks: list[list[Column]] = [[]]
        for column in self.columns:
            if blocks[-1] and sum(c.width for c in (*blocks[-1], column)) > inside - names:
                blocks.append([])
            blocks[-1].append(column)
        for block in blocks:
            yield self._block(names, block, first=block is blocks[0])

    def _block(self, names: int, columns: Sequence[Column], first: bool) -> Table:
        title = Text(self.title) if first else None
        table = Table(box=box.SIMPLE_HEAD, title=title, title_justify="left", title_style="bold", pad_edge=False)
        table.add_column(Text(self.corner), overflow="fold", vertical="bottom", max_width=names)
        for column in columns:
            heading, width = Text(column.heading, justify="right"), column.width - GAP
            table.add_column(heading, justify="right", min_width=width, max_width=width, overflow="fold")
        for row, name in enumerate(self.names):
            last = self.bold_last and row == len(self.names) - 1
            cells = [Text(c.cells[row], style="dim" if c.dim[row] and not last else "") for c in columns]
            table.add_row(Text(name), *cells, style="bold" if last else None)
        return table


def score_table(run: Scores) -> WideTable:
    """The score matrix of one run: the untrained row on top, the final row bold, tasks not learnt yet dim."""
    matrix = rows(run)
    columns = []
    for t, (task, heading) in enumerate(zip(run.tasks, task_headings(run), strict=True)):
        learnt = run.stages.index(task) + 1 if task in run.stages else 1  # the joint stage learns every task
        cells, dim = [points(row[t]) for _, row in matrix], [s < learnt for s in range(len(matrix))]
        columns.append(Column(plain(heading), cells, dim))
    title = f"{plain(run.method)}, seed {run.seed}: {run.split} score of each task after each stage, in points"
    return WideTable(title, AFTER, [plain(name) for name, _ in matrix], columns, bold_last=True)


def metric_table(runs: Sequence[Scores]) -> WideTable:
    """Every metric, one row for each run; '-' where a metric is not defined (forgetting of joint training)."""
    columns = []
    for metric, title in headings(runs).items():
        cells = [points(getattr(run, metric)) for run in runs]
        columns.append(Column("\n".join(title.replace("Sample-", "Sample- ").split()), cells, [False] * len(runs)))
    names = [plain(name) for name in run_names(runs)]
    return WideTable("Metrics in points (forgetting: lower is better)", "Method", names, columns)


def _uneven(found: Mapping[str, Mapping[str, float]]) -> dict[str, Mapping[str, float]]:
    """The tasks in which one class is so frequent that always answering it would look like having learnt something."""
    return {task: scores for task, scores in found.items() if scores["largest-class"] >= UNEVEN}


def class_table(found: Mapping[str, Mapping[str, float]]) -> WideTable:
    """Accuracy of tasks with labels beside the scores in which rare classes count as much as frequent ones."""
    names = ("Accuracy", "Largest\nclass", "Balanced\naccuracy", "Macro-F1")
    titles = dict(zip(("accuracy", "largest-class", "balanced-accuracy", "macro-f1"), names, strict=True))
    columns = [
        Column(title, [points(scores[key]) for scores in found.values()], [False] * len(found))
        for key, title in titles.items()
    ]
    return WideTable(
        "Tasks with a frequent class, after the last stage", "Task", [plain(task) for task in found], columns
    )


def print_scores(run: Scores) -> None:
    """The score matrix, the metrics and the run's folder on the terminal."""
    console = Console()
    console.print(score_table(run))
    console.print(metric_table([run]))
    if uneven := _uneven(class_scores(run.folder)):
        console.print(class_table(uneven))
    deployed = Path(run.folder) / DEPLOYED
    where = f"   Deployed model: {deployed}" if deployed.exists() else ""
    console.print(f"Run: {run.folder}{where}", soft_wrap=True, markup=False)


def markdown(runs: Sequence[Scores]) -> str:
    """The metrics of all runs, the legend with each formula, and the score matrix of each run, as Markdown."""
    names, titles = run_names(runs), headings(runs)
    lines = ["# Scores", "", "Numbers are points: 100 x the fraction. Less forgetting is better.", ""]
    metric_rows = ([name, *(points(getattr(run, m)) for m in titles)] for name, run in zip(names, runs, strict=True))
    lines += markdown_table(["Method", *titles.values()], metric_rows)
    lines += ["", "a[s,t] is the score on task t after stage s; T is the last task and stage.", ""]
    lines += [f"- **{title}**: {FORMULAS[metric]}" for metric, title in titles.items()]
    for name, run in zip(names, runs, strict=True):
        sizes = ", ".join(f"{escaped(task)} {size}" for task, size in zip(run.tasks, run.examples, strict=True))
        lines += ["", f"## {escaped(name)}", ""]
        lines += [f"Seed {run.seed}; {run.split} score of each task after each stage; examples: {sizes}.", ""]
        lines += markdown_table(
            ["", *task_headings(run)], ([row, *map(points, scores)] for row, scores in rows(run)), bold_last=True
        )
    return "\n".join(lines) + "\n"


def markdown_table(header: Sequence[str], body: Iterable[Sequence[str]], bold_last: bool = False) -> list[str]:
    """Lines of a table: first column left-aligned, the others right-aligned; every cell escaped."""
    cells = [[escaped(cell) for cell in row] for row in (header, *body)]
    if bold_last:
        cells[-1] = [f"**{cell}**" for cell in cells[-1]]
    head, *rest = [f"| {' | '.join(row)} |" for row in cells]
    return [head, "|" + "|".join([":---", *["---:"] * (len(header) - 1)]) + "|", *rest]


def escaped(text: str) -> str:
    """Text that Markdown shows verbatim, on one line: no markup, no HTML, no table bars."""
    return "".join(MARKS.get(c, c) for c in plain(text))
