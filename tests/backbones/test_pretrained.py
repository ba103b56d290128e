"""What cannot be loaded says why and what to do; which layers get LoRA; running out of memory names what helps."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub.constants
import pytest
import torch
from huggingface_hub import errors as hub
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoTokenizer,
    BartConfig,
    BartForConditionalGeneration,
    BartModel,
    BertConfig,
    BertModel,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaModel,
    MambaConfig,
    MambaForCausalLM,
    OPTConfig,
    OPTModel,
    RobertaConfig,
    RobertaModel,
)

from perdure.backbones import load_backbone
from perdure.backbones.causal import CausalLM, CausalSettings
from perdure.backbones.memory import memory_explained, out_of_memory
from perdure.backbones.pretrained import ModelSettings, check_positions, load_model, load_tokenizer
from perdure.backbones.seq2seq import Seq2SeqLM
from perdure.backbones.targets import default_targets
from perdure.backbones.vision import Vision
from perdure.config.run_config import load_config
from perdure.errors import ConfigError, FetchError, TrainingError
from perdure.state.reopen import load_learner
from perdure.tasks.task import Task
from tests.backbones.tiny import tiny_causal, tiny_encoder, tiny_seq2seq, tiny_vision
from tests.conftest import small_task


def hub_error(kind: type[Exception]) -> Exception:
    if issubclass(kind, hub.HfHubHTTPError):
        return kind("refused", response=SimpleNamespace(headers={}, request=None))
    return kind("refused")


def failing_with(error: Exception) -> type:
    """An auto class whose loading fails as transformers fails: an OSError from the hub's error."""

    class Auto:
        @staticmethod
        def from_pretrained(*_args: object, **_options: object) -> None:
            raise OSError("long text of transformers") from error

    return Auto


@pytest.mark.parametrize(
    "error, says",
    [
        (hub.GatedRepoError, r"'org/model' is gated: accept its licence .*hf auth login"),
        (hub.RepositoryNotFoundError, r"The hub has no model or revision 'org/model'"),
        (hub.RevisionNotFoundError, r"The hub has no model or revision 'org/model'"),
        (hub.LocalEntryNotFoundError, r"not in the cache and the hub cannot be reached.*hf download org/model"),
    ],
)
def test_the_hubs_refusals_say_what_to_do(error: type[Exception], says: str) -> None:
    with pytest.raises(FetchError, match=says):
        load_model(failing_with(hub_error(error)), ModelSettings(model="org/model"), "language model")


def test_offline_transformers_ends_in_the_same_words(monkeypatch: pytest.MonkeyPatch) -> None:
    """The real chain of errors, with the hub switched off."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(FetchError, match="hub cannot be reached"):
        load_model(AutoModelForCausalLM, ModelSettings(model="nobody/nothing"), "language model")
    with pytest.raises(FetchError, match="hub cannot be reached"):
        load_backbone({"kind": "encoder", "model": "nobody/nothing"})


def test_a_model_of_another_kind_is_named(tmp_path: Path) -> None:
    folder = tiny_vision(tmp_path)
    with pytest.raises(ConfigError, match=f"'{folder}' cannot be loaded as a causal language model"):
        CausalLM.load(CausalSettings(model=str(folder)))


def test_weights_that_would_be_random_are_refused(tmp_path: Path) -> None:
    folder = tiny_encoder(tmp_path)  # transformers would put a random language-model head on it
    with pytest.raises(ConfigError, match=r"not a causal language model: it lacks \d+ weights such as cls\..*random"):
        CausalLM.load(CausalSettings(model=str(folder)))


def test_an_encoder_whose_weights_have_other_names_is_refused(tmp_path: Path) -> None:
    """A pooler alone may be missing: no backbone uses it."""
    folder = tiny_encoder(tmp_path)
    weights = load_file(folder / "model.safetensors")
    without = {name: tensor for name, tensor in weights.items() if "pooler" not in name}
    assert len(without) < len(weights)
    save_file(without, folder / "model.safetensors", {"format": "pt"})
    load_backbone({"kind": "encoder", "model": str(folder)})
    save_file({f"wrapped.{n}": t for n, t in weights.items()}, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ConfigError, match=r"not a sentence encoder: it lacks \d+ weights such as .*random"):
        load_backbone({"kind": "encoder", "model": str(folder)})


SMALL: dict[str, Any] = {
    "hidden_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 8,
    "vocab_size": 9,
}
BART: dict[str, Any] = {
    f"{half}_{name}": 1 for half in ("encoder", "decoder") for name in ("layers", "attention_heads", "ffn_dim")
}


@pytest.mark.parametrize(
    "model",
    [
        BertModel(BertConfig(**SMALL, max_position_embeddings=16)),
        RobertaModel(RobertaConfig(**SMALL, max_position_embeddings=18)),  # counts from its padding's place on
        GPT2LMHeadModel(GPT2Config(vocab_size=9, n_embd=8, n_layer=1, n_head=2, n_positions=16)),
        OPTModel(OPTConfig(**SMALL, ffn_dim=8, word_embed_proj_dim=8, max_position_embeddings=16)),
        BartModel(BartConfig(vocab_size=9, d_model=8, **BART, max_position_embeddings=16)),
    ],
    ids=lambda model: type(model).__name__,
)
def test_a_table_of_positions_must_be_long_enough(model: nn.Module) -> None:
    check_positions(model, "it", 16, "backbone.max_length")
    with pytest.raises(ConfigError, match=r"backbone\.max_length = 17 is more than the 16 positions 'it' has"):
        check_positions(model, "it", 17, "backbone.max_length")


def test_lengths_above_the_positions_are_refused_on_load(tmp_path: Path) -> None:
    check_positions(LlamaModel(LlamaConfig(**SMALL, max_position_embeddings=16)), "it", 17, "")  # rotary: no end
    folder = tiny_encoder(tmp_path / "encoder")
    assert load_backbone({"kind": "encoder", "model": str(folder), "max_length": 128})
    with pytest.raises(ConfigError, match=r"max_length = 129 is more than the 128 positions"):
        load_backbone({"kind": "encoder", "model": str(folder), "max_length": 129})
    tokenizer = AutoTokenizer.from_pretrained(tiny_causal(tmp_path / "causal"))
    config = GPT2Config(vocab_size=len(tokenizer), n_embd=8, n_layer=1, n_head=2, n_positions=64)
    GPT2LMHeadModel(config).save_pretrained(tmp_path / "causal")
    settings = {"kind": "causal", "model": str(tmp_path / "causal"), "max_new_tokens": 20}
    assert load_backbone({**settings, "max_length": 44})
    with pytest.raises(ConfigError, match=r"max_length \+ max_new_tokens = 65 is more than the 64 positions"):
        load_backbone({**settings, "max_length": 45})
    bart = BartConfig(vocab_size=len(tokenizer), d_model=8, **BART, max_position_embeddings=64)
    BartForConditionalGeneration(bart).save_pretrained(tmp_path / "causal")
    settings = {"kind": "seq2seq", "model": str(tmp_path / "causal")}
    assert load_backbone({**settings, "max_length": 64, "max_new_tokens": 64})
    for name in ("max_length", "max_new_tokens"):
        with pytest.raises(ConfigError, match=f"backbone.{name} = 65 is more than the 64 positions"):
            load_backbone({**settings, "max_length": 64, "max_new_tokens": 64, name: 65})


def test_damaged_weights_are_named(tmp_path: Path) -> None:
    folder = tiny_causal(tmp_path)
    (folder / "model.safetensors").write_bytes(b"nothing")
    with pytest.raises(ConfigError, match="cannot be loaded"):
        CausalLM.load(CausalSettings(model=str(folder)))


def test_a_tokenizer_that_cannot_end_is_refused(tmp_path: Path) -> None:
    folder = tiny_causal(tmp_path)
    settings = folder / "tokenizer_config.json"
    about = json.loads(settings.read_text())
    del about["eos_token"]
    settings.write_text(json.dumps(about))
    with pytest.raises(ConfigError, match="no end-of-sequence token"):
        load_tokenizer(ModelSettings(model=str(folder)))


def test_a_folder_without_a_tokenizer_is_named(tmp_path: Path) -> None:
    folder = tiny_causal(tmp_path)
    for path in folder.glob("tokenizer*"):
        path.unlink()
    with pytest.raises(ConfigError, match="model with a tokenizer"):
        load_tokenizer(ModelSettings(model=str(folder)))


def test_a_revision_of_what_has_none_is_refused(tmp_path: Path) -> None:
    for model in ("smollm2-135m", str(tmp_path)):
        with pytest.raises(ConfigError, match=r"^backbone\.revision: .*has no revisions.*Leave it out"):
            load_backbone({"kind": "causal", "model": model, "revision": "v1"})
    assert ModelSettings(model="org/name", revision="v1").revision == "v1"


def test_quantisation_without_bitsandbytes_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"needs bitsandbytes: .*dtype=bfloat16"):
        load_model(AutoModelForCausalLM, ModelSettings(model=str(tmp_path), quantization="4-bit"), "language model")


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_the_base_may_be_stored_in_half_precision(tmp_path: Path, dtype: str) -> None:
    backbone = CausalLM.load(CausalSettings(model=str(tiny_causal(tmp_path)), dtype=dtype))
    assert {p.dtype for p in backbone.model.parameters()} == {getattr(torch, dtype)}
    task = Task("t", [("a", "x"), ("b", "y")], test=[("a", "x")], labels={"x": "good", "y": "goodness"})
    backbone.prepare([task])
    assert backbone.predict(task.test, ["t"])[0].label in ("x", "y")
    assert backbone._packs
    assert backbone.forward(backbone.collate(task.train)).loss.dtype == torch.float32


def test_query_and_value_go_by_many_names(tmp_path: Path) -> None:
    gpt2 = GPT2LMHeadModel(GPT2Config(vocab_size=10, n_embd=8, n_layer=1, n_head=2))
    assert default_targets(gpt2) == ("c_attn",)
    with pytest.raises(ConfigError, match=r"name some with lora\.targets, .* all-linear\. Its layers: 0\."):
        default_targets(nn.Sequential(nn.Linear(2, 2)))


def test_a_model_learns_with_targets_that_are_named(tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_causal(tmp_path))
    config = MambaConfig(vocab_size=len(tokenizer), hidden_size=8, state_size=2, num_hidden_layers=1)
    MambaForCausalLM(config).save_pretrained(tmp_path)
    backbone = {"kind": "causal", "model": str(tmp_path), "attention": "eager"}
    model, _ = load_learner(load_config({"backbone": backbone, "lora": {"rank": 2, "targets": ["in_proj"]}}), [])
    assert list(model.modules) == ["backbone.layers.0.mixer.in_proj"]
    default, _ = load_learner(load_config({"backbone": backbone, "lora": {"rank": 2}}), [])
    assert list(default.modules) == list(model.modules)


def test_gpt2_ranks_packed_too(tmp_path: Path) -> None:
    """Learned absolute positions follow position ids, so packing is right there as well."""
    folder = tiny_causal(tmp_path / "llama")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(vocab_size=len(tokenizer), n_embd=32, n_layer=2, n_head=4)).eval().double()
    backbone = CausalLM(model, tokenizer, CausalSettings(model="gpt2"))
    rows = [("some text", "x"), ("b", "y")]
    task = Task("t", rows, test=rows, labels={"x": "good", "y": "goodness", "z": "no"})
    backbone.prepare([task])
    scores = backbone.scores(backbone.collate(task.train), None, "t")
    assert backbone._packs
    completions = [backbone.format.completion(text) for text in task.labels.values()]
    prompts = [backbone._prompt(text) for text, _ in rows]
    torch.testing.assert_close(scores, backbone._exhaustive(prompts, completions))


def test_a_backbone_is_found_by_its_kind(tmp_path: Path) -> None:
    kinds = {
        "encoder": (tiny_encoder, "Encoder"),
        "causal": (tiny_causal, CausalLM.__name__),
        "seq2seq": (tiny_seq2seq, Seq2SeqLM.__name__),
        "vision": (tiny_vision, Vision.__name__),
    }
    for kind, (make, name) in kinds.items():
        backbone = load_backbone({"kind": kind, "model": str(make(tmp_path / kind))})
        assert type(backbone).__name__ == name
        shutil.rmtree(tmp_path / kind)


# memory


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:118] DefaultCPUAllocator: can't allocate memory: you tried ..."),
        OSError("Cannot allocate memory"),
    ],
)
def test_running_out_of_memory_names_what_helps(error: Exception) -> None:
    with pytest.raises(TrainingError, match=r"while training 'bbc'\. Finished .*training\.accumulation=4") as caught, \
            memory_explained("training 'bbc'"):  # fmt: skip
        raise error
    assert caught.value.__cause__ is error


def test_other_errors_pass_unchanged() -> None:
    assert out_of_memory(RuntimeError("shapes do not match")) is None
    with pytest.raises(RuntimeError, match="shapes"), memory_explained("training"):
        raise RuntimeError("shapes do not match")


WIDTH: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
ENCODERS: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "distilbert": ({"dim": 32, "hidden_dim": 64, "n_layers": 2, "n_heads": 4}, ("q_lin", "v_lin")),
    "mpnet": (WIDTH, ("q", "v")),
    "deberta-v2": (
        {**WIDTH, "relative_attention": True, "pos_att_type": ["p2c", "c2p"]},
        ("query_proj", "value_proj"),
    ),
    "modernbert": (WIDTH, ("Wqkv",)),
    "nomic_bert": (WIDTH, ("q_proj", "v_proj")),
    "qwen3": ({**WIDTH, "num_key_value_heads": 2, "head_dim": 8}, ("q_proj", "v_proj")),
    "xlm-roberta": (WIDTH, ("query", "value")),
    "bert": (WIDTH, ("query", "value")),
}


@pytest.mark.parametrize("architecture", ENCODERS)
def test_encoders_of_other_architectures_learn_by_default(
    architecture: str, encoder_folder: Path, tmp_path: Path
) -> None:
    sizes, targets = ENCODERS[architecture]
    tokenizer = AutoTokenizer.from_pretrained(encoder_folder)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        special = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "cls_token_id": 1, "sep_token_id": 2}
        config = AutoConfig.for_model(architecture, vocab_size=len(tokenizer), **sizes, **special)
        AutoModel.from_config(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    config = load_config({"backbone": {"kind": "encoder", "model": str(tmp_path)}})
    model, learner = load_learner(config, [task := small_task("fruit", "apples", "pears")])
    assert {name.rpartition(".")[2] for name in model.modules} == set(targets)
    assert len(model.modules) == 2 * len(targets)
    model.enable(True)
    learner.forward(learner.collate(task.train[:4])).loss.backward()
    assert all(grad_B is not None and grad_B.abs().max() > 0 for _, grad_B in model.gradients().values())


def test_a_token_without_a_row_in_the_table_is_refused_at_load(tmp_path: Path) -> None:
    """Each tiny model has one row a token."""
    makers = {"encoder": tiny_encoder, "causal": tiny_causal, "seq2seq": tiny_seq2seq}
    for kind, make in makers.items():
        folder = make(tmp_path / kind)
        settings = {"kind": kind, "model": str(folder)}
        rows = load_backbone(settings).model.get_input_embeddings().num_embeddings
        tokenizer = AutoTokenizer.from_pretrained(folder)
        tokenizer.add_tokens(["<image_soft_token>"])  # as Gemma 3's text-only models have it
        tokenizer.save_pretrained(folder)
        load_backbone(settings)
        tokenizer.add_special_tokens({"pad_token": "<new pad>"})
        tokenizer.save_pretrained(folder)
        wanted = rf"has {rows + 2} tokens, and its embedding table {rows} rows: .*'<new pad>'.*resize_token_embeddings"
        with pytest.raises(ConfigError, match=wanted):
            load_backbone(settings)
