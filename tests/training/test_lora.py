"""The adapter is trained in fp32, whatever its base is stored in; a weight that two modules share is not adapted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

from perdure.adapters.folder import open_adapter
from perdure.commands.learn import learn
from perdure.config.lora_settings import LoraSettings
from perdure.errors import ConfigError
from perdure.files.durable import read_lines
from perdure.state.store import Store
from perdure.training.lora import AdaptedModel
from tests.backbones.tiny import tiny_causal
from tests.contract.runs import SETTINGS


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_a_base_in_half_precision_has_an_adapter_in_fp32(dtype, small_tasks, tmp_path: Path) -> None:
    """Two tasks, so that the first one's update is read back and folded; the trajectory is averaged."""
    model = tiny_causal(tmp_path / "model")
    backbone = {"kind": "causal", "model": str(model), "max_length": 64, "max_new_tokens": 20, "dtype": dtype}
    training = {**SETTINGS["training"], "average": "last-half"}
    out = tmp_path / "run"
    scores = learn(out=out, tasks=small_tasks[:2], backbone=backbone, method="l2", **{**SETTINGS, "training": training})
    assert scores.average_accuracy is not None
    for position in (1, 2):
        folder = Store(out).stage_folder(position)
        assert all(torch.tensor(row["loss"]).isfinite() for row in read_lines(folder / "log.jsonl"))
        for delta in open_adapter(folder / "adapter").values():
            assert delta.A.dtype == torch.float32
            assert not torch.equal(delta.A, delta.A.to(getattr(torch, dtype)).float())  # finer than the base's format


def tied(is_tied: bool = True) -> LlamaForCausalLM:
    small: Any = {
        "hidden_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 8,
        "vocab_size": 9,
    }
    return LlamaForCausalLM(LlamaConfig(**small, tie_word_embeddings=is_tied))


@pytest.mark.parametrize(("rslora", "scaling"), [(False, 8 / 4), (True, 8 / 2)])
def test_the_update_is_scaled_by_alpha_over_r_or_its_root(rslora: bool, scaling: float) -> None:
    settings = LoraSettings(rank=4, alpha=8, rslora=rslora, targets=("q_proj",))
    model = AdaptedModel(tied(), settings, ())
    assert {module.scaling for module in model.modules.values()} == {scaling}


def test_a_head_tied_to_the_embedding_is_no_target() -> None:
    """What is written into its weight would change the inputs too, which training does not see."""
    with pytest.raises(ConfigError, match=r"lora\.targets .*'lm_head' shares its weight .*tied embeddings"):
        AdaptedModel(tied(), LoraSettings(rank=2, targets=("q_proj", "lm_head")), ())
    with pytest.raises(ConfigError, match=r"no layer 'query'\. Candidates: down_proj, .*, k_proj, o_proj"):
        AdaptedModel(tied(), LoraSettings(rank=2, targets=("query",)), ())
    untied = AdaptedModel(tied(False), LoraSettings(rank=2, targets=("q_proj", "lm_head")), ())
    assert "lm_head" in untied.modules


@pytest.mark.filterwarnings("ignore:Model .*tie")  # PEFT's, which goes on
def test_a_peft_model_with_a_tied_head_is_refused() -> None:
    with pytest.raises(ConfigError, match="'lm_head' shares its weight"):
        AdaptedModel.around(get_peft_model(tied(), LoraConfig(r=2, target_modules=["q_proj", "lm_head"])))
    AdaptedModel.around(get_peft_model(tied(), LoraConfig(r=2, target_modules=["q_proj"])))
