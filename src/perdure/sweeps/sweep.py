"""Many runs from one file (perdure.sweeps.plan), on local processes or another engine (perdure.sweeps.engines), resumable.

Every finished run leaves one record, a JSON file under `OUT/records/`; tables are made from records. A run with a record is not
repeated. A run that fails, or whose process dies, leaves `OUT/failed/<id>.json` and does not stop the others; a run that another
sweep is working on is skipped. An engine elsewhere gives records back by value, and they are written here. What several runs
train alike, often their first task, is trained once (perdure.state.shared; `share: false` trains it every time, with the same
results).
"""

from __future__ import annotations

import functools
import itertools
import platform
import shutil
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout

from perdure.errors import ConfigError, RunBusy, StoreError
from perdure.files.durable import make_folder, write_json
from perdure.state.shared import SECONDS
from perdure.state.store import Store
from perdure.sweeps.engines import Done, Engine
from perdure.sweeps.plan import Cell, SweepConfig, cells, check_cells
from perdure.sweeps.record import code_hash, run_record
from perdure.sweeps.workers import run_all
from perdure.tasks.suites import load_suite
from perdure.training.metrics import Scores
from perdure.training.processes import started

DIED = "its process died or was stopped, perhaps out of memory; run the sweep again to continue it"


def run_sweep(
    sweep: SweepConfig,
    out: Path,
    processes: int,
    tell: Callable[[str], None],
    engine: Engine | None = None,
    shared_folder: bool = False,
) -> list[Path]:
    """Run what has no record yet; return the records' paths.

    Args:
        out: where `records/`, `failed/` and unfinished runs go.
        processes: how many runs at once; each uses `settings.threads` cores.
        tell: given a line of text whenever a run ends.
        engine: where the runs are computed; None = `processes` of this machine.
        shared_folder: `out` lies on a disk that all workers of the engine share: a run that was interrupted goes on from its
            checkpoint. Otherwise workers write to a folder of their own, and a run begins again.

    Raises:
        ConfigError, DataError: a run of the sweep is not possible; none was started. StoreError: `out` holds a run.
    """
    if started() > 1:
        raise ConfigError(
            "A sweep makes its own processes, with one run in each; start it without a launcher. To share one run among "
            "several processes, launch `perdure run`."
        )
    if processes < 1:
        raise ConfigError(f"A sweep needs at least one process, not {processes}.")
    if Store(out).exists:
        raise StoreError(f"'{out}' holds a run; choose another folder for the sweep.")
    every = list(cells(sweep))
    check_cells(every)
    todo = [cell for cell in every if not _record_path(out, cell).is_file()]
    tell(f"{sweep.name}: {len(every)} runs, {len(every) - len(todo)} of them already done")
    began, numbers = time.monotonic(), itertools.count(1)

    def ended(cell: Cell, result: str | None, why: str = DIED) -> None:
        done, result = next(numbers), result or _failed(out, cell, why)
        left = (time.monotonic() - began) / done * (len(todo) - done)
        tell(f"[{done}/{len(todo)}] {cell.id}: {result} (about {left / 60:.0f} min left)")

    shared = out / "shared" / code_hash() if sweep.share else None

    def landed(cell: Cell, done: Done | None, why: str) -> None:
        if done and done.record:
            write_json(_record_path(out, cell), done.record)
            _failure_path(out, cell).unlink(missing_ok=True)
        elif done and done.failure:
            write_json(_failure_path(out, cell), done.failure)
        ended(cell, done.words if done else None, why)

    try:
        if engine is None:
            run_all(todo, processes, partial(_run_cell, out=out, keep=sweep.keep_runs, shared=shared), ended)
        else:
            where = (out.resolve(), sweep.keep_runs, shared and shared.resolve()) if shared_folder else None
            with _alone(out):
                engine.run_all(todo, partial(run_elsewhere, where=where, code=code_hash()), landed)
    except (KeyboardInterrupt, SystemExit):
        tell("stopped; run the sweep again to continue")
        raise
    records = [path for cell in every if (path := _record_path(out, cell)).is_file()]
    if len(records) == len(every):  # otherwise another sweep may still need it
        shutil.rmtree(out / "shared", ignore_errors=True)
    return records


def failures(sweep: SweepConfig, out: Path) -> list[Path]:
    """The files about the sweep's runs that failed and have no record."""
    failed = [_failure_path(out, cell) for cell in cells(sweep) if not _record_path(out, cell).is_file()]
    return [path for path in failed if path.is_file()]


def _record_path(out: Path, cell: Cell) -> Path:
    return out / "records" / f"{cell.id}.json"


def _failure_path(out: Path, cell: Cell) -> Path:
    return out / "failed" / f"{cell.id}.json"


_read_suite = functools.lru_cache(maxsize=1)(load_suite)
"""Neighbouring cells learn the same tasks: a process reads them once."""


@functools.cache
def _own_threads() -> int:
    """How many threads torch uses in this process before a run changes it."""
    return torch.get_num_threads()


def _run_cell(cell: Cell, out: Path, keep: bool, shared: Path | None) -> str:
    """Run one cell in this process, unless another sweep is running it or has done it; return its result in words.

    The lock beside the run's folder is held until the record is written and the folder removed, so that nobody restarts the run.
    """
    lock = out / "runs" / f".{cell.id}.lock"
    make_folder(lock.parent)
    try:
        with FileLock(lock, timeout=0):
            done = _record_path(out, cell).is_file()
            result = "skipped: another sweep has done it" if done else _run_locked(cell, out, keep, shared)
    except Timeout:
        return "skipped: another sweep is running it"
    if _record_path(out, cell).is_file():
        lock.unlink(missing_ok=True)  # whoever still waits for it finds the record
    return result


@contextmanager
def _alone(out: Path) -> Iterator[None]:
    """Within: no other sweep gives the runs of this folder to an engine. RunBusy if one does."""
    make_folder(out / "runs")
    try:
        with FileLock(out / "runs" / ".engine.lock", timeout=0):
            yield
    except Timeout:
        raise RunBusy(f"Another sweep is working on '{out}'. Wait for it, or choose another folder.") from None


def run_elsewhere(cell: Cell, where: tuple[Path, bool, Path | None] | None, code: str) -> Done:
    """Run one cell on a worker of an engine.

    Args:
        where: the sweep's folder, whether runs are kept, and the folder of shared stages, on a disk that is shared; None: in a
            folder of its own, which is removed.
        code: of the perdure that planned the sweep.

    Raises:
        ConfigError: another perdure is installed here, or the shared folder is not there.
    """
    if code_hash() != code:
        raise ConfigError(
            f"{platform.node()} has another perdure ({version('perdure')}, code {code_hash()[:12]}) than the machine that began "
            f"the sweep (code {code[:12]}): records would not compare. Install the same one."
        )
    if where is not None:
        if not (where[0] / "runs").is_dir():
            raise ConfigError(
                f"{platform.node()} does not see '{where[0]}'. Leave --shared-folder out, or mount it there."
            )
        return Done(_run_cell(cell, *where))
    with tempfile.TemporaryDirectory(prefix="perdure-") as folder:
        return _attempt(cell, Path(folder) / cell.id, None)


def _run_locked(cell: Cell, out: Path, keep: bool, shared: Path | None) -> str:
    """Write the cell's record and remove its run's folder, or write its failure."""
    folder = out / "runs" / cell.id
    _failure_path(out, cell).unlink(missing_ok=True)
    done = _attempt(cell, folder, shared)
    if done.failure:
        write_json(_failure_path(out, cell), done.failure)
    if done.record:
        write_json(_record_path(out, cell), done.record)
        if not keep:
            shutil.rmtree(folder, ignore_errors=True)
    return done.words


def _attempt(cell: Cell, folder: Path, shared: Path | None) -> Done:
    """The cell's record, or why it has none; neither if another process is writing to the folder."""
    try:
        scores, record = _run_and_record(cell, folder, shared)
    except RunBusy as error:
        return Done(f"skipped: {error}")
    except Exception as error:  # must not stop the other runs
        why = f"{type(error).__name__}: {error}"
        return Done(f"FAILED, {why}", failure=_failure(cell, why, traceback.format_exc()))
    average, lost = scores.average_accuracy, scores.forgetting
    words = "not scored" if average is None else f"average {100 * average:.1f}"
    return Done(words if average is None or lost is None else f"{words}, forgetting {100 * lost:.1f}", record)


def _run_and_record(cell: Cell, folder: Path, shared: Path | None) -> tuple[Scores, dict[str, Any]]:
    """The run's scores, and its record."""
    from perdure.commands.learn import run_config
    from perdure.state.reopen import load_configured_suite

    resumed = (folder / "manifest.json").is_file()
    began, cpu_began = time.monotonic(), time.process_time()
    own = _own_threads()
    torch.set_num_threads(cell.config.threads or own)  # not the number of the run before
    suite = load_configured_suite(cell.config, _read_suite) if cell.config.suite else None
    scores = run_config(cell.config, folder, shared=shared, suite=suite)
    cpu, kept = time.process_time() - cpu_began, run_record(Store(folder), scores)
    about = {"id": cell.id, "method": cell.method, "varied": dict(cell.varied), "sequence": dict(cell.sequence)}
    record: dict[str, Any] = {**about, **kept}
    # which run trained a shared stage depends on interruptions, so no record says it
    elsewhere = sum(notes.pop(SECONDS, 0.0) for notes in kept["notes"].values())
    if not resumed:  # otherwise the time before the interruption is unknown
        record["seconds"] = round(time.monotonic() - began, 1)
        record["processor_seconds"] = round(cpu + elsewhere, 1)  # what the run would have taken alone
    return scores, record


def _failure(cell: Cell, error: str, trace: str = "") -> dict[str, Any]:
    return {"id": cell.id, "error": error, "traceback": trace}


def _failed(out: Path, cell: Cell, error: str) -> str:
    """Write why a cell has no record, and return it in words."""
    write_json(_failure_path(out, cell), _failure(cell, error))
    return f"FAILED, {error}"
