"""When tasks are scored: after every stage, or after the last only."""

from __future__ import annotations

import dataclasses
import sys

import pytest

from perdure.commands.learn import learn
from perdure.config.run_config import EvaluationSettings
from perdure.errors import ConfigError
from perdure.report.page import write_report
from perdure.state.answers import read_answers
from perdure.state.store import Store
from perdure.tasks.task import Task
from perdure.training.evaluation import check_scorable, score_and_outcomes, scored_examples
from tests.backbones.tiny import tiny_causal
from tests.contract.runs import SETTINGS, bits_learnt, short_run


def test_scored_after_the_last_stage_only(tmp_path, small_tasks, encoder_folder):
    always = short_run(tmp_path / "always", small_tasks, encoder_folder, "inc-lora")
    once = short_run(tmp_path / "once", small_tasks, encoder_folder, "inc-lora", evaluation={"every_stage": False})
    assert once.score_matrix == [[None] * 3, [None] * 3, always.score_matrix[-1]]
    assert (once.average_accuracy, once.forgetting) == (always.average_accuracy, None)
    assert once.learning_accuracy is None
    assert bits_learnt(tmp_path / "once")[2] == bits_learnt(tmp_path / "always")[2]
    write_report([tmp_path / "once"], tmp_path / "report")


def test_without_the_future_a_task_is_scored_before_the_first_stage_and_from_its_own_on(
    tmp_path, small_tasks, encoder_folder
):
    usual = short_run(tmp_path / "usual", small_tasks, encoder_folder, "inc-lora")
    past = short_run(tmp_path / "past", small_tasks, encoder_folder, "inc-lora", evaluation={"future": False})
    assert all(score is not None for row in usual.score_matrix for score in row)
    assert past.score_matrix == [
        [score if task <= stage else None for task, score in enumerate(row)]
        for stage, row in enumerate(usual.score_matrix)
    ]
    assert past.untrained_scores == usual.untrained_scores
    assert None not in past.untrained_scores
    assert (past.forward_transfer, past.forgetting) == (None, usual.forgetting)
    assert usual.forward_transfer is not None


def test_scored_after_its_own_stage_and_the_last(tmp_path, small_tasks, encoder_folder):
    always = short_run(tmp_path / "always", small_tasks, encoder_folder, "inc-lora")
    own = short_run(tmp_path / "own", small_tasks, encoder_folder, "inc-lora", evaluation={"every_stage": "own"})
    (first, *_), (_, second, _), last = always.score_matrix
    assert own.score_matrix == [[first, None, None], [None, second, None], last]
    assert own.untrained_scores == [None] * 3
    assert own.learning_accuracy == always.learning_accuracy
    assert own.forgetting == -own.backward_transfer
    write_report([tmp_path / "own"], tmp_path / "report")


def test_a_limited_number_of_examples_is_scored_the_same_ones_every_time(tmp_path, small_tasks, encoder_folder):
    limited = short_run(tmp_path / "some", small_tasks, encoder_folder, "inc-lora", evaluation={"examples": 3})
    whole = short_run(tmp_path / "all", small_tasks, encoder_folder, "inc-lora")
    assert limited.examples == [3, 3, 3]
    assert min(whole.examples) > 3
    assert bits_learnt(tmp_path / "some")[2] == bits_learnt(tmp_path / "all")[2]  # training is another matter
    for task in limited.tasks:
        every = [read_answers(path, task) for path in sorted((tmp_path / "some/stages").iterdir())]
        rows = [[row["label"] for row in answers] for answers in every if answers]
        assert len(rows) > 1
        assert all(labels == rows[0] for labels in rows)
    first = next(path for path in sorted((tmp_path / "all/stages").iterdir()) if path.name.endswith(limited.stages[-1]))
    same = tmp_path / "some" / first.relative_to(tmp_path / "all")
    task = small_tasks[0]
    chosen = scored_examples(task, EvaluationSettings(examples=3))
    places = [task.test.index(example) for example in chosen]
    assert places == sorted(places)
    answers, some = (list(read_answers(folder, task.name)) for folder in (first, same))
    assert [row["predicted"] for row in some] == [answers[place]["predicted"] for place in places]
    assert scored_examples(task, EvaluationSettings(examples=len(task.test))) == task.test


def test_a_gate_needs_every_stage(tmp_path, small_tasks, encoder_folder):
    with pytest.raises(ConfigError, match="every_stage"):
        short_run(
            tmp_path, small_tasks, encoder_folder, "inc-lora", evaluation={"every_stage": False}, max_forgetting=1.0
        )


def test_scores_on_validation_examples_need_some(tmp_path, small_tasks, encoder_folder):
    empty = dataclasses.replace(small_tasks[1], validation=())
    with pytest.raises(ConfigError, match=f"'{empty.name}' has no validation examples, and evaluation.split asks"):
        short_run(
            tmp_path / "run", [small_tasks[0], empty], encoder_folder, "inc-lora", evaluation={"split": "validation"}
        )
    assert not (tmp_path / "run" / "run.json").exists()


def test_among_all_labels_seen_tasks_without_labels_are_asked_alone(tmp_path):
    rows = [(f"the sun {i}", "day") for i in range(4)] + [(f"the moon {i}", "night") for i in range(4)]
    tasks = [
        Task("sky", rows, test=rows, labels=["day", "night"]),
        Task("speak", [("say yes", "yes")], test=[("say no", "no")], metric="exact-match"),
        Task("story", [("a dog ran", "")], test=[("a dog sat", "")], metric="inverse-perplexity"),
        Task("mood", [("good", "up"), ("bad", "down")], test=[("fine", "up")], labels=["up", "down"]),
    ]
    backbone = {"kind": "causal", "model": str(tiny_causal(tmp_path / "model")), "max_new_tokens": 8}
    out = tmp_path / "run"
    evaluation = {"labels": "seen"}
    scores = learn(out=out, tasks=tasks, method="inc-lora", backbone=backbone, evaluation=evaluation, **SETTINGS)
    assert all(value is not None for row in scores.score_matrix for value in row)
    written = read_answers(Store(out).stage_folder(4), "speak")
    assert all("probability" not in row for row in written)
    chosen = read_answers(Store(out).stage_folder(4), "sky")
    assert {row["predicted"] for row in chosen} <= {"day", "night", "up", "down"}
    assert all("probability" in row for row in chosen)


@pytest.mark.parametrize(("metric", "package"), [("rouge-l", "rouge_score"), ("edit-similarity", "rapidfuzz")])
def test_a_package_that_a_metric_lacks_is_told_before_anything_is_learnt(metric, package, monkeypatch):
    task = Task("t", [("a", "b")], test=[("a", "b")], metric=metric)
    pytest.importorskip(package)
    check_scorable(task, "test")
    for module in [name for name in sys.modules if name.split(".")[0] == package]:
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ConfigError, match=f"The metric '{metric}' needs the package {package.replace('_', '-')}"):
        check_scorable(task, "test")


@pytest.mark.parametrize("metric", ["accuracy", "rouge-l", "inverse-perplexity"])
def test_no_examples_have_no_score(metric):
    places = [("big town", "a"), ("wood", "b")]
    assert score_and_outcomes(Task("town", train=places, test=places, metric=metric), [], []) == (None, [])
