"""Adapters merged into bases whose files name or arrange weights differently from the modules transformers makes of them."""

import json

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import nn

from perdure.diagnostics.folders import diagnose_folders
from perdure.errors import AdapterError
from perdure.merging.base import Base
from perdure.merging.conversion import NOTHING, Converted, read_conversion
from perdure.merging.folders import merge_folders
from perdure.merging.rules import rule_named
from tests.adapter_cases import random_folder

TEXT = {
    "vocab_size": 50,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": 32,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
IMAGE = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 16,
    "patch_size": 8,
    "num_channels": 3,
}
MODELS = {
    **dict.fromkeys(["vit", "deit", "dinov2", "dinov2_with_registers", "dinov3_vit", "ijepa", "vit_mae"], IMAGE),
    "beit": {**IMAGE, "vocab_size": 8},
    "swin": {"image_size": 16, "patch_size": 4, "embed_dim": 8, "depths": [1], "num_heads": [2], "window_size": 2},
    "segformer": {
        "hidden_sizes": [8, 16],
        "num_encoder_blocks": 2,
        "depths": [1, 1],
        "sr_ratios": [2, 1],
        "num_attention_heads": [1, 2],
        "patch_sizes": [7, 3],
        "strides": [4, 2],
        "mlp_ratios": [2, 2],
    },
    **dict.fromkeys(["nomic_bert", "gte", "jina_embeddings_v3"], TEXT),
    "phimoe": {**TEXT, "num_local_experts": 2, "num_experts_per_tok": 1, "sliding_window": None, "head_dim": 8},
    "kimi_linear": {
        **TEXT,
        "head_dim": 8,
        "num_experts": 4,
        "num_experts_per_token": 2,
        "linear_head_dim": 8,
        "linear_num_heads": 2,
        "kv_lora_rank": 8,
    },
    "nemotron_h": {
        **TEXT,
        "head_dim": 8,
        "layers_block_type": ["mamba", "attention"],
        "mamba_num_heads": 4,
        "mamba_head_dim": 8,
        "ssm_state_size": 8,
        "n_groups": 1,
        "chunk_size": 8,
    },
}
ZAMBA = {
    **TEXT,
    "num_hidden_layers": 4,
    "layers_block_type": ["mamba", "hybrid", "mamba", "hybrid"],
    "num_mem_blocks": 1,
    "mamba_d_state": 8,
    "mamba_expand": 2,
    "n_mamba_heads": 4,
    "mamba_ngroups": 1,
    "chunk_size": 8,
    "use_shared_attention_adapter": False,
    "attention_head_dim": 16,
}
CAUSAL = ("phimoe", "kimi_linear", "nemotron_h", "zamba2")


def tiny_model(name, settings):
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(name, **settings)
    auto = transformers.AutoModelForCausalLM if name in CAUSAL else transformers.AutoModel
    return auto.from_config(config).float().eval()


def answers(model, inputs):
    torch.manual_seed(0)  # ViT-MAE masks patches at random
    with torch.no_grad():
        return model(**inputs)[0]


def inputs_of(model):
    generator = torch.Generator().manual_seed(3)
    if "image_size" in model.config.to_dict() or model.config.model_type == "segformer":
        return {"pixel_values": torch.randn(2, 3, 16, 16, generator=generator)}
    cache = {"use_cache": False} if model.config.model_type in CAUSAL else {}
    return {"input_ids": torch.randint(3, 50, (2, 9), generator=generator), **cache}


def adapter_on_all_linear(model, folder):
    from peft import LoraConfig, get_peft_model

    head = model.get_output_embeddings()
    layers = {name: module for name, module in model.named_modules() if type(module) is nn.Linear}
    targets = [name for name, module in layers.items() if module is not head and not name.endswith("out_proj")]
    adapted = get_peft_model(model, LoraConfig(r=2, lora_alpha=4, target_modules=targets)).eval()
    generator = torch.Generator().manual_seed(1)
    for name, parameter in adapted.named_parameters():
        if "lora_" in name:
            parameter.data.normal_(generator=generator, std=0.2)
    adapted.save_pretrained(str(folder))
    return adapted, targets


@pytest.mark.parametrize("name", MODELS)
def test_an_adapter_merged_into_a_base_of_other_names_answers_as_in_peft(tmp_path, name):
    model = tiny_model(name, MODELS[name])
    model.save_pretrained(tmp_path / "base")
    inputs = inputs_of(model)
    before = answers(model, inputs)
    adapted, targets = adapter_on_all_linear(model, tmp_path / "adapter")
    held = load_file(tmp_path / "base" / "model.safetensors")
    assert not {f"{target}.weight" for target in targets} <= held.keys() or name in ("phimoe", "kimi_linear"), "renamed"
    merge_folders([tmp_path / "adapter"], tmp_path / "out", rule_named("sum"), base=tmp_path / "base")
    wanted = answers(adapted, inputs)
    merged, report = type(model).from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not report["missing_keys"]
    torch.testing.assert_close(answers(merged.eval(), inputs), wanted, rtol=1e-5, atol=1e-5)
    assert (wanted - before).abs().max() > 1e-3, "the adapter changes nothing"
    for tensor, weight in load_file(tmp_path / "out" / "model.safetensors").items():
        assert held[tensor].shape == weight.shape


def test_diagnose_checks_modules_against_such_a_base(tmp_path):
    model = tiny_model("nomic_bert", MODELS["nomic_bert"])
    model.save_pretrained(tmp_path / "base")
    module = "layers.0.self_attn.q_proj"
    places = [random_folder(tmp_path / str(seed), seed, shapes={module: (16, 16)}) for seed in (1, 2)]
    assert diagnose_folders(places, base=tmp_path / "base").notes == ()
    wide = [random_folder(tmp_path / f"wide{seed}", seed, shapes={module: (48, 16)}) for seed in (1, 2)]
    with pytest.raises(
        AdapterError, match=r"needs a weight of 48 x 16, 'layers\.0\.self_attn\.q_proj\.weight' .* 16 x 16"
    ):
        diagnose_folders(wide, base=tmp_path / "base")


def test_names_of_transformers_4_are_names_of_the_file(tmp_path):
    """An adapter from before the renaming changes the same weight as one from after it."""
    tiny_model("vit", IMAGE).save_pretrained(tmp_path / "base")
    names = {"old": "encoder.layer.1.attention.attention.query", "new": "layers.1.attention.q_proj"}
    for place, module in names.items():
        random_folder(tmp_path / place, 1, shapes={module: (16, 16)})
        merge_folders([tmp_path / place], tmp_path / f"{place}-out", rule_named("sum"), base=tmp_path / "base")
    old, new, base = (load_file(tmp_path / place / "model.safetensors") for place in ("old-out", "new-out", "base"))
    torch.testing.assert_close(old, new, rtol=0, atol=0)
    assert [name for name in base if not torch.equal(base[name], new[name])] == [f"{names['old']}.weight"]
    with pytest.raises(AdapterError, match="both stand for"):
        merge_folders([tmp_path / "old", tmp_path / "new"], tmp_path / "o", rule_named("sum"), base=tmp_path / "base")


def test_an_expert_named_as_in_the_file_is_merged_there(tmp_path):
    """transformers 5 fuses the experts; in the file each has its own weight."""
    model = tiny_model("phimoe", MODELS["phimoe"])
    model.save_pretrained(tmp_path / "base")
    module = "model.layers.0.block_sparse_moe.experts.1.w2"
    random_folder(tmp_path / "a", 1, shapes={module: (16, 24)})
    merge_folders([tmp_path / "a"], tmp_path / "out", rule_named("sum"), base=tmp_path / "base")
    merged = type(model).from_pretrained(tmp_path / "out").state_dict()
    delta = {n: (merged[n] - weight) for n, weight in model.state_dict().items() if not torch.equal(merged[n], weight)}
    (changed,) = delta.values()
    assert list(delta) == ["model.layers.0.mlp.experts.down_proj"]
    factors = load_file(tmp_path / "a" / "adapter_model.safetensors")
    update = (
        2 * factors[f"base_model.model.{module}.lora_B.weight"] @ factors[f"base_model.model.{module}.lora_A.weight"]
    )
    torch.testing.assert_close(changed[1], update, rtol=1e-5, atol=1e-5)
    assert not changed[0].any()


def test_layers_that_share_a_weight_are_not_merged_into(tmp_path):
    model = tiny_model("zamba2", ZAMBA)
    model.save_pretrained(tmp_path / "base")
    base = Base(tmp_path / "base")
    for layer in (1, 3):  # one weight, which the file holds once
        module = f"model.layers.{layer}.shared_transformer.feed_forward.down_proj"
        with pytest.raises(AdapterError, match=r"shares its weight with another module .*shared layers"):
            base.target(module, (16, 24), "linear", False)
    assert base.target("model.layers.1.linear", (16, 16), "linear", False).files == ("model.layers.1.linear.weight",)


def chunked(tensors):
    fused = tensors["fused"]
    return {"q": fused[:2], "k": fused[2:].T}


def test_changes_of_parts_are_put_where_they_come_from():
    group = Converted({"fused": (4, 2)}, {"q": (2, 2), "k": (2, 2)}, chunked)
    k = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    assert group.to_file({"k": k})["fused"].tolist() == [[0, 0], [0, 0], [1, 3], [2, 4]]
    both = group.to_file({"k": k, "q": -k})["fused"]
    assert both.tolist() == [[-1, -2], [-3, -4], [1, 3], [2, 4]]
    stacked = Converted(
        {"a": (1, 2), "b": (1, 2)}, {"ab": (2, 2)}, lambda tensors: {"ab": torch.cat([tensors["b"], tensors["a"]])}
    )
    assert {n: t.tolist() for n, t in stacked.to_file({"ab": k}).items()} == {"a": [[3, 4]], "b": [[1, 2]]}


@pytest.mark.parametrize(
    "change", [lambda w: w * 2, lambda w: w[:2], lambda w: torch.cat([w[:2], w[:2]]), lambda w: w.float()]
)
def test_a_conversion_that_computes_is_refused(change):
    group = Converted({"w": (4, 2)}, {"w": (4, 2)}, lambda tensors: {"w": change(tensors["w"])})
    with pytest.raises(AdapterError, match=r"'w' from 'w' in a way that does more than move entries"):
        group.to_file({"w": torch.ones(4, 2)})


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"model_type": "nobody-knows"},
        {"model_type": ["vit"]},
        {"model_type": "vit", "hidden_size": "wide"},
        {"model_type": "vit", "num_hidden_layers": 10**9},
        {"model_type": "gpt2", "n_layer": 10**9},
    ],
)
def test_a_model_transformers_cannot_make_keeps_the_names_of_its_file(tmp_path, config):
    (tmp_path / "config.json").write_text(json.dumps(config))
    save_file({"encoder.layer.0.attention.attention.query.weight": torch.ones(2, 2)}, tmp_path / "model.safetensors")
    assert read_conversion(tmp_path, config, {"w.weight": (2, 2)}) is NOTHING
    target = Base(tmp_path).target("encoder.layer.0.attention.attention.query", (2, 2), "linear", False)
    assert (target.tensor, target.converted) == ("encoder.layer.0.attention.attention.query.weight", None)
