"""Adapters trained by plain PEFT, through the command line, back into PEFT and transformers; against PEFT's own numbers."""

import json

import pytest
import torch
import typer
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

from perdure.cli.adapters import add_commands
from perdure.merging.rules import RULES, rule_named
from tests.adapter_cases import in_hub_cache, trained_folders
from tests.backbones.tiny import tiny_causal

IDS = torch.arange(3, 13)[None]


def perdure(*arguments):
    app = typer.Typer()
    add_commands(app)
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A base in several shards, as large ones are."""
    folder = tmp_path_factory.mktemp("base")
    model = AutoModelForCausalLM.from_pretrained(tiny_causal(folder / "whole"))
    model.save_pretrained(folder / "shards", max_shard_size="40KB")
    assert len(list((folder / "shards").glob("*.safetensors"))) > 2
    return folder / "shards"


@pytest.fixture(scope="module")
def places(base, tmp_path_factory):
    return trained_folders(base, tmp_path_factory.mktemp("trained"))


@pytest.fixture(scope="module")
def deltas(base, places):
    """What PEFT itself adds to each weight, one mapping per adapter: module -> [O, I]."""
    found = []
    for place in places:
        model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), str(place))
        layers = {name: layer for name, layer in model.base_model.model.named_modules() if isinstance(layer, LoraLayer)}
        found.append({name: layer.get_delta_weight("default").detach() for name, layer in layers.items()})
    return found


def answers(base, adapter=None):
    model = AutoModelForCausalLM.from_pretrained(base)
    model = model if adapter is None else PeftModel.from_pretrained(model, str(adapter))
    with torch.no_grad():
        return model.eval()(IDS).logits


def weights(folder):
    return {name: tensor for file in folder.glob("*.safetensors") for name, tensor in load_file(file).items()}


def test_diagnose_agrees_with_what_peft_computes(base, places, deltas, tmp_path, monkeypatch):
    one, two = ("someone/one", "someone/two")
    for name, place in zip((one, two), places, strict=True):
        in_hub_cache(tmp_path / "cache", name, place, monkeypatch)
    found = json.loads(perdure("diagnose", one, two, "--base", base, "--json", "--html", tmp_path / "page.html"))
    assert [update["name"] for update in found["updates"]] == ["one", "two"]
    for update, delta in zip(found["updates"], deltas, strict=True):
        assert set(update["modules"]) == set(delta)
        for name, matrix in delta.items():
            s = torch.linalg.svdvals(matrix.double())
            own = update["modules"][name]
            assert own["frobenius"] == pytest.approx(float(matrix.norm()), rel=1e-5)
            assert own["nuclear_norm"] == pytest.approx(float(s.sum()), rel=1e-5)
            assert own["largest"] == pytest.approx(float(matrix.abs().max()), rel=1e-5)
    (pair,) = found["pairs"]
    common = set(deltas[0]) & set(deltas[1])
    assert set(pair["modules"]) == common, "v_proj of both layers"
    for name in common:
        x, y = (delta[name] for delta in deltas)
        both = pair["modules"][name]
        assert both["opposite"]["value"] == pytest.approx(float((x * y < 0).double().mean()), abs=1e-9)
        assert both["flip"]["value"] == pytest.approx(float(((x + y).sign() != x.sign()).double().mean()), abs=1e-9)
        assert both["cosine"] == pytest.approx(float((x * y).sum() / x.norm() / y.norm()), rel=1e-4)
        assert both["awom"] == pytest.approx(float((y.mT @ x).square().sum()), rel=1e-4)
    assert "someone" not in (tmp_path / "page.html").read_text()
    assert "one and two" in (tmp_path / "page.html").read_text()


@pytest.mark.parametrize("rule", sorted(set(RULES) - {"slao", "peft-factors"}))
def test_every_rule_into_a_sharded_base(rule, base, places, deltas, tmp_path):
    """Compared with the rule on PEFT's own dense updates: no step between file and weights may change a number."""
    moments = None
    files = []
    if rule == "covariance-gain":
        draw = torch.Generator().manual_seed(0)
        inputs = [{n: torch.randn(50, d.shape[1], generator=draw) for n, d in delta.items()} for delta in deltas]
        every = {n: d for delta in deltas for n, d in delta.items()}
        moments = [
            {n: (x := part.get(n, torch.randn(50, d.shape[1], generator=draw))).mT @ x for n, d in every.items()}
            for part in inputs
        ]
        for index, moment in enumerate(moments):
            save_file({n: m.contiguous() for n, m in moment.items()}, tmp_path / f"{index}.safetensors")
            files += ["--moments", tmp_path / f"{index}.safetensors"]
    settings = {"t": 0.1} if rule == "nearswap" else {}
    files += ["--set", "t=0.1"] if settings else []
    perdure("merge", *places, "--rule", rule, *files, "--base", base, "--out", tmp_path / "out")
    prepared = rule_named(rule, settings).prepare(deltas, moments)
    before, after = weights(base), weights(tmp_path / "out")
    assert set(before) == set(after)
    changed, total = {name for delta in deltas for name in delta}, 0.0
    for name, weight in before.items():
        module = name.removesuffix(".weight")
        added = 0.0
        if module in changed:
            added = prepared.merge(module, [delta.get(module) for delta in deltas])
            added = added if isinstance(added, torch.Tensor) else added.B @ added.A
            total += float(added.abs().sum())
        torch.testing.assert_close(after[name], weight + added, rtol=1e-5, atol=1e-5)
    assert total > 0
    assert torch.isfinite(answers(tmp_path / "out")).all()


def test_one_by_one_and_out_in_bf16_in_both_forms(base, places, deltas, tmp_path):
    perdure("merge", places[0], "--into", tmp_path / "state", "--rule", "sum")
    perdure("merge", places[1], "--into", tmp_path / "state")
    for form in ("adapter", "model"):
        out = tmp_path / form
        onto = ("--base", base) if form == "model" else ()
        perdure("export", tmp_path / "state", "--as", form, "--dtype", "bf16", *onto, "--out", out)
        assert {tensor.dtype for tensor in weights(out).values()} == {torch.bfloat16}
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], config["task_type"]) == (6, 6, "CAUSAL_LM")
    card = (tmp_path / "adapter" / "README.md").read_text()
    for part in ("- one", "- two", "Rule: sum", f"base_model: {base}"):
        assert part in card.replace("\n  ", " ")
    true = AutoModelForCausalLM.from_pretrained(base)
    with torch.no_grad():
        for delta in deltas:
            for name, matrix in delta.items():
                true.get_submodule(name).weight += matrix
        expected = true.eval()(IDS).logits
    scale = float(expected.std())
    for found in (answers(base, tmp_path / "adapter"), answers(tmp_path / "model").float()):
        assert float((found - expected).abs().max()) < 0.2 * scale, "bf16 keeps eight bits of every factor or weight"
    assert float((answers(base) - expected).abs().max()) > scale, "the adapters do something"


def test_an_adapter_of_asked_rank_loads_in_plain_peft(base, places, tmp_path):
    perdure("merge", *places, "--rule", "max-magnitude", "--rank", 12, "--out", tmp_path / "adapter")
    perdure("merge", *places, "--rule", "max-magnitude", "--base", base, "--out", tmp_path / "model")
    exact, near = answers(tmp_path / "model"), answers(base, tmp_path / "adapter")
    assert (near - exact).norm() < 0.5 * (answers(base) - exact).norm(), "most of the energy is kept"
