"""Input second moments for `covariance-gain`: read from files, or measured on the training texts of the tasks."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from perdure.adapters.weights import opened
from perdure.errors import AdapterError, ConfigError
from perdure.merging.sources import open_sources
from perdure.ops.lowrank import add_updates
from perdure.tasks.task import Task


def measured_moments(
    adapters: Sequence[str], tasks: Sequence[Task], backbone: Mapping[str, Any], against: Collection[str]
) -> list[dict[str, Tensor]]:
    """One adapter -> module -> second moment [I, I] of its inputs on its own task.

    Args:
        tasks: one per adapter, in the same order.
        against: of all modules, which must agree: "others" for adapters trained separately, "earlier" for each on those before.
    """
    from perdure.training.workbench import Workbench

    sources = open_sources(adapters)
    if len(tasks) != len(sources.adapters):
        raise ConfigError(f"Give one task per adapter: {len(sources.adapters)} adapters, {len(tasks)} tasks.")
    if len(against) > 1:
        raise ConfigError(
            "Moments are measured as the adapters were trained, separately or each on top of the one before: "
            "give all modules the same `against`, or files with --moments."
        )
    bench = Workbench(backbone, tasks, sources.modules)
    updates = [dict(update) for update in sources.updates]
    present = accumulate(updates, add_updates) if "earlier" in against else updates
    return [bench.moments(task.name, update) for task, update in zip(tasks, present, strict=True)]


def read_moments(path: Path) -> dict[str, Tensor]:
    """Module -> second moment [I, I], from a safetensors file; an AdapterError if a tensor cannot be one."""
    if not os.path.isfile(path):
        raise AdapterError(f"No such file of input moments: '{path}'.")
    moments: dict[str, Tensor] = {}
    with opened(path) as file:
        for name in file.keys():  # noqa: SIM118  (a safetensors handle is not a mapping)
            moment = moments[name] = file.get_tensor(name).float()
            if moment.ndim != 2 or moment.shape[0] != moment.shape[1] or not moment.isfinite().all():
                raise AdapterError(f"{path}: '{name}' is not a finite square matrix of input moments.")
            size = float(moment.abs().max()) if moment.numel() else 0.0
            symmetric = torch.allclose(moment, moment.mT, rtol=0, atol=0.01 * size)  # up to half precision
            if not symmetric or bool((moment.diagonal() < 0).any()):
                raise AdapterError(
                    f"{path}: '{name}' is not a second moment: it is not symmetric, or negative on its diagonal."
                )
    return moments
