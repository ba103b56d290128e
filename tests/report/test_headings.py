"""Headings say what the numbers are: accuracy only over tasks that are scored by it."""

from __future__ import annotations

import dataclasses

import pytest
from rich.console import Console

from perdure.commands.show import describe_run, run_lines
from perdure.report.text import markdown, metric_table, print_scores, score_table
from perdure.report.words import headings
from perdure.state.scores import class_scores, read_scores
from perdure.tasks.task import Task
from perdure.training.metrics import Scores
from tests.contract.runs import short_run


def scores(*metrics: str) -> Scores:
    tasks = [f"task{i}" for i in range(2)]
    row: list[float | None] = [0.5, 0.25]
    return Scores(
        tasks=tasks, stages=tasks, score_matrix=[row, row], untrained_scores=row, examples=[4, 4], average_accuracy=0.375,
        sample_weighted_accuracy=0.375, learning_accuracy=0.375, forgetting=0.0, backward_transfer=0.0, forward_transfer=0.0,
        method="inc-lora", seed=0, split="test", folder="x", metrics=list(metrics),
    )  # fmt: skip


@pytest.mark.parametrize(
    "metrics,heading",
    [(("accuracy", "accuracy"), "Average accuracy"), (("rouge-l", "rouge-l"), "Average ROUGE-L"), ((), "Average accuracy"),
     (("accuracy", "rouge-l"), "Average score"), (("trace-sari", "trace-sari"), "Average TRACE's SARI"),
     (("mine:shares", "mine:shares"), "Average mine:shares")],
)  # fmt: skip
def test_the_average_is_called_after_what_is_averaged(metrics, heading):
    run = scores(*metrics)
    assert headings([run])["average_accuracy"] == heading
    assert heading.replace("Average", "Learning") in headings([run]).values()
    assert f"| {heading} |" in markdown([run]).replace("\\", "")
    with (console := Console(width=200)).capture() as shown:
        console.print(metric_table([run]))
    assert heading.split()[-1] in shown.get()


def test_runs_of_different_metrics_have_scores():
    assert headings([scores("accuracy", "accuracy"), scores("sari", "sari")])["average_accuracy"] == "Average score"


def test_a_column_names_a_metric_that_is_not_accuracy():
    with (console := Console(width=200)).capture() as shown:
        console.print(score_table(scores("accuracy", "rouge-l")))
    assert "(ROUGE-L)" in shown.get()
    assert "task0 (" not in shown.get()
    assert "task1 (ROUGE-L)" in markdown([scores("accuracy", "rouge-l")]).replace("\\", "")


def test_a_run_shows_what_a_frequent_class_hides(tmp_path, small_tasks, encoder_folder, capsys):
    """One task has nine of ten examples in one class; only it is shown beside the scores."""
    rows = [(f"sunny {i}", "day" if i % 10 else "night") for i in range(20)]
    uneven = Task("uneven", train=rows, test=[(f"grey {text}", label) for text, label in rows], labels=["day", "night"])
    run = short_run(tmp_path / "run", [*small_tasks, uneven], encoder_folder, "inc-lora")
    found = class_scores(tmp_path / "run")["uneven"]
    assert found["largest-class"] == 0.9
    assert found["accuracy"] == run.score_matrix[-1][-1]
    assert read_scores(tmp_path / "run").metrics == ["accuracy"] * 4
    capsys.readouterr()
    print_scores(dataclasses.replace(run))
    shown = capsys.readouterr().out
    table = shown[shown.index("Tasks with a frequent class") :]
    assert "uneven" in table
    assert "Macro-F1" in table
    assert small_tasks[0].name not in table
    described = describe_run(tmp_path / "run")
    assert "average accuracy: " in "\n".join(run_lines(described))
    described["tasks"] = [{**task, "metric": "rouge-l"} for task in described["tasks"]]
    assert "average ROUGE-L: " in "\n".join(run_lines(described))
    assert "accuracy" not in "\n".join(run_lines(described))
