"""An encoder-decoder in a trainer: statistics of inputs count what encoder and decoder read, and no padding of either."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoModelForSeq2SeqLM

from perdure.integrations import Continual
from tests.backbones.tiny import tiny_seq2seq
from tests.integrations.trainers import plain_trainer

PAD = 0
UNEQUAL = [((3, 5), (7, 2)), ((6, 1), (4, 6))]  # (texts' lengths, answers' lengths): decoder longer; equal when padded
MODULES = ("encoder.block.1.layer.0.SelfAttention.q", "decoder.block.1.layer.0.SelfAttention.q",
           "decoder.block.1.layer.1.EncDecAttention.q", "decoder.block.1.layer.1.EncDecAttention.v")  # fmt: skip


def rows(texts: tuple[int, ...], answers: tuple[int, ...]) -> list[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    draw = [torch.randint(5, 200, (length,), generator=generator) for length in (*texts, *answers)]
    return [{"input_ids": draw[i], "labels": draw[i + len(texts)]} for i in range(len(texts))]


def padded(chosen: Any) -> dict[str, Tensor]:
    """As a collator for sequences to sequences pads; the model shifts the labels itself."""
    texts, labels = ([row[name] for row in chosen] for name in ("input_ids", "labels"))
    return {
        "input_ids": pad_sequence(texts, batch_first=True, padding_value=PAD),
        "attention_mask": pad_sequence([torch.ones_like(text) for text in texts], batch_first=True),
        "labels": pad_sequence(labels, batch_first=True, padding_value=-100),
    }


def shifted(chosen: Any) -> dict[str, Tensor]:
    """As transformers' DataCollatorForSeq2Seq does where it knows the model: the decoder's inputs stand beside the labels."""
    batch = padded(chosen)
    before = batch["labels"].masked_fill(batch["labels"] == -100, PAD)[:, :-1]
    start = torch.full((len(before), 1), PAD)
    return {**batch, "decoder_input_ids": torch.cat([start, before], dim=1)}


def masked(chosen: Any) -> dict[str, Tensor]:
    """With a mask for the decoder, too."""
    batch = shifted(chosen)
    return {**batch, "decoder_attention_mask": (batch["labels"] != -100).long()}


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_seq2seq(tmp_path_factory.mktemp("models") / "tiny-seq2seq")


@pytest.mark.parametrize("texts,answers", UNEQUAL)
@pytest.mark.parametrize("collate", [padded, shifted, masked])
def test_padding_of_encoder_and_decoder_is_not_counted(collate, texts, answers, tmp_path, model_folder):
    model = AutoModelForSeq2SeqLM.from_pretrained(model_folder, dtype=torch.float64)
    model = get_peft_model(model, LoraConfig(r=2, target_modules=["q", "v"]))
    given = rows(texts, answers)
    continual = Continual("inc-lora")
    continual.attach(plain_trainer(model, given, tmp_path, collate))

    def moments(batches: list[list[Any]]) -> dict[str, Tensor]:
        found: dict[str, Tensor] = {}

        def sink(name: str, inputs: Tensor) -> None:
            found[name] = found.get(name, 0) + inputs.double().T @ inputs.double()

        continual.ctx.stream(batches, "inputs", sink)
        return found

    together, apart = moments([given]), moments([[row] for row in given])
    assert set(MODULES) <= together.keys()
    for module in together:
        torch.testing.assert_close(together[module], apart[module], rtol=1e-5, atol=1e-8, msg=module)
