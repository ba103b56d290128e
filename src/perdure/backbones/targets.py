"""Which layers LoRA adapts if none are named: the query and value projections, or what stands for them."""

from __future__ import annotations

from torch import nn
from transformers.pytorch_utils import Conv1D

from perdure.errors import ConfigError

DEFAULT_TARGETS: tuple[tuple[str, ...], ...] = (
    ("q_proj", "v_proj"),  # Llama, Mistral, Qwen, Gemma, OPT, BART, ViT, DINOv2 ...
    ("query", "value"),  # BERT, RoBERTa
    ("q", "v"),  # T5, MPNet
    ("q_lin", "v_lin"),  # DistilBERT
    ("query_proj", "value_proj"),  # DeBERTa-v2
    ("q_head", "v_head"),  # Funnel
    ("Wq", "Wv"),  # CTRL
    ("q_proj", "kv_b_proj"),  # DeepSeek-V2-Lite: keys and values are read from a compressed vector
    ("q_b_proj", "kv_b_proj"),  # DeepSeek-V3, LongCat: queries too
    ("key", "value", "receptance", "output"),  # RWKV
    ("qkv_proj",),  # Phi-3: query, key and value in one matrix from here on
    ("query_key_value",),  # GPT-NeoX, BLOOM, Falcon
    ("Wqkv",),  # ModernBERT, MPT
    ("c_attn",),  # GPT-2
    ("qkv",),
    ("queries_keys_values.linear",),  # LeViT
    ("in_proj",),  # DeBERTa; Mamba, whose input and gate it is
    ("layer_1", "layer_2"),  # XLNet's feed-forward: its attention has no linear layers
    ("intermediate.dense", "output.dense"),  # FNet's feed-forward: it has no attention
    ("pwconv1", "pwconv2"),  # ConvNeXt
    ("pointwise_conv1", "pointwise_conv2"),  # DINOv3-ConvNeXt
)
"""What architectures call these layers, each the end of a module's name; the first row of which a model has all is taken."""


def default_targets(model: nn.Module) -> tuple[str, ...]:
    """The first row of the table that fits the model.

    Raises:
        ConfigError: none fits; lists the model's linear layers, or says that it has none.
    """
    names = [name for name, module in model.named_modules() if isinstance(module, (nn.Linear, Conv1D))]
    for row in DEFAULT_TARGETS:
        if all(any(name == end or name.endswith(f".{end}") for name in names) for end in row):
            return row
    kinds = sorted({name.rsplit(".", 1)[-1] for name in names})
    if len(kinds) < 2 and (other := _other_layers(model)):
        raise ConfigError(
            f"{type(model).__name__} computes with {', '.join(other)}, and LoRA adapts linear layers only"
            f"{f' (it has {kinds[0]!r})' if kinds else ''}. Choose another model."
        )
    raise ConfigError(
        "The names of this model's query and value layers are not known; name some with lora.targets, or set it to all-linear. "
        f"Its layers: {', '.join(kinds)}."
    )


def _other_layers(model: nn.Module) -> list[str]:
    """Classes of the modules with a weight matrix that are neither linear layers nor embeddings."""
    plain = (nn.Linear, Conv1D, nn.Embedding)
    return sorted(
        {
            type(module).__name__
            for module in model.modules()
            if not isinstance(module, plain)
            and "Embedding" not in type(module).__name__
            and getattr(getattr(module, "weight", None), "ndim", 0) > 1
        }
    )
