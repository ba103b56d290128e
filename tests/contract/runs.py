"""A short run of any method on the tiny encoder, and what of it must be equal to the bit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from perdure.commands.learn import learn
from perdure.state.store import Store
from perdure.tasks.task import Task
from perdure.training.metrics import Scores

SETTINGS: dict[str, Any] = {
    "lora": {"rank": 2, "alpha": 4},
    "training": {"epochs": 1, "batch_size": 8, "learning_rate": 0.01},
    "precision": "fp32",
    "threads": 1,
}


def short_run(
    out: Path, tasks: Sequence[Task], encoder: Path, method: str | Mapping[str, Any], **settings: Any
) -> Scores:
    backbone = {"kind": "encoder", "model": str(encoder), "max_length": 32}
    return learn(out=out, tasks=tasks, method=method, backbone=backbone, **{**SETTINGS, **settings})


def bits(out: Path, without: Sequence[str] = ()) -> dict[str, Any]:
    """The sha256 of every file of every finished stage and of the deployed model."""
    manifest = Store(out).manifest
    manifest.pop("aside", None)  # what is still to be moved counts no more
    for entry in manifest["stages"]:
        entry["files"] = {path: digest for path, digest in entry["files"].items() if path not in without}
    return manifest


def bits_learnt(out: Path) -> tuple[Any, ...]:
    """What is equal between a grown run and one of all tasks at once: all but the early scores of tasks that came later."""
    found = bits(out)
    stages = [
        {path: digest for path, digest in entry["files"].items() if not path.startswith(("scores", "predictions"))}
        for entry in found["stages"]
    ]
    return stages, found["stages"][-1]["files"], found["deployed"]
