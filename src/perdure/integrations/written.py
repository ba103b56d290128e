"""Trainers that learn from what the model writes (TRL's GRPO and RLOO): rows are prompts, and examples what is drawn after them.

What a method measures there, it measures on answers from the model's own softmax (temperature 1): for score drift that is the
Fisher matrix as it is defined. The trainer's loss needs rewards of many answers, so methods that measure it are refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from perdure.backbones.generation import sampled
from perdure.backbones.tokens import padded
from perdure.errors import UnmetNeed
from perdure.methods.contract.context import Need
from perdure.methods.contract.parts import Method

OF_LOSS = frozenset({Need.FULL_GRADIENTS, Need.OLD_EXAMPLES})
"""What only a loss of examples gives."""


def writes(trainer: Any) -> bool:
    """Whether the trainer writes the answers that it learns from."""
    return hasattr(trainer, "_tokenize_prompts") and hasattr(trainer, "max_completion_length")


def check_losses(trainer: Any, method: Method) -> None:
    """Raise UnmetNeed if a part measures the loss of examples, in a trainer that has none before it trains."""
    if not writes(trainer):
        return
    for name, part in method.parts().items():
        if part.requires() & OF_LOSS:
            raise UnmetNeed(
                f"Method '{method.name}': '{name}' measures the loss of examples, and a {type(trainer).__name__} has none: it "
                "learns from rewards of answers that it writes while it trains. Choose a method that works on weights alone, "
                "such as ps-lora, o-lora or n-lora, or on what the model reads and writes, such as perdure."
            )


@torch.no_grad()
def written(trainer: Any, model: Any, rows: Sequence[Any]) -> dict[str, Tensor]:
    """The rows' prompts with an answer each, padded on the right; `completion_mask` says where the answers stand.

    Raises:
        UnmetNeed: prompts with pictures.
    """
    prompts, pictures, _ = trainer._tokenize_prompts([row["prompt"] for row in rows])
    if pictures is not None:
        raise UnmetNeed("Prompts with pictures cannot be measured on. Choose a method that works on weights alone.")
    tokenizer = getattr(trainer.processing_class, "tokenizer", trainer.processing_class)
    most = trainer.max_completion_length
    drawn = sampled(model.get_base_model(), tokenizer, prompts, most, len(prompts), trainer.args.seed)
    answers = [[*row, tokenizer.eos_token_id] if len(row) < most else row for row in drawn]
    ids, real = padded([[*p, *a] for p, a in zip(prompts, answers, strict=True)], tokenizer.pad_token_id)
    begins = torch.tensor([len(prompt) for prompt in prompts])[:, None]
    mask = real & (torch.arange(ids.shape[1]) >= begins)
    return {"input_ids": ids, "attention_mask": real.long(), "completion_mask": mask.long()}
