"""A head beside an adapter: the product of both by hand, in whole runs on every kind of model, predicted, exported, resumed."""

import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from benchmarks.breadth.architectures import build
from safetensors.torch import load_file

import perdure
from perdure.backbones.base import Prediction
from perdure.backbones.causal import CausalLM, CausalSettings
from perdure.commands.export import export
from perdure.commands.show import describe_run
from perdure.config.composition import resolve_method
from perdure.errors import ConfigError, PartError, TrainingError
from perdure.methods.contract.build import build_method
from perdure.methods.contract.parts import Head
from perdure.ops.nearest_mean import Sums, oas_shrinkage, shrunk, squared_distances
from perdure.state.answers import read_answers
from perdure.state.reopen import reopened_model
from perdure.state.store import Store
from perdure.tasks.task import Example
from perdure.testing import check_part
from perdure.training.heads import base_vectors, with_head
from tests.backbones.tiny import tiny_causal, tiny_seq2seq
from tests.conftest import small_task
from tests.methods.two_layers import RESUMED, killed_and_resumed, learn_toy, toy_tasks

LABELS = {"t": ("a", "b")}


class Doubts(Head):
    """Eight times the odds for every second label."""

    def combined(self, vectors, probabilities, labels):
        return probabilities.log() + torch.tensor([0.0, math.log(8)] * (len(labels) // 2))


class FakeModel:
    """Stands for the adapted model: its base reads zeros."""

    def deployed(self, update):
        return torch.no_grad()


def together(*predictions: Prediction, head: Head | None = None, vector: float = 0.0) -> list[Prediction]:
    backbone: Any = SimpleNamespace(vectors=lambda examples: torch.full((len(examples), 2), vector))
    model: Any = FakeModel()
    examples = [Example(str(i), "a", "t") for i in range(len(predictions))]
    return with_head(head or Doubts(), model, backbone, examples, predictions, LABELS)


def test_the_product_by_hand():
    """.8 : .2 x 8 = 1 : 2."""
    (answer,) = together(Prediction("a", (0.8, 0.2), "t"))
    assert (answer.label, answer.task) == ("b", "t")
    assert answer.probabilities == pytest.approx((1 / 3, 2 / 3))


def test_labels_of_several_tasks_are_told_apart_by_their_options():
    options = (("t", "a"), ("u", "a"))
    (answer,) = together(Prediction("a", (0.8, 0.2), "t", options=options))
    assert (answer.label, answer.task, answer.options) == ("a", "u", options)


def test_without_a_say_nothing_is_computed():
    class Silent(Head):
        def has_say(self, labels):
            return False

    asked = Prediction("a", (0.8, 0.2), "t")
    assert together(asked, head=Silent(), vector=float("nan"))[0] is asked  # vectors would be an error


def test_answers_that_were_written_stay():
    written = Prediction("some text")
    assert together(written, Prediction("a", (0.8, 0.2), "t"))[0] is written


def test_vectors_that_are_not_finite_are_an_error():
    with pytest.raises(TrainingError, match="not finite numbers"):
        together(Prediction("a", (0.8, 0.2), "t"), vector=float("nan"))


@pytest.mark.parametrize("bad", [torch.zeros(1, 3), torch.tensor([[0.0, float("inf")]]), None])
def test_what_a_custom_head_returns_is_checked(bad):
    class Wrong(Head):
        def combined(self, vectors, probabilities, labels):
            return bad

    with pytest.raises(PartError, match="combined returned"):
        together(Prediction("a", (0.8, 0.2), "t"), head=Wrong())


def test_the_part_keeps_the_contract():
    check_part("discriminant")


@RESUMED
def test_killed_and_resumed(tmp_path: Path, minutes: float | None):
    def made():
        return build_method(resolve_method("perdure+head"))

    tasks = toy_tasks(3)
    learn_toy(once := made(), tmp_path / "once", tasks, method="perdure+head")
    killed_and_resumed(made, tmp_path / "killed", tasks, minutes, method="perdure+head")
    learn_toy(again := made(), tmp_path / "killed", tasks, method="perdure+head", checkpoint_minutes=minutes)
    assert once.head
    assert again.head
    assert all(torch.equal(tensor, again.head.state()[name]) for name, tensor in once.head.state().items())


TASKS = [small_task("fruit", "apples", "pears"), small_task("sky", "sun", "moon")]
TRAINING = {"epochs": 1, "batch_size": 8, "learning_rate": 0.01}


def models(tmp_path: Path, encoder_folder: Path) -> dict[str, dict[str, Any]]:
    return {
        "encoder": {"kind": "encoder", "model": str(encoder_folder), "max_length": 32},
        "causal": {"kind": "causal", "model": str(tiny_causal(tmp_path / "causal")), "max_length": 64},
        "seq2seq": {"kind": "seq2seq", "model": str(tiny_seq2seq(tmp_path / "seq2seq")), "max_length": 64},
    }


@pytest.mark.parametrize("kind", ["encoder", "causal", "seq2seq"])
def test_a_run_answers_as_it_was_scored(tmp_path: Path, encoder_folder: Path, kind: str):
    """Scores are those of adapter and head together, `predict` gives the same answers, the adapter's own score stands beside."""
    run = tmp_path / "run"
    settings: Any = {"backbone": models(tmp_path, encoder_folder)[kind], "training": TRAINING}
    perdure.learn(tasks=TASKS, method="perdure+head", out=run, **settings)
    rows = read_answers(run / "stages/02-sky", "fruit")
    found = perdure.predict(run, [e.text for e in TASKS[0].test], task="fruit")
    assert [row["label"] for row in found] == [row["predicted"] for row in rows]
    assert [max(row["probabilities"].values()) for row in found] == pytest.approx(
        [row["probability"] for row in rows], abs=1e-4
    )
    cells = json.loads((run / "stages/02-sky/scores.json").read_text())
    assert {"score", "examples", "adapter"} == cells["fruit"].keys()
    assert "The adapter alone" in describe_run(run)["state"]


def test_frozen_head_is_a_linear_discriminant_beside_the_untouched_model(tmp_path: Path, encoder_folder: Path):
    """A slow reference: base probabilities times class densities of all tasks' classes, computed outside of any run."""
    run = tmp_path / "run"
    method: Any = {"preset": "frozen-head", "head": {"weight": 0.5}}
    settings: Any = {"backbone": models(tmp_path, encoder_folder)["encoder"]}
    perdure.learn(tasks=TASKS, method=method, out=run, **settings)
    model, backbone = reopened_model(Store(run))
    backbone.prepare(TASKS)
    sums = Sums.empty(32)
    for task in TASKS:
        for label in task.labels:
            own = [e for e in task.train if e.label == label]
            sums = sums.with_vectors((task.name, label), base_vectors(model, backbone, own))
    within = sums.within()
    cov_DD = shrunk(within, oas_shrinkage(within, 40))
    for place, task in enumerate(TASKS):
        own_means = sums.means()[2 * place : 2 * place + 2]
        d_NL = squared_distances(base_vectors(model, backbone, task.test), own_means, cov_DD)
        with model.deployed({}):
            untouched = torch.tensor([p.probabilities for p in backbone.predict(task.test, [task.name])]).double()
        best = (untouched.log() - d_NL / 4).argmax(dim=1)
        rows = read_answers(run / "stages/02-sky", task.name)
        assert [row["predicted"] for row in rows] == ["ab"[i] for i in best.tolist()]
    assert all((tensor == 0).all() for tensor in deployed_b(run))


def deployed_b(run: Path) -> list[torch.Tensor]:
    return [t for name, t in load_file(run / "deployed/adapter_model.safetensors").items() if "lora_B" in name]


def test_an_export_says_that_the_head_is_not_in_it(tmp_path: Path, encoder_folder: Path):
    settings: Any = {"backbone": models(tmp_path, encoder_folder)["encoder"], "training": TRAINING}
    perdure.learn(tasks=TASKS[:1], method="perdure+head", out=tmp_path / "run", **settings)
    report = export(tmp_path / "run", tmp_path / "out")
    assert any("only perdure answers with it" in note and "scores" in note for note in report.notes)


def test_nothing_to_learn_is_refused(tmp_path: Path, encoder_folder: Path):
    settings: Any = {"backbone": models(tmp_path, encoder_folder)["encoder"], "training": {"epochs": 0}}
    with pytest.raises(ConfigError, match=r"training\.epochs is 0"):
        perdure.learn(tasks=TASKS, method="inc-lora", out=tmp_path / "run", **settings)


@pytest.mark.parametrize("name", ["gpt2", "mamba", "gemma3n_text", "xlstm"])
def test_vectors_of_other_families(tmp_path: Path, name: str):
    """Recurrent layers, several streams of hidden states, a cache in another form: one vector a text, whatever is beside it."""
    settings = CausalSettings(model=str(build("causal", name, tmp_path / name)), max_length=64, max_new_tokens=16)
    learner = CausalLM.load(settings)
    learner.prepare(TASKS[:1])
    examples = TASKS[0].test[:3]
    together = learner.vectors(examples)
    assert together.std(dim=0).max() > 0.01
    alone = torch.cat([learner.vectors([example]) for example in examples])
    torch.testing.assert_close(together, alone, rtol=1e-3, atol=1e-3)


def test_vectors_read_the_prompt_alone_by_the_middle_of_the_layers(tmp_path: Path):
    """Neither the answer nor the other texts of a batch change a vector; it is a mean of hidden states."""
    learner = CausalLM.load(CausalSettings(model=str(tiny_causal(tmp_path / "causal")), max_length=64))
    learner.prepare(TASKS[:1])
    short, long = Example("apples", "a", "fruit"), Example("pears and much more of them", "b", "fruit")
    alone, beside = learner.vectors([short]), learner.vectors([short, long])
    torch.testing.assert_close(beside[:1], alone)
    torch.testing.assert_close(learner.vectors([Example("apples", "b", "fruit")]), alone)
    ids = torch.tensor([learner._asked(short)])
    with torch.no_grad():
        states = learner.model(input_ids=ids, output_hidden_states=True).hidden_states
    torch.testing.assert_close(alone[0], states[1][0].mean(dim=0))  # of the embeddings and two layers: .6 x 2 = 1
