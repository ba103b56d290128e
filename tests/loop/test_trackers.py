"""Trackers, on local stores: what they hold, read back from disk, is what the run's own log says. Nothing is sent anywhere."""

from __future__ import annotations

import json
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from perdure.errors import ConfigError, UnknownName
from perdure.files.durable import read_lines
from perdure.loop.progress import CompositeReporter
from perdure.loop.trackers import Trackers, flat
from perdure.state.scores import read_scores
from perdure.state.store import Store
from perdure.training.metrics import FORMULAS
from perdure.training.reporter import Quiet
from tests.contract.runs import bits, short_run

Points = dict[str, list[tuple[int, float]]]
"""Name of a number -> (step, value) in order."""


def expected(run: Path) -> Points:
    """What every tracker should hold about a run, from the run's folder alone."""
    store, found, before = Store(run), {}, 0
    for position in range(len(store.stages()) + 1):
        folder = store.stage_folder(position)
        for row in read_lines(folder / "log.jsonl") if position else ():
            at = before + row["step"]
            values = {"loss": row["loss"], "learning_rate": row["learning_rate"]}
            values |= {f"penalty/{name}": value for name, value in row["penalties"].items()}
            values |= {f"share/{name}": value for name, value in row["shares"].items()}
            for name, value in values.items():
                found.setdefault(name, []).append((at, value))
        before += len(read_lines(folder / "log.jsonl")) if position else 0
        for task, cell in json.loads((folder / "scores.json").read_text()).items():
            found.setdefault(f"score/{task}", []).append((before, cell["score"]))
    scores = read_scores(run)
    return found | {
        f"metric/{name}": [(before, getattr(scores, name))] for name in FORMULAS if getattr(scores, name) is not None
    }


def same(found: Points, run: Path) -> None:
    wanted = expected(run)
    assert len(wanted["loss"]) == 9
    assert set(wanted) <= set(found)
    for name, points in wanted.items():
        steps, values = zip(*points, strict=True)
        assert [step for step, _ in found[name]] == list(steps), name
        assert [value for _, value in found[name]] == pytest.approx(values, rel=1e-6), name  # TensorBoard keeps 32 bits


@pytest.fixture
def tracked(tmp_path: Path, small_tasks: list[Any], encoder_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Run three tasks with a tracker; returns the folder."""
    monkeypatch.chdir(tmp_path)

    def run(name: str, out: str = "run") -> Path:
        folder = tmp_path / out
        short_run(
            folder, small_tasks, encoder_folder, "ps-lora", report=CompositeReporter(Trackers(folder, [name]), Quiet())
        )
        return folder

    return run


def test_tensorboard(tracked: Any) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = tracked("tensorboard")
    events = EventAccumulator(str(run / "tensorboard"))
    events.Reload()
    same({name: [(e.step, e.value) for e in events.Scalars(name)] for name in events.Tags()["scalars"]}, run)
    (settings,) = (run / "tensorboard").glob("*/hparams.yml")
    assert "lora.rank: 2" in settings.read_text()


@pytest.mark.filterwarnings("ignore:.*noload.*:DeprecationWarning", "ignore::sqlalchemy.exc.SADeprecationWarning")
def test_mlflow(tracked: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    from mlflow import MlflowClient

    run = tracked("mlflow")
    client = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    experiment = client.get_experiment_by_name("perdure")
    assert experiment
    (logged,) = client.search_runs([experiment.experiment_id])
    assert (logged.info.run_name, logged.info.status) == ("run", "FINISHED")
    assert logged.data.params["lora.rank"] == "2"
    names = logged.data.metrics
    same({n: [(m.step, m.value) for m in client.get_metric_history(logged.info.run_id, n)] for n in names}, run)


def log_records(content: bytes) -> Iterator[bytes]:
    """The records of a LevelDB log behind W&B's header of 7 bytes; each has a checksum, a length and a kind."""
    at, parts, block = 7, b"", 1 << 15
    while at + 7 <= len(content):
        if block - at % block < 7:
            at += block - at % block  # no header fits into what is left of this block
            continue
        _, length, kind = struct.unpack_from("<IHB", content, at)
        parts += content[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or last of several
            yield parts
            parts = b""


def wandb_records(written: Path) -> tuple[Points, dict[str, Any]]:
    """What an offline run's file holds so far: points by name, and settings."""
    from wandb.proto.wandb_internal_pb2 import Record

    found, settings = {}, {}
    for record in map(Record.FromString, log_records(written.read_bytes())):
        row = {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
        for name in row.keys() - {"_step", "_timestamp", "_runtime"}:
            found.setdefault(name, []).append((row["_step"], row[name]))
        settings |= {item.key: json.loads(item.value_json) for item in record.run.config.update}
        settings |= {item.key: json.loads(item.value_json) for item in record.config.update}
    return found, settings


def test_wandb_offline(tracked: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    run = tracked("wandb")
    (written,) = (run / "wandb").glob("offline-run-*/run-*.wandb")
    found, settings = wandb_records(written)
    deadline = time.monotonic() + 600
    while "metric/forgetting" not in found and time.monotonic() < deadline:  # W&B's own process may still be writing
        time.sleep(0.5)
        found, settings = wandb_records(written)
    same(found, run)
    assert settings["lora.rank"] == 2


def test_a_resumed_run_goes_on_counting_and_other_trackers_are_no_other_run(
    tracked: Any, small_tasks: list[Any], encoder_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    class Stopped(Quiet):
        def scored(self, learnt: Any, scores: Any) -> None:
            if len(learnt) == 2:
                raise KeyboardInterrupt

    folder = tmp_path / "stopped"
    with pytest.raises(KeyboardInterrupt):
        short_run(folder, small_tasks, encoder_folder, "ps-lora", report=Stopped())
    tracked("tensorboard", "stopped")
    events = EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    wanted = {name: [p for p in points if p[0] > 3] for name, points in expected(folder).items()}
    assert [(e.step, e.value) for e in events.Scalars("loss")] == [
        (s, pytest.approx(v, rel=1e-6)) for s, v in wanted["loss"]
    ]
    assert bits(tracked("tensorboard", "whole")) == bits(folder)


def test_a_tracker_that_fails_on_the_way_does_not_stop_the_run(tracked: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from accelerate.tracking import TensorBoardTracker

    def gone(*_: Any, **__: Any) -> None:
        raise OSError("the server is gone")

    monkeypatch.setattr(TensorBoardTracker, "log", gone)
    with pytest.warns(UserWarning, match="tracker 'tensorboard' dropped: the server is gone"):
        run = tracked("tensorboard")
    assert len(Store(run).stages()) == 3


def test_a_tracker_that_cannot_begin_says_so_before_anything_is_trained(
    tracked: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from accelerate.tracking import TensorBoardTracker

    def refused(self: Any) -> None:
        raise PermissionError("permission denied")

    monkeypatch.setattr(TensorBoardTracker, "start", refused)
    with pytest.raises(ConfigError, match=r"'tensorboard' cannot start: permission denied.*leave out --tracker"):
        tracked("tensorboard")
    assert Store(tmp_path / "run").manifest == {"stages": []}


def test_an_unknown_tracker_and_a_missing_package_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib.util

    with pytest.raises(UnknownName, match=r"Unknown tracker: 'wandbs'. Did you mean 'wandb'"):
        Trackers(tmp_path, ["wandbs"])
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"'mlflow' needs a package.*pip install 'perdure\[trackers\]'"):
        Trackers(tmp_path, ["mlflow"])


def test_settings_as_flat_values() -> None:
    nested = {"a": {"b": 1, "c": None}, "tasks": [{"name": "x", "train": "f"}, {"name": "y"}], "l": []}
    assert flat(nested) == {"a.b": 1, "tasks": "x, y", "l": ""}
