"""A plain Trainer with the integration gives the adapter that perdure's own loop gives, on the same batches, in float64."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

import perdure.commands.learn
from perdure.adapters.folder import open_adapter, write_adapter
from perdure.backbones import load_backbone
from perdure.commands.learn import learn
from perdure.config.composition import resolve_method
from perdure.config.lora_settings import LoraSettings
from perdure.files.durable import read_lines
from perdure.integrations import Continual
from perdure.integrations.trainer_context import TrainerBackbone, TrainerContext, TrainerStage
from perdure.methods.contract.build import build_method
from perdure.methods.contract.past import Past
from perdure.methods.plain import Kaiming
from perdure.state.checkpoint import load_checkpoint
from perdure.state.store import Store
from perdure.tasks.task import Stage, Task
from perdure.training.context import StageContext, derived_seed
from perdure.training.lora import AdaptedModel
from perdure.training.train import cut_batches
from tests.backbones.tiny import tiny_causal
from tests.integrations.trainers import peft_model, plain_trainer, row

BATCH = 8  # of 20 examples: the last step of an epoch is ragged
METHODS: dict[str, Any] = {
    "inc-lora": "inc-lora",
    "ps-lora": {"preset": "ps-lora", "penalties": {"sign-magnitude": {"weight": 3.0}}},
    "share": {"preset": "ps-lora", "penalties": {"sign-magnitude": {"gradient_share": 1.0}}},
    "o-lora+n-lora": {
        "preset": "o-lora+n-lora",
        "penalties": {"overlap": {"weight": 20.0}, "sparsity": {"weight": 0.3}},
    },
    "n-lora-proximal": "n-lora-proximal",
    "seq-lora": "seq-lora",
    "slao": "slao",
    "loram": {"preset": "loram", "penalties": {"l2": {"weight": 30.0}}},
}


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_causal(tmp_path_factory.mktemp("models") / "tiny-causal")


@pytest.fixture
def _float64(monkeypatch):
    def load(config, tasks, tried=False):
        learner = load_backbone(config.backbone)
        learner.model.double()
        learner.prepare(tasks)
        return AdaptedModel(learner.model, config.lora, learner.default_targets), learner

    monkeypatch.setattr(perdure.commands.learn, "load_learner", load)


def _run(out: Path, tasks, model_folder: Path, method: Any, accumulation: int) -> Store:
    learn(
        out=out, tasks=tasks, method=method,
        backbone={"kind": "causal", "model": str(model_folder), "max_length": 64},
        lora={"rank": 2, "alpha": 4},
        training={"epochs": 1, "batch_size": BATCH, "learning_rate": 0.01, "accumulation": accumulation},
        precision="fp32", threads=1,
    )  # fmt: skip
    return Store(out)


def _past(store: Store, position: int, method: Any) -> Past:
    """What the stage left behind, in the precision it was computed in."""
    state = store.stage_folder(position) / "state.safetensors"
    return load_checkpoint(state, build_method(resolve_method(method)), lambda index: {})


def _history(store: Store, method: Any, folder: Path) -> list[Path]:
    """The first two stages' adapters as folders, in float64 (a run's own are in float32)."""
    made = []
    for position in (1, 2):
        update = {name: pair.update() for name, pair in _past(store, position, method).factors.items()}
        made.append(folder / f"task-{position}")
        made[-1].mkdir(parents=True)
        rank = max(delta.rank for delta in update.values())
        write_adapter(made[-1], update, rank=rank, dtype=torch.float64)
    return made


def _batches(task, model_folder: Path, accumulation: int) -> list[dict[str, torch.Tensor]]:
    """The third stage's micro-batches, in the order of the loop."""
    learner = load_backbone({"kind": "causal", "model": str(model_folder), "max_length": 64})
    learner.prepare([task])
    generator = torch.Generator().manual_seed(derived_seed(0, 2, "batches 0"))
    steps = cut_batches(task.train, BATCH, generator, learner.length)
    sizes = [math.ceil(len(step) / accumulation) for step in steps]
    return [
        row(learner.collate(step[i : i + n]))
        for step, n in zip(steps, sizes, strict=True)
        for i in range(0, len(step), n)
    ]


@pytest.mark.usefixtures("_float64")
@pytest.mark.parametrize("name,accumulation", [*((name, 2) for name in METHODS), ("ps-lora", 1), ("ps-lora", 4)])
def test_the_same_adapter(name, accumulation, tmp_path, small_tasks, model_folder):
    method = METHODS[name]
    store = _run(tmp_path / "run", small_tasks, model_folder, method, accumulation)
    rows = _batches(small_tasks[2], model_folder, accumulation)

    continual = Continual(method, history=_history(store, method, tmp_path / "adapters"))
    trainer = plain_trainer(
        peft_model(model_folder), rows, tmp_path, gradient_accumulation_steps=accumulation, max_grad_norm=1.0
    )
    continual.attach(trainer)
    trainer.train()
    continual.save(tmp_path / "adapters" / "new")

    ours, theirs = open_adapter(tmp_path / "adapters" / "new"), _past(store, 3, method).factors
    assert list(ours) == list(theirs)
    for module, pair in theirs.items():
        expected = pair.update()
        torch.testing.assert_close(ours[module].A, expected.A, rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(ours[module].B, expected.B, rtol=1e-9, atol=1e-12)
    steps = read_lines(store.stage_folder(3) / "log.jsonl")
    assert [log["loss"] for log in trainer.state.log_history if "loss" in log] == pytest.approx(
        [step["loss"] for step in steps], abs=1e-4
    )
    if steps[-1]["shares"]:
        assert sum(steps[-1]["shares"].values()) > 0.5  # the penalty is at least a third of what is trained on


def test_free_text_has_the_scores_of_the_loop(tmp_path, model_folder):
    """The same rows give the same inputs and gradients, token for token drawn alike; rows of unequal lengths."""
    texts = [("a", "xyz"), ("bc", "q"), ("def", "no more")]
    learner: Any = load_backbone({"kind": "causal", "model": str(model_folder), "max_length": 64})
    learner.model.double()
    task = Task("t", texts, test=texts)
    learner.prepare([task])
    model = AdaptedModel(learner.model, LoraSettings(rank=2, alpha=4), learner.default_targets)
    ours = StageContext(Stage("t", (task,)), 0, Past(), {}, model, learner, {}, seed=0)
    model.start(Kaiming().start(ours))

    trained = peft_model(model_folder)
    trainer = plain_trainer(trained, [row(learner.collate(task.train))], tmp_path)
    inside = AdaptedModel.around(trained)
    backbone = TrainerBackbone(trainer, trained, trainer.data_collator)
    theirs = TrainerContext(TrainerStage.named("t", ()), 0, Past(), {}, inside, backbone, {}, 0)
    inside.start(Kaiming().start(theirs))

    found: list[list[Any]] = [[], []]
    ours.stream_scores([task.train], lambda *given: found[0].append(given))
    theirs.stream_scores([trainer.train_dataset], lambda *given: found[1].append(given))
    assert len(found[0]) == len(found[1]) == len(model.modules)
    for (name, use, x, g), (other, its_use, its_x, its_g) in zip(*found, strict=True):
        assert (name, use) == (other, its_use)
        assert g.any()
        torch.testing.assert_close(x, its_x, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(g, its_g, rtol=1e-5, atol=1e-6)
