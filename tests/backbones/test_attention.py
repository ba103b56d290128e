"""Models without sdpa: eager by default, said in one line and recorded; refused where sdpa was asked for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from benchmarks.breadth.architectures import build

from perdure.backbones import load_backbone
from perdure.backbones.base import Backbone
from perdure.commands.learn import learn
from perdure.errors import ConfigError
from perdure.state.reopen import learner_config
from perdure.state.store import Store
from tests.contract.runs import SETTINGS


def loaded(folder: Path, **settings: Any) -> Backbone:
    return load_backbone({"kind": "causal", "model": str(folder), "max_length": 32, **settings})


@pytest.mark.parametrize("name", ["gpt_oss", "bloom", "gpt_neo", "mamba", "rwkv"])
def test_eager_where_sdpa_is_missing(name: str, tmp_path: Path) -> None:
    folder = build("causal", name, tmp_path / name)
    backbone: Any = loaded(folder)
    assert (backbone.attention, backbone.settings.attention) == ("eager", "sdpa")
    assert (
        backbone.attention_note()
        == f"{type(backbone.model).__name__} has no sdpa attention: it computes with attention=eager"
    )
    assert loaded(folder, attention="eager").attention_note() is None  # pyright: ignore[reportAttributeAccessIssue]
    with pytest.raises(
        ConfigError, match=rf"'{folder}' has no sdpa attention\. Set backbone\.attention=eager, or leave it out"
    ):
        loaded(folder, attention="sdpa")


def test_sdpa_where_there_is_one(tmp_path: Path) -> None:
    folder = build("causal", "llama", tmp_path / "llama")
    for settings in ({}, {"attention": "sdpa"}):
        backbone: Any = loaded(folder, **settings)
        assert (backbone.attention, backbone.model.config._attn_implementation) == ("sdpa", "sdpa")
        assert backbone.attention_note() is None
    assert loaded(folder, attention="eager").model.config._attn_implementation == "eager"  # pyright: ignore


def test_the_run_records_what_it_computed_with(small_tasks: Any, tmp_path: Path) -> None:
    folder = build("causal", "bloom", tmp_path / "bloom")
    backbone = {"kind": "causal", "model": str(folder), "max_length": 64}
    learn(out=tmp_path / "run", tasks=small_tasks[:1], backbone=backbone, method="inc-lora", **SETTINGS)
    store = Store(tmp_path / "run")
    assert store.about["backbone"]["attention"] == "eager"
    assert any("has no sdpa attention" in line for line in store.about["adapted"]["notes"])
    assert learner_config(store).backbone["attention"] == "eager"
