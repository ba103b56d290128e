"""Adapters that bring whole tensors: heads of classifiers, and embeddings saved with the LoRA."""

import json
import shutil
import warnings

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from perdure.adapters.folder import open_adapter
from perdure.errors import AdapterError
from perdure.merging.folders import merge_folders
from perdure.merging.rules import rule_named
from perdure.merging.state import merge_into
from tests.adapter_cases import random_folder
from tests.backbones.tiny import tiny_causal, tiny_encoder

IDS = torch.arange(5, 25)[None]


def classifier(folder):
    torch.manual_seed(0)
    return AutoModelForSequenceClassification.from_pretrained(folder, num_labels=3).eval()


def classifying_adapter(base, folder, seed=0):
    model = get_peft_model(classifier(base), LoraConfig(task_type="SEQ_CLS", target_modules=["query", "value"], r=2))
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        if parameter.requires_grad:  # the LoRA and the head
            parameter.data.normal_(std=0.3, generator=generator)
    model.save_pretrained(str(folder))
    return model.eval()


def logits(model):
    with torch.no_grad():
        return model(IDS).logits


@pytest.fixture
def base(tmp_path):
    return tiny_encoder(tmp_path / "base")


def test_a_classifier_is_merged_with_its_head(tmp_path, base):
    wanted = logits(classifying_adapter(base, tmp_path / "a"))
    report = merge_folders([tmp_path / "a"], tmp_path / "out", rule_named("sum"))
    assert not any("head" in note for note in report.notes)
    merged = PeftModel.from_pretrained(classifier(base), str(tmp_path / "out")).eval()
    torch.testing.assert_close(logits(merged), wanted, rtol=1e-5, atol=1e-5)
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert (config["task_type"], config["modules_to_save"]) == ("SEQ_CLS", ["classifier", "score"])


def test_heads_of_several_tasks_are_left_out_and_named(tmp_path, base):
    for seed, name in enumerate("ab"):
        classifying_adapter(base, tmp_path / name, seed)
    report = merge_folders([tmp_path / "a", tmp_path / "b"], tmp_path / "out", rule_named("sum"))
    assert any(
        "the heads of" in n and f"{tmp_path / 'a'}'" in n and "differ, so they were left out" in n for n in report.notes
    )
    assert not any("classifier" in name for name in load_file(tmp_path / "out" / "adapter_model.safetensors"))
    shutil.copytree(tmp_path / "a", tmp_path / "copy")
    same = merge_folders([tmp_path / "a", tmp_path / "copy"], tmp_path / "same", rule_named("average"))
    assert not any("head" in note for note in same.notes)


def test_a_base_with_a_head_gets_the_adapters(tmp_path, base):
    model = classifier(base)
    model.save_pretrained(tmp_path / "whole")
    wanted = logits(classifying_adapter(base, tmp_path / "a"))
    merge_folders([tmp_path / "a"], tmp_path / "out", rule_named("sum"), base=tmp_path / "whole")
    merged = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out").eval()
    torch.testing.assert_close(logits(merged), wanted, rtol=1e-5, atol=1e-5)
    assert (logits(model) - wanted).abs().max() > 0.01
    report = merge_folders([tmp_path / "a"], tmp_path / "bare", rule_named("sum"), base=base)
    assert any("the head ('classifier.bias' of" in note and "was left out" in note for note in report.notes)


def test_a_state_says_what_it_does_not_keep(tmp_path, base):
    classifying_adapter(base, tmp_path / "a")
    notes = merge_into(tmp_path / "state", tmp_path / "a", rule_named("sum")).about.notes
    assert any("a classifier's head, or embeddings" in note for note in notes)
    with pytest.raises(AdapterError, match="a whole weight"):
        open_adapter(tmp_path / "a")  # where nothing takes the head along


def adapter_with_embeddings(base, folder, change=0.0):
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base), LoraConfig(task_type="CAUSAL_LM", r=2))
    generator = torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data.normal_(std=0.3, generator=generator)
    model.get_input_embeddings().weight.data[7] += change
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.save_pretrained(str(folder), save_embedding_layers=True)
    return model.eval()


def test_embeddings_saved_with_an_adapter_are_the_bases_own_or_refused(tmp_path):
    base = tiny_causal(tmp_path / "base")
    wanted = logits(adapter_with_embeddings(base, tmp_path / "a"))
    changed = logits(adapter_with_embeddings(base, tmp_path / "b", 0.5))
    held = "base_model.model.model.embed_tokens.weight"
    assert held in load_file(tmp_path / "a" / "adapter_model.safetensors")
    merge_folders([tmp_path / "a"], tmp_path / "model", rule_named("sum"), base=base)
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "model").eval()
    torch.testing.assert_close(logits(merged), wanted, rtol=1e-5, atol=1e-5)
    with pytest.raises(AdapterError, match=r"b' brings its base's 'model\.embed_tokens\.weight'.* has another"):
        merge_folders([tmp_path / "b"], tmp_path / "model-b", rule_named("sum"), base=base)
    assert not (tmp_path / "model-b").exists()
    merge_folders([tmp_path / "b"], tmp_path / "adapter", rule_named("sum"))  # carried along
    loaded = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), str(tmp_path / "adapter")).eval()
    torch.testing.assert_close(logits(loaded), changed, rtol=1e-5, atol=1e-5)
    with pytest.raises(AdapterError, match=r"trained on different bases: each brings the base's weight 'model\.embed"):
        merge_folders([tmp_path / "a", tmp_path / "b"], tmp_path / "ab", rule_named("sum"))


@pytest.mark.parametrize("name", ["classifier.out.weight", "model.lora_C.weight", "model.norm.weight", "model.q.bias"])
def test_whole_tensors_of_no_known_kind_are_refused(tmp_path, base, name):
    classifying_adapter(base, tmp_path / "a")
    path = tmp_path / "a" / "adapter_model.safetensors"
    save_file({**load_file(path), f"base_model.model.{name}": torch.ones(3)}, path)
    config = json.loads((tmp_path / "a" / "adapter_config.json").read_text()) | {"task_type": "CAUSAL_LM"}
    (tmp_path / "a" / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(AdapterError, match="'modules_to_save' is set"):
        open_adapter(tmp_path / "a", beside=True)
    (tmp_path / "a" / "adapter_config.json").write_text(json.dumps(config | {"modules_to_save": None}))
    with pytest.raises(AdapterError, match="is not a factor of a linear or embedding LoRA"):
        open_adapter(tmp_path / "a", beside=True)


def with_tokenizer(folder, seed, **files):
    random_folder(folder, seed)
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(text)
    return folder


def test_the_tokenizer_of_the_adapter_that_brings_one_goes_with_the_result(tmp_path):
    plain = random_folder(tmp_path / "plain", 0)
    own = {"tokenizer__json": "[1]", "tokenizer_config__json": "{}", "chat_template__jinja": "T", "optimizer__pt": "x"}
    brings = with_tokenizer(tmp_path / "brings", 1, **own, generation_config__json="{}")
    report = merge_folders([plain, brings], tmp_path / "out", rule_named("sum"))
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        assert (tmp_path / "out" / name).read_bytes() == (brings / name).read_bytes()
    assert not (tmp_path / "out" / "optimizer.pt").exists()
    assert any(
        note.startswith(f"Tokenizer files are those of '{brings}': chat_template.jinja, tok") for note in report.notes
    )
    assert f"Left behind in '{brings}': generation_config.json." in report.notes


def test_a_tokenizer_replaces_the_bases_and_a_template_alone_joins_it(tmp_path):
    shapes = {"layers.0.q": (12, 8), "layers.1.v": (6, 10)}
    base = tmp_path / "base"
    base.mkdir()
    save_file({f"{name}.weight": torch.ones(shape) for name, shape in shapes.items()}, base / "model.safetensors")
    for name in ("config.json", "vocab.txt", "tokenizer_config.json"):
        (base / name).write_text('{"of": "base"}')
    whole = with_tokenizer(tmp_path / "whole", 1, tokenizer__json="[1]", tokenizer_config__json="{}")
    template = with_tokenizer(tmp_path / "template", 1, chat_template__jinja="T")
    for adapter, kept in ((whole, set()), (template, {"vocab.txt", "tokenizer_config.json"})):
        out = tmp_path / f"out-{adapter.name}"
        merge_folders([adapter], out, rule_named("sum"), base=base)
        found = {path.name: path.read_text() for path in out.iterdir() if path.suffix in (".json", ".txt", ".jinja")}
        brought = {path.name for path in adapter.iterdir()} - {"adapter_config.json", "adapter_model.safetensors"}
        assert {name for name, text in found.items() if text == '{"of": "base"}'} == {*kept, "config.json"}
        assert brought <= found.keys()


def test_tokenizers_that_differ_are_named_and_none_is_chosen(tmp_path):
    places = [with_tokenizer(tmp_path / name, 1, chat_template__jinja=name) for name in "ab"]
    report = merge_folders(places, tmp_path / "out", rule_named("sum"))
    assert any("the tokenizers or chat templates of" in note and "none were written" in note for note in report.notes)
    assert not (tmp_path / "out" / "chat_template.jinja").exists()
