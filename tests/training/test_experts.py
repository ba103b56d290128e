"""LoRA on stacks of experts: the same function as PEFT's `target_parameters`, in training, in files, and merged."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from benchmarks.breadth.architectures import build
from benchmarks.breadth.architectures import config as tiny_config
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from perdure.adapters.folder import open_adapter, write_adapter
from perdure.commands.export import export
from perdure.commands.learn import learn
from perdure.commands.merge import merge
from perdure.commands.predict import predict
from perdure.config.lora_settings import LoraSettings
from perdure.errors import AdapterError, ConfigError, UnmetNeed
from perdure.merging.rules import rule_named
from perdure.merging.state import merge_into
from perdure.methods.contract.parts import Start
from perdure.ops.factors import Factors
from perdure.ops.lowrank import LowRank
from perdure.training.lora import AdaptedModel
from tests.contract.runs import SETTINGS

BOTH = ("experts.gate_up_proj", "experts.down_proj")
MIXTURES = ("mixtral", "gpt_oss", "qwen3_moe", "granitemoe", "llama4_text", "glm4_moe", "deepseek_v3")
IDS = torch.tensor([[5, 9, 11, 200, 7, 30], [8, 8, 40, 2, 19, 120]])


def tiny(name: str) -> Any:
    """Always the same weights, larger than usual."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(tiny_config("causal", name)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(2)
    return model


def started(model: AdaptedModel, seed: int = 0) -> AdaptedModel:
    """The adapter on, with random factors."""
    generator = torch.Generator().manual_seed(seed)

    def drawn(like: Tensor) -> Tensor:
        return 0.2 * torch.randn(like.shape, generator=generator)

    factors = {name: Factors(drawn(f.A), drawn(f.B), f.scaling) for name, f in model.factors().items()}
    model.start(Start(factors, "AB"))
    return model


@torch.no_grad()
def logits(model: nn.Module) -> Tensor:
    return model(IDS).logits


def update_of(model: AdaptedModel) -> dict[str, LowRank]:
    return {name: factors.copied().update() for name, factors in model.factors().items()}


@pytest.mark.parametrize("name", MIXTURES)
@pytest.mark.parametrize(
    "settings",
    [
        {"target_parameters": BOTH},
        {"target_parameters": BOTH[:1], "exclude": ".*"},
        {"target_parameters": BOTH[1:], "rslora": True},
    ],
)
def test_trained_folded_and_read_by_peft_it_is_one_function(
    name: str, settings: dict[str, Any], tmp_path: Path
) -> None:
    default = ("o_proj",)
    model = started(AdaptedModel(tiny(name), LoraSettings(rank=3, alpha=5, **settings), default))
    trained, update = logits(model.model), update_of(model)
    with model.deployed(update):
        torch.testing.assert_close(logits(model.model), trained, rtol=1e-4, atol=1e-4)
    model.enable(False)
    torch.testing.assert_close(logits(model.model), logits(tiny(name)))
    assert (trained - logits(model.model)).abs().max() > 0.01
    write_adapter(tmp_path, update, rank=3, experts=model.expert_parameters)
    loaded = PeftModel.from_pretrained(tiny(name), str(tmp_path)).eval()
    torch.testing.assert_close(logits(loaded), trained, rtol=1e-4, atol=1e-4)
    again = open_adapter(tmp_path)
    assert set(again) == set(update)
    for module, delta in again.items():
        torch.testing.assert_close(delta.B @ delta.A, update[module].B @ update[module].A)


@pytest.mark.parametrize("name", ["mixtral", "gpt_oss"])
@pytest.mark.parametrize("parameters", [list(BOTH), ["experts.down_proj"], ["gate_up_proj", "down_proj"]])
def test_what_peft_trained_is_read_expert_by_expert(name: str, parameters: list[str], tmp_path: Path) -> None:
    """Column e, E + e, 2 E + e, ... of B are expert e's."""
    config = LoraConfig(
        r=3, lora_alpha=6, target_modules=["o_proj"], target_parameters=parameters, init_lora_weights=False
    )
    peft_model: Any = get_peft_model(tiny(name), config)
    peft_model.save_pretrained(str(tmp_path))
    adapter = open_adapter(tmp_path)
    wrappers = [
        (n, layer) for n, layer in peft_model.get_base_model().named_modules() if hasattr(layer, "parameter_name")
    ]
    assert len(wrappers) == 2 * len(parameters)
    for stored, layer in wrappers:
        delta = layer.get_delta_weight("default")
        full = f"{stored.replace('.base_layer', '')}.{layer.parameter_name}"
        for e in range(4):
            ours = adapter[f"{full}.{e}"]
            dense = ours.B @ ours.A
            torch.testing.assert_close(dense.mT if name == "gpt_oss" else dense, delta[e])
    assert len(adapter) == 2 + 2 * 4 * len(parameters)


def test_every_expert_that_a_token_chose_gets_its_own_gradient() -> None:
    model = AdaptedModel(tiny("mixtral"), LoraSettings(rank=2, target_parameters=BOTH), ("q_proj",))
    assert len(model.modules) == 2 + 2 * 2 * 4
    assert model.coverage().experts == ()
    assert model.coverage().modules == 2 + 16
    started(model).model(IDS).logits.sum().backward()
    reached = [
        name
        for name, (grad_A, grad_B) in model.gradients().items()
        if grad_A is not None and grad_B is not None and grad_B.any()
    ]
    assert len(reached) > 12


def test_two_adapters_are_merged_into_one_that_peft_reads(tmp_path: Path) -> None:
    deltas = []
    for i in range(2):
        model = started(AdaptedModel(tiny("mixtral"), LoraSettings(rank=2, target_parameters=BOTH), ("q_proj",)), i)
        update = update_of(model)
        (tmp_path / str(i)).mkdir()
        write_adapter(tmp_path / str(i), update, rank=2, experts=model.expert_parameters)
        deltas.append({name: delta.B @ delta.A for name, delta in update.items()})
    merge([tmp_path / "0", tmp_path / "1"], tmp_path / "out")
    merged = open_adapter(tmp_path / "out")
    assert set(merged) == set(deltas[0])
    for name, delta in merged.items():
        torch.testing.assert_close(delta.B @ delta.A, deltas[0][name] + deltas[1][name], rtol=1e-4, atol=1e-5)
    loaded = PeftModel.from_pretrained(tiny("mixtral"), str(tmp_path / "out")).eval()
    model = AdaptedModel(tiny("mixtral"), LoraSettings(rank=2, target_parameters=BOTH), ("q_proj",))
    with model.deployed(dict(merged)):
        torch.testing.assert_close(logits(loaded), logits(model.model), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("method", ["inc-lora", "ps-lora", "n-lora"])
def test_a_run_learns_experts_and_answers_as_its_deployed_model(method: str, small_tasks: Any, tmp_path: Path) -> None:
    folder = build("causal", "mixtral", tmp_path / "mixtral")
    backbone = {"kind": "causal", "model": str(folder), "max_length": 64}
    settings = {**SETTINGS, "lora": {"rank": 2, "target_parameters": list(BOTH)}}
    out = tmp_path / "run"
    learn(out=out, tasks=small_tasks[:2], backbone=backbone, method=method, **settings)
    answers = predict(out, [e.text for e in small_tasks[0].test], task="fruit", tasks=small_tasks[:2])
    if (out / "deployed" / "adapter_config.json").is_file():
        assert "target_parameters" in json.loads((out / "deployed" / "adapter_config.json").read_text())
        base = AutoModelForCausalLM.from_pretrained(folder)
        loaded: Any = PeftModel.from_pretrained(base, str(out / "deployed")).eval()
    else:
        loaded = AutoModelForCausalLM.from_pretrained(out / "deployed").eval()
    from perdure.backbones import load_backbone

    own: Any = load_backbone(backbone)
    own.model = loaded
    own.prepare(small_tasks[:2])
    for prediction, answer in zip(own.predict(small_tasks[0].test, ["fruit"]), answers, strict=True):
        assert prediction.probabilities == pytest.approx([*answer["probabilities"].values()], abs=1e-5)


@pytest.mark.parametrize(
    ("lora", "method", "error", "says"),
    [
        (
            {"target_parameters": ["experts.up"]},
            "inc-lora",
            ConfigError,
            r"no stack of experts 'experts\.up'.*It has: .*down_proj",
        ),
        ({"target_parameters": BOTH, "dropout": 0.1}, "inc-lora", ConfigError, r"lora\.dropout: experts"),
        (
            {"target_parameters": BOTH, "rank": 70, "exclude": ".*"},
            "inc-lora",
            ConfigError,
            r"lora\.rank: 70 is above .*'.*experts",
        ),
        ({"target_parameters": BOTH}, "slice", UnmetNeed, r"gradients of whole weights.*lora\.target_parameters"),
        ({"target_parameters": BOTH}, "perdure", UnmetNeed, r"inputs of every adapted module.*lora\.target_parameters"),
    ],
)
def test_what_experts_cannot_take_is_refused_before_training(
    lora: dict[str, Any], method: str, error: type[Exception], says: str, small_tasks: Any, tmp_path: Path
) -> None:
    folder = build("causal", "mixtral", tmp_path / "mixtral")
    backbone = {"kind": "causal", "model": str(folder), "max_length": 64}
    settings = {**SETTINGS, "lora": {"rank": 2, "targets": ["o_proj"], **lora}}
    with pytest.raises(error, match=says):
        learn(out=tmp_path / "run", tasks=small_tasks[:1], backbone=backbone, method=method, **settings)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("way", ["merge --base", "export of a state", "a dense rule"])
def test_experts_are_not_merged_into_the_files_of_a_base(way: str, tmp_path: Path) -> None:
    """Refused by name before anything is written; as adapters they are merged with and without a state."""
    folder = build("causal", "mixtral", tmp_path / "mixtral")
    model = started(AdaptedModel(tiny("mixtral"), LoraSettings(rank=2, target_parameters=BOTH), ("q_proj",)))
    (tmp_path / "one").mkdir()
    write_adapter(tmp_path / "one", update_of(model), rank=2, experts=model.expert_parameters)
    said = r"'model\.layers\.0\.mlp\.experts\.\w+\.0' is one of many experts in one parameter.*Merge without a base"
    if way == "export of a state":
        merge_into(tmp_path / "state", tmp_path / "one", rule_named("sum"))
        export(tmp_path / "state", tmp_path / "kept", "adapter", rank=16)
        assert set(open_adapter(tmp_path / "kept")) == set(update_of(model))
    rule = "ties" if way == "a dense rule" else "sum"
    ways = {"export of a state": partial(export, tmp_path / "state", tmp_path / "out", "model", base=folder)}
    written = ways.get(way, partial(merge, [tmp_path / "one"], tmp_path / "out", rule=rule, base=str(folder)))
    with pytest.raises(AdapterError, match=said):
        written()
    assert not (tmp_path / "out").exists()


def test_files_whose_nesting_is_not_known_are_refused(tmp_path: Path) -> None:
    model = started(AdaptedModel(tiny("mixtral"), LoraSettings(rank=2, target_parameters=BOTH), ("q_proj",)))
    write_adapter(tmp_path, update_of(model), rank=2, experts=model.expert_parameters)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    config["target_parameters"] = [name.replace("gate_up_proj", "first") for name in config["target_parameters"]]
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(AdapterError, match="is not the adapter of a known parameter"):
        open_adapter(tmp_path)


def test_a_peft_model_of_experts_is_refused_by_the_trainer() -> None:
    peft_model = get_peft_model(tiny("mixtral"), LoraConfig(r=2, target_modules=[], target_parameters=[*BOTH]))
    with pytest.raises(ConfigError, match="does not adapt a linear layer's weight"):
        AdaptedModel.around(peft_model)
