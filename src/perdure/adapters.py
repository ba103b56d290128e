"""temporary, the merging helper replaces this file"""
from __future__ import annotations
import json
from collections.abc import Mapping
from pathlib import Path
import torch
from safetensors.torch import load_file, save_file
from perdure.ops.lowrank import LowRank

def write_adapter(folder: Path, update: Mapping[str, LowRank], base: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    rank = max((d.rank for d in update.values()), default=1)
    t = {}
    for n, d in update.items():
        pad = rank - d.rank
        t[f"base_model.model.{n}.lora_A.weight"] = torch.nn.functional.pad(d.A.float(), (0, 0, 0, pad)).contiguous()
        t[f"base_model.model.{n}.lora_B.weight"] = torch.nn.functional.pad(d.B.float(), (0, pad)).contiguous()
    save_file(t, folder / "adapter_model.safetensors", {"format": "pt"})
    cfg = {"peft_type": "LORA", "base_model_name_or_path": base, "r": rank, "lora_alpha": rank, "target_modules": sorted({n.rsplit(".", 1)[-1] for n in update}), "lora_dropout": 0.0, "bias": "none", "inference_mode": True, "task_type": None}
    (folder / "adapter_config.json").write_text(json.dumps(cfg, indent=1))

def read_adapter(folder: Path) -> dict[str, LowRank]:
    t = load_file(folder / "adapter_model.safetensors")
    ns = [k.removeprefix("base_model.model.").removesuffix(".lora_A.weight") for k in t if k.endswith(".lora_A.weight")]
    return {n: LowRank(t[f"base_model.model.{n}.lora_A.weight"], t[f"base_model.model.{n}.lora_B.weight"]) for n in ns}
