"""`perdure demo`: three methods on five real tasks, side by side."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from perdure.commands.learn import run_config
from perdure.config.run_config import load_config
from perdure.errors import ConfigError
from perdure.files.durable import write_text
from perdure.files.terminal import WhileOpen
from perdure.loop.progress import reporter
from perdure.report.page import write_report
from perdure.report.text import markdown, metric_table, score_table

METHODS = ("seq-lora", "inc-lora", "ps-lora")
SETTINGS = {
    "suite": "quickstart",
    "backbone": "minilm",
    "budget": {"train": 192, "validation": 0, "test": 200},
    "training": {"epochs": 3, "learning_rate": 2e-3},
}
"""Fewer examples than in the README's table, so that it takes minutes, and one learning rate for all instead of each method's
tuned one, so that forgetting shows."""


def run_demo(out: Path, seed: int, progress: str) -> None:
    """Run `METHODS` into `out/<method>`; print score matrices, metrics, and where everything was written."""
    console = Console(file=WhileOpen("stderr" if progress == "json" else "stdout"))  # pyright: ignore[reportArgumentType]  # then standard output is for JSON lines only
    console.print(
        f"Learning amazon, bbc, r8, rotten-tomatoes and 20newsgroups one after another with {', '.join(METHODS)}: "
        f"{SETTINGS['budget']['train']} training and {SETTINGS['budget']['test']} test examples per task."
    )
    found = []
    for number, method in enumerate(METHODS, start=1):
        config = load_config({**SETTINGS, "method": method, "seed": seed})
        title = f"{method} {number}/{len(METHODS)}"
        found.append(run_config(config, out / method, report=reporter(progress, title)))
    for scores in found:
        console.print(score_table(scores))
    console.print(metric_table(found))
    try:
        report = write_report([scores.folder for scores in found], out)["html"]
    except ConfigError:  # plotly is an optional extra
        report = out / "report.md"
        write_text(report, markdown(found))
    console.print(f"Report: {report}", markup=False)
    for scores in found:
        console.print(f"{scores.method}: run {scores.folder}, adapters {scores.folder}/stages/*/adapter, "
                      f"model {scores.folder}/deployed", markup=False, soft_wrap=True)  # fmt: skip
