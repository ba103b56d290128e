"""What a run learns of chats is what TRL's SFTTrainer learns of them: the same ids, and the same ones in the loss."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset
from transformers import LlamaConfig, LlamaForCausalLM
from trl.trainer.sft_config import SFTConfig
from trl.trainer.sft_trainer import SFTTrainer

from perdure.backbones.chats import ChatFormat
from perdure.backbones.templates import pin_date
from perdure.tasks.chats import read_chat
from tests.backbones.chat_templates import LAYOUTS, chats, tokenizer_of

COUNT = 200
# TRL sets an option by its old name
pytestmark = pytest.mark.filterwarnings("ignore:.*is deprecated and will be removed in v6:FutureWarning")


@pytest.mark.parametrize("learn", ["all", "last"])
@pytest.mark.parametrize("name", LAYOUTS)
def test_trl_learns_the_same_tokens(name: str, learn: Any, tmp_path: Path) -> None:
    """`all` is assistant_only_loss, with the generation mask that TRL requires; `last` is a conversational completion."""
    tokenizer = tokenizer_of(name, marks=learn == "all")
    pin_date(tokenizer, "2026-11-30" if name == "granite" else None)
    records = chats(name, COUNT)
    form = ChatFormat(tokenizer, learn=learn)
    found = [form.rendered(*read_chat(record, "here")) for record in records]
    theirs = trained_on(tokenizer, [asked(record, learn) for record in records], learn, tmp_path)
    for own, other in zip(found, theirs, strict=True):
        assert own.ids == list(other["input_ids"])
        assert [token if learnt else -100 for token, learnt in zip(own.ids, own.learnt, strict=True)] == other["labels"]


def asked(record: dict[str, Any], learn: str) -> dict[str, Any]:
    """The record in TRL's layout for this loss; tools differ from row to row, so they are JSON."""
    tools = {"tools": json.dumps(record["tools"])} if "tools" in record else {"tools": None}
    messages = record["messages"]
    return (
        {"messages": messages, **tools}
        if learn == "all"
        else {"prompt": messages[:-1], "completion": messages[-1:], **tools}
    )


def trained_on(tokenizer: Any, rows: list[dict[str, Any]], learn: str, folder: Path) -> list[dict[str, Any]]:
    """The rows as SFTTrainer has prepared and collated them."""
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1
    )
    args = SFTConfig(
        output_dir=str(folder),
        assistant_only_loss=learn == "all",
        completion_only_loss=learn == "last",
        max_length=None,
        report_to=[],
        use_cpu=True,
    )
    model = LlamaForCausalLM(config)
    trainer = SFTTrainer(model, args, train_dataset=Dataset.from_list(rows), processing_class=tokenizer)
    prepared = trainer.train_dataset
    assert prepared is not None
    batches = [trainer.data_collator([row]) for row in prepared]
    return [{key: batch[key][0].tolist() for key in ("input_ids", "labels")} for batch in batches]
