"""What a run deploys is looked at before it is written."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from perdure.errors import TrainingError
from perdure.state.record import write_deployed

PLAIN: Any = SimpleNamespace(expert_parameters={})
"""A model without stacked experts."""


class Saves:
    """A backbone that only writes."""

    def save(self, folder, weights):
        (folder / "saved").write_text(", ".join(weights))


def test_a_merged_model_that_is_not_finite_is_not_written(tmp_path):
    deployed = {"layers.0.q": torch.ones(2, 2)}
    weights = {"layers.0.q.weight": torch.full((2, 2), 7e4), "mask": torch.tensor([-float("inf")])}
    for dtype in (torch.float32, torch.bfloat16):
        rounded = {name: weight.to(dtype) for name, weight in weights.items()}
        write_deployed(tmp_path, deployed, PLAIN, Saves(), None, rounded)
        (tmp_path / "saved").unlink()
    with pytest.raises(TrainingError, match=r"merged weight of 'layers\.0\.q' has NaN or Inf"):
        write_deployed(tmp_path, deployed, PLAIN, Saves(), None, {name: w.half() for name, w in weights.items()})
    assert list(tmp_path.iterdir()) == []
