"""Small adapter folders on disk: written by hand, or by PEFT itself."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D


class SmallModel(nn.Module):
    """An embedding, a linear layer, a GPT-2-style Conv1D and a head, so that every kind of weight occurs."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.embed = nn.Embedding(11, 12)
        self.layers = nn.ModuleList(
            nn.ModuleDict({"up": nn.Linear(12, 20), "down": nn.Linear(20, 12)}) for _ in range(2)
        )
        self.conv = Conv1D(9, 12)  # weight [12, 9]: in x out

    def forward(self, ids: Tensor) -> Tensor:
        hidden = self.embed(ids)
        for layer in self.layers:
            hidden = hidden + layer["down"](torch.tanh(layer["up"](hidden)))
        return self.conv(hidden)


def peft_folder(folder: Path, seed: int = 1, **settings: Any):
    """An adapter of `SmallModel` with random factors, saved by PEFT. Returns (folder, the PEFT model)."""
    from peft import LoraConfig, get_peft_model

    defaults = {"r": 4, "lora_alpha": 8, "target_modules": ["up", "down"]}
    model = get_peft_model(SmallModel(), LoraConfig(**(defaults | settings)))
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data.normal_(generator=generator, std=0.3)
    model.save_pretrained(str(folder))
    return folder, model


def hand_folder(folder: Path, tensors: dict[str, Tensor] | None = None, **config: Any) -> Path:
    """An adapter written by hand; by default one module `m` of rank 2, [3, 4]."""
    folder.mkdir(parents=True)
    tensors = tensors or {
        "base_model.model.m.lora_A.weight": torch.ones(2, 4),
        "base_model.model.m.lora_B.weight": torch.ones(3, 2),
    }
    save_file(tensors, folder / "adapter_model.safetensors")
    settings = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["m"]} | config
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    return folder


def random_folder(
    folder: Path, seed: int, rank: int = 2, shapes: dict[str, tuple[int, int]] | None = None, base: str | None = None
) -> Path:
    """A hand-written adapter with random factors and scaling 2."""
    generator = torch.Generator().manual_seed(seed)
    tensors: dict[str, Tensor] = {}
    for module, (height, width) in (shapes or {"layers.0.q": (12, 8), "layers.1.v": (6, 10)}).items():
        tensors[f"base_model.model.{module}.lora_A.weight"] = torch.randn(rank, width, generator=generator)
        tensors[f"base_model.model.{module}.lora_B.weight"] = torch.randn(height, rank, generator=generator)
    return hand_folder(folder, tensors, r=rank, lora_alpha=2 * rank, base_model_name_or_path=base)


def trained_folders(base: Path, folder: Path) -> list[Path]:
    """Two adapters of a tiny Llama, trained a few steps by PEFT alone; different targets, ranks and scalings."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    settings: dict[str, dict[str, Any]] = {
        "one": {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"]},
        "two": {"r": 2, "lora_alpha": 4, "target_modules": ["v_proj", "up_proj"], "use_rslora": True},
    }
    for seed, (name, chosen) in enumerate(settings.items()):
        torch.manual_seed(seed)
        config = LoraConfig(task_type="CAUSAL_LM", **chosen)
        model = get_peft_model(AutoModelForCausalLM.from_pretrained(base), config)
        optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.5)
        for step in range(6):
            ids = torch.randint(3, 60, (2, 12), generator=torch.Generator().manual_seed(seed * 10 + step))
            model(input_ids=ids, labels=ids).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        model.save_pretrained(str(folder / name))
    return [folder / name for name in settings]


def in_hub_cache(cache: Path, repository: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The files of `folder` as a hub's client would have left them in its cache; from here on there is no network."""
    import huggingface_hub

    place = cache / f"models--{repository.replace('/', '--')}"
    (place / "refs").mkdir(parents=True)
    (place / "refs" / "main").write_text("0" * 40)
    shutil.copytree(folder, place / "snapshots" / ("0" * 40))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    return repository
