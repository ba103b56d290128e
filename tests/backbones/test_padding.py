"""What is answered in a batch is what is answered alone, also by models that mix padding into their texts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    ConvBertConfig,
    ConvBertModel,
    FNetConfig,
    FNetModel,
    MiniMaxConfig,
    MiniMaxForCausalLM,
    RwkvConfig,
    RwkvForCausalLM,
)

from perdure.backbones.causal import CausalLM, CausalSettings
from perdure.backbones.encoder import Encoder, EncoderSettings
from perdure.backbones.seq2seq import Seq2SeqLM, Seq2SeqSettings
from perdure.backbones.tokens import in_batches
from perdure.errors import ConfigError
from perdure.tasks.task import Example, Task
from tests.backbones.tiny import tiny_causal, tiny_encoder, tiny_seq2seq

TEXTS = ["rain", "dull", "a clear blue sky over the hills", "the soup was cold and bland", "an awful greasy burger"]
ROWS = [Example(text, "a", "t") for text in TEXTS]
LABELS = {"a": "good", "b": "good and bad", "c": "bad"}
TASK = Task("t", ROWS, test=ROWS, labels=LABELS)
SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "intermediate_size": 48,
    "max_position_embeddings": 128,
}
MIXING = {"fnet": (FNetModel, FNetConfig), "convbert": (ConvBertModel, ConvBertConfig)}


def encoder(name: str, folder: Path) -> Encoder:
    settings = EncoderSettings(model=str(tiny_encoder(folder)))
    if name == "bert":
        return Encoder.load(settings)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    kind, config = MIXING[name]
    heads: dict[str, Any] = {"num_attention_heads": 4} if name == "convbert" else {}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = kind(config(vocab_size=len(tokenizer), pad_token_id=0, **SIZES, **heads)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3 if parameter.ndim >= 2 else 1)
    return Encoder(model, tokenizer, settings)


@pytest.mark.parametrize("name,mixes", [("bert", False), ("fnet", True), ("convbert", True)])
def test_a_text_is_embedded_alone_as_next_to_longer_ones(name: str, mixes: bool, tmp_path: Path) -> None:
    backbone = encoder(name, tmp_path)
    backbone.prepare([TASK])
    assert backbone._mixes is mixes
    batch = backbone.collate(ROWS)
    alone = torch.cat([backbone.features(backbone.collate([row])) for row in ROWS])
    torch.testing.assert_close(backbone.features(batch), alone, atol=1e-5, rtol=0)
    if mixes:
        assert (backbone._embedded(batch.inputs) - alone).abs().max() > 1e-3  # what a padded batch would answer
    answers = [backbone.predict([row], ["t"])[0].probabilities for row in ROWS]
    for together, one in zip(backbone.predict(ROWS, ["t"]), answers, strict=True):
        assert together.probabilities == pytest.approx(one, abs=1e-4)


def test_training_on_a_mixing_encoder_is_the_mean_over_its_texts_alone(tmp_path: Path) -> None:
    backbone = encoder("fnet", tmp_path)
    backbone.prepare([TASK])
    alone = [backbone.forward(backbone.collate([row])).loss.item() for row in ROWS]
    assert backbone.forward(backbone.collate(ROWS)).loss.item() == pytest.approx(sum(alone) / len(alone), abs=1e-4)


def test_a_model_that_writes_otherwise_when_padded_writes_in_batches_of_one_length(tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_causal(tmp_path))
    heads: dict[str, Any] = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "num_local_experts": 2}
    layers: dict[str, Any] = {"layer_types": ["linear_attention", "full_attention"], "block_size": 8}
    ids: dict[str, Any] = {"vocab_size": len(tokenizer), "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = MiniMaxForCausalLM(MiniMaxConfig(**SIZES, **heads, **layers, **ids, initializer_range=0.3)).eval()
    backbone = CausalLM(model, tokenizer, CausalSettings(model="minimax", max_new_tokens=16, answer_by="generation"))
    backbone.prepare([TASK])
    assert backbone._mixes == "written"
    assert backbone.padding_note() is None  # on the right, as in training, padding changes nothing
    sizes: list[int] = []
    written = backbone._generate
    backbone._generate = lambda prompts: sizes.append(len({len(ids) for ids in prompts})) or written(prompts)
    together = backbone.predict(ROWS, ["t"])
    assert sizes == [1] * 4  # "rain" and "dull" are of one length
    assert [p.label for p in together] == [backbone.predict([row], ["t"])[0].label for row in ROWS]


def test_a_model_that_writes_otherwise_beside_any_row_writes_alone(tmp_path: Path) -> None:
    """RWKV as transformers has it: from the second token on, rows of one batch read each other's state."""
    tokenizer = AutoTokenizer.from_pretrained(tiny_causal(tmp_path))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = RwkvForCausalLM(RwkvConfig(vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=2)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3 if parameter.ndim == 2 else 1)
    settings = CausalSettings(model="rwkv", max_length=64, max_new_tokens=16, answer_by="generation")
    backbone = CausalLM(model, tokenizer, settings)
    backbone.prepare([TASK])
    prompts = [backbone._asked(row) for row in ROWS]
    pair = [next(p for p in prompts if len(p) == min(map(len, prompts)))] * 2
    assert backbone._generate(pair) != backbone._generate(pair[:1]) * 2  # what a batch of one length would write
    together = backbone.predict(ROWS, ["t"])
    assert [p.label for p in together] == [backbone.predict([row], ["t"])[0].label for row in ROWS]


def test_a_model_that_cannot_write_is_refused_before_anything_is_learnt(tmp_path: Path) -> None:
    """xLSTM as transformers has it: the state it keeps between tokens has another shape than the one it reads. It ranks."""
    tokenizer = AutoTokenizer.from_pretrained(tiny_causal(tmp_path))
    kernels: dict[str, Any] = {
        "chunkwise_kernel": "chunkwise--native_autograd",
        "sequence_kernel": "native_sequence__native",
        "step_kernel": "native",
    }
    sizes: dict[str, Any] = {"hidden_size": 64, "num_hidden_layers": 2, "num_heads": 4}
    config = AutoConfig.for_model(
        "xlstm", vocab_size=len(tokenizer), pad_token_id=0, eos_token_id=2, **sizes, **kernels
    )
    model = AutoModelForCausalLM.from_config(config).eval()
    written = CausalLM(model, tokenizer, CausalSettings(model="xlstm", answer_by="generation"))
    with pytest.raises(ConfigError, match=r"'xlstm' .* reads, but transformers cannot write with it: .*ranking"):
        written.prepare([TASK])
    ranked = CausalLM(model, tokenizer, CausalSettings(model="xlstm"))
    ranked.prepare([TASK])
    assert len(ranked.predict(ROWS, ["t"])) == len(ROWS)


def test_plain_models_keep_their_batches(tmp_path: Path) -> None:
    causal = CausalLM.load(CausalSettings(model=str(tiny_causal(tmp_path / "causal"))))
    seq2seq = Seq2SeqLM.load(Seq2SeqSettings(model=str(tiny_seq2seq(tmp_path / "seq2seq"))))
    for backbone in (causal, seq2seq):
        backbone.prepare([TASK])
        assert backbone._mixes == ""
        assert backbone.padding_note() is None


def test_a_language_model_that_reads_padding_is_found_and_warned_about(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backbone = Seq2SeqLM.load(Seq2SeqSettings(model=str(tiny_seq2seq(tmp_path))))
    right = backbone._log_likelihood
    monkeypatch.setattr(
        backbone, "_log_likelihood", lambda p, c: right(p, c) + 0.1 * (max(map(len, p)) - min(map(len, p)))
    )
    backbone.prepare([TASK])
    assert "set training.accumulation to training.batch_size" in (backbone.padding_note() or "")
    for together, row in zip(backbone.predict(ROWS, ["t"]), ROWS, strict=True):
        assert together.probabilities == pytest.approx(backbone.predict([row], ["t"])[0].probabilities, abs=1e-5)


def test_batches_of_what_is_alike() -> None:
    seen: list[list[int]] = []

    def work(chosen: list[int]) -> list[int]:
        seen.append(chosen)
        return [10 * i for i in chosen]

    assert in_batches([1, 3, 1, 3, 3], 2, work, [1, 3, 1, 3, 3]) == [0, 10, 20, 30, 40]
    assert seen == [[1, 3], [4], [0, 2]]
