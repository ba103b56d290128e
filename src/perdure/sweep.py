"""Many runs from one file: methods x orders x seeds x settings, on local processes, resumable.

    name: first-table
    settings: {suite: quickstart, precision: bf16, threads: 1}       # of every run
    methods:                                                         # name -> settings of its own
      inc-lora: {training.learning_rate: 2e-3}
      ps-lora: {method.penalties.sign-magnitude.weight: 0.01}
    seeds: [0, 1, 2]
    orders: [default]
    grid: {training.learning_rate: [1e-3, 2e-3]}                     # every combination; a method may have its own `grid`
    sequences: [{suite: long, order: 4}, {suite: trace, order: 1}]   # instead of orders: settings of each

A method may also list its `trials`, settings that are tried one after another: [{training.learning_rate: 2e-3, ...}, ...].

Every finished run leaves one record, a JSON file under `OUT/records/`; tables are made from records. What has a record is
not run again. A run that fails leaves `OUT/failed/<id>.json` and does not stop the rest; one that another sweep is at is left to
it. What several runs train alike, often their first task, is trained once (perdure.shared; `share: false` trains it every time,
with the same results).
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import json
import multiprocessing
import os
import shutil
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field

from perdure.config import RunConfig, Settings, load_config, parse_overrides, read_yaml, validate, with_override
from perdure.durable import write_json
from perdure.errors import ConfigError, RunBusy
from perdure.processes import started
from perdure.shared import SECONDS
from perdure.store import Store
from perdure.sweep_record import code_hash, run_record
from perdure.tasks.suites import load_suite


class SweepConfig(Settings):
    """See the file's head."""

    name: str
    settings: dict[str, Any] = Field(default_factory=dict)
    methods: dict[str, dict[str, Any]]
    seeds: tuple[int, ...] = (0,)
    orders: tuple[str | None, ...] = (None,)
    sequences: tuple[dict[str, Any], ...] = ({},)
    grid: dict[str, list[Any]] = Field(default_factory=dict)
    keep_runs: bool = False
    share: bool = True


@dataclass(frozen=True)
class Cell:
    """One run of a sweep: the row it belongs to, what varies, and its whole configuration."""

    method: str
    varied: Mapping[str, Any]
    config: RunConfig

    @property
    def id(self) -> str:
        """Readable and unique: method, order, seed, and a hash of what the configuration says beside defaults.

        A setting that perdure learns later, at its default, therefore does not orphan the records made before.
        """
        text = json.dumps(self.config.model_dump(mode="json", exclude_defaults=True), sort_keys=True)
        order = self.config.order or "default"
        return f"{self.method}-{order}-{self.config.seed}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def load_sweep(path: Path) -> SweepConfig:
    """The sweep described in a YAML file.

    Raises:
        ConfigError: no such file, or not a sweep.
    """
    return validate(SweepConfig, read_yaml(path, "sweep"), str(path))


def cells(sweep: SweepConfig) -> Iterator[Cell]:
    """Every run of the sweep, validated, seeds outermost so that a sweep cut short has whole comparisons."""
    for seed, sequence, order in itertools.product(sweep.seeds, sweep.sequences, sweep.orders):
        common = {**sweep.settings, **({} if order is None else {"order": order}), **sequence, "seed": seed}
        for name, own in sweep.methods.items():
            for varied in _variants(sweep, own):
                overrides = {**{k: v for k, v in own.items() if k not in ("method", "grid", "trials")}, **varied}
                data = {"method": own.get("method", name), **_nested(common)}
                yield Cell(
                    name,
                    varied,
                    load_config(data, parse_overrides([f"{k}={json.dumps(v)}" for k, v in overrides.items()])),
                )


def _variants(sweep: SweepConfig, own: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """What varies for a method: every combination of the grid, or its trials, or both."""
    grid = {**sweep.grid, **own.get("grid", {})}
    for values in itertools.product(*grid.values()):
        for trial in own.get("trials", [{}]):
            yield {**dict(zip(grid, values, strict=True)), **trial}


def _nested(settings: Mapping[str, Any]) -> dict[str, Any]:
    data: dict[str, Any] = {}
    for key, value in settings.items():
        data = with_override(data, key, value)
    return data


def run_sweep(sweep: SweepConfig, out: Path, processes: int, tell: Callable[[str], None]) -> list[Path]:
    """Run what has no record yet; return the records' paths.

    Args:
        out: where `records/`, `failed/` and unfinished runs go.
        processes: how many runs at once; each uses `settings.threads` cores.
        tell: given a line of text whenever a run ends.
    """
    if started() > 1:
        raise ConfigError(
            "A sweep makes processes of its own, one run in each: start it without a launcher. To share one run among several "
            "processes, launch `perdure run`."
        )
    every = list(cells(sweep))
    todo = [cell for cell in every if not _record_path(out, cell).is_file()]
    tell(f"{sweep.name}: {len(every)} runs, {len(every) - len(todo)} of them done before")
    began = time.monotonic()
    shared = out / "shared" / code_hash() if sweep.share else None
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, mp_context=context, initializer=_end_with_parent) as pool:
        futures = {pool.submit(_run_cell, cell, out, sweep.keep_runs, shared): cell for cell in todo}
        for done, future in enumerate(as_completed(futures), start=1):
            left = (time.monotonic() - began) / done * (len(todo) - done)
            tell(f"[{done}/{len(todo)}] {futures[future].id}: {future.result()} (about {left / 60:.0f} min left)")
    found = [path for cell in every if (path := _record_path(out, cell)).is_file()]
    if len(found) == len(every):  # else another sweep may be at the rest, and need it
        shutil.rmtree(out / "shared", ignore_errors=True)
    return found


def _end_with_parent() -> None:
    """A sweep that is killed leaves no process behind that goes on with its runs."""

    def wait() -> None:
        parent = multiprocessing.parent_process()
        assert parent is not None
        parent.join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def _record_path(out: Path, cell: Cell) -> Path:
    return out / "records" / f"{cell.id}.json"


_read_suite = functools.lru_cache(maxsize=1)(load_suite)
"""Neighbouring cells learn the same tasks; a process reads them once."""


def _run_cell(cell: Cell, out: Path, keep: bool, shared: Path | None) -> str:
    """Run one cell in this process; write its record or its failure; say how it ended."""
    from perdure.reopen import load_configured_suite
    from perdure.run import run_config

    folder = out / "runs" / cell.id
    resumed = (folder / "manifest.json").is_file()
    began, worked = time.monotonic(), time.process_time()
    try:
        suite = load_configured_suite(cell.config, _read_suite) if cell.config.suite else None
        scores = run_config(cell.config, folder, shared=shared, suite=suite)
    except RunBusy as error:
        return f"left alone: {error}"
    except Exception as error:  # one failed run must not stop the others; what happened is kept
        failure = {"id": cell.id, "error": f"{type(error).__name__}: {error}", "traceback": traceback.format_exc()}
        write_json(out / "failed" / f"{cell.id}.json", failure)
        return f"FAILED, {type(error).__name__}: {error}"
    worked, kept = time.process_time() - worked, run_record(Store(folder), scores)
    elsewhere = sum(notes.get(SECONDS, 0.0) for notes in kept["notes"].values())
    record = {
        "id": cell.id,
        "method": cell.method,
        "varied": dict(cell.varied),
        **kept,
    }
    if not resumed:  # else a part of the time was spent elsewhere, and nobody counted it
        record["seconds"] = round(time.monotonic() - began, 1)
        record["processor_seconds"] = round(worked + elsewhere, 1)  # what the run would have taken alone
    write_json(_record_path(out, cell), record)
    if not keep:
        shutil.rmtree(folder, ignore_errors=True)
    average, lost = scores.average_accuracy or 0.0, scores.forgetting
    return f"average {100 * average:.1f}" + ("" if lost is None else f", forgetting {100 * lost:.1f}")
