"""Randomly initialised models, made on the device: nothing is downloaded, and nothing here means anything but its shapes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from perdure.tasks.task import Example, Task

LLAMA = {"num_key_value_heads": 8, "vocab_size": 128_256, "rope_theta": 500_000.0}
SHAPES: dict[str, dict[str, Any]] = {
    "Llama-3.2-1B": {
        **LLAMA, "kind": "Llama", "hidden_size": 2048, "num_hidden_layers": 16, "num_attention_heads": 32,
        "intermediate_size": 8192, "head_dim": 64, "tie_word_embeddings": True,
    },
    "Llama-3.1-8B": {
        **LLAMA, "kind": "Llama", "hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32,
        "intermediate_size": 14_336,
    },
    "Qwen3-30B-A3B, 4 of 48 layers": {
        "kind": "Qwen3Moe", "hidden_size": 2048, "num_hidden_layers": 4, "num_attention_heads": 32, "num_key_value_heads": 4,
        "head_dim": 128, "intermediate_size": 6144, "moe_intermediate_size": 768, "num_experts": 128, "num_experts_per_tok": 8,
        "vocab_size": 151_936,
    },
}  # fmt: skip
"""Name -> the configuration's settings, from the models' own config.json; `kind`: of transformers' classes."""
TINY: dict[str, dict[str, Any]] = {
    "Llama, tiny": {
        "kind": "Llama", "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
        "intermediate_size": 64, "vocab_size": 300,
    },
    "Qwen3Moe, tiny": {
        "kind": "Qwen3Moe", "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
        "head_dim": 8, "intermediate_size": 64, "moe_intermediate_size": 16, "num_experts": 4, "num_experts_per_tok": 2,
        "vocab_size": 300,
    },
}  # fmt: skip


def causal(shape: dict[str, Any], device: str, dtype: torch.dtype) -> PreTrainedModel:
    """A causal language model of that shape, drawn on the device."""
    settings = {"max_position_embeddings": 4096, **shape}
    kind = settings.pop("kind")
    config = getattr(transformers, f"{kind}Config")(bos_token_id=0, eos_token_id=1, pad_token_id=2, **settings)
    before = torch.get_default_dtype()
    try:
        torch.set_default_dtype(dtype)
        with torch.device(device):
            torch.manual_seed(0)
            return getattr(transformers, f"{kind}ForCausalLM")(config).eval()
    finally:
        torch.set_default_dtype(before)


def tokenizer(encoder: bool = False) -> PreTrainedTokenizerFast:
    """One token a byte."""
    special = {"bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>"}
    names = [*special.values(), *sorted(pre_tokenizers.ByteLevel.alphabet())]
    bytewise = Tokenizer(models.BPE(vocab={name: index for index, name in enumerate(names)}, merges=[]))
    bytewise.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # type: ignore[assignment]
    bytewise.decoder = decoders.ByteLevel()  # type: ignore[assignment]
    if encoder:
        bytewise.post_processor = processors.BertProcessing(("<eos>", 1), ("<bos>", 0))  # type: ignore[assignment]
    fast = PreTrainedTokenizerFast(tokenizer_object=bytewise, clean_up_tokenization_spaces=False, **special)
    fast.model_max_length = 2048
    return fast


def saved_encoder(folder: Path) -> Path:
    """A tiny encoder in a folder, as a run opens it."""
    config = transformers.BertConfig(
        vocab_size=300, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64,
        hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, pad_token_id=2,
    )  # fmt: skip
    torch.manual_seed(0)
    transformers.BertModel(config).eval().save_pretrained(folder)
    tokenizer(encoder=True).save_pretrained(folder)
    return folder


def saved_causal(folder: Path) -> Path:
    """A tiny language model in a folder, as a run opens it."""
    causal(TINY["Llama, tiny"], "cpu", torch.float32).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


def small_tasks(count: int = 2, train: int = 24) -> list[Task]:
    """Two classes told apart by one word."""

    def task(number: int) -> Task:
        words = (("apples", "a"), ("pears", "b"))
        rows = [Example(f"{word} and {i} of {number}", label) for i in range(train // 2 + 8) for word, label in words]
        labels = {"a": "about apples", "b": "about pears"}
        return Task(f"task{number}", rows[:train], rows[train : train + 8], rows[train + 8 :], labels=labels)

    return [task(number) for number in range(count)]


def long_tasks(count: int, examples: int, tokens: int) -> list[Task]:
    """Prompts that fill `tokens` with their answer, for a tokenizer of bytes."""

    def task(number: int) -> Task:
        rows = [
            Example(f"{number} {i} ".ljust(tokens, "the quick brown fox jumps "[i % 26]), "ab"[i % 2])
            for i in range(examples)
        ]
        return Task(f"long{number}", rows, test=rows[:2], labels={"a": "yes it is", "b": "no it is not"})

    return [task(number) for number in range(count)]
