"""One contract for every preset of the table (scikit-learn's `check_estimator`, for continual learning)."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import perdure
from perdure.adapters.folder import open_adapter
from perdure.commands.learn import run_config
from perdure.config.run_config import load_config
from perdure.methods.table import PRESETS
from perdure.state.answers import read_answers
from perdure.state.shared import SECONDS
from perdure.state.store import Store
from perdure.tasks.task import Task
from perdure.training.reporter import Quiet
from perdure.training.train import Step
from tests.contract.runs import SETTINGS, bits, short_run


class Watch(Quiet):
    """Sees every optimiser step made; may stop the run at one, as a killed process would."""

    stops = (("sky", 3), ("joint", 6))

    def __init__(self, stop: bool = False) -> None:
        self.steps: list[tuple[str, int]] = []
        self._stop = stop

    def step(self, stage: str, step: Step, total: int) -> None:
        self.steps.append((stage, step.step))
        if self._stop and self.steps[-1] in self.stops:
            raise KeyboardInterrupt


pytestmark = pytest.mark.parametrize("method", PRESETS)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("shared")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, small_tasks: list[Task], encoder_folder: Path):
    """method -> folder of an uninterrupted run, made once."""
    folders: dict[str, Path] = {}

    def run(method: str) -> Path:
        if method not in folders:
            folders[method] = tmp_path_factory.mktemp(method) / "run"
            short_run(folders[method], small_tasks, encoder_folder, method)
        return folders[method]

    return run


def test_same_seed_same_bits(method, finished, tmp_path, small_tasks, encoder_folder):
    torch.rand(7)  # whatever else the process drew must not matter
    short_run(tmp_path / "again", small_tasks, encoder_folder, method)
    assert bits(tmp_path / "again") == bits(finished(method))


def test_resumed_between_tasks_equals_uninterrupted(
    method, finished, tmp_path, small_tasks, encoder_folder, monkeypatch
):
    import perdure.loop.sequence

    trained = []

    def stop_at_the_second(*args, **kwargs):
        trained.append(args)
        if len(trained) == 2:
            raise KeyboardInterrupt
        return real(*args, **kwargs)

    real = perdure.loop.sequence.train
    monkeypatch.setattr(perdure.loop.sequence, "train", stop_at_the_second)
    if PRESETS[method].stream == "joint":
        short_run(tmp_path / "run", small_tasks, encoder_folder, method)
    else:
        with pytest.raises(KeyboardInterrupt):
            short_run(tmp_path / "run", small_tasks, encoder_folder, method)
        assert Store(tmp_path / "run").stages() == ["fruit"]
    monkeypatch.setattr(perdure.loop.sequence, "train", real)
    short_run(tmp_path / "run", small_tasks, encoder_folder, method)
    assert bits(tmp_path / "run") == bits(finished(method))


def test_resumed_inside_a_task_equals_uninterrupted(method, finished, tmp_path, small_tasks, encoder_folder):
    """Written down after every step; stopped at the third step of the second task, before that one is."""

    training = {**SETTINGS["training"], "checkpoint_minutes": 1e-9}
    with pytest.raises(KeyboardInterrupt):
        short_run(tmp_path / "run", small_tasks, encoder_folder, method, report=Watch(stop=True), training=training)
    watch = Watch()
    short_run(tmp_path / "run", small_tasks, encoder_folder, method, report=watch)
    assert watch.steps[0] in Watch.stops
    assert bits(tmp_path / "run") == bits(finished(method))
    assert not (tmp_path / "run" / "unfinished").exists()


def test_saved_and_loaded_gives_the_same_answers(method, finished, small_tasks):
    """From its files onto a fresh base: the answers and probabilities that the run was scored by, to the bit."""
    out, last = finished(method), len(Store(finished(method)).stages())
    for task in small_tasks:
        found = perdure.predict(out, [example.text for example in task.test], task=task.name)
        known = read_answers(Store(out).stage_folder(last), task.name)
        assert [row["label"] for row in found] == [row["predicted"] for row in known]
        assert [max(row["probabilities"].values()) for row in found] == [row["probability"] for row in known]


def test_training_changes_what_is_answered(method, finished):
    """The deployed update is not nothing: the first stage's adapter differs from zero in every module."""
    update = open_adapter(Store(finished(method)).stage_folder(1) / "adapter")
    assert update
    assert all((delta.B @ delta.A).abs().max() > 0 for delta in update.values())


def test_what_other_runs_trained_gives_the_same_bits(method, finished, shared, tmp_path, small_tasks, encoder_folder):
    """All presets, one after another, share one folder; the second run of each trains nothing that may be shared."""
    backbone = {"kind": "encoder", "model": str(encoder_folder), "max_length": 32}
    config = load_config({"method": method, "backbone": backbone, **SETTINGS})
    for out in ("first", "second"):
        run_config(config, tmp_path / out, tasks=small_tasks, shared=shared)
        assert bits(tmp_path / out, without=("notes.json",)) == bits(finished(method), without=("notes.json",))
    read = [SECONDS in path.read_text() for path in sorted((tmp_path / "second").rglob("notes.json"))]
    if method in ("inc-lora", "ties", "magmax", "per-task"):
        assert all(read), "nothing acts on any of its steps"
    if method in ("ewc", "o-lora", "replay", "a-gem", "lwf", "slice", "slice-free"):
        assert read[0], "nothing acts before there is a past"
    if method in ("l2", "ps-lora", "n-lora", "n-lora-proximal"):
        assert not any(read), "a part acts on every step"
