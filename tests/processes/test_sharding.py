"""A base split over two processes (FSDP2): half of it on each, and the run of two processes that hold it whole."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

import perdure.commands.learn
from perdure.config.composition import resolve_method
from perdure.errors import ConfigError, UnmetNeed
from perdure.methods.contract.build import build_method
from perdure.ops.lowrank import dense
from perdure.state.checkpoint import load_checkpoint
from perdure.state.store import Store
from tests.backbones.tiny import tiny_causal
from tests.processes.cases import exact_run, tasks
from tests.processes.group import together

METHODS: dict[str, Any] = {
    "ps-lora": {"preset": "ps-lora", "penalties": {"sign-magnitude": {"weight": 3.0}}},
    "lwf": {"preset": "lwf", "replay": {"kind": "buffer", "use": "mixed"}},
    "a-gem": "a-gem",
    "output-drift": "output-drift",
    "perdure": "perdure",
}


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_causal(tmp_path_factory.mktemp("models") / "tiny-causal")


def run(out: Path, model: Path, method: Any, shard: bool) -> None:
    """A run; while it trains, every process writes down how much of the base it holds."""
    real = perdure.commands.learn.run_sequence

    def watched(chosen: Any, made: Any, adapted: Any, *rest: Any) -> Any:
        whole = {n: p for n, p in adapted.model.named_parameters() if ".lora_" not in n}
        held = {n: p.to_local() if hasattr(p, "to_local") else p for n, p in whole.items()}
        counts = [sum(p.numel() for p in tensors.values()) for tensors in (held, whole)]
        (out.parent / f"{out.name}-held-{os.environ['RANK']}").write_text(json.dumps(counts))
        return real(chosen, made, adapted, *rest)

    perdure.commands.learn.run_sequence = watched
    exact_run(out, model, method, accumulation=2, shard=shard)


def _update(out: Path, position: int, method: Any) -> dict[str, torch.Tensor]:
    state = Store(out).stage_folder(position) / "state.safetensors"
    factors = load_checkpoint(state, build_method(resolve_method(method)), lambda index: {}).factors
    return {name: dense(pair.update()) for name, pair in factors.items()}


@pytest.mark.parametrize(
    "name", ["ps-lora", *(pytest.param(name, marks=pytest.mark.slow) for name in METHODS if name != "ps-lora")]
)
def test_the_run_is_that_of_a_whole_base(name, tmp_path, model_folder):
    errors = tmp_path / "errors"
    for place, shard in (("whole", False), ("sharded", True)):
        codes = together(2, run, tmp_path / place, model_folder, METHODS[name], shard, errors=errors)
        assert codes == [0, 0], (errors / "0").read_text()
    for rank in (0, 1):
        held, all_of_it = json.loads((tmp_path / f"sharded-held-{rank}").read_text())
        assert held < 0.55 * all_of_it
    for position in (1, 2):
        expected = _update(tmp_path / "whole", position, METHODS[name])
        for module, update in _update(tmp_path / "sharded", position, METHODS[name]).items():
            torch.testing.assert_close(update, expected[module], rtol=1e-9, atol=1e-12)
    scores = [(Store(tmp_path / place).stage_folder(2) / "scores.json").read_text() for place in ("whole", "sharded")]
    assert scores[0] == scores[1]
    if name == "ps-lora":  # what is deployed is a merged model, gathered from both
        models = [AutoModelForCausalLM.from_pretrained(tmp_path / place / "deployed") for place in ("whole", "sharded")]
        assert type(models[0]) is type(models[1])
        for (key, weight), other in zip(models[0].state_dict().items(), models[1].state_dict().values(), strict=True):
            torch.testing.assert_close(other, weight, rtol=1e-6, atol=1e-7, msg=key)
        configs = [
            json.loads((tmp_path / place / "deployed" / "config.json").read_text()) for place in ("whole", "sharded")
        ]
        assert configs[0] == configs[1]


def test_one_process_alone_is_refused(tmp_path, model_folder):
    with pytest.raises(ConfigError, match="splits the base's weights over processes, but there is only one"):
        _learn(tmp_path / "run", model_folder, "inc-lora")


def test_inits_that_read_full_gradients_are_refused(tmp_path, model_folder):
    with pytest.raises(UnmetNeed, match=r"init: lora-ga requires gradients of whole weights"):
        _learn(tmp_path / "run", model_folder, "lora-ga")


def _learn(out: Path, model: Path, method: str) -> None:
    from perdure.commands.learn import learn

    backbone = {"kind": "causal", "model": str(model), "max_length": 64}
    learn(out=out, tasks=tasks(1), method=method, backbone=backbone, lora={"rank": 2}, shard=True)
