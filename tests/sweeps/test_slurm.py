"""Slurm's seam by submitit's own local executor: what becomes of jobs that end, die, or find another perdure."""

from __future__ import annotations

import contextlib
import gc
import warnings
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from perdure.errors import ConfigError
from perdure.sweeps import slurm_engine
from perdure.sweeps.engines import LOST, Done, Resources
from perdure.sweeps.plan import load_sweep
from perdure.sweeps.slurm_engine import Slurm
from perdure.sweeps.sweep import run_sweep
from tests.sweeps.ray_jobs import hold
from tests.sweeps.test_engines import same_records
from tests.sweeps.test_sweep import sweep_file  # noqa: F401


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Looks often; and ends what submitit has cancelled, by a SIGINT that is ignored where the tests run in the background."""
    monkeypatch.setattr(slurm_engine, "PATIENCE", 0.1)
    before = {*psutil.Process().children(recursive=True)}
    yield
    left = [child for child in psutil.Process().children(recursive=True) if child not in before]
    for child in left:
        with contextlib.suppress(psutil.NoSuchProcess):
            child.kill()
    psutil.wait_procs(left, timeout=60)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()


def here(folder: Path, **more: float) -> Slurm:
    return Slurm("local", Resources(**more), folder, 1)  # pyright: ignore[reportArgumentType]


@pytest.mark.slow  # submitit waits a quarter of a minute for the result of a job that left none
def test_a_job_that_dies_is_repeated_and_given_up_and_the_others_go_on(tmp_path: Path) -> None:
    ended = {}
    jobs = [hold("die", tmp_path), hold("a", tmp_path)]
    here(tmp_path / "slurm").run_all(jobs, hold.run, lambda job, done, why: ended.__setitem__(job.name, (done, why)))
    assert ended == {"a": (Done("a"), ""), "die": (None, LOST.format(times=3))}
    assert len([*tmp_path.glob("die-*")]) == 3


def test_a_job_that_is_refused_ends_the_sweep(tmp_path: Path) -> None:
    jobs = [hold("refused", tmp_path), hold("sleep", tmp_path)]
    with pytest.raises(ConfigError, match="has another perdure"):
        here(tmp_path / "slurm").run_all(jobs, hold.run, lambda *_: None)


def test_a_part_of_a_gpu_is_not_to_be_had(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"whole GPUs \(got --gpus 0.5\)"):
        here(tmp_path / "slurm", gpus=0.5).run_all([1], hold.run, print)


@pytest.mark.slow
def test_records_are_those_of_local_processes(sweep_file, tmp_path):  # noqa: F811
    sweep, out = load_sweep(sweep_file), tmp_path / "slurm"
    found = run_sweep(sweep, out, 1, print, here(out / "slurm"), shared_folder=True)
    same_records(found, run_sweep(sweep, tmp_path / "local", 1, print))


def test_a_node_that_lacks_a_package_says_so(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot run the sweep \(ModuleNotFoundError: .*perdured.*Install the same"):
        here(tmp_path / "slurm").run_all([hold("lacking", tmp_path)], hold.run, lambda *_: None)
