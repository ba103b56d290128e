from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console, RenderableType

from perdure.report.text import markdown, metric_table, score_table
from perdure.report.words import METRICS, plain, run_names
from perdure.state.scores import read_scores
from perdure.state.words import points
from perdure.training.metrics import FORMULAS
from tests.report.run_folders import ROWS, write_run


def shown(table: RenderableType, width: int = 80, **console: Any) -> str:
    out = io.StringIO()
    Console(file=out, width=width, **console).print(table)
    return out.getvalue()


def numbers(text: str, name: str) -> list[str]:
    """Cells of every line that begins with `name`."""
    return [cell for line in text.splitlines() if line.strip().startswith(name) for cell in line.split()[1:]]


def test_score_table_has_the_untrained_row_and_points_with_one_decimal(run: Path) -> None:
    text = shown(score_table(read_scores(run)))
    assert numbers(text, "(untrained)") == ["50.0", "50.0", "50.0"]
    assert [numbers(text, f"{task} ") for task in ("topic", "spam")] == [
        ["75.0", "75.0", "50.0"],
        ["50.0", "75.0", "100.0"],
    ]
    assert "\x1b" not in text, "colours in a file"


def test_the_final_row_is_bold_and_tasks_not_learnt_yet_are_dim(run: Path) -> None:
    text = shown(score_table(read_scores(run)), force_terminal=True, _environ={})
    bold = [line for line in text.splitlines() if "\x1b[1m" in line and "100.0" in line]
    assert len(bold) == 1
    assert "spam" in bold[0]
    assert sum(line.count("\x1b[2m") for line in text.splitlines()) == 3 + 2 + 1


@pytest.mark.parametrize("width", [30, 50, 80, 200])
def test_no_number_is_cut_however_narrow_the_console(tmp_path: Path, width: int) -> None:
    labels = {f"a-rather-long-task-name-{i}": ("yes", "no") for i in range(9)}
    answers = dict.fromkeys(labels, ("yes", "yes"))
    scores = read_scores(write_run(tmp_path / "run", labels=labels, rows=[answers] * 10))
    text = shown(score_table(scores), width) + shown(metric_table([scores]), width)
    assert "…" not in text
    assert text.count("50.0") == 9 * 10 + 3
    assert text.count(" 0.0") == 3


def test_metric_table_compares_runs_and_says_dash_where_a_metric_has_no_meaning(run: Path, joint: Path) -> None:
    scores = [read_scores(run), read_scores(joint)]
    text = shown(metric_table(scores))
    # final row 50, 75, 100; 4, 4, 2 examples; diagonal 100, 75, 100; the drop of mood is 50, of topic 0;
    # before learning topic and spam: 50 and 50, untrained 50 and 50
    assert numbers(text, "ps-lora") == ["75.0", "70.0", "91.7", "25.0", "-25.0", "0.0"]
    assert numbers(text, "joint") == ["100.0", "100.0", "-", "-", "-", "-"]


def test_markdown_holds_the_same_numbers_and_every_formula(run: Path, joint: Path) -> None:
    text = markdown([read_scores(run), read_scores(joint)])
    assert "| ps-lora | 75.0 | 70.0 | 91.7 | 25.0 | -25.0 | 0.0 |" in text
    assert "| joint | 100.0 | 100.0 | - | - | - | - |" in text
    assert "| mood | 100.0 | 50.0 | 50.0 |" in text
    assert "| **spam** | **50.0** | **75.0** | **100.0** |" in text
    assert list(METRICS) == list(FORMULAS)
    assert all(f"**{title}**: {FORMULAS[metric]}" in text for metric, title in METRICS.items())
    assert "examples: mood 4, topic 4, spam 2" in text


def test_cells_that_were_not_scored_are_dashes(tmp_path: Path) -> None:
    learnt = [ROWS[0], {"mood": ROWS[1]["mood"]}, {k: ROWS[2][k] for k in ("mood", "topic")}, ROWS[3]]
    text = shown(score_table(read_scores(write_run(tmp_path / "run", rows=learnt))))
    assert numbers(text, "mood ") == ["100.0", "-", "-"]


def test_runs_get_the_shortest_names_that_tell_them_apart(tmp_path: Path) -> None:
    runs = [write_run(tmp_path / str(i), method=m, seed=s) for i, (m, s) in enumerate(
        [("l2", 0), ("ps-lora", 0), ("ps-lora", 1), ("ps-lora", 1)])]  # fmt: skip
    names = run_names([read_scores(run) for run in runs])
    assert names == ["l2", "ps-lora, seed 0", f"ps-lora, {tmp_path}/2", f"ps-lora, {tmp_path}/3"]


def test_hostile_names_are_shown_as_text(tmp_path: Path) -> None:
    hostile = "[bold]|<b>\x1b[31m`*"
    run = write_run(tmp_path / "run", config={"method": {"preset": "ps-lora", "name": hostile}})
    scores = read_scores(run)
    terminal = shown(score_table(scores), 200, force_terminal=True) + shown(metric_table([scores]), 200)
    assert plain(hostile) in terminal
    assert "\x1b[31m" not in terminal
    text = markdown([scores])
    assert "\\[bold\\]\\|&lt;b&gt;\N{REPLACEMENT CHARACTER}\\[31m\\`\\*" in text
    assert "<b>" not in text


@pytest.mark.parametrize(("fraction", "text"), [(0.7445, "74.5"), (1.0, "100.0"), (-0.00001, "0.0"), (2.8e-17, "0.0"),
                                                (-0.025, "-2.5"), (None, "-")])  # fmt: skip
def test_points(fraction: float | None, text: str) -> None:
    assert points(fraction) == text
