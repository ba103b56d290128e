"""General ability before and after, on a tiny model; lm-evaluation-harness for real with `make harness`."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import sys
import types
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import perdure
from perdure.cli import app
from perdure.config.run_config import load_config
from perdure.errors import ConfigError, CorruptFile, StoreError
from perdure.studies import ability
from perdure.studies.ability import Ability, AskedTask, general_ability, offline_rows, offline_tasks, open_finished
from perdure.studies.harness import HarnessScore, counted_once, main_score
from perdure.tasks.suites import describe
from perdure.tasks.task import Task
from tests.backbones.tiny import tiny_causal, tiny_images, tiny_vision
from tests.conftest import small_task

TOWN = Task("town", [("big", "")] * 2, test=[("big", ""), ("small", "")], metric="inverse-perplexity")
FRUIT = small_task("fruit", "apples", "pears")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ability")
    perdure.learn(
        tasks=[small_task("sky", "sun", "moon")],
        out=folder / "run",
        method="inc-lora",
        backbone={"kind": "causal", "model": str(tiny_causal(folder / "model")), "max_length": 64},
        lora={"rank": 2},
        training={"epochs": 2, "batch_size": 4, "learning_rate": 0.02},
        precision="fp32",
    )
    return folder / "run"


def test_means_by_hand() -> None:
    rows = [
        AskedTask("a", 0, "accuracy", 0.5, 0.25, 4),
        AskedTask("b", 0, "exact-match", 1.0, 0.75, 4),
        AskedTask("a", 5, "accuracy", 0.6, 0.2, 4),
        AskedTask("t", 0, "inverse-perplexity", 0.1, 0.05, 4, is_share=False),
        AskedTask("wiki", 0, "word_perplexity", 23.1, 24.56, 4, is_share=False),
    ]
    found = Ability("m", "model", ["s"], rows)
    assert found.mean(few_shot=False) == (0.75, 0.5)
    assert found.mean(few_shot=True) == (0.6, 0.2)
    assert "| t, perplexity | - | 10.00 | 20.00 |" in found.as_markdown()
    assert "| wiki, word_perplexity | 0 | 23.1 | 24.56 |" in found.as_markdown()
    assert found.as_dict()["general_performance"] == (0.75, 0.5)
    assert Ability("m", "model", ["s"], rows[3:]).mean(few_shot=False) is None


def test_before_is_the_base_and_after_what_the_run_deploys(run: Path) -> None:
    finished = open_finished(run, [FRUIT, TOWN])
    rows = offline_rows(finished, [FRUIT, TOWN], [0, 2])
    assert [(row.task, row.shots, row.metric) for row in rows] == [
        ("fruit", 0, "accuracy"),
        ("fruit", 2, "accuracy"),
        ("town", 0, "inverse-perplexity"),
    ]
    backbone = finished.backbone
    backbone.prepare([TOWN])
    for after, shown in ((False, rows[2].before), (True, rows[2].after)):
        with finished.model.deployed(finished.deployed if after else {}):
            losses = backbone.token_losses(TOWN.test)
        expected = sum(nats for nats, _ in losses) / sum(tokens for _, tokens in losses)
        assert shown == pytest.approx(2.718281828**-expected, rel=1e-5)
    assert rows[2].before != rows[2].after
    assert finished.backbone.settings.max_length == ability.LENGTH, (
        "a prompt with examples is longer than the run's own"
    )


def test_a_model_with_fewer_positions_is_asked_at_the_length_of_its_run(run: Path) -> None:
    tried = []

    def load(config: Any, tasks: Any) -> Any:
        tried.append(config.backbone["max_length"])
        if tried[-1] > 64:
            raise ConfigError("only 512 positions")
        return ability.load_learner(config, tasks)

    assert open_finished(run, [FRUIT], load=load).backbone.settings.max_length == 64
    assert tried == [ability.LENGTH, 64]


def test_what_the_run_learns_from_is_left_out() -> None:
    tasks, left_out = offline_tasks(load_config({"suite": "quickstart"}))
    assert (tasks, left_out) == ([], ["news-text", "news-topic", "film-review"])


def test_package_sets_among_own_and_added_tasks_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ability, "load_suite", lambda name, order, test: types.SimpleNamespace(tasks=order))
    sources = {name: task["source"] for name, task in describe("ability")["tasks"].items()}
    own = load_config({"tasks": [{"name": "films", "package": sources["film-review"]}]})
    assert offline_tasks(own) == (["news-text", "news-topic"], ["film-review"])
    other = load_config({"tasks": [{"name": "mine", "train": "mine.jsonl"}]})
    added = [{"name": "news", "package": sources["news-topic"]}, None]
    assert offline_tasks(other, added=added) == (["film-review"], ["news-text", "news-topic"])


@pytest.mark.package_data
def test_the_command_on_the_offline_set(run: Path) -> None:
    shown = CliRunner().invoke(app, ["ability", str(run), "--examples", "4", "--shots", "0", "--shots", "1"])
    assert shown.exit_code == 0, shown.output
    assert "| news-text, perplexity | - |" in shown.output
    assert "| film-review, accuracy | 1 |" in shown.output
    assert "**in-context performance**" in shown.output
    as_json = CliRunner().invoke(app, ["ability", str(run), "--examples", "2", "--shots", "0", "--json"])
    assert len(json.loads(as_json.stdout)["rows"]) == 3


def test_runs_it_cannot_be_asked_of(tmp_path: Path, encoder_folder: Path) -> None:
    with pytest.raises(StoreError):
        general_ability(tmp_path / "nowhere")
    tasks = [small_task("sky", "sun", "moon"), small_task("sea", "waves", "sand")]
    backbone: dict[str, Any] = {"kind": "encoder", "model": str(encoder_folder)}
    settings: dict[str, Any] = {"lora": {"rank": 2}, "training": {"epochs": 1}, "precision": "fp32"}
    perdure.learn(tasks=tasks, out=tmp_path / "encoder", method="inc-lora", backbone=backbone, **settings)
    with pytest.raises(ConfigError, match="needs a language model"):
        open_finished(tmp_path / "encoder", [FRUIT])


def test_a_damaged_run_is_named(run: Path, tmp_path: Path) -> None:
    damaged = shutil.copytree(run, tmp_path / "run")
    state = damaged / "stages/01-sky/state.safetensors"
    state.write_bytes(state.read_bytes()[:100])
    with pytest.raises(CorruptFile, match=r"state\.safetensors' is damaged"):
        open_finished(damaged, [FRUIT])
    state.unlink()
    with pytest.raises(CorruptFile, match=r"state\.safetensors' is missing"):
        open_finished(damaged, [FRUIT])


def test_a_vision_run_is_refused_by_its_kind(tmp_path: Path) -> None:
    """Its settings know no `max_length`: the refusal comes before a longer one is set."""
    images = tiny_images(tmp_path / "images", {"red": (200, 30, 30), "blue": (30, 30, 200)}, each=2)
    pairs = [(str(path), label) for label, paths in images.items() for path in paths]
    task = Task("colours", pairs, test=pairs, labels={"red": "", "blue": ""})
    backbone = {"kind": "vision", "model": str(tiny_vision(tmp_path / "model"))}
    settings: dict[str, Any] = {"lora": {"rank": 2}, "training": {"epochs": 1}, "precision": "fp32"}
    perdure.learn(tasks=[task], out=tmp_path / "run", method="inc-lora", backbone=backbone, **settings)
    with pytest.raises(ConfigError, match="kind vision; general ability needs a language model"):
        open_finished(tmp_path / "run", [FRUIT])


def test_a_run_with_an_update_for_each_task_must_say_which(tmp_path: Path) -> None:
    backbone = {"kind": "causal", "model": str(tiny_causal(tmp_path / "model"))}
    settings: dict[str, Any] = {"lora": {"rank": 2}, "training": {"epochs": 1}, "precision": "fp32"}
    tasks = [small_task("sky", "sun", "moon")]
    perdure.learn(tasks=tasks, out=tmp_path / "run", method="per-task", backbone=backbone, **settings)
    with pytest.raises(ConfigError, match=r"choose one with --task: sky"):
        open_finished(tmp_path / "run", [FRUIT])
    assert open_finished(tmp_path / "run", [FRUIT], task="sky").deployed


def test_without_the_harness_the_message_says_how_to_get_it(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    monkeypatch.setattr(ability, "open_finished", lambda *_: pytest.fail("the model is loaded first"))
    with pytest.raises(ConfigError, match=r"pip install 'perdure\[lm-eval\]'"):
        general_ability(run, harness=["hellaswag"])


@pytest.mark.parametrize(
    "asked,message",
    [
        ({"include": "folder"}, "name one with --harness"),
        ({"shots": [0, -1]}, "--shots -1"),
        ({"task": "sky"}, "one update for all tasks; leave --task out"),
    ],
)
def test_options_that_would_do_nothing_are_refused(
    asked: dict[str, Any], message: str, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ability, "load_suite", lambda *_, **__: types.SimpleNamespace(tasks=[FRUIT]))
    monkeypatch.setattr(ability, "offline_rows", lambda *_: pytest.fail("asked all the same"))
    with pytest.raises(ConfigError, match=message):
        general_ability(run, **asked)


def test_the_harness_is_asked_before_and_after(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in for the harness: what it is given, and how its answer is read."""
    calls: list[dict[str, Any]] = []

    def evaluate(**given: Any) -> dict[str, Any]:
        calls.append(given)
        scores = {"alias": "made", "acc,none": 0.25 * len(calls), "acc_stderr,none": 0.1}
        none = {"acc,none": 0.1, "word_perplexity,none": 9.5}
        return {
            "results": {"made": scores, "bare": none},
            "n-samples": {"made": {"original": 9, "effective": 3}, "bare": {"original": 9, "effective": 3}},
            "n-shot": {"made": given["num_fewshot"], "bare": 0},
        }

    modules = {name: types.ModuleType(name) for name in ("lm_eval", "lm_eval.models.huggingface", "lm_eval.tasks")}
    modules["lm_eval"].simple_evaluate = evaluate  # type: ignore[attr-defined]
    modules["lm_eval.models.huggingface"].HFLM = lambda **given: given  # type: ignore[attr-defined]
    modules["lm_eval.tasks"].TaskManager = lambda include_path: types.SimpleNamespace(all_tasks=["made", "bare"])  # type: ignore[attr-defined]
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    found = general_ability(run, harness=["made", "bare"], shots=[0, 3], examples=3)
    assert found.rows == [
        AskedTask("made", 0, "acc", 0.25, 0.5, 3),
        AskedTask("bare", 0, "acc", 0.1, 0.1, 3),  # always asked without examples: one row, and as that
        AskedTask("made", 3, "acc", 0.75, 1.0, 3),
    ]
    assert [call["num_fewshot"] for call in calls] == [0, 0, 3, 3]
    assert all(call["limit"] == 3 for call in calls)
    with pytest.raises(ConfigError, match="has no task other"):
        general_ability(run, harness=["other"])
    for error in (
        OSError("offline"),
        ValueError("BuilderConfig 'x' not found"),
        RuntimeError("scripts are no longer supported"),
    ):

        def fail(error: Exception = error, **_: Any) -> None:
            raise error

        modules["lm_eval"].simple_evaluate = fail  # type: ignore[attr-defined]
        with pytest.raises(ConfigError, match=f"could not evaluate made.*their data is missing: {error}"):
            general_ability(run, harness=["made"])


def test_a_group_of_the_harness_counts_once() -> None:
    """A group with a score, one within it, one without a score, one whose tasks were asked differently, and a task alone."""
    scored = {name: {"acc,none": value} for name, value in (("all", 0.5), ("half", 0.4), ("a", 0.3), ("b", 0.6))}
    bare = {"c": {"f1,none": 0.1}, "mixed": {"acc,none": 0.2}, "d": {"acc,none": 0.7}, "alone": {"acc,none": 0.8}}
    found = {
        "results": {**scored, "loose": {"alias": "loose", " ": " "}, **bare},
        "group_subtasks": {"all": ["half", "b"], "half": ["a"], "loose": ["c"], "mixed": ["d", "c"], "d": []},
        "n-samples": {name: {"effective": 2} for name in "abcd"},
        "n-shot": {"a": 5, "b": 5, "c": 5, "d": 0},
    }
    rows = counted_once(found, ["all", "b", "loose", "mixed", "alone"], 5)
    assert rows == {
        "all": HarnessScore("acc", 0.5, 4, 5),
        "b": HarnessScore("acc", 0.6, 2, 5),
        "c": HarnessScore("f1", 0.1, 2, 5),
        "d": HarnessScore("acc", 0.7, 2, 0),
        "alone": HarnessScore("acc", 0.8, 0, 5),
    }


def test_which_score_counts() -> None:
    assert main_score({"acc,none": 0.1, "acc_norm,none": 0.2, "acc_norm_stderr,none": 0.3}) == ("acc_norm", 0.2)
    assert main_score({"alias": "x", "word_perplexity,none": 7.5}) == ("word_perplexity", 7.5)
    filtered = {"exact_match,strict-match": 0.2, "exact_match,flexible-extract": 0.3}
    assert main_score({"bleu,none": 7.5, **filtered}) == ("exact_match,strict-match", 0.2), "the task's first filter"
    with pytest.raises(ConfigError, match="gave no score"):
        main_score({"alias": "x"})


def test_which_scores_are_shares_of_right_answers() -> None:
    shares = {"acc": 0.5, "exact_match,strict-match": 1.0, "word_perplexity": 0.9, "bleu": 0.3, "f1": 40.2}
    found = {metric for metric, value in shares.items() if HarnessScore(metric, value, 4, 0).is_share}
    assert found == {"acc", "exact_match,strict-match"}


@pytest.mark.harness
@pytest.mark.filterwarnings("default")  # other people's packages warn about their own matters
def test_the_real_harness_on_a_task_of_ones_own(run: Path, tmp_path: Path) -> None:
    if importlib.util.find_spec("lm_eval") is None:
        message = "lm-evaluation-harness is not installed; `make harness` fetches it"
        if os.environ.get("PERDURE_HARNESS") == "required":
            pytest.fail(message)
        pytest.skip(message)
    rows = [{"question": f"Is {i} even?", "answer": i % 2} for i in range(8)]
    (tmp_path / "even.json").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "even.yaml").write_text(
        "task: even\ndataset_path: json\ndataset_kwargs:\n  data_files: {test: %s}\ntest_split: test\nfewshot_split: test\n"
        "output_type: multiple_choice\ndoc_to_text: '{{question}}'\ndoc_to_choice: ['yes', 'no']\ndoc_to_target: answer\n"
        "metric_list:\n  - {metric: acc}\n" % (tmp_path / "even.json")
    )
    found = general_ability(run, harness=["even"], shots=[0, 2], examples=6, include=tmp_path)
    assert [(row.task, row.shots, row.metric, row.examples) for row in found.rows] == [
        ("even", 0, "acc", 6),
        ("even", 2, "acc", 6),
    ]
    assert all(0 <= row.before <= 1 and 0 <= row.after <= 1 for row in found.rows)
