"""The plug-in on a stand-in for axolotl's base class, which calls as axolotl 0.19 does; the example is the configuration."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from perdure.errors import ConfigError, StoreError
from perdure.integrations import Continual
from tests.backbones.tiny import tiny_causal
from tests.integrations.test_continual import learn, rows, stack
from tests.integrations.trainers import peft_model, plain_trainer

EXAMPLE = yaml.safe_load((Path(__file__).parents[2] / "examples/axolotl.yaml").read_text())


@pytest.fixture
def plugin(monkeypatch: pytest.MonkeyPatch) -> Any:
    """As axolotl makes it: from the name in the configuration."""
    base = ModuleType("axolotl.integrations.base")
    base.BasePlugin = type("BasePlugin", (), {})  # pyright: ignore[reportAttributeAccessIssue]
    for name in ("axolotl", "axolotl.integrations"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setitem(sys.modules, base.__name__, base)
    monkeypatch.delitem(sys.modules, "perdure.integrations.axolotl", raising=False)
    (place,) = EXAMPLE["plugins"]
    module, _, name = place.rpartition(".")
    return getattr(importlib.import_module(module), name)()


def configured(folder: Path, history: list[str]) -> dict[str, Any]:
    own = {
        **EXAMPLE["perdure"],
        "history": history,
        "save": str(folder / "may"),
        "save_deployed": str(folder / "deployed"),
    }
    return {**EXAMPLE, "perdure": own}


def test_it_trains_and_saves_what_the_three_lines_do(plugin: Any, tmp_path: Path) -> None:
    model_folder = tiny_causal(tmp_path / "tiny")
    learn(Continual("ps-lora"), tmp_path / "april", model_folder, seed=0)
    history = [str(tmp_path / "april")]
    cfg = configured(tmp_path, history)
    trainer = plain_trainer(peft_model(model_folder), rows(1), tmp_path, stack, per_device_train_batch_size=4)
    plugin.post_trainer_create(cfg, trainer)
    trainer.train()
    for _ in range(2):  # axolotl calls it twice
        plugin.post_train(cfg, trainer.model)
    learn(Continual("ps-lora", history=history), tmp_path / "by-hand", model_folder, seed=1)
    one, other = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("may", "by-hand"))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert (tmp_path / "deployed").is_dir()


def test_its_settings_are_checked_by_the_class_it_names(plugin: Any) -> None:
    module, _, name = plugin.get_input_args().rpartition(".")
    checked = getattr(importlib.import_module(module), name)
    assert checked.model_validate({"perdure": EXAMPLE["perdure"]}).perdure.save == "adapters/may"
    with pytest.raises(ValueError, match="histroy"):
        checked.model_validate({"perdure": {**EXAMPLE["perdure"], "histroy": []}})
    with pytest.raises(ValueError, match="save"):
        checked.model_validate({"perdure": {"method": "ps-lora"}})


@pytest.mark.parametrize("changed", [{"adapter": "qlora"}, {"adapter": None}, {"relora": True}], ids=str)
def test_what_is_no_plain_lora_is_refused_before_training(plugin: Any, tmp_path: Path, changed: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="adapter: lora"):
        plugin.post_trainer_create({**configured(tmp_path, []), **changed}, trainer=None)


def test_a_folder_that_exists_is_refused_before_training(plugin: Any, tmp_path: Path) -> None:
    (tmp_path / "may").mkdir()
    (tmp_path / "may/thesis.txt").touch()
    with pytest.raises(StoreError, match="may"):
        plugin.post_trainer_create(configured(tmp_path, []), trainer=None)
