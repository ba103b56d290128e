"""The base as task 0: held by every part that keeps statistics, counted, kept over a stop; and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from perdure.backbones import own_texts as own_texts_module
from perdure.backbones.causal import CausalLM, CausalSettings
from perdure.backbones.own_texts import own_texts
from perdure.commands.learn import learn
from perdure.errors import ConfigError, DataError, UnmetNeed
from perdure.files.durable import read_lines
from perdure.loop import base_task
from perdure.methods.contract.past import Past
from perdure.methods.score_drift import ScoreDrift
from perdure.state.checkpoint import load_groups
from perdure.state.store import Store
from perdure.tasks.task import Task
from perdure.training.reporter import Quiet
from tests.backbones.tiny import tiny_causal, tiny_seq2seq
from tests.contract.runs import bits
from tests.methods.test_score_drift import begun, pair

ROWS = [(f"Say {word}.", str(word)) for word in range(32)]
SETTINGS: dict[str, Any] = {
    "lora": {"rank": 2, "alpha": 4},
    "training": {"epochs": 1, "batch_size": 16, "learning_rate": 0.01},
    "precision": "fp32",
    "threads": 1,
}
PROTECT = {"base": "self", "texts": 12, "tokens": 8}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_causal(tmp_path_factory.mktemp("models") / "tiny-causal")


def say(count: int = 1) -> list[Task]:
    return [Task(f"say-{i}", ROWS, ROWS[:1], ROWS[:2], metric="rouge-l") for i in range(1, count + 1)]


def run(
    out: Path, model: Path, method: Any = "perdure", tasks: Any = None, report: Any = None, **settings: Any
) -> Store:
    backbone = {"kind": "causal", "model": str(model), "max_length": 64, "max_new_tokens": 8}
    learn(out=out, tasks=tasks or say(), method=method, report=report, **{"backbone": backbone, **SETTINGS, **settings})
    return Store(out)


def penalties(store: Store, position: int = 1) -> list[float]:
    return [max(row["penalties"].values()) for row in read_lines(store.stage_folder(position) / "log.jsonl")]


def memory(store: Store, position: int = 1) -> dict[str, Any]:
    _, groups = load_groups(store.stage_folder(position) / "state.safetensors")
    return {key: tensor for group, held in groups.items() if group.startswith("part:") for key, tensor in held.items()}


@pytest.mark.parametrize("method", ["perdure", "ewc", "output-drift"])
def test_the_first_task_is_held_back_from_the_second_step_on(method: str, model: Path, tmp_path: Path) -> None:
    """Without a base to protect the first task is free; nothing is in the way of the very first step, which starts at 0."""
    assert set(penalties(run(tmp_path / "free", model, method))) == {0.0}
    first, second = penalties(run(tmp_path / "held", model, method, protect=PROTECT))
    assert first == 0 < second


def test_the_base_counts_as_one_task() -> None:
    """C and F are sums over two tasks, shared by two: base and task0; by one where the base alone came before."""
    base, both = ScoreDrift(weight=1.0), ScoreDrift(weight=1.0)
    for part in (base, both):
        ctx = begun(0)
        ctx.index = -1
        part.after_task(ctx, {})
    both.after_task(begun(0), {})
    held = both.state()["outputs.0.second"], both.state()["inputs.0.second"]
    delta = pair((8, 10)).update()
    dense = (delta.B @ delta.A).double()
    whole = float(torch.trace(held[0].double() @ dense @ held[1].double() @ dense.mT))
    assert float(both.value_and_grad("second", pair((8, 10)), Past(stages=("task0",)))[0]) == pytest.approx(whole / 2)
    again = ScoreDrift(weight=1.0)
    again.load(base.state())
    assert float(again.value_and_grad("second", pair((8, 10)), Past())[0]) > 0
    assert torch.equal(
        again.value_and_grad("second", pair((8, 10)), Past())[1],
        base.value_and_grad("second", pair((8, 10)), Past())[1],
    )


class StopAt(Quiet):
    def __init__(self, stage: str, step: int) -> None:
        self.at = (stage, step)

    def step(self, stage: str, step: Any, total: int) -> None:
        if (stage, step.step) == self.at:
            raise KeyboardInterrupt


@pytest.mark.parametrize("at", [("say-1", 2), ("say-2", 1)])
@pytest.mark.parametrize("minutes", [None, 1e-9])
def test_it_survives_a_stop(at: tuple[str, int], minutes: float | None, model: Path, tmp_path: Path) -> None:
    settings = {"protect": PROTECT, "training": {**SETTINGS["training"], "checkpoint_minutes": minutes}}
    whole = run(tmp_path / "whole", model, tasks=say(2), **settings)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "stopped", model, tasks=say(2), report=StopAt(*at), **settings)
    stopped = run(tmp_path / "stopped", model, tasks=say(2), **settings)
    assert "score-drift" in str(read_lines(whole.stage_folder(1) / "log.jsonl"))
    assert "base" in memory(whole, 2)
    assert bits(whole.folder) == bits(stopped.folder)


def test_texts_of_a_file(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A line or a record is a text; both files hold the same ones, and give the same statistics. Paths may be relative."""
    texts = [f"The number {i} is here." for i in range(6)]
    (tmp_path / "texts.txt").write_text("\n\n".join([*texts, texts[0]]) + "\n")
    (tmp_path / "texts.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    monkeypatch.chdir(tmp_path)
    found = [memory(run(tmp_path / f"run-{name}", model, protect=name)) for name in ("texts.txt", "texts.jsonl")]
    assert found[0].keys() == found[1].keys() >= {"base"}
    assert all(torch.equal(tensor, found[1][key]) for key, tensor in found[0].items())
    fewer = memory(run(tmp_path / "fewer", model, protect={"base": "texts.txt", "texts": 2}))
    assert any(not torch.equal(tensor, found[0][key]) for key, tensor in fewer.items())


def test_a_suite_protects_an_encoder(
    tmp_path: Path, small_tasks: list[Task], encoder_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its tasks keep their own labels, under names of their own: the run may learn them too."""
    monkeypatch.setattr(
        base_task, "load_suite", lambda *_given, **_sizes: SimpleNamespace(tasks=tuple(small_tasks[:2]))
    )
    backbone = {"kind": "encoder", "model": str(encoder_folder), "max_length": 32}
    store = run(tmp_path / "run", encoder_folder, tasks=small_tasks[:1], backbone=backbone, protect="known")
    assert max(penalties(store)) > 0


def test_adapters_of_a_history_are_held_by_what_the_model_writes_with_them(model: Path, tmp_path: Path) -> None:
    given = run(tmp_path / "first", model, "inc-lora").stage_folder(1) / "adapter"
    with pytest.raises(UnmetNeed, match=r"come without it.*`protect: self` replaces it"):
        run(tmp_path / "bare", model, tasks=say(1), history=[str(given)])
    with pytest.raises(UnmetNeed, match=r"inf-lora requires the data of every task"):
        run(
            tmp_path / "other",
            model,
            {"preset": "perdure", "init": {"kind": "inf-lora"}},
            history=[str(given)],
            protect=PROTECT,
        )
    store = run(tmp_path / "run", model, history=[str(given)], protect=PROTECT)
    base_alone, with_adapter = (memory(s, 1) for s in (run(tmp_path / "none", model, protect=PROTECT), store))
    assert max(penalties(store, 2)) > 0
    inputs = [key for key in with_adapter if key.startswith("inputs.")]
    assert inputs
    assert all(not torch.equal(with_adapter[key], base_alone[key]) for key in inputs)
    again = run(tmp_path / "again", model, history=[str(given)], protect=PROTECT)
    assert bits(store.folder) == bits(again.folder)


def test_what_a_model_writes_depends_on_the_seed_alone(model: Path) -> None:
    backbone = CausalLM.load(CausalSettings(model=str(model), max_length=6, predict_batch_size=4))
    before = torch.get_rng_state()
    one, same, other = (own_texts(backbone, 10, 100, seed) for seed in (1, 1, 2))
    assert torch.equal(before, torch.get_rng_state())
    assert one == same != other
    assert len(set(one)) == len(one) >= 5
    assert all(len(backbone.format.plain(text)) > 1 for text in one)


@pytest.mark.parametrize("rows", [[[]] * 8, [[7, 7, 7]] * 8, [[7, 8]] * 8, [[7]] * 5 + [[7, 8], [8, 9], [9, 7]]])
def test_a_model_that_writes_nothing_is_refused(rows: Any, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Empty, one token again and again, always the same, and mostly so."""
    backbone = CausalLM.load(CausalSettings(model=str(model)))
    monkeypatch.setattr(own_texts_module, "sampled", lambda *_given: [[token + 60 for token in row] for row in rows])
    with pytest.raises(
        DataError, match=r"writes nothing that could be protected: of 8 texts only \d .*file of texts or a suite"
    ):
        own_texts(backbone, 8, 5, 0)


def test_refused_before_anything_is_written(
    model: Path, tmp_path: Path, small_tasks: Any, encoder_folder: Path
) -> None:
    (tmp_path / "empty.txt").write_text("\n \n")
    (tmp_path / "other.jsonl").write_text('{"body": "a"}\n')
    encoder = {"kind": "encoder", "model": str(encoder_folder), "max_length": 32}
    seq2seq = {"kind": "seq2seq", "model": str(tiny_seq2seq(tmp_path / "seq2seq")), "max_length": 32}
    cases: list[tuple[str, dict[str, Any]]] = [
        ("keeps no statistics of finished tasks.*Choose perdure", {"method": "inc-lora", "protect": "self"}),
        (
            "keeps no statistics",
            {"method": {"preset": "ewc", "penalties": {"fisher": {"weight": 0}}}, "protect": "self"},
        ),
        ("protect.texts and protect.tokens need protect.base", {"protect": {"texts": 7}}),
        ("does not exist. Give a file of texts, a suite's name, or 'self'", {"protect": "no.txt"}),
        ("holds no text", {"protect": str(tmp_path / "empty.txt")}),
        ("has no string `text`; its fields are 'body'", {"protect": str(tmp_path / "other.jsonl")}),
        (
            "Only a causal language model writes texts",
            {"protect": "self", "backbone": encoder, "tasks": small_tasks[:1]},
        ),
        ("Only a causal language model writes texts", {"protect": "self", "backbone": seq2seq}),
        ("Unknown suite: 'quickstrt'. Did you mean 'quickstart'", {"protect": "quickstrt"}),
    ]
    for message, settings in cases:
        with pytest.raises((ConfigError, DataError), match=message):
            run(tmp_path / "refused", model, **settings)
        assert not (tmp_path / "refused" / "run.json").exists()
