"""Which layers are adapted, in PEFT's words: names, ends, patterns, all-linear, exclude; held against PEFT's own choice."""

from __future__ import annotations

import time
from typing import Any

import pytest
import torch
from benchmarks.breadth.architectures import config as tiny_config
from benchmarks.breadth.architectures import encoder as tiny_encoder_sizes
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    BertConfig,
    BertModel,
    LlamaConfig,
    LlamaForCausalLM,
    MambaConfig,
    MambaForCausalLM,
)

from perdure.backbones.targets import default_targets
from perdure.config.lora_settings import LoraSettings
from perdure.config.run_config import load_config
from perdure.errors import ConfigError
from perdure.training.lora import AdaptedModel
from perdure.training.targets import check_reached, is_linear

SMALL: dict[str, Any] = {
    "hidden_size": 8,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 8,
    "vocab_size": 9,
}


def llama() -> LlamaForCausalLM:
    return LlamaForCausalLM(LlamaConfig(**SMALL, tie_word_embeddings=False))


def chosen(model: nn.Module, targets: Any, exclude: Any = (), default: Any = ()) -> list[str]:
    settings = load_config({"lora": {"rank": 2, "targets": targets, "exclude": exclude}}).lora
    return list(AdaptedModel(model, settings, default).modules)


def chosen_by_peft(model: nn.Module, targets: Any, exclude: Any = None) -> list[str]:
    config = LoraConfig(r=2, target_modules=targets, exclude_modules=exclude)
    adapted = get_peft_model(model, config).get_base_model()
    return [name.removesuffix(".lora_A") for name, _ in adapted.named_modules() if name.endswith(".lora_A")]


@pytest.mark.parametrize(
    ("targets", "exclude", "count"),
    [
        ("all-linear", (), 14),
        ("ALL-linear", (), 14),
        ("all-linear", ["down_proj"], 12),
        ("all-linear", r".*layers\.1\..*", 7),
        (["q_proj", "v_proj"], (), 4),
        (["layers.0.self_attn.q_proj", "model.layers.1.self_attn.q_proj"], (), 2),
        (["q_proj", "lm_head"], ["layers.0.self_attn.q_proj"], 2),
        (r".*layers\.[01]\.self_attn\.(q|k)_proj", (), 4),
        (r"model\.layers\.1\.mlp\..*_proj", [], 3),
    ],
)
def test_the_same_layers_as_peft(targets: Any, exclude: Any, count: int) -> None:
    """A Llama of two layers with seven linear ones each, and a head."""
    ours = chosen(llama(), targets, exclude)
    assert ours == chosen_by_peft(llama(), targets, exclude or None)
    assert len(ours) == count


def test_all_linear_of_an_encoder_is_its_layers_without_the_unused_pooler() -> None:
    names = chosen(BertModel(BertConfig(**SMALL)), "all-linear")
    assert len(names) == 2 * 6
    assert not [name for name in names if "pooler" in name]


def test_all_linear_leaves_out_what_cannot_be_adapted_and_says_why() -> None:
    mamba = MambaForCausalLM(
        MambaConfig(vocab_size=9, hidden_size=8, state_size=2, num_hidden_layers=1, time_step_rank=4)
    )
    model = AdaptedModel(mamba, LoraSettings(rank=2, targets="all-linear"), ())
    assert [name.rpartition(".")[2] for name in model.modules] == ["in_proj", "x_proj"]
    left_out = "lora.targets=all-linear leaves out 1 layers (backbone.layers.0.mixer.{}): they {}"
    assert model.left_out_notes() == [
        left_out.format("dt_proj", "have their weight read by Mamba directly, past any adapter"),
        left_out.format("out_proj", "are read by Mamba's fused kernels past any adapter"),
    ]


@pytest.mark.parametrize(
    ("targets", "exclude", "says"),
    [
        (
            "q_proj",
            (),
            r"no linear layer's whole name matches .*'q_proj'.*\[q_proj, v_proj\].*'model\.layers\.0\.self_attn",
        ),
        (["layers.0.self_attn.q_proj", "layers.7.self_attn.q_proj"], (), r"no layer 'layers\.7\.self_attn\.q_proj'"),
        (
            ["qproj"],
            (),
            r"no layer 'qproj'\. Candidates: down_proj, gate_proj, k_proj, o_proj, q_proj, up_proj, v_proj\.$",
        ),
        (["input_layernorm"], (), r"'model\.layers\.0\.input_layernorm' is not a linear layer but a LlamaRMSNorm"),
        (["embed_tokens"], (), r"'model\.embed_tokens' is not a linear layer but a Embedding"),
        (["q_proj"], ["k_proj"], r"lora\.exclude: none of the layers to adapt matches 'k_proj'"),
        (["q_proj"], ["q_proj"], r"lora\.exclude leaves no layer"),
        (["q_proj"], ".*", r"lora\.exclude leaves no layer"),
        (["all-linear", "q_proj"], (), r"write lora\.targets=all-linear"),
        ("(q_proj", (), r"lora\.targets: .*not a regular expression"),
        (["q_proj"], "[", r"lora\.exclude: .*not a regular expression"),
        ("q" * 3000, (), r"regular expression of 3000 characters; at most 2000"),
    ],
)
def test_what_matches_nothing_is_refused_by_name(targets: Any, exclude: Any, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        chosen(llama(), targets, exclude)


@pytest.mark.parametrize("pattern", [r"(\w+\.?)+!", r"((a|m|o|d|e|l|\.|\w)*)*x!", r"(.*)*(.*)*(.*)*(.*)*\d!"])
def test_a_catastrophic_pattern_ends_in_seconds(pattern: str) -> None:
    begun = time.monotonic()
    with pytest.raises(ConfigError, match=r"lora\.targets: .*(takes too long|matches the regular expression)"):
        chosen(llama(), pattern)
    assert time.monotonic() - begun < 10


@pytest.mark.parametrize("kind", ["glm4_moe", "deepseek_v3", "deepseek_v2", "ernie4_5_moe", "qwen3_moe"])
def test_names_that_peft_takes_for_experts_are_refused_and_all_linear_leaves_them_out(kind: str) -> None:
    """PEFT would look for the dense layer's 'gate_proj' among the fused experts."""
    make = lambda: AutoModelForCausalLM.from_config(tiny_config("causal", kind))  # noqa: E731
    names = chosen(make(), "all-linear")
    assert names
    assert not [name for name in names if name.endswith(("gate_proj", "up_proj", "down_proj"))]
    if any(name.endswith("gate_proj") for name, _ in make().named_modules()):
        with pytest.raises(
            ConfigError, match=r"lora\.targets: '.*gate_proj' cannot be adapted: .*this model's experts.*exclude"
        ):
            chosen(make(), ["gate_proj", "up_proj", "down_proj"])


@pytest.mark.parametrize(("kind", "router"), [("llama4_text", "router"), ("phimoe", "router")])
def test_a_router_that_is_more_than_a_linear_layer_is_not_adapted(kind: str, router: str) -> None:
    """It returns weights and choices; PEFT would fail at the first forward pass."""
    make = lambda: AutoModelForCausalLM.from_config(tiny_config("causal", kind))  # noqa: E731
    assert not [name for name in chosen(make(), "all-linear") if name.endswith(router)]
    with pytest.raises(ConfigError, match=r"router' is not a linear layer but a \w+Router"):
        chosen(make(), [router])


NAMED: dict[tuple[str, str], tuple[str, ...]] = {
    ("encoder", "deberta"): ("in_proj",),
    ("encoder", "fnet"): ("intermediate.dense", "output.dense"),
    ("encoder", "xlnet"): ("layer_1", "layer_2"),
    ("encoder", "gte"): ("q_proj", "v_proj"),
    ("causal", "ctrl"): ("Wq", "Wv"),
    ("causal", "deepseek_v2"): ("q_proj", "kv_b_proj"),
    ("causal", "deepseek_v3"): ("q_b_proj", "kv_b_proj"),
    ("causal", "mamba2"): ("in_proj",),
    ("causal", "rwkv"): ("key", "value", "receptance", "output"),
    ("vision", "convnext"): ("pwconv1", "pwconv2"),
    ("vision", "dinov3_convnext"): ("pointwise_conv1", "pointwise_conv2"),
}


@pytest.mark.parametrize(("kind", "name"), NAMED)
def test_default_targets_of_families_that_name_them_otherwise(kind: str, name: str) -> None:
    auto = AutoModelForCausalLM if kind == "causal" else AutoModel
    model = auto.from_config(tiny_config(kind, name))
    assert default_targets(model) == NAMED[kind, name]
    assert AdaptedModel(model, LoraSettings(rank=2), default_targets(model)).modules


@pytest.mark.parametrize(("kind", "says"), [("ibert", "QuantLinear"), ("squeezebert", "Conv1d")])
def test_a_model_without_linear_layers_says_what_it_has(kind: str, says: str) -> None:
    width = tiny_encoder_sizes(**({"embedding_size": 64} if kind == "squeezebert" else {}))
    model = AutoModel.from_config(AutoConfig.for_model(kind, **width))
    with pytest.raises(ConfigError, match=f"computes with .*{says}.*LoRA adapts linear layers only"):
        default_targets(model)
    with pytest.raises(ConfigError, match=rf"lora\.targets: '.*' is not a linear layer but a {says}"):
        AdaptedModel(model, LoraSettings(rank=2, targets=("query",)), ())


def test_layers_that_the_loss_does_not_use_are_refused_by_the_setting() -> None:
    """The pooler of a BERT read by its tokens' mean."""
    bert = BertModel(BertConfig(**SMALL))
    model = AdaptedModel(bert, LoraSettings(rank=2, targets=("pooler.dense",)), ())
    model.enable(True)
    tokens = torch.tensor([[1, 2, 3]])
    check_reached(bert(tokens).pooler_output.sum())
    with pytest.raises(ConfigError, match=r"lora\.targets: .*none of the adapted layers"):
        check_reached(bert(tokens).last_hidden_state.sum())


def test_a_layer_with_a_forward_of_its_own_counts_if_it_only_multiplies() -> None:
    """Falcon writes its linear layers out; another multiplies and then clips."""
    from transformers.models.falcon.modeling_falcon import FalconLinear

    class Clips(FalconLinear):
        def forward(self, input: torch.Tensor) -> torch.Tensor:
            return super().forward(input).clamp(-100, 100)

    Clips.__module__ = FalconLinear.__module__
    assert is_linear(FalconLinear(4, 3))
    assert is_linear(FalconLinear(4, 3, bias=False).bfloat16())
    assert not is_linear(Clips(4, 3))
