"""An adapter of every kind that the installed PEFT knows is merged as PEFT merges it, or refused: never a traceback."""

import dataclasses
import json
import warnings

import pytest
import torch
from peft import LoraConfig, get_peft_model
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

from perdure.adapters.format import REFUSED
from perdure.errors import AdapterError
from perdure.merging.folders import merge_folders
from perdure.merging.rules import rule_named
from perdure.ops.lowrank import dense
from tests.adapter_cases import SmallModel

TARGETS = ["up", "down"]
CHECKED = {  # settings of LoraConfig that change what an adapter is, beside those of REFUSED
    *("r", "lora_alpha", "use_rslora", "rank_pattern", "alpha_pattern", "fan_in_fan_out", "bias", "init_lora_weights"),
    *("peft_type", "task_type", "auto_mapping", "base_model_name_or_path", "revision", "target_parameters"),
}
WITHOUT_MEANING = {  # for the update, which lies in the factors whatever they say
    *("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern", "lora_dropout", "inference_mode"),
    *("peft_version", "runtime_config", "ensure_weight_tying", "megatron_core"),
    *("loftq_config", "eva_config", "corda_config", "lora_ga_config"),  # of inits, which init_lora_weights names
    *("velora_config", "qalora_group_size"),  # approximates gradients in training; read with use_qalora only
}
VARIANTS = {
    "plain": {},
    "rslora": {"use_rslora": True},
    "patterns": {"rank_pattern": {"down": 2}, "alpha_pattern": {"layers.0.up": 5}},
    "dora": {"use_dora": True},
    "bias": {"bias": "lora_only"},
    "lora bias": {"lora_bias": True},
    "whole modules": {"modules_to_save": ["conv"]},
    "embedding": {"target_modules": ["embed", "up"]},
    "conv1d": {"target_modules": ["conv"], "fan_in_fan_out": True},
    "gaussian": {"init_lora_weights": "gaussian"},
    "orthogonal": {"init_lora_weights": "orthogonal"},
    "pissa": {"init_lora_weights": "pissa"},
    "pissa, fast": {"init_lora_weights": "pissa_niter_2"},
    "olora": {"init_lora_weights": "olora"},
    "one layer": {"layers_to_transform": [1], "layers_pattern": "layers"},
    "parameters": {"target_modules": [], "target_parameters": ["layers.0.up.weight"], "lora_dropout": 0.0},
}
REFUSED_VARIANTS = {"dora", "bias", "lora bias", "whole modules", "pissa", "pissa, fast", "olora", "parameters"}


def saved(config, folder):
    """The PEFT model of SmallModel with random trained values, saved; None where PEFT wants another model."""
    torch.manual_seed(0)
    try:
        model = get_peft_model(SmallModel(), config)
    except Exception:
        config.save_pretrained(str(folder))
        return None
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data.normal_(std=0.3, generator=generator)
    model.save_pretrained(str(folder))
    return model


def merged_or_refused(model, folder, out):
    """Whether perdure merges the adapter; then as PEFT does. It raises nothing but AdapterError."""
    try:
        merge_folders([folder], out, rule_named("sum"))
    except AdapterError:
        return False
    from perdure.adapters.folder import Adapter

    found, before = Adapter(out), dict(SmallModel().state_dict())
    wanted = {name: weight - before[name] for name, weight in model.merge_and_unload().state_dict().items()}
    for name, change in wanted.items():
        module = name.removesuffix(".weight")
        if module in found:
            delta = dense(found[module])
            torch.testing.assert_close(delta if delta.shape == change.shape else delta.T, change, rtol=1e-5, atol=1e-5)
        else:
            torch.testing.assert_close(change, torch.zeros_like(change), rtol=0, atol=0)
    return True


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variant_of_lora(tmp_path, variant):
    model = saved(
        LoraConfig(**{"r": 4, "lora_alpha": 8, "target_modules": TARGETS, **VARIANTS[variant]}), tmp_path / "a"
    )
    assert merged_or_refused(model, tmp_path / "a", tmp_path / "out") == (variant not in REFUSED_VARIANTS)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", [kind for kind in PEFT_TYPE_TO_CONFIG_MAPPING if kind.value != "LORA"], ids=str)
def test_every_other_tuner_is_refused_by_name(tmp_path, kind):
    made = PEFT_TYPE_TO_CONFIG_MAPPING[kind]
    fields = {field.name for field in dataclasses.fields(made)}
    try:
        config = made(**({"target_modules": TARGETS} if "target_modules" in fields else {}))
        saved(config, tmp_path / "a")
    except Exception:
        (tmp_path / "a").mkdir(exist_ok=True)
        (tmp_path / "a" / "adapter_config.json").write_text(json.dumps({"peft_type": kind.value}))
    with pytest.raises(AdapterError, match=rf"this is a {kind.value} adapter"):
        merge_folders([tmp_path / "a"], tmp_path / "out", rule_named("sum"))
    assert not (tmp_path / "out").exists()


def test_every_setting_of_lora_is_known():
    """A setting that a new PEFT brings must be looked at: does it change what B A means?"""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        settings = {field.name for field in dataclasses.fields(LoraConfig)}
    unknown = settings - CHECKED - WITHOUT_MEANING - set(REFUSED)
    assert not unknown, "refuse them in perdure.adapters.format, or say here why they do not matter"
