"""Updates beside a base that cannot be written to: held to folding them in; and real 4- and 8-bit bases (`make quantized`).

The second half needs bitsandbytes. It never skips by itself: it is left out by its mark, or it runs.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch

import perdure
from perdure.backbones import load_backbone
from perdure.config.composition import resolve_method
from perdure.config.lora_settings import LoraSettings
from perdure.errors import UnmetNeed
from perdure.methods.contract.build import build_method
from perdure.methods.contract.parts import Start
from perdure.ops.factors import Factors
from perdure.ops.lowrank import LowRank, Update
from perdure.tasks.task import Task
from perdure.training.adapted_module import SidePath
from perdure.training.lora import AdaptedModel
from tests.backbones.tiny import tiny_causal
from tests.methods import two_layers
from tests.methods.two_layers import HIDDEN, INPUTS, UNITS, Toy, learn_toy, toy_tasks

SHAPES = {"first": (HIDDEN, INPUTS), "second": (UNITS, HIDDEN)}


class Unwritable(AdaptedModel):
    """As with a quantised base: no dense weights to write to, the weights themselves being known exactly."""

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.modules = {
            name: dataclasses.replace(module, pretrained_OI=None, side=SidePath(module.layer.get_base_layer()))
            for name, module in self.modules.items()
        }


def drawn(seed: int) -> dict[str, LowRank]:
    generator = torch.Generator().manual_seed(seed)
    return {
        name: LowRank(
            torch.randn(3, i, generator=generator, dtype=torch.float64),
            torch.randn(o, 3, generator=generator, dtype=torch.float64),
        )
        for name, (o, i) in SHAPES.items()
    }


def models() -> list[AdaptedModel]:
    made = []
    for kind in (AdaptedModel, Unwritable):
        net = Toy().model.double()
        made.append(kind(net, LoraSettings(rank=2, alpha=4), ("first", "second")))
        for module in made[-1].modules.values():  # the values are kept in fp32: the same in both
            module.base.data = module.base.data.float().double()
    return made


X = torch.linspace(-1, 1, 5 * INPUTS, dtype=torch.float64).view(5, INPUTS)


def test_a_side_path_is_the_folded_update() -> None:
    """Deployed, carried, with an offset: outputs and gradients are those of a written weight, to fp32's last bits."""
    folded, beside = models()
    start = Start({n: Factors(u.A[:2], u.B[:, :2], 2.0, u.A[:2], u.B[:, :2]) for n, u in drawn(3).items()})
    results = []
    for model in (folded, beside):
        with model.deployed(drawn(1)):
            answers = model.model(X)
        model.fold(drawn(2))
        carried = model.model(X)
        model.start(start)
        trained = model.model(X)
        trained.square().sum().backward()
        grads = [grad for pair in model.gradients().values() for grad in pair if grad is not None]
        results.append([answers, carried, trained, *grads])
        torch.testing.assert_close(trained, carried, rtol=1e-5, atol=1e-5)  # the offset takes the start back
    assert len(results[0]) == 3 + 4
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_nothing_is_left_beside_the_base_when_nothing_is_deployed() -> None:
    _, beside = models()
    bare = beside.model(X)
    with beside.deployed(drawn(1)):
        assert not torch.equal(beside.model(X), bare)
    assert torch.equal(beside.model(X), bare)


def test_a_dense_update_is_refused_with_the_reason() -> None:
    _, beside = models()
    update: Update = {"first": torch.ones(HIDDEN, INPUTS)}
    with pytest.raises(UnmetNeed, match=r"'first' is stored quantised .* this one is dense: merged entry by entry"):
        beside.fold(update)


@pytest.mark.parametrize("method", ["inc-lora", "seq-lora", "o-lora", "per-task", "average"])
def test_a_run_beside_the_base_is_the_run_in_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str) -> None:
    pasts = []
    for kind in (AdaptedModel, Unwritable):
        monkeypatch.setattr(two_layers, "AdaptedModel", kind)
        pasts.append(
            learn_toy(build_method(resolve_method(method)), tmp_path / kind.__name__, toy_tasks(2), method=method)
        )
    for one, other in zip(pasts[0].updates(), pasts[1].updates(), strict=True):
        for name in SHAPES:
            torch.testing.assert_close(one[name].A, other[name].A, rtol=1e-3, atol=1e-4)  # type: ignore[union-attr]


@pytest.fixture
def bits_and_bytes() -> None:
    if importlib.util.find_spec("bitsandbytes") is None:
        message = "bitsandbytes is not installed; `make quantized` fetches it"
        if os.environ.get("PERDURE_QUANTIZED") == "required":
            pytest.fail(message)
        pytest.skip(message)


ROWS = [("a good day", "pos"), ("bad", "neg"), ("good", "pos"), ("a bad day", "neg")]
TASKS = [Task(n, ROWS, test=ROWS[:2], labels={"pos": f"{n} good", "neg": "bad"}) for n in ("mood", "tone")]


def learn(folder: Path, out: Path, bits: str, method: Any = "inc-lora"):
    return perdure.learn(
        tasks=TASKS,
        out=out,
        method=method,
        backbone={"kind": "causal", "model": str(folder), "quantization": bits},
        lora={"rank": 2},
        training={"epochs": 2, "batch_size": 2, "learning_rate": 0.01},
        precision="fp32",
    )


@pytest.mark.quantized
@pytest.mark.filterwarnings("default")  # bitsandbytes and PEFT's adapters for it warn about their own matters
@pytest.mark.parametrize("bits", ["8-bit", "4-bit"])
class TestRealBases:
    def test_a_run_carries_and_deploys_low_rank_updates(self, bits_and_bytes: None, tmp_path: Path, bits: str) -> None:
        folder = tiny_causal(tmp_path / "model", hidden=128)
        scores = learn(folder, tmp_path / "run", bits)
        assert len(scores.score_matrix) == 2
        config = json.loads((tmp_path / "run/deployed/adapter_config.json").read_text())
        assert config["r"] == 4, "the sum of two adapters of rank 2, as one"
        steps = [json.loads(line) for line in (tmp_path / "run/stages/02-tone/log.jsonl").read_text().splitlines()]
        assert all(step["loss"] > 0 for step in steps)

    def test_the_second_task_trains_on_the_first_ones_update(
        self, bits_and_bytes: None, tmp_path: Path, bits: str
    ) -> None:
        backbone = load_backbone(
            {"kind": "causal", "model": str(tiny_causal(tmp_path / "model", hidden=128)), "quantization": bits}
        )
        backbone.prepare(TASKS)
        model = AdaptedModel(backbone.model, LoraSettings(rank=2), backbone.default_targets)
        assert not model.dense_base
        batch = backbone.collate(TASKS[0].train)
        generator = torch.Generator().manual_seed(0)
        update = {
            name: LowRank(
                torch.randn(2, module.A.shape[1], generator=generator),
                torch.randn(module.B.shape[0], 2, generator=generator),
            )
            for name, module in model.modules.items()
        }
        with torch.no_grad():
            before = backbone.forward(batch).loss
            model.fold(update)
            carried = backbone.forward(batch).loss
            with model.deployed({}):
                bare = backbone.forward(batch).loss
        assert bare.item() == before.item()
        assert abs(carried.item() - before.item()) > 1e-3

    def test_the_penalty_without_the_merge_runs(self, bits_and_bytes: None, tmp_path: Path, bits: str) -> None:
        folder = tiny_causal(tmp_path / "model", hidden=128)
        learn(folder, tmp_path / "run", bits, {"preset": "ps-lora", "consolidate": "sum"})
        lines = (tmp_path / "run/stages/02-tone/log.jsonl").read_text().splitlines()
        assert all(json.loads(line)["penalties"]["sign-magnitude"] > 0 for line in lines[1:])

    def test_answering_leaves_training_as_it_is(self, bits_and_bytes: None, tmp_path: Path, bits: str) -> None:
        """bitsandbytes' form for answering on a CPU has no gradient; training must not meet it."""
        folder = tiny_causal(tmp_path / "model", hidden=128)
        backbone = load_backbone({"kind": "causal", "model": str(folder), "quantization": bits})
        backbone.prepare(TASKS)
        model = AdaptedModel(backbone.model, LoraSettings(rank=2), backbone.default_targets)
        model.enable(True)
        grads = []
        for _ in range(2):
            for parameter in model.parameters():
                parameter.grad = None
                parameter.data.fill_(0.01)
            backbone.forward(backbone.collate(TASKS[0].train)).loss.backward()
            grads.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
            backbone.predict(TASKS[0].test, ["mood"])
        assert len(grads[0]) == len(model.parameters())
        assert any(grad.abs().max() > 0 for grad in grads[0])
        for one, other in zip(*grads, strict=True):
            torch.testing.assert_close(one, other)

    @pytest.mark.parametrize("method", ["ps-lora", {"preset": "slice", "init": {"batch_size": 4}}, "ties"])
    def test_what_needs_dense_weights_says_so_before_training(
        self, bits_and_bytes: None, tmp_path: Path, bits: str, method: Any
    ) -> None:
        with pytest.raises(UnmetNeed, match=r"requires a base whose weights are stored dense"):
            learn(tiny_causal(tmp_path / "model", hidden=128), tmp_path / "run", bits, method)
        assert not (tmp_path / "run/stages").exists()
