"""The seam of a sweep's engines: what they are given, what becomes of what they give back, and GPUs for local workers."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

import perdure.sweeps.sweep
import perdure.sweeps.workers
from perdure.errors import ConfigError, RunBusy, UnknownName
from perdure.sweeps.chosen_engine import engine_of
from perdure.sweeps.engines import OUT_OF_MEMORY, Resources
from perdure.sweeps.plan import cells, load_sweep
from perdure.sweeps.sweep import failures, run_sweep
from perdure.sweeps.workers import own_gpus, run_all
from tests.sweeps.sweep_jobs import visible_gpu
from tests.sweeps.test_sweep import sweep_file  # noqa: F401


def without_times(record: dict) -> dict:
    return {key: value for key, value in record.items() if key not in ("seconds", "processor_seconds")}


def same_records(some: list[Path], others: list[Path]) -> None:
    """The same runs, with the same contents but for how long they took."""
    assert [path.name for path in some] == [path.name for path in others]
    for one, other in zip(some, others, strict=True):
        assert without_times(json.loads(one.read_text())) == without_times(json.loads(other.read_text()))


class Here:
    """An engine in this process, which loses the jobs that are numbered so."""

    def __init__(self, **lost: str) -> None:
        self.lost, self.ran = lost, []

    def run_all(self, jobs, run, ended) -> None:
        for number, job in enumerate(jobs):
            self.ran.append(job.id)
            if why := self.lost.get(f"job{number}"):
                ended(job, None, why)
            else:
                ended(job, run(job), "")


def test_records_come_back_by_value_and_equal_those_of_local_processes(sweep_file, tmp_path):  # noqa: F811
    """What could not run is a failure with its reason; another engine goes on where this one left off."""
    sweep, told = load_sweep(sweep_file), []
    first = Here(job1=OUT_OF_MEMORY)
    found = run_sweep(sweep, tmp_path / "out", 1, told.append, first)
    every = list(cells(sweep))
    assert first.ran == [cell.id for cell in every]
    assert not any((tmp_path / "out/runs").glob("*-*")), "nothing but records is written here"
    failed = {path.stem: json.loads(path.read_text())["error"] for path in failures(sweep, tmp_path / "out")}
    wide = [cell.id for cell in every if cell.method == "wide"]
    assert failed.keys() == {every[1].id, *wide}
    assert failed[every[1].id] == OUT_OF_MEMORY
    assert all("rank 1000" in failed[name] or "lora.rank" in failed[name] for name in wide)
    assert len(found) == len(every) - len(failed)

    again = run_sweep(sweep, tmp_path / "out", 1, told.append)  # local
    assert {path.stem for path in again} == {cell.id for cell in every} - {*wide}
    local = run_sweep(sweep, tmp_path / "local", 1, told.append)
    same_records(again, local)


def test_on_a_shared_folder_a_run_goes_on_from_its_checkpoint(sweep_file, tmp_path, monkeypatch):  # noqa: F811
    sweep, places = load_sweep(sweep_file), []
    monkeypatch.setattr(
        perdure.sweeps.sweep, "_run_cell", lambda cell, out, keep, shared: places.append((out, keep, shared)) or "done"
    )
    run_sweep(sweep, tmp_path / "out", 1, print, Here(), shared_folder=True)
    out = (tmp_path / "out").resolve()
    assert {place[:2] for place in places} == {(out, False)}
    assert all(shared.is_relative_to(out) for *_, shared in places)


def test_another_perdure_on_a_node_is_an_error(sweep_file, tmp_path, monkeypatch):  # noqa: F811
    class Older(Here):
        def run_all(self, jobs, run, ended) -> None:
            monkeypatch.setattr(perdure.sweeps.sweep, "code_hash", lambda: "0" * 64)
            super().run_all(jobs, run, ended)

    with pytest.raises(ConfigError, match=r"has another perdure \(.*code 000000000000\).*Install the same one"):
        run_sweep(load_sweep(sweep_file), tmp_path / "out", 1, print, Older())


def test_two_sweeps_do_not_give_the_same_runs_away(sweep_file, tmp_path):  # noqa: F811
    class Twice(Here):
        def run_all(self, jobs, run, ended) -> None:
            run_sweep(load_sweep(sweep_file), tmp_path / "out", 1, print, Here())

    with pytest.raises(RunBusy, match="Another sweep is working on"):
        run_sweep(load_sweep(sweep_file), tmp_path / "out", 1, print, Twice())


@pytest.mark.parametrize(("name", "package"), [("ray", "ray"), ("slurm", "submitit")])
def test_an_engine_whose_package_is_missing_names_the_extra(name, package, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ConfigError, match=rf"pip install 'perdure\[{name}\]'"):
        engine_of(name, None, Resources(), tmp_path, 24, shared_folder=False)


def test_engines_and_options_that_do_not_go_together(tmp_path):
    assert engine_of("local", None, Resources(), tmp_path, 24, shared_folder=False) is None
    for given in ((None, Resources(gpus=1), False), ("auto", Resources(), False), (None, Resources(), True)):
        with pytest.raises(ConfigError, match="read with --engine ray or slurm"):
            engine_of("local", given[0], given[1], tmp_path, 24, shared_folder=given[2])
    with pytest.raises(UnknownName, match="raye"):
        engine_of("raye", None, Resources(), tmp_path, 24, shared_folder=False)
    for wrong in ({"cpus": 0}, {"gpus": -1}, {"memory": 0.0}):
        with pytest.raises(ConfigError, match="at least one CPU"):
            Resources(**wrong)  # pyright: ignore[reportArgumentType]


def test_local_workers_get_one_gpu_each_in_turns(monkeypatch):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 3)
    assert own_gpus(5) == ["0", "1", "2", "0", "1"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4, 7")
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    assert own_gpus(3) == ["4", "7", "4"]
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    assert own_gpus(2) == [None, None]


def test_a_worker_sees_its_gpu_and_its_successor_the_same(monkeypatch):
    """Two workers; each job waits for the other's first, so that both take part. -1 dies."""
    monkeypatch.setattr(perdure.sweeps.workers, "own_gpus", lambda count: ["5", "6"][:count])
    seen = {}
    run_all(["0.3", "0.3 ", "-1", "0.3  ", "0.3   "], 2, visible_gpu, seen.__setitem__)
    assert seen.pop("-1") is None
    assert {*seen.values()} == {"5", "6"}
