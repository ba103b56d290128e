"""Settings of training in whole runs: resumed to the bit, in joint and replay streams, refused before anything is made."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from perdure.config.run_config import RunConfig
from perdure.errors import ConfigError, UnknownName
from perdure.methods.contract.build import build_method
from tests.contract.runs import bits, short_run
from tests.methods.two_layers import RESUMED, killed_and_resumed, learn_toy, toy_tasks

CHANGED: dict[str, dict[str, Any]] = {
    "adafactor": {"optimizer": "adafactor"},
    "restarts": {"schedule": "cosine_with_restarts", "schedule_args": {"num_cycles": 2}, "warmup_share": 0.2},
    "smoothing": {"label_smoothing": 0.1},
    "weights": {"class_weights": "balanced"},
}
"""Each alone gives other bits than the default, so that a resumed run that forgot it would be found out."""


def made(name: str = "ps-lora"):
    return build_method(RunConfig(method=name).method)  # type: ignore[arg-type]


@RESUMED
@pytest.mark.parametrize("name", CHANGED)
def test_killed_and_resumed_to_the_bit(name: str, minutes: float | None, tmp_path: Path):
    settings = CHANGED[name]
    learn_toy(made(), tmp_path / "whole", toy_tasks(), checkpoint_minutes=minutes, **settings)
    killed_and_resumed(made, tmp_path / "parts", toy_tasks(), minutes, **settings)
    learn_toy(made(), tmp_path / "parts", toy_tasks(), checkpoint_minutes=minutes, **settings)
    assert bits(tmp_path / "parts") == bits(tmp_path / "whole")
    learn_toy(made(), tmp_path / "default", toy_tasks())
    assert bits(tmp_path / "default") != bits(tmp_path / "whole")


@pytest.mark.parametrize("stream", ["joint", "replay"])
def test_all_of_them_in_mixed_streams(stream: str, tmp_path: Path, small_tasks, encoder_folder):
    """Tasks of one batch have other labels; what is replayed has no weight of its own."""
    everything: dict[str, Any] = {}
    for settings in CHANGED.values():
        everything |= settings
    training = {"epochs": 1, "batch_size": 8, "learning_rate": 0.01, **everything}
    scores = short_run(tmp_path / "run", small_tasks[:2], encoder_folder, stream, training=training)
    assert scores.average_accuracy is not None


@pytest.mark.parametrize(
    "settings,error,said",
    [
        ({"class_weights": {"c": 2.0}}, UnknownName, "class_weights"),
        ({"schedule": "cosine", "schedule_args": {"num_cycles": 2}}, ConfigError, "takes none"),
        ({"optimizer": "paged_adamw_8bit"}, ConfigError, "paged_adamw_8bit"),
    ],
)
def test_refused_before_a_run_exists(settings, error, said, tmp_path: Path, small_tasks, encoder_folder):
    with pytest.raises(error, match=said):
        short_run(tmp_path / "run", small_tasks[:1], encoder_folder, "inc-lora", training=settings)
    assert not list((tmp_path / "run").glob("*.json"))
    by_task = {"fruit": settings}
    with pytest.raises(error, match=said):
        short_run(tmp_path / "two", small_tasks[:1], encoder_folder, "inc-lora", training_by_task=by_task)
