"""A checkpoint inside a stage holds all that training needs: moments, averages, random state, the place in the schedule."""

from __future__ import annotations

import json
import os
import shutil
import signal

import pytest
import torch

import perdure
import perdure.training.train
from perdure.errors import CorruptFile
from perdure.files.durable import read_lines
from perdure.state.store import Store
from perdure.training.reporter import Quiet
from perdure.training.state import Training
from tests.contract.runs import bits, short_run

TRAINING = {
    "epochs": 2,
    "batch_size": 8,
    "learning_rate": 0.01,
    "accumulation": 2,
    "warmup_share": 0.3,
    "schedule": "cosine",
    "weight_decay": 0.1,
    "average": "last-half",
}
SETTINGS = {"lora": {"rank": 2, "alpha": 4, "dropout": 0.3}, "training": TRAINING}


class Stop(Quiet):
    def __init__(self, at: int) -> None:
        self.at = at
        self.made: list[int] = []

    def step(self, stage, step, total):
        self.made.append(step.step)
        if step.step == self.at:
            raise KeyboardInterrupt


@pytest.mark.parametrize("stops", [(2,), (3, 5), (4, 6)], ids=str)
def test_everything_that_steps_change_goes_on(stops, tmp_path, small_tasks, encoder_folder):
    short_run(tmp_path / "whole", small_tasks[:1], encoder_folder, "l2", **SETTINGS)
    written = {**SETTINGS, "training": {**TRAINING, "checkpoint_minutes": 1e-9}}
    for at in stops:
        with pytest.raises(KeyboardInterrupt):
            short_run(tmp_path / "run", small_tasks[:1], encoder_folder, "l2", **written, report=Stop(at))
    last = Stop(-1)
    short_run(tmp_path / "run", small_tasks[:1], encoder_folder, "l2", **SETTINGS, report=last)
    assert last.made == list(range(stops[-1], 7))
    assert bits(tmp_path / "run") == bits(tmp_path / "whole")
    log = read_lines(Store(tmp_path / "run").stage_folder(1) / "log.jsonl")
    assert [row["step"] for row in log] == [1, 2, 3, 4, 5, 6]


def test_a_model_on_the_cpu_keeps_no_random_state_of_a_gpu(tmp_path, small_tasks, encoder_folder, monkeypatch):
    """Nor does it ask for those that another machine's GPUs had."""
    found = []

    class Kept(Training):
        def end_step(self) -> None:
            super().end_step()
            with pytest.MonkeyPatch.context() as a_gpu:  # here alone: AdamW's step would look for it in a CUDA build
                a_gpu.setattr(torch.cuda, "is_available", lambda: True)
                a_gpu.setattr(torch.cuda, "get_rng_state_all", lambda: [torch.get_rng_state()])
                found.append(self.state())
                self.load({**self.state(), "cuda.0": torch.get_rng_state(), "cuda.1": torch.get_rng_state()})

    monkeypatch.setattr(perdure.training.train, "Training", Kept)
    backbone = {"kind": "encoder", "model": str(encoder_folder), "device": "cpu"}
    perdure.learn(out=tmp_path / "run", tasks=small_tasks[:1], method="inc-lora", backbone=backbone, **SETTINGS)
    assert found
    assert not [key for state in found for key in state if key.startswith("cuda")]


def test_sigterm_after_the_last_step_is_not_swallowed(tmp_path, small_tasks, encoder_folder, monkeypatch):
    """No further step would meet it: whoever minded it before hears of it."""
    import perdure.loop.sequence

    class Told(Exception):
        pass

    def tell(*_: object) -> None:
        raise Told

    real = perdure.loop.sequence.train

    def train(*given):
        real(*given)
        os.kill(os.getpid(), signal.SIGTERM)

    before = signal.signal(signal.SIGTERM, tell)
    try:
        monkeypatch.setattr(perdure.loop.sequence, "train", train)
        with pytest.raises(Told):
            short_run(tmp_path / "run", small_tasks[:1], encoder_folder, "l2", **SETTINGS)
        monkeypatch.setattr(perdure.loop.sequence, "train", real)
        assert signal.getsignal(signal.SIGTERM) is tell
    finally:
        signal.signal(signal.SIGTERM, before)
    assert Store(tmp_path / "run").stages() == []
    for folder in ("run", "whole"):
        short_run(tmp_path / folder, small_tasks[:1], encoder_folder, "l2", **SETTINGS)
    assert bits(tmp_path / "run") == bits(tmp_path / "whole")


class Interrupted(Stop):
    """Ctrl-C while step 3 is reported, `times` times."""

    def __init__(self, times: int) -> None:
        super().__init__(-1)
        self.times = times

    def step(self, stage, step, total):
        super().step(stage, step, total)
        for _ in range(self.times if step.step == 3 else 0):
            signal.raise_signal(signal.SIGINT)


@pytest.mark.usefixtures("heeds_ctrl_c")
def test_ctrl_c_writes_the_step_it_meets_and_a_second_one_does_not_wait(tmp_path, small_tasks, encoder_folder, capfd):
    training = {**SETTINGS, "training": TRAINING}
    short_run(tmp_path / "whole", small_tasks[:1], encoder_folder, "l2", **training)
    for times, first in ((1, 4), (2, 1)):
        out = tmp_path / f"{times}"
        with pytest.raises(KeyboardInterrupt):
            short_run(out, small_tasks[:1], encoder_folder, "l2", **training, report=Interrupted(times))
        assert "Ctrl-C again stops at once" in capfd.readouterr().err
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
        last = Stop(-1)
        short_run(out, small_tasks[:1], encoder_folder, "l2", **training, report=last)
        assert last.made == list(range(first, 7))
        assert bits(out) == bits(tmp_path / "whole")


def test_a_process_that_ignores_ctrl_c_goes_on(tmp_path, small_tasks, encoder_folder):
    """As a sweep's do: a terminal sends it to them too, and the sweep tells them to end."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        report = Interrupted(1)
        short_run(tmp_path / "run", small_tasks[:1], encoder_folder, "l2", **SETTINGS, report=report)
    finally:
        signal.signal(signal.SIGINT, before)
    assert report.made == list(range(1, 7))


def test_it_is_written_when_the_time_has_come(tmp_path, small_tasks, encoder_folder, monkeypatch):
    """A clock that moves a minute at every look; every 2.5 minutes is then every third step."""
    import perdure.state.unfinished

    clock, written = [0.0], []

    def minutes() -> float:
        clock[0] += 60
        return clock[0]

    class Time:
        monotonic = staticmethod(minutes)

    real = perdure.state.unfinished.Unfinished._write
    monkeypatch.setattr(perdure.state.unfinished, "time", Time)
    monkeypatch.setattr(
        perdure.state.unfinished.Unfinished, "_write", lambda self, t: (written.append(t.done), real(self, t))
    )
    for every, steps in ((2.5, [3, 6]), (None, [])):
        written.clear()
        training = {**TRAINING, "checkpoint_minutes": every}
        short_run(tmp_path / str(every), small_tasks[:1], encoder_folder, "inc-lora", training=training)
        assert written == steps


@pytest.mark.parametrize("key", ["folder", "files"])
def test_a_checkpoint_outside_the_run_is_refused_and_left(key, tmp_path, small_tasks, encoder_folder):
    """Names in unfinished/manifest.json lead nowhere else, though the checksums there would match."""
    settings = {**SETTINGS, "training": {**TRAINING, "checkpoint_minutes": 1e-9}}
    with pytest.raises(KeyboardInterrupt):
        short_run(tmp_path / "run", small_tasks[:1], encoder_folder, "l2", **settings, report=Stop(3))
    manifest = tmp_path / "run/unfinished/manifest.json"
    about = json.loads(manifest.read_text())
    precious = shutil.copytree(manifest.parent / about["folder"], tmp_path / "precious")
    path = precious / "log.jsonl"
    changed = {"folder": str(precious), "files": {**about["files"], str(path): about["files"]["log.jsonl"]}}
    manifest.write_text(json.dumps({**about, key: changed[key]}))
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file() and path.name != ".lock"}
    with pytest.raises(CorruptFile, match=rf"unfinished/manifest.json': {key} is .*precious"):
        short_run(tmp_path / "run", small_tasks[:1], encoder_folder, "l2", **settings)
    assert before == {path: path.read_bytes() for path in before}


@pytest.mark.parametrize("missing", ["folder", "files", "everything"])
def test_a_checkpoint_of_another_shape_is_ignored(missing, tmp_path, small_tasks, encoder_folder):
    settings = {**SETTINGS, "training": {**TRAINING, "checkpoint_minutes": 1e-9}}
    short_run(tmp_path / "whole", small_tasks[:1], encoder_folder, "l2", **settings)
    with pytest.raises(KeyboardInterrupt):
        short_run(tmp_path / "run", small_tasks[:1], encoder_folder, "l2", **settings, report=Stop(3))
    manifest = tmp_path / "run/unfinished/manifest.json"
    about = json.loads(manifest.read_text())
    about.pop(missing, None)
    manifest.write_text(json.dumps([] if missing == "everything" else about))
    short_run(tmp_path / "run", small_tasks[:1], encoder_folder, "l2", **settings)
    assert bits(tmp_path / "run") == bits(tmp_path / "whole")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_after_its_step_with_a_checkpoint(number, tmp_path, small_tasks, encoder_folder):
    class Signal(Quiet):
        def step(self, stage, step, total):
            if step.step == 3:
                os.kill(os.getpid(), number)

    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)  # tests may run under nohup
    try:
        with pytest.raises(SystemExit) as ended:
            short_run(tmp_path / "run", small_tasks[:1], encoder_folder, "l2", **SETTINGS, report=Signal())
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_DFL
    finally:
        signal.signal(signal.SIGHUP, before)
    assert ended.value.code == 128 + number
    assert json.loads((tmp_path / "run/unfinished/manifest.json").read_text())["folder"] == "000003"
    for folder in ("run", "whole"):
        short_run(tmp_path / folder, small_tasks[:1], encoder_folder, "l2", **SETTINGS)
    assert bits(tmp_path / "run") == bits(tmp_path / "whole")


def test_a_hangup_that_nohup_ignores_stays_ignored(tmp_path, small_tasks, encoder_folder):
    class Signal(Quiet):
        def step(self, stage, step, total):
            os.kill(os.getpid(), signal.SIGHUP)

    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        short_run(tmp_path / "run", small_tasks[:1], encoder_folder, "l2", **SETTINGS, report=Signal())
    finally:
        signal.signal(signal.SIGHUP, before)
    assert Store(tmp_path / "run").finished
