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
not run again. A run that fails, or whose process dies, leaves `OUT/failed/<id>.json` and does not stop the rest; one that another
sweep is at is left to it. What cannot run at all is told before the first run starts. What several runs train alike, often their
first task, is trained once (perdure.shared; `share: false` trains it every time, with the same results).
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import json
import shutil
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import torch
from filelock import FileLock, Timeout
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from perdure.config import RunConfig, load_config, located_settings
from perdure.durable import make_folder, write_json
from perdure.errors import ConfigError, RunBusy, StoreError
from perdure.methods.build import build_method
from perdure.methods.table import PRESETS
from perdure.processes import started
from perdure.scores import Scores
from perdure.settings import WHICH, Settings, read_yaml, unknown_key, validate, with_override
from perdure.shared import SECONDS
from perdure.store import Store
from perdure.sweeps.record import code_hash, run_record
from perdure.sweeps.workers import run_all
from perdure.tasks.suites import chosen_order, describe, load_suite

LONGEST = 100  # bytes of a row's name, and of an order's in a file name that would else be too long for a disk (255)
Grid = dict[str, Annotated[list[Any], Field(min_length=1)]]
GROUPS = ("lora", "training", "budget", "evaluation")
"""Settings that are groups of settings."""


class MethodRow(BaseModel):
    """What a method's row may say beside any setting of a run, like `training.learning_rate`.

    Args:
        method: a preset or a composition of parts; None = the preset that the row is called.
        grid, trials: see the file's head.
    """

    model_config = ConfigDict(extra="allow")

    method: str | dict[str, Any] | None = None
    grid: Grid = Field(default_factory=dict)
    trials: list[dict[str, Any]] = Field(default=[{}], min_length=1)


class SweepConfig(Settings):
    """See the file's head."""

    name: str
    settings: dict[str, Any] = Field(default_factory=dict)
    methods: dict[str, dict[str, Any]] = Field(min_length=1)
    seeds: tuple[int, ...] = Field(default=(0,), min_length=1)
    orders: tuple[str | None, ...] = Field(default=(None,), min_length=1)
    sequences: tuple[dict[str, Any], ...] = Field(default=({},), min_length=1)
    grid: Grid = Field(default_factory=dict)
    keep_runs: bool = False
    share: bool = True

    @model_validator(mode="after")
    def _nothing_is_said_twice(self) -> SweepConfig:
        """What decides the row or the seed is said in one place; what an order would replace is refused."""
        common = [("settings", self.settings), *(("sequences", sequence) for sequence in self.sequences)]
        own = [("grid", self.grid)]
        for name, row in self.methods.items():
            own += [(f"methods.{name}", row), (f"methods.{name}.grid", row.get("grid", {}))]
            own += [(f"methods.{name}.trials", trial) for trial in row.get("trials", [])]
        for place, settings in common:
            if "method" in settings:
                raise ValueError(f"{place}.method would be every row's method; say it in the rows, under `methods`")
        for place, settings in [*common, *own]:
            if "seed" in settings:
                raise ValueError(f"{place}.seed: a sweep's seeds are said once, under `seeds`")
        if self.orders != (None,) and any("order" in sequence for sequence in self.sequences):
            raise ValueError("orders and the `order` of a sequence exclude each other; leave one out")
        return self

    @field_validator("methods", mode="before")
    @classmethod
    def _rows(cls, methods: Any) -> Any:
        """Every row is one, and can be a part of file names; a row without settings may stay empty."""
        if not isinstance(methods, Mapping):
            return methods
        rows = {str(name): {} if row is None else row for name, row in methods.items()}
        for name, row in rows.items():
            if not name.isprintable() or name[:1] in ("", ".") or {*"/\\"} & {*name} or len(name.encode()) > LONGEST:
                raise ConfigError(
                    f"A method's row cannot be called {name!r:.120}, because files are named after it. Use at most {LONGEST} "
                    "letters, without '/' and '\\' and no '.' first; `method` in the row says which method it is."
                )
            place = f"methods.{name}"
            validate(MethodRow, row, place)
            for key in row:
                if key.partition(".")[0] not in {*RunConfig.model_fields, *MethodRow.model_fields}:
                    raise ConfigError(
                        unknown_key(RunConfig, key, row[key], RunConfig, place, beside=MethodRow.model_fields)
                    )
        return rows


@dataclass(frozen=True)
class Cell:
    """One run of a sweep: the row it belongs to, what varies, and its whole configuration.

    `sequence`: what the run's sequence sets beside its suite or tasks and their order; it tells runs of a row apart.
    """

    method: str
    varied: Mapping[str, Any]
    config: RunConfig
    sequence: Mapping[str, Any] = field(default_factory=dict)

    @property
    def id(self) -> str:
        """Readable and unique: method, order, seed, and a hash of what the configuration says beside defaults.

        A setting that perdure learns later, at its default, therefore does not orphan the records made before.
        """
        text = json.dumps(self.config.model_dump(mode="json", exclude_defaults=True), sort_keys=True)
        order = (self.config.order or "default").replace("/", "_")
        if len(f"{self.method}{order}".encode()) > 2 * LONGEST:  # many tasks by name; the hash is of all of them
            order = f"{order.encode()[:LONGEST].decode(errors='ignore')}..."
        return f"{self.method}-{order}-{self.config.seed}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def load_sweep(path: Path) -> SweepConfig:
    """The sweep described in a YAML file; the files of its tasks are relative to it.

    Raises:
        ConfigError: no such file, or not a sweep.
    """
    data = read_yaml(path, "sweep")
    if "methods" not in data and data.keys() & {"suite", "tasks", "method"}:
        raise ConfigError(
            f"'{path}' is a run's configuration, not a sweep: learn it with `perdure run {path}`. A sweep has `methods`, and "
            "what a run is told stands under `settings`."
        )
    # `method`, `seed` and `order` are said otherwise in a sweep
    outside = [
        key for key in data if key.partition(".")[0] in RunConfig.model_fields.keys() - {"method", "seed", "order"}
    ]
    if outside:
        raise ConfigError(
            f"{path}: {', '.join(f'`{key}`' for key in outside)}: of a run. Put it under `settings`, as in "
            f"`settings: {{{outside[0]}: ...}}`."
        )

    def located(settings: Any) -> Any:
        return located_settings(settings, path) if isinstance(settings, dict) else settings

    if "settings" in data:
        data["settings"] = located(data["settings"])
    if isinstance(sequences := data.get("sequences"), list):
        data["sequences"] = [located(settings) for settings in sequences]
    if isinstance(methods := data.get("methods"), dict):
        data["methods"] = {name: located(row) for name, row in methods.items()}
    return validate(SweepConfig, data, str(path))


def cells(sweep: SweepConfig) -> Iterator[Cell]:
    """Every run of the sweep, validated, seeds outermost so that a sweep cut short has whole comparisons.

    Raises:
        ConfigError: a run's settings are wrong; names the row.
    """
    for seed, sequence, order in itertools.product(sweep.seeds, sweep.sequences, sweep.orders):
        others = {key: value for key, value in sequence.items() if key not in ("suite", "order", "tasks")}
        ordered = {} if order is None else {"order": order}
        common = {**_one_by_one(sweep.settings), **ordered, **_one_by_one(sequence), "seed": seed}
        of_method = {key: value for key, value in common.items() if key.startswith("method.")}
        data = _nested({key: value for key, value in common.items() if key not in of_method})
        for name, own in sweep.methods.items():
            row = {key: value for key, value in own.items() if key not in ("method", "grid", "trials")}
            for varied in _variants(sweep, own):
                overrides = _one_by_one({**of_method, **row, **varied})
                try:
                    config = load_config({"method": own.get("method", name), **data}, overrides)
                except ConfigError as error:
                    lines = [f"methods.{name}: {line}" for line in str(error).splitlines()]
                    if "method" not in own and name not in PRESETS:
                        lines[-1] += " A row of another name says with `method:` which method it is."
                    raise ConfigError("\n".join(lines)) from error
                yield Cell(name, varied, config, others)


def _variants(sweep: SweepConfig, own: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """What varies for a method: every combination of the grid, or its trials, or both."""
    grid = {**sweep.grid, **own.get("grid", {})}
    for values in itertools.product(*grid.values()):
        for trial in own.get("trials", [{}]):
            yield {**dict(zip(grid, values, strict=True)), **trial}


def _one_by_one(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings with those of a group (`training: {epochs: 2}`) named one by one, so that they leave the group's others alone.

    So are a backbone's that do not say which model: they are of the one that is named elsewhere.
    """
    found: dict[str, Any] = {}
    for key, value in settings.items():
        if isinstance(value, Mapping) and (key in GROUPS or (key == "backbone" and not value.keys() & WHICH)):
            found |= {f"{key}.{inner}": own for inner, own in value.items()}
        else:
            found[key] = value
    return found


def _nested(settings: Mapping[str, Any]) -> dict[str, Any]:
    data: dict[str, Any] = {}
    for key, value in settings.items():
        data = with_override(data, key, value)
    return data


def check_cells(every: Iterable[Cell]) -> None:
    """Every run's method can be built, and its suite has the order: what is told without reading data or a model.

    Raises:
        ConfigError, DataError: names the row, or the suite.
    """
    known, ids = set[str](), set[str]()
    for cell in every:
        if cell.id in ids:
            raise ConfigError(
                f"methods.{cell.method}: two of its runs ({cell.id}) have the same settings, and one record. Leave one out."
            )
        ids.add(cell.id)
        config, what = cell.config, json.dumps([cell.config.method, cell.config.suite, cell.config.order])
        if (config.suite is None) == (not config.tasks):
            raise ConfigError(
                f"methods.{cell.method}: say what to learn, either `suite` (see `perdure suites`) or `tasks`."
            )
        if what in known:
            continue
        known.add(what)
        try:
            build_method(config.method)
        except ConfigError as error:
            raise ConfigError(f"methods.{cell.method}: {error}") from error
        if config.suite is not None:
            chosen_order(config.suite, describe(config.suite), config.order)


def run_sweep(sweep: SweepConfig, out: Path, processes: int, tell: Callable[[str], None]) -> list[Path]:
    """Run what has no record yet; return the records' paths.

    Args:
        out: where `records/`, `failed/` and unfinished runs go.
        processes: how many runs at once; each uses `settings.threads` cores.
        tell: given a line of text whenever a run ends.

    Raises:
        ConfigError, DataError: a run of the sweep cannot be; none was started. StoreError: `out` holds a run.
    """
    if started() > 1:
        raise ConfigError(
            "A sweep makes processes of its own, one run in each: start it without a launcher. To share one run among several "
            "processes, launch `perdure run`."
        )
    if processes < 1:
        raise ConfigError(f"A sweep needs at least one process, not {processes}.")
    if Store(out).exists:
        raise StoreError(f"'{out}' holds a run; choose another folder for the sweep.")
    every = list(cells(sweep))
    check_cells(every)
    todo = [cell for cell in every if not _record_path(out, cell).is_file()]
    tell(f"{sweep.name}: {len(every)} runs, {len(every) - len(todo)} of them done before")
    began, numbers = time.monotonic(), itertools.count(1)

    def ended(cell: Cell, how: str | None) -> None:
        done, how = next(numbers), how or _failed(out, cell, DIED)
        left = (time.monotonic() - began) / done * (len(todo) - done)
        tell(f"[{done}/{len(todo)}] {cell.id}: {how} (about {left / 60:.0f} min left)")

    shared = out / "shared" / code_hash() if sweep.share else None
    try:
        run_all(todo, processes, partial(_run_cell, out=out, keep=sweep.keep_runs, shared=shared), ended)
    except (KeyboardInterrupt, SystemExit):
        tell("stopped; run the sweep again to go on")
        raise
    found = [path for cell in every if (path := _record_path(out, cell)).is_file()]
    if len(found) == len(every):  # else another sweep may be at the rest, and need it
        shutil.rmtree(out / "shared", ignore_errors=True)
    return found


def failures(sweep: SweepConfig, out: Path) -> list[Path]:
    """The files about the sweep's runs that failed and have no record."""
    return [
        path
        for cell in cells(sweep)
        if (path := _failure_path(out, cell)).is_file() and not _record_path(out, cell).is_file()
    ]


def _record_path(out: Path, cell: Cell) -> Path:
    return out / "records" / f"{cell.id}.json"


DIED = "its process died or was told to end, perhaps out of memory; run the sweep again to go on with it"

_read_suite = functools.lru_cache(maxsize=1)(load_suite)
"""Neighbouring cells learn the same tasks; a process reads them once."""


@functools.cache
def _own_threads() -> int:
    """How many threads torch uses in this process before any run changes it."""
    return torch.get_num_threads()


def _run_cell(cell: Cell, out: Path, keep: bool, shared: Path | None) -> str:
    """Run one cell in this process, unless another sweep is at it or has done it; say how it ended.

    The lock beside the run's folder is held until the record is written and the folder gone: nobody begins the run anew.
    """
    lock = out / "runs" / f".{cell.id}.lock"
    make_folder(lock.parent)
    try:
        with FileLock(lock, timeout=0):
            done = _record_path(out, cell).is_file()
            how = "left alone: another sweep has done it" if done else _run_locked(cell, out, keep, shared)
    except Timeout:
        return "left alone: another sweep is at it"
    if _record_path(out, cell).is_file():
        lock.unlink(missing_ok=True)  # whoever still holds it finds the record
    return how


def _run_locked(cell: Cell, out: Path, keep: bool, shared: Path | None) -> str:
    """Write the cell's record and remove its run's folder, or write its failure."""
    folder = out / "runs" / cell.id
    _failure_path(out, cell).unlink(missing_ok=True)
    try:
        scores, record = _run_and_record(cell, folder, shared)
    except RunBusy as error:
        return f"left alone: {error}"
    except Exception as error:  # one failed run must not stop the others; what happened is kept
        return _failed(out, cell, f"{type(error).__name__}: {error}", traceback.format_exc())
    write_json(_record_path(out, cell), record)
    if not keep:
        shutil.rmtree(folder, ignore_errors=True)
    average, lost = scores.average_accuracy, scores.forgetting
    if average is None:
        return "not scored"
    return f"average {100 * average:.1f}" + ("" if lost is None else f", forgetting {100 * lost:.1f}")


def _run_and_record(cell: Cell, folder: Path, shared: Path | None) -> tuple[Scores, dict[str, Any]]:
    """The run's scores, and its record."""
    from perdure.reopen import load_configured_suite
    from perdure.run import run_config

    resumed = (folder / "manifest.json").is_file()
    began, worked = time.monotonic(), time.process_time()
    own = _own_threads()
    torch.set_num_threads(cell.config.threads or own)  # not the number of the run before
    suite = load_configured_suite(cell.config, _read_suite) if cell.config.suite else None
    scores = run_config(cell.config, folder, shared=shared, suite=suite)
    worked, kept = time.process_time() - worked, run_record(Store(folder), scores)
    about = {"id": cell.id, "method": cell.method, "varied": dict(cell.varied), "sequence": dict(cell.sequence)}
    record: dict[str, Any] = {**about, **kept}
    if not resumed:  # else a part of the time was spent elsewhere, and nobody counted it
        elsewhere = sum(notes.get(SECONDS, 0.0) for notes in kept["notes"].values())
        record["seconds"] = round(time.monotonic() - began, 1)
        record["processor_seconds"] = round(worked + elsewhere, 1)  # what the run would have taken alone
    return scores, record


def _failed(out: Path, cell: Cell, error: str, trace: str = "") -> str:
    """Write why a cell has no record; say it."""
    write_json(_failure_path(out, cell), {"id": cell.id, "error": error, "traceback": trace})
    return f"FAILED, {error}"


def _failure_path(out: Path, cell: Cell) -> Path:
    return out / "failed" / f"{cell.id}.json"
