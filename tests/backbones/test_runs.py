"""Every preset learns on every kind of backbone, from configuration to scores; the encoder has its own suite."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

import perdure
from perdure.adapters.folder import open_adapter
from perdure.commands.learn import learn
from perdure.errors import UnmetNeed
from perdure.files.durable import read_lines
from perdure.methods.table import PRESETS
from perdure.ops.lowrank import dense
from perdure.state.answers import read_answers
from perdure.state.store import Store
from perdure.tasks.task import Task
from perdure.training.metrics import Scores
from tests.backbones.tiny import tiny_causal, tiny_images, tiny_seq2seq, tiny_vision
from tests.contract.runs import bits, bits_learnt

SETTINGS: dict[str, Any] = {
    "lora": {"rank": 2, "alpha": 4},
    "training": {"epochs": 1, "batch_size": 16, "learning_rate": 0.01},
    "precision": "fp32",
    "threads": 1,
}
COLOURS = {
    "warm": {"red": (200, 20, 20), "orange": (220, 120, 20)},
    "cold": {"blue": (20, 20, 200), "green": (20, 200, 20)},
}


def image_tasks(folder: Path) -> list[Task]:
    tasks = []
    for name, colours in COLOURS.items():
        found = tiny_images(folder / name, colours, each=12)
        rows = [
            (str(path), label)
            for paths in zip(*found.values(), strict=True)
            for path, label in zip(paths, colours, strict=True)
        ]
        tasks.append(Task(name, rows[:16], rows[16:20], rows[20:], labels=dict.fromkeys(colours, "")))
    return tasks


@pytest.fixture(scope="module")
def learners(tmp_path_factory: pytest.TempPathFactory, small_tasks: list[Task]) -> dict[str, tuple[list[Task], Path]]:
    """Kind -> tasks and a model's folder."""
    folder = tmp_path_factory.mktemp("learners")
    return {
        "causal": (small_tasks[:2], tiny_causal(folder / "causal")),
        "seq2seq": (small_tasks[:2], tiny_seq2seq(folder / "seq2seq")),
        "vision": (image_tasks(folder / "images"), tiny_vision(folder / "vision")),
    }


def run(out: Path, learner: tuple[list[Task], Path], kind: str, method: str, **backbone: Any) -> Scores:
    tasks, folder = learner
    settings = {"kind": kind, "model": str(folder), **backbone}
    return learn(out=out, tasks=tasks, method=method, backbone=settings, **SETTINGS)


@pytest.mark.parametrize("method", PRESETS)
@pytest.mark.parametrize("kind", ["causal", "seq2seq", "vision"])
def test_every_preset_runs(kind: str, method: str, learners: dict[str, Any], tmp_path: Path) -> None:
    scores = run(tmp_path / "run", learners[kind], kind, method)
    found = [score for row in scores.score_matrix for score in row if score is not None]
    assert len(found) >= 2
    assert all(0 <= score <= 1 for score in found)
    update = open_adapter(Store(tmp_path / "run").stage_folder(1) / "adapter")  # without a start that the base offsets
    assert max(float(dense(delta).abs().max()) for delta in update.values()) > 1e-4, "nothing was learnt"


@pytest.mark.parametrize("kind", ["causal", "seq2seq", "vision"])
def test_growing_and_going_back(kind: str, learners: dict[str, Any], tmp_path: Path) -> None:
    """Merged models with tokenizer, image processor and class means, as if all had been learnt at once; and back."""
    tasks, folder = learners[kind]
    run(tmp_path / "all", learners[kind], kind, "ties")
    run(tmp_path / "grown", (tasks[:1], folder), kind, "ties")
    one = bits(tmp_path / "grown")
    perdure.add(tmp_path / "grown", tasks[1], tasks=tasks[:1])
    assert bits_learnt(tmp_path / "grown") == bits_learnt(tmp_path / "all")
    texts = [example.text for example in tasks[1].test]
    found = perdure.predict(tmp_path / "grown", texts, task=tasks[1].name, tasks=tasks)
    known = read_answers(Store(tmp_path / "grown").stage_folder(2), tasks[1].name)
    assert [row["label"] for row in found] == [row["predicted"] for row in known]
    perdure.rollback(tmp_path / "grown", tasks[0].name, tasks=tasks[:1])
    assert bits(tmp_path / "grown") == one


@pytest.mark.parametrize("kind", ["causal", "seq2seq", "vision"])
def test_same_seed_same_bits(kind: str, learners: dict[str, Any], tmp_path: Path) -> None:
    for name in ("one", "two"):
        run(tmp_path / name, learners[kind], kind, "ps-lora")
    assert Store(tmp_path / "one").manifest == Store(tmp_path / "two").manifest


@pytest.mark.parametrize("kind", ["causal", "seq2seq"])
def test_free_text_is_written_and_scored_by_its_metric(kind: str, learners: dict[str, Any], tmp_path: Path) -> None:
    rows = [(f"Say {word}.", word) for word in ("one", "two", "three", "four")]
    tasks = [Task(f"say-{i}", rows, rows[:1], rows, metric="rouge-l") for i in (1, 2)]
    scores = run(tmp_path / "run", (tasks, learners[kind][1]), kind, "inc-lora", max_new_tokens=8)
    assert all(0 <= score < 1 for score in scores.score_matrix[-1] if score is not None)


@pytest.mark.parametrize("kind", ["causal", "seq2seq"])
def test_the_default_recipe_protects_free_text(kind: str, learners: dict[str, Any], tmp_path: Path) -> None:
    """Also plain texts, and beside a task with labels; the second and third task meet a penalty after their first step."""
    rows = [(f"Say {word}.", str(word)) for word in range(40)]
    tasks = [Task("say", rows, rows[:1], rows[:2], metric="rouge-l"), learners[kind][0][0]]
    tasks += [Task("read", rows, rows[:1], rows[:2], metric="inverse-perplexity")] * (kind == "causal")
    run(tmp_path / "run", (tasks, learners[kind][1]), kind, "perdure", max_new_tokens=16)
    for position in range(2, len(tasks) + 1):
        steps = read_lines(Store(tmp_path / "run").stage_folder(position) / "log.jsonl")
        assert max(step["penalties"]["score-drift"] for step in steps) > 0


def test_distillation_names_what_works_for_free_text(learners: dict[str, Any], tmp_path: Path) -> None:
    rows = [(f"Say {word}.", word) for word in ("one", "two", "three", "four")]
    with pytest.raises(UnmetNeed, match=r"distillation requires labels for every task .* For free text choose perdure"):
        run(tmp_path / "run", ([Task("say", rows, (), rows)], learners["causal"][1]), "causal", "lwf")


def said(i: int) -> dict[str, Any]:
    asked = [("system", "Count."), ("user", f"After {i}?"), ("assistant", str(i + 1)), ("user", "And?")]
    return {"messages": [{"role": role, "content": text} for role, text in (*asked, ("assistant", str(i + 2)))]}


REFUSED = {"lwf"}
"""Presets that need labels; docs/choosing.md names them."""


@pytest.fixture(scope="module")
def chatting(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_causal(tmp_path_factory.mktemp("chatting"), chat=True)


@pytest.mark.parametrize("method", PRESETS)
def test_every_preset_learns_prompts_with_completions_and_chats_or_names_what_does(
    method: str, chatting: Path, tmp_path: Path
) -> None:
    rows, chats = [(f"Say {i}.", str(i)) for i in range(19)], [said(i) for i in range(19)]
    tasks = [Task("say", rows[:16], rows[16:18], rows[18:], metric="rouge-l")]
    tasks += [Task("talk", chats[:16], chats[16:18], chats[18:], metric="rouge-l")]
    if method in REFUSED:
        with pytest.raises(UnmetNeed, match="For free text choose") as refused:
            run(tmp_path / "run", (tasks, chatting), "causal", method, max_new_tokens=8)
        named = set(re.findall(r"[\w+-]+", str(refused.value).partition("For free text choose")[2])) & set(PRESETS)
        assert named
        assert not named & REFUSED
        return
    scores = run(tmp_path / "run", (tasks, chatting), "causal", method, max_new_tokens=8)
    assert len(scores.score_matrix[-1]) == 2
    update = open_adapter(Store(tmp_path / "run").stage_folder(1) / "adapter")
    assert max(float(dense(delta).abs().max()) for delta in update.values()) > 1e-4, "nothing was learnt"


def test_the_page_on_choosing_names_the_presets_that_free_text_rules_out() -> None:
    [row] = [line for line in Path("docs/choosing.md").read_text().splitlines() if line.startswith("**Free text")]
    assert all(f"`{name}`" in row for name in REFUSED)
