"""A plain transformers Trainer on a tiny causal model in float64, and ready-made batches to train it on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch.nn import functional
from transformers import AutoModelForCausalLM, Trainer, TrainingArguments

from perdure.backbones.base import Batch

Dataset = Sequence[dict[str, torch.Tensor]]


def peft_model(folder: Path, dtype: torch.dtype = torch.float64, **settings: Any) -> Any:
    """The model with a LoRA of rank 2 on q_proj and v_proj."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, attn_implementation="sdpa")
    given = {"r": 2, "lora_alpha": 4, "target_modules": ["q_proj", "v_proj"], **settings}
    return get_peft_model(model, LoraConfig(**given))


def row(batch: Batch) -> dict[str, torch.Tensor]:
    """A whole micro-batch of perdure's as one row of a dataset; labels at its targets."""
    ids = batch.inputs["input_ids"]
    return {**batch.inputs, "labels": ids.masked_fill(~batch.extra["predicting"].roll(1, dims=1), -100)}


def exact_loss(outputs: Any, labels: torch.Tensor, num_items_in_batch: Any = None) -> torch.Tensor:
    """Mean cross-entropy over all targets of the optimiser step; transformers' own rounds to float32."""
    logits = outputs["logits"][:, :-1].flatten(0, 1)
    total = functional.cross_entropy(logits, labels[:, 1:].flatten(), ignore_index=-100, reduction="sum")
    return total / (num_items_in_batch if num_items_in_batch is not None else (labels[:, 1:] != -100).sum())


def first(rows: Sequence[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """A collator for rows that are whole micro-batches."""
    return rows[0]


def plain_trainer(
    model: Any, rows: Any, folder: Path, collate: Callable[..., Any] = first, kind: Any = Trainer, **settings: Any
) -> Any:
    """A Trainer that takes the rows in order, one a micro-batch."""
    arguments: dict[str, Any] = {
        "per_device_train_batch_size": 1,
        "num_train_epochs": 1,
        "learning_rate": 0.01,
        "lr_scheduler_type": "constant",
        "optim": "adamw_torch",
        "train_sampling_strategy": "sequential",
        "remove_unused_columns": False,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": True,
        **settings,
    }
    args = TrainingArguments(output_dir=str(folder / "trainer"), **arguments)
    return kind(model=model, args=args, train_dataset=rows, data_collator=collate, compute_loss_func=exact_loss)
