"""`perdure doctor`: what it says of models that work, that work in part, and that do not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from benchmarks.breadth.architectures import build
from torch import nn
from typer.testing import CliRunner

import perdure
from perdure.backbones.causal import CausalLM
from perdure.cli import app
from perdure.commands.doctor import doctor
from perdure.errors import ConfigError
from tests.backbones.tiny import tiny_causal, tiny_encoder, tiny_seq2seq, tiny_vision

KINDS = {"encoder": tiny_encoder, "causal": tiny_causal, "seq2seq": tiny_seq2seq, "vision": tiny_vision}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("targets", [[], "all-linear"])
def test_a_model_of_each_kind_works(kind: str, targets: Any, tmp_path: Path) -> None:
    found = perdure.doctor({"kind": kind, "model": str(KINDS[kind](tmp_path))}, lora={"rank": 2, "targets": targets})
    assert found.works
    assert found.difference is not None
    assert 0 < found.difference < 1e-5 or kind == "vision"
    said = {check.name: check.found for check in found.checks}
    assert said["adapter"].startswith("adapts ")
    assert {"deployed = learnt", "attention", "packing", "batching", "tied weights", "adapters"} <= said.keys()
    assert said["batching"].startswith("scores alone and beside other texts differ by ")
    assert said["attention"] == ("eager" if kind in ("encoder", "seq2seq") else "sdpa")


def test_a_hybrid_says_what_is_left_and_why_it_is_not_packed(tmp_path: Path) -> None:
    found = doctor(
        {"kind": "causal", "model": str(build("causal", "granitemoehybrid", tmp_path / "m"))}, lora={"rank": 2}
    )
    notes = [check.found for check in found.checks if check.verdict == "note"]
    assert found.works
    assert [line for line in notes if "1 of 2 layers are not adapted" in line]
    assert [line for line in notes if "experts with" in line]
    assert [line for line in notes if line.startswith("exhaustive: ")]


def test_answers_that_depend_on_what_stands_beside_them_are_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Scores that grow by a hundredth with every text in the batch; the model's own trials do not see it."""
    right = CausalLM.scores
    monkeypatch.setattr(
        CausalLM, "scores", lambda self, batch, *given: right(self, batch, *given) * (1 + len(batch.examples) / 100)
    )
    found = doctor({"kind": "causal", "model": str(tiny_causal(tmp_path))}, lora={"rank": 2})
    (wrong,) = [check for check in found.checks if check.verdict == "no"]
    assert wrong.name == "batching"
    assert float(wrong.found.split()[8]) == pytest.approx(0.05 / 1.01, rel=0.05)  # six together, one alone


def test_an_encoder_that_mixes_padding_says_what_is_done(tmp_path: Path) -> None:
    found = doctor(
        {"kind": "encoder", "model": str(build("encoder", "fnet", tmp_path / "m"))},
        lora={"rank": 2, "targets": "all-linear"},
    )
    (batching,) = [check for check in found.checks if check.name == "batching"]
    assert batching.verdict == "note"
    assert batching.found.endswith("padding changes what it reads, so texts of one length are read together")


def test_a_difference_between_adapter_and_folded_update_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A layer that reads its own weight a second time, past the adapter: folding changes both readings."""
    folder = tiny_causal(tmp_path)
    load = perdure.commands.doctor.load_backbone  # pyright: ignore[reportAttributeAccessIssue]

    def load_twisted(settings: Any) -> Any:
        backbone = load(settings)

        def twist(layer: nn.Module, args: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:
            return output + nn.functional.linear(args[0], layer.weight)  # pyright: ignore[reportArgumentType]

        backbone.model.model.layers[0].self_attn.q_proj.register_forward_hook(twist)
        return backbone

    monkeypatch.setattr("perdure.commands.doctor.load_backbone", load_twisted)
    found = doctor({"kind": "causal", "model": str(folder)}, lora={"rank": 2})
    assert not found.works
    assert [check.name for check in found.checks if check.verdict == "no"] == ["deployed = learnt"]
    assert found.difference is not None
    assert found.difference > 1e-4


def test_the_command_prints_a_table_or_json_and_its_status_says_whether_it_works(tmp_path: Path) -> None:
    folder = tiny_causal(tmp_path)
    run = CliRunner().invoke(app, ["doctor", str(folder), "lora.rank=2", "--kind", "causal"])
    assert run.exit_code == 0, run.output
    assert "deployed = learnt  ok " in run.output
    run = CliRunner().invoke(app, ["doctor", str(folder), "lora.rank=2", "--kind", "causal", "--json"])
    found = json.loads(run.output)
    assert found["works"] is True
    assert found["adapted"]["modules"] == 4


def test_a_model_whose_layers_cannot_be_adapted_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="LoRA adapts linear layers only"):
        doctor({"kind": "vision", "model": str(build("vision", "resnet", tmp_path / "m")), "pooling": "mean"})
