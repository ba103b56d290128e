"""Adapters trained by plain PEFT go through a merge and load in plain PEFT and transformers, answering what they must."""

import json
import os
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

from perdure.adapters.folder import Adapter
from perdure.errors import AdapterError, ConfigError, StoreError
from perdure.merging.folders import merge_folders
from perdure.merging.linear import sum_updates
from perdure.merging.max_magnitude import max_magnitude_updates
from perdure.merging.merge_file import Override
from perdure.merging.rules import rule_named
from perdure.ops.lowrank import dense
from tests.adapter_cases import hand_folder, random_folder, trained_folders
from tests.backbones.tiny import tiny_causal
from tests.merging.merge_cases import assert_same

IDS = torch.arange(3, 13)[None]


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return tiny_causal(tmp_path_factory.mktemp("base") / "llama")


@pytest.fixture(scope="module")
def trained(base, tmp_path_factory):
    return trained_folders(base, tmp_path_factory.mktemp("trained"))


def answers(base, adapter=None):
    from peft import PeftModel

    model = AutoModelForCausalLM.from_pretrained(base).eval()
    if adapter is not None:
        model = PeftModel.from_pretrained(model, str(adapter)).eval()
    with torch.no_grad():
        return model(IDS).logits


def test_a_sum_is_exact_as_an_adapter_and_as_a_model(base, trained, tmp_path):
    report = merge_folders(trained, tmp_path / "adapter", rule_named("sum"))
    merge_folders(trained, tmp_path / "model", rule_named("sum"), base=base)
    assert (report.form, report.rank, report.energy, report.notes) == ("adapter", 6, 1.0, ())
    assert_same(dict(Adapter(tmp_path / "adapter")), sum_updates([Adapter(path) for path in trained]), 1e-6)
    as_adapter, as_model = answers(base, tmp_path / "adapter"), answers(tmp_path / "model")
    torch.testing.assert_close(as_adapter, as_model, rtol=1e-4, atol=1e-4)
    assert (as_model - answers(base)).abs().max() > 0.01, "the adapters do something"


def test_one_adapter_merged_alone_answers_like_peft(base, trained, tmp_path):
    merge_folders(trained[1:], tmp_path / "model", rule_named("sum"), base=base)
    torch.testing.assert_close(answers(tmp_path / "model"), answers(base, trained[1]), rtol=1e-4, atol=1e-4)


def test_a_dense_rule_into_a_base_is_exact(base, trained, tmp_path):
    report = merge_folders(trained, tmp_path / "model", rule_named("max-magnitude"), base=base)
    assert (report.form, report.energy) == ("model", 1.0)
    expected = max_magnitude_updates(*(Adapter(path) for path in trained))
    before, after = (load_file(folder / "model.safetensors") for folder in (base, tmp_path / "model"))
    assert set(before) == set(after)
    for name in before:
        update = expected.get(name.removesuffix(".weight"))
        torch.testing.assert_close(after[name], before[name] if update is None else before[name] + update)


def test_a_dense_rule_as_an_adapter_says_what_it_keeps(trained, tmp_path):
    report = merge_folders(trained, tmp_path / "adapter", rule_named("max-magnitude"), rank=1)
    expected = max_magnitude_updates(*(Adapter(path) for path in trained))
    written = Adapter(tmp_path / "adapter")
    lost = sum((dense(written[m]) - expected[m]).square().sum() for m in expected)
    total = sum(delta.square().sum() for delta in expected.values())
    assert report.energy == pytest.approx(1 - float(lost / total), abs=1e-4)
    assert 0.3 < report.energy < 0.95
    assert "WARNING: at rank 1" in report.notes[0]
    (least,) = [m for m in report.energies if report.energies[m] == min(report.energies.values())]
    assert f"least in '{least}'" in report.notes[0]
    record = json.loads((tmp_path / "adapter" / "merge.json").read_text())
    assert record["rule"] == "max-magnitude"
    assert record["energies"] == pytest.approx(report.energies)


def test_energy_by_hand(tmp_path):
    tensors = {
        "base_model.model.m.lora_A.weight": torch.eye(2),
        "base_model.model.m.lora_B.weight": torch.diag(torch.tensor([4.0, 3.0])),
    }
    hand_folder(tmp_path / "a", tensors, r=2, lora_alpha=2)
    report = merge_folders([tmp_path / "a"], tmp_path / "out", rule_named("sum"), rank=1)
    assert report.energy == pytest.approx(16 / 25)
    assert dense(Adapter(tmp_path / "out")["m"]).tolist() == [[pytest.approx(4), 0], [0, 0]]


def test_a_dense_rule_without_rank_or_base_says_what_to_do(trained, tmp_path):
    with pytest.raises(ConfigError, match=r"'ties' is not low rank. Give the base model \(--base\)"):
        merge_folders(trained, tmp_path / "out", rule_named("ties"))
    override = Override.model_validate({"modules": "*.v_proj", "rule": "dare"})
    with pytest.raises(ConfigError, match="'dare' is not low rank"):
        merge_folders(trained, tmp_path / "out", rule_named("sum"), overrides=[override])
    with pytest.raises(ConfigError, match="give one of them"):
        merge_folders(trained, tmp_path / "out", rule_named("sum"), base="x", rank=2)
    assert not (tmp_path / "out").exists()


def test_overrides_apply_to_their_modules(trained, tmp_path):
    override = Override.model_validate({"modules": "*.layers.0.*", "rule": "arithmetic", "scale": 0})
    merge_folders(trained, tmp_path / "out", rule_named("sum"), overrides=[override])
    total = sum_updates([Adapter(path) for path in trained])
    for module, delta in Adapter(tmp_path / "out").items():
        expected = 0 * dense(total[module]) if ".layers.0." in module else dense(total[module])
        torch.testing.assert_close(dense(delta), expected, rtol=1e-5, atol=1e-6)


def test_the_threshold_of_a_rule_is_over_its_own_modules(tmp_path):
    places = [random_folder(tmp_path / "a", 1)]
    override = Override.model_validate({"modules": "layers.0.q", "density": 1.0})
    merge_folders(places, tmp_path / "out", rule_named("ties", {"density": 0.5}), overrides=[override], rank=6)
    original, found = Adapter(places[0]), Adapter(tmp_path / "out")
    torch.testing.assert_close(dense(found["layers.0.q"]), dense(original["layers.0.q"]), rtol=1e-4, atol=1e-5)
    alone = rule_named("ties", {"density": 0.5, "scope": "tensor"}).prepare([{"layers.1.v": original["layers.1.v"]}])
    expected = alone.merge("layers.1.v", [original["layers.1.v"]])
    torch.testing.assert_close(dense(found["layers.1.v"]), dense(expected), rtol=1e-4, atol=1e-5)


def test_nothing_is_overwritten_and_a_failure_leaves_nothing(base, trained, tmp_path):
    merge_folders(trained, tmp_path / "out", rule_named("sum"))
    before = (tmp_path / "out" / "adapter_model.safetensors").read_bytes()
    with pytest.raises(StoreError, match="already exists"):
        merge_folders(trained[:1], tmp_path / "out", rule_named("sum"))
    assert (tmp_path / "out" / "adapter_model.safetensors").read_bytes() == before
    other = random_folder(tmp_path / "other", 3)
    with pytest.raises(AdapterError, match="has no weight in"):
        merge_folders([other], tmp_path / "model", rule_named("sum"), base=base)
    assert sorted(os.listdir(tmp_path)) == ["other", "out"]
    merge_folders(trained[:1], tmp_path / "out", rule_named("sum"), overwrite=True)
    assert (tmp_path / "out" / "adapter_model.safetensors").read_bytes() != before


def test_different_bases_are_named(tmp_path):
    one = random_folder(tmp_path / "one", 1)
    two = random_folder(tmp_path / "two", 2, shapes={"layers.0.q": (12, 8), "layers.1.v": (6, 11)})
    with pytest.raises(AdapterError, match=r"'one' and 'two' are of different bases: module 'layers\.1\.v' is 6 x 10"):
        merge_folders([one, two], tmp_path / "out", rule_named("sum"))


def test_the_same_folder_twice_and_equal_names_are_told_apart(tmp_path):
    (tmp_path / "x").mkdir()
    (tmp_path / "y").mkdir()
    places = [random_folder(tmp_path / "x" / "a", 1), random_folder(tmp_path / "y" / "a", 2)]
    merge_folders([*places, places[0]], tmp_path / "out", rule_named("average"))
    record = json.loads((tmp_path / "out" / "merge.json").read_text())
    assert list(record["adapters"]) == ["a", "y/a", "a (2)"]


def test_bases_of_other_names_are_mentioned(tmp_path):
    one = hand_folder(tmp_path / "one", base_model_name_or_path="meta/one")
    two = hand_folder(tmp_path / "two", base_model_name_or_path="meta/two")
    report = merge_folders([one, two], tmp_path / "out", rule_named("sum"))
    assert "name different bases although their shapes agree (one: meta/one; two: meta/two)" in report.notes[0]


def test_bases_of_other_names_with_no_module_in_common_are_refused(tmp_path):
    names = ("meta/one", "meta/two")
    one, two = (
        random_folder(tmp_path / name.partition("/")[2], seed, shapes={module: (4, 4)}, base=name)
        for seed, (name, module) in enumerate(zip(names, ("layers.0.q", "h.0.c_attn"), strict=True))
    )
    with pytest.raises(
        AdapterError, match=r"they name 'meta/one' and 'meta/two', and module 'h\.0\.c_attn' of the latter"
    ):
        merge_folders([one, two], tmp_path / "out", rule_named("sum"))
    three = random_folder(tmp_path / "three", 3, shapes={"layers.0.v": (4, 4)}, base=names[0])
    assert merge_folders([one, three], tmp_path / "out", rule_named("sum")).rank == 2, "other targets of one base"


def test_a_rank_above_the_layers(trained, tmp_path):
    with pytest.raises(AdapterError, match=r"Rank 17 is above the maximum of module '.*v_proj' \(16 x 32\)"):
        merge_folders(trained, tmp_path / "out", rule_named("sum"), rank=17)
    with pytest.raises(ConfigError, match="1 or more"):
        merge_folders(trained, tmp_path / "out", rule_named("sum"), rank=0)


def test_bf16_out(base, trained, tmp_path):
    merge_folders(trained, tmp_path / "adapter", rule_named("sum"), dtype=torch.bfloat16)
    stored = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    assert {tensor.dtype for tensor in stored.values()} == {torch.bfloat16}
    torch.testing.assert_close(
        answers(base, tmp_path / "adapter"), answers_of_sum(base, trained, tmp_path), rtol=0.05, atol=0.05
    )


def answers_of_sum(base, trained, tmp_path):
    merge_folders(trained, tmp_path / "exact", rule_named("sum"))
    return answers(base, tmp_path / "exact")


def test_conv1d_of_a_tied_gpt2(tmp_path):
    """Conv1D weights are [in, out]; the tied embedding is untouched, so nothing is refused."""
    from peft import LoraConfig, PeftModel, get_peft_model

    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(n_layer=2, n_head=2, n_embd=16, vocab_size=40, n_positions=16))
    model.save_pretrained(tmp_path / "base")
    tuned = get_peft_model(model, LoraConfig(r=2, target_modules=["c_attn", "c_proj"], fan_in_fan_out=True))
    for name, parameter in tuned.named_parameters():
        if "lora_" in name:
            parameter.data.normal_(std=0.3)
    tuned.save_pretrained(tmp_path / "a")
    expected = tuned.eval()(IDS).logits
    for rule in ("sum", "max-magnitude"):  # of one adapter both are the adapter
        merge_folders([tmp_path / "a"], tmp_path / rule, rule_named(rule), base=tmp_path / "base")
        merged = GPT2LMHeadModel.from_pretrained(tmp_path / rule).eval()
        torch.testing.assert_close(merged(IDS).logits, expected, rtol=1e-4, atol=1e-4)
    merge_folders([tmp_path / "a"], tmp_path / "adapter", rule_named("sum"))
    fresh = PeftModel.from_pretrained(GPT2LMHeadModel.from_pretrained(tmp_path / "base"), str(tmp_path / "adapter"))
    torch.testing.assert_close(fresh.eval()(IDS).logits, expected, rtol=1e-4, atol=1e-4)


def test_conv1d_and_linear_modules_in_one_adapter(tmp_path):
    """PEFT's fan_in_fan_out is that of the last module: here false, and wrong for the square Conv1D."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    config = GPT2Config(n_layer=1, n_head=2, n_embd=16, vocab_size=40, n_positions=16, tie_word_embeddings=False)
    model = GPT2LMHeadModel(config)
    model.save_pretrained(tmp_path / "base")
    with pytest.warns(UserWarning, match="fan_in_fan_out"):
        tuned = get_peft_model(model, LoraConfig(r=2, target_modules=["attn.c_proj", "lm_head", "wpe"]))
    for name, parameter in tuned.named_parameters():
        if "lora_" in name:
            parameter.data.normal_(std=0.3)
    with pytest.warns(UserWarning, match="save_embedding_layers"):
        tuned.save_pretrained(tmp_path / "a")
    assert Adapter(tmp_path / "a").config.fan_in_fan_out is False
    merge_folders([tmp_path / "a"], tmp_path / "out", rule_named("max-magnitude"), base=tmp_path / "base")
    merged = GPT2LMHeadModel.from_pretrained(tmp_path / "out").eval()
    torch.testing.assert_close(merged(IDS).logits, tuned.eval()(IDS).logits, rtol=1e-4, atol=1e-4)


def test_a_card_says_what_it_is(trained, tmp_path):
    merge_folders(trained, tmp_path / "out", rule_named("ties", {"density": 0.5}), rank=4)
    text = (tmp_path / "out" / "README.md").read_text()
    data = ModelCard(text).data.to_dict()
    assert (data["tags"], data["library_name"]) == (["perdure", "merge", "lora"], "peft")
    assert Path(data["base_model"]).name == "llama"
    for part in ("LoRA adapter merged by ties", "- one", "- two", "density 0.5", "Rank 4, alpha 4", "% of the energy"):
        assert part in text


def test_two_names_of_one_weight_are_refused(base, tmp_path):
    """One adapter holds both, so that its base might have both; this one has not."""
    module = "layers.0.self_attn.v_proj"
    place = random_folder(tmp_path / "both", 0, shapes={f"{prefix}{module}": (16, 32) for prefix in ("model.", "")})
    with pytest.raises(
        AdapterError,
        match=rf"Modules '{module}' and 'model\.{module}' both stand for 'model\.{module}\.weight'.*under one",
    ):
        merge_folders([place], tmp_path / "out", rule_named("sum"), base=base)
    assert not (tmp_path / "out").exists()


def test_what_is_read_is_never_replaced(base, trained, tmp_path):
    places = [random_folder(tmp_path / "adapters" / name, seed) for seed, name in enumerate(("news", "mail"))]
    for out in (tmp_path / "adapters", places[1], tmp_path / "adapters" / ".." / "adapters"):
        with pytest.raises(StoreError, match=r"is or contains the input '"):
            merge_folders(places, out, rule_named("sum"), overwrite=True)
    with pytest.raises(StoreError, match="is or contains"):
        merge_folders(trained, base, rule_named("sum"), base=base, overwrite=True)
    assert all((place / "adapter_model.safetensors").is_file() for place in places)


def test_a_folder_of_runs_is_never_replaced(trained, tmp_path):
    (tmp_path / "runs" / "one").mkdir(parents=True)
    (tmp_path / "runs" / "one" / "run.json").write_text("{}")
    with pytest.raises(StoreError, match=r"runs' was not written by perdure's.*it holds 'one'"):
        merge_folders(trained, tmp_path / "runs", rule_named("sum"), overwrite=True)
    assert (tmp_path / "runs" / "one" / "run.json").read_text() == "{}"


def test_adapters_of_two_dtypes(tmp_path):
    """At one position fp32 is larger, at the other float64."""
    names = ("base_model.model.m.lora_A.weight", "base_model.model.m.lora_B.weight")
    one = {names[0]: torch.tensor([[1.0, 3.0]]), names[1]: torch.ones(1, 1)}
    two = {names[0]: torch.tensor([[2.0, -1.0]]).double(), names[1]: torch.ones(1, 1).double()}
    places = [
        hand_folder(tmp_path / name, tensors, r=1, lora_alpha=1) for name, tensors in (("one", one), ("two", two))
    ]
    for rule, wanted in (("max-magnitude", [[2.0, 3.0]]), ("magmax", [[1.5, 1.5]]), ("ties", [[2.0, 3.0]])):
        settings = {"density": 0.5} if rule == "ties" else {}
        for order, given in (("forward", places), ("back", places[::-1])):
            merge_folders(given, tmp_path / f"{rule}-{order}", rule_named(rule, settings), rank=1)
        assert dense(Adapter(tmp_path / f"{rule}-forward")["m"]).tolist() == [pytest.approx(row) for row in wanted]


def resized_model(base, seed):
    """With two further tokens, whose rows are random."""
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_pretrained(base)
    model.resize_token_embeddings(model.config.vocab_size + 2, mean_resizing=False)
    return model


@pytest.fixture
def resized(base, tmp_path):
    """Two adapters of a base whose vocabulary was resized once, with LoRA on embedding and head; saved by PEFT."""
    from peft import LoraConfig, get_peft_model

    folders = []
    for seed, name in enumerate(("one", "two")):
        tuned = get_peft_model(
            resized_model(base, 0), LoraConfig(r=2, target_modules=["q_proj", "embed_tokens", "lm_head"])
        )
        torch.manual_seed(seed + 1)
        for parameter in tuned.parameters():
            if parameter.requires_grad:
                parameter.data.normal_(std=0.3)
        with pytest.warns(UserWarning, match="save_embedding_layers"):
            tuned.save_pretrained(str(tmp_path / name))
        folders.append(tmp_path / name)
    return folders


def test_rows_of_a_resized_vocabulary_stay(base, resized, tmp_path):
    """Only the adapters hold the new rows: merged and loaded on a base resized anew, the new tokens mean what they meant."""
    from peft import PeftModel

    merge_folders(resized[:1], tmp_path / "alone", rule_named("sum"))
    fresh = [resized_model(base, 9) for _ in range(2)]
    new = torch.tensor([[3, fresh[0].config.vocab_size - 1]])
    wanted, found = (
        PeftModel.from_pretrained(model, str(folder)).eval()(new).logits
        for model, folder in zip(fresh, (resized[0], tmp_path / "alone"), strict=True)
    )
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)
    merge_folders(resized, tmp_path / "both", rule_named("sum"))
    stored = [load_file(folder / "adapter_model.safetensors") for folder in (resized[1], tmp_path / "both")]
    name = "base_model.model.lm_head.base_layer.weight"
    assert torch.equal(stored[0][name], stored[1][name])


def test_vocabularies_that_were_resized_apart_are_different_bases(resized, tmp_path):
    path = resized[1] / "adapter_model.safetensors"
    tensors = load_file(path)
    tensors["base_model.model.lm_head.base_layer.weight"][-1] += 1
    save_file(tensors, path)
    with pytest.raises(AdapterError, match=r"were trained on different bases: each brings the base's weight 'lm_head"):
        merge_folders(resized, tmp_path / "out", rule_named("sum"))


def test_a_copy_of_the_base_in_another_precision_is_the_same(resized, tmp_path):
    path = resized[1] / "adapter_model.safetensors"
    save_file({name: tensor.bfloat16() for name, tensor in load_file(path).items()}, path)
    merge_folders(resized, tmp_path / "out", rule_named("sum"))
