"""The adapter is trained in fp32, whatever its base is stored in."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from perdure.adapters import open_adapter
from perdure.durable import read_lines
from perdure.run import learn
from perdure.store import Store
from tests.backbones.tiny import tiny_causal
from tests.contract.runs import SETTINGS


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_a_base_in_half_precision_has_an_adapter_in_fp32(dtype, small_tasks, tmp_path: Path) -> None:
    """Two tasks, so that the first one's update is read back and folded; the trajectory is averaged."""
    model = tiny_causal(tmp_path / "model")
    backbone = {"kind": "causal", "model": str(model), "max_length": 64, "max_new_tokens": 20, "dtype": dtype}
    training = {**SETTINGS["training"], "average": "last-half"}
    out = tmp_path / "run"
    scores = learn(out=out, tasks=small_tasks[:2], backbone=backbone, method="l2", **{**SETTINGS, "training": training})
    assert scores.average_accuracy is not None
    for position in (1, 2):
        folder = Store(out).stage_folder(position)
        assert all(torch.tensor(row["loss"]).isfinite() for row in read_lines(folder / "log.jsonl"))
        for delta in open_adapter(folder / "adapter").values():
            assert delta.A.dtype == torch.float32
            assert not torch.equal(delta.A, delta.A.to(getattr(torch, dtype)).float())  # finer than the base's format
