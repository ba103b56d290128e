"""Labels are packed behind one prompt only where that changes no score, whatever the architecture."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedTokenizerBase,
)

from perdure.backbones.causal import CausalLM, CausalSettings
from perdure.backbones.mixing import attention_window, reads_neighbours
from perdure.errors import ConfigError
from perdure.tasks.task import Example, Task
from tests.backbones.tiny import tiny_causal

TEXTS = ["rain", "a clear blue sky over the hills", "the soup was cold and bland " * 3, "an awful greasy burger"]
ROWS = [Example(text, "a", "t") for text in TEXTS]
TASK = Task(
    "t",
    ROWS,
    test=ROWS,
    labels={"a": "good", "b": "good and bad", "c": "bad", "d": "so so", "e": "no idea"},
)
SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 512,
}
MAMBA = {"mamba_n_heads": 4, "mamba_d_head": 16, "mamba_n_groups": 1, "mamba_d_state": 8, "mamba_chunk_size": 16}
LINEAR = {
    "layer_types": ["linear_attention", "full_attention"],
    "linear_num_value_heads": 4,
    "linear_num_key_heads": 2,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
}
GPT = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 512}
NOT_PLAIN: dict[str, dict[str, Any]] = {
    "granitemoehybrid": SIZES
    | MAMBA
    | {"num_local_experts": 2, "num_experts_per_tok": 1, "layer_types": ["mamba", "attention"], "mamba_expand": 2},
    "bamba": SIZES | MAMBA | {"attn_layer_indices": [1], "mamba_expand": 2},
    "falcon_h1": SIZES | MAMBA | {"mamba_d_ssm": 64},
    "mamba": {"hidden_size": 32, "num_hidden_layers": 2, "state_size": 8},
    "mamba2": {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_heads": 4,
        "head_dim": 16,
        "state_size": 8,
        "n_groups": 1,
    },
    "lfm2": SIZES | {"layer_types": ["conv", "full_attention"]},
    "qwen3_5_text": SIZES | LINEAR,
    "gpt_neo": {
        "hidden_size": 32,
        "num_layers": 2,
        "num_heads": 4,
        "attention_types": [[["global", "local"], 1]],
        "window_size": 12,
    },
    "jamba": SIZES | {"num_experts": 2, "attn_layer_period": 2, "attn_layer_offset": 1, "mamba_d_state": 8},
    "mpt": {"d_model": 32, "n_layers": 2, "n_heads": 4, "max_seq_len": 512},  # ALiBi: distances in places
    "rwkv": {"hidden_size": 32, "num_hidden_layers": 2, "attention_hidden_size": 32},
}
PLAIN: dict[str, dict[str, Any]] = {"llama": SIZES, "qwen3": SIZES, "gpt2": GPT, "gptj": GPT | {"rotary_dim": 4}}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(tiny_causal(tmp_path_factory.mktemp("llama")))


def model_of(name: str, tokenizer: PreTrainedTokenizerBase, dtype: torch.dtype) -> Any:
    special = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    settings = {**NOT_PLAIN, **PLAIN}[name]
    config = AutoConfig.for_model(name, vocab_size=len(tokenizer), **special, **settings)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim >= 2:
                parameter.mul_(3)  # so that answers differ between texts
    return model.to(dtype)


def backbone_of(
    name: str, tokenizer: PreTrainedTokenizerBase, dtype: torch.dtype = torch.float32, **settings: Any
) -> CausalLM:
    backbone = CausalLM(
        model_of(name, tokenizer, dtype), tokenizer, CausalSettings(model=name, max_length=100, **settings)
    )
    backbone.prepare([TASK])
    return backbone


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", NOT_PLAIN)
def test_layers_that_read_their_neighbours_are_ranked_one_label_at_a_time(
    name: str, dtype: torch.dtype, tokenizer: PreTrainedTokenizerBase
) -> None:
    backbone = backbone_of(name, tokenizer, dtype)
    assert backbone._packs is False
    right = backbone_of(name, tokenizer, dtype, ranking="exhaustive")
    assert backbone.predict(TASK.test, ["t"]) == right.predict(TASK.test, ["t"])
    assert (backbone.how_ranked() or "").startswith(("exhaustive: its ", "exhaustive: MptFor"))
    with pytest.raises(
        ConfigError, match=r"packed would give other scores than one label at a time on .*: (its|MptFor)"
    ):
        backbone_of(name, tokenizer, dtype, ranking="packed")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", PLAIN)
def test_plain_attention_is_still_packed(name: str, dtype: torch.dtype, tokenizer: PreTrainedTokenizerBase) -> None:
    backbone = backbone_of(name, tokenizer, dtype)
    answers = backbone.predict(TASK.test, ["t"])
    assert backbone.how_ranked() == "packed: both ways agree"
    right = backbone_of(name, tokenizer, dtype, ranking="exhaustive").predict(TASK.test, ["t"])
    if dtype == torch.float32:
        assert [answer.label for answer in answers] == [answer.label for answer in right]
    for answer, other in zip(answers, right, strict=True):
        assert answer.probabilities == pytest.approx(other.probabilities, abs=1e-5 if dtype == torch.float32 else 0.1)


def test_a_window_that_no_setting_names_shows_on_a_long_prompt(
    tokenizer: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both ways agree on nine tokens; a score that is off by 1 % for prompts above 60 is no rounding."""
    for ranking in ("auto", "packed"):
        backbone = backbone_of("llama", tokenizer, ranking=ranking)
        right = backbone._packed
        monkeypatch.setattr(
            backbone, "_packed", lambda p, c, right=right: right(p, c) * (1.01 if max(map(len, p)) > 60 else 1)
        )
        if ranking == "packed":
            with pytest.raises(ConfigError, match=r"both ways were tried, and scores differ by"):
                backbone.predict(TASK.test, ["t"])
        else:
            backbone.predict(TASK.test, ["t"])
            assert (backbone.how_ranked() or "").startswith("exhaustive: both ways were tried, and scores differ by")


def test_what_reads_neighbours_is_told_by_modules_too() -> None:
    class GptOssModel(nn.Linear):  # an innocent name with "ssm" in it
        pass

    class OwnMixer(nn.Module):
        pass

    decays = nn.Module()
    decays.A_log = nn.Parameter(torch.zeros(2))
    assert reads_neighbours(nn.Sequential(GptOssModel(2, 2), nn.Conv1d(2, 2, 1))) is None  # one tap sees one position
    for module in (nn.Conv1d(2, 2, 3), nn.GRU(2, 2), OwnMixer(), decays):
        assert "its layer 1 " in (reads_neighbours(nn.Sequential(nn.Linear(2, 2), module)) or "")


@pytest.mark.parametrize(
    "name,value", [("window_size", 12), ("attention_window_size", 12), ("local_attention", [12, 40])]
)
def test_a_window_counts_under_any_name(name: str, value: Any) -> None:
    config = type("Config", (), {name: value})()
    model = type("Model", (), {"config": type("Outer", (), {"get_text_config": lambda self: config})()})()
    assert attention_window(model) == 12


@pytest.mark.parametrize("name", ["llama", "mamba"])
def test_a_resumed_run_ranks_as_it_did_and_does_not_try_again(
    name: str, tokenizer: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = backbone_of(name, tokenizer)
    how = first.how_ranked()
    assert how is not None
    again = backbone_of(name, tokenizer)
    again._packs = None  # as before the first answer
    monkeypatch.setattr(type(again), "_tried", lambda *_: pytest.fail("tried again"))
    again.rank_as(how)
    assert again.how_ranked() == how
    assert again.predict(TASK.test, ["t"]) == first.predict(TASK.test, ["t"])


def test_what_was_not_decided_is_tried(tokenizer: PreTrainedTokenizerBase) -> None:
    """Several processes try at their first answer."""
    backbone = backbone_of("llama", tokenizer)
    backbone._packs = None
    backbone.rank_as("packed, if both ways agree at the first answer")
    assert backbone._packs is None
