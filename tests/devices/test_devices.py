"""Every preset on a device that is not the CPU: the same scores and the same files as there, nothing left on the wrong side."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from perdure.adapters.folder import open_adapter
from perdure.backbones.device import chosen_device
from perdure.commands.learn import learn
from perdure.commands.predict import predict
from perdure.errors import ConfigError
from perdure.methods.table import PRESETS
from perdure.ops.lowrank import dense
from perdure.state.store import Store
from tests.backbones.test_runs import image_tasks
from tests.backbones.tiny import tiny_causal, tiny_seq2seq, tiny_vision
from tests.contract.runs import SETTINGS, bits, short_run
from tests.devices import second_device
from tests.state.test_unfinished import SETTINGS as TRAINED
from tests.state.test_unfinished import TRAINING, Stop

pytestmark = pytest.mark.devices


@pytest.fixture(scope="module", autouse=True)
def second() -> None:
    second_device.install()


def both(folder: Path, tasks: Any, method: str, **backbone: Any) -> None:
    """A run on each device: equal scores."""
    runs = [
        learn(out=folder / device, tasks=tasks, method=method, backbone={**backbone, "device": device}, **SETTINGS)
        for device in ("cpu", "elsewhere")
    ]
    assert runs[0].score_matrix == runs[1].score_matrix


def test_mixing_devices_is_an_error():
    with pytest.raises(RuntimeError, match="same device"):
        torch.ones(3, device="elsewhere") + torch.ones(3)
    with pytest.raises(RuntimeError, match="generator"):
        torch.randn(3, device="elsewhere", generator=torch.Generator())


@pytest.mark.parametrize("method", PRESETS)
def test_a_preset_learns_the_same_on_another_device(method, small_tasks, encoder_folder, tmp_path):
    both(tmp_path, small_tasks, method, kind="encoder", model=str(encoder_folder), max_length=32)
    assert bits(tmp_path / "cpu") == bits(tmp_path / "elsewhere")


@pytest.mark.parametrize("method", ["perdure", "slice+replay", "lwf"])
@pytest.mark.parametrize("kind,make", [("causal", tiny_causal), ("seq2seq", tiny_seq2seq), ("vision", tiny_vision)])
def test_every_kind_of_backbone(kind, make, method, small_tasks, tmp_path):
    tasks = image_tasks(tmp_path / "images") if kind == "vision" else small_tasks[:2]
    both(tmp_path, tasks, method, kind=kind, model=str(make(tmp_path / "model")), attention="eager")
    here, there = (Store(tmp_path / device).stage_folder(2) / "adapter" for device in ("cpu", "elsewhere"))
    other = open_adapter(there)
    for name, delta in open_adapter(here).items():  # not to the bit: a CPU has fused kernels of its own
        assert torch.allclose(dense(delta), dense(other[name]), atol=1e-5)


def test_it_goes_on_inside_a_stage_and_answers(small_tasks, encoder_folder, tmp_path):
    backbone = {"kind": "encoder", "model": str(encoder_folder), "max_length": 32, "device": "elsewhere"}
    given = {"tasks": small_tasks[:1], "method": "l2", "backbone": backbone, **SETTINGS, **TRAINED}
    written = {**TRAINING, "checkpoint_minutes": 1e-9}
    with pytest.raises(KeyboardInterrupt):
        learn(out=tmp_path / "run", **{**given, "training": written}, report=Stop(3))
    learn(out=tmp_path / "run", **given)
    short_run(tmp_path / "whole", small_tasks[:1], encoder_folder, "l2", **TRAINED)
    assert bits(tmp_path / "run") == bits(tmp_path / "whole")
    (tmp_path / "texts.jsonl").write_text('{"text": "an apple"}\n')
    assert len(predict(tmp_path / "run", tmp_path / "texts.jsonl")) == 1


def test_a_device_that_is_not_there():
    with pytest.raises(ConfigError, match=r"backbone\.device: 'cuda:7' cannot be used here"):
        chosen_device("cuda:7")
    with pytest.raises(ConfigError, match="Give auto, cpu or cuda"):
        chosen_device("gpu")
    assert chosen_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
