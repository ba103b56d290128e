"""Memory runs out in the middle of a run: what helps is named, finished tasks are kept, and the run can be resumed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import perdure
from perdure.backbones.encoder import Encoder
from perdure.errors import TrainingError
from perdure.state.store import Store
from tests.conftest import small_task

TASKS = [small_task("fruit", "apples", "pears"), small_task("sky", "sun", "moon")]


def learn(folder: Path, encoder_folder: Path):
    return perdure.learn(
        tasks=TASKS,
        out=folder,
        method="inc-lora",
        backbone={"kind": "encoder", "model": str(encoder_folder)},
        lora={"rank": 2},
        training={"epochs": 1},
        precision="fp32",
    )


@pytest.mark.parametrize(
    "where,doing",
    [("forward", "training task 'sky'"), ("predict", "answering task 'sky'")],
    ids=["training", "answering"],
)
def test_finished_tasks_are_kept_and_the_run_goes_on(
    tmp_path: Path, encoder_folder: Path, monkeypatch: pytest.MonkeyPatch, where: str, doing: str
) -> None:
    whole = learn(tmp_path / "whole", encoder_folder)
    real = getattr(Encoder, where)

    def fails(self: Encoder, given: Any, *further: Any) -> Any:
        examples = given.examples if where == "forward" else given
        if Store(tmp_path / "run").stages() and examples[0].task == "sky":
            raise RuntimeError("[enforce fail at alloc_cpu.cpp:121] DefaultCPUAllocator: can't allocate memory")
        return real(self, given, *further)

    with monkeypatch.context() as patch:
        patch.setattr(Encoder, where, fails)
        with pytest.raises(
            TrainingError, match=rf"Memory ran out while {doing}.*Finished tasks are kept.*accumulation=4"
        ):
            learn(tmp_path / "run", encoder_folder)
    assert Store(tmp_path / "run").stages() == ["fruit"]
    assert learn(tmp_path / "run", encoder_folder).score_matrix == whole.score_matrix
