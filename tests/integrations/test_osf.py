"""What docs/coming-from/osf.md says of OSF: `unload` between tasks gives the pretrained weights back, merging keeps them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from peft import OSFConfig, get_peft_model
from torch import nn


class OneLayer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(6, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.first(x)


@pytest.mark.parametrize(("ends", "kept"), [("unload", False), ("merge_and_unload", True)])
def test_what_the_next_task_begins_with(ends: str, kept: bool) -> None:
    torch.manual_seed(0)
    model = OneLayer()
    pretrained = model.first.weight.detach().clone()
    inputs, wanted = torch.randn(8, 6), torch.randn(8, 4)
    adapted: Any = get_peft_model(model, OSFConfig(target_modules=["first"], effective_rank=2))
    optimiser = torch.optim.SGD([p for p in adapted.parameters() if p.requires_grad], lr=0.1)
    for _ in range(3):
        optimiser.zero_grad()
        ((adapted(inputs) - wanted) ** 2).mean().backward()
        optimiser.step()
    learnt = adapted(inputs).detach()
    assert not torch.allclose(learnt, inputs @ pretrained.T + model.first.bias, atol=1e-3)
    after = getattr(adapted, ends)()
    assert torch.equal(after.first.weight, pretrained) != kept
    assert torch.allclose(after(inputs), learnt, atol=1e-5) == kept
