"""What bf16 does to a backbone's loss: a little, and not nothing."""

from __future__ import annotations

import pytest
import torch

from perdure.backbones.base import Backbone, Batch


def check_bf16(backbone: Backbone, batch: Batch) -> None:
    """The loss in bf16 is near that in fp32, is another one, and is given in fp32; leaves the backbone in bf16."""
    exact = backbone.forward(batch).loss.item()
    backbone.precision = "bf16"
    rough = backbone.forward(batch).loss
    assert rough.item() == pytest.approx(exact, rel=0.05)
    assert rough.item() != exact
    assert rough.dtype == torch.float32
