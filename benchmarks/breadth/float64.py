"""Is a difference in fp32 rounding? The deployed adapter and the run's folded weights, both computed in float64.

If they agree there, what is deployed is what was learnt. How far each way's own fp32 answers lie from float64's is what fp32
costs on this model, whichever way is taken.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from benchmarks.breadth.differences import farthest
from peft import PeftModel
from torch import Tensor

from perdure import Task
from perdure.backbones import load_backbone
from perdure.backbones.base import Prediction
from perdure.state.record import load_deployed
from perdure.state.reopen import reopened_model
from perdure.state.store import Store
from perdure.training.evaluation import answer


def rounding(settings: dict[str, Any], tasks: list[Task], out: Path) -> dict[str, float]:
    """Differences of log-probabilities: of both ways in float64, and of each way's fp32 from its float64."""
    store = Store(out)
    model, own = reopened_model(store, tasks)
    learnt: Any = load_deployed(store)  # one update: of an update for each task there is not one adapter
    runs = [each for task in tasks for each in answer(model, own, learnt, task.test, [task.name])]
    folded: Any = load_backbone(settings)
    folded.model.double()
    with torch.no_grad():
        for name, delta in learnt.items():
            weight = folded.model.get_submodule(name).weight
            update = delta.double() if isinstance(delta, Tensor) else delta.B.double() @ delta.A.double()
            weight.add_(update.mT if model.modules[name].transposed else update)
    adapter: Any = load_backbone(settings)
    adapter.model = PeftModel.from_pretrained(adapter.model, str(out / "deployed")).get_base_model().eval()
    deployed = _answers(adapter, tasks)
    adapter.model.double()
    exact, other = _answers(folded, tasks), _answers(adapter, tasks)
    return {
        "in_float64": farthest(other, exact),
        "run_from_float64": farthest(runs, exact),
        "deployed_from_float64": farthest(deployed, other),
    }


def _answers(learner: Any, tasks: list[Task]) -> list[Prediction]:
    learner.prepare(tasks)
    return [each for task in tasks for each in learner.predict(task.test, [task.name])]
