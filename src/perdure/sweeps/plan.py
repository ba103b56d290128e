"""A sweep in one file: methods x orders x seeds x settings -> every run with its whole configuration.

    name: first-table
    settings: {suite: quickstart, precision: bf16, threads: 1}       # of every run
    methods:                                                         # name -> settings of its own
      inc-lora: {training.learning_rate: 2e-3}
      ps-lora: {method.penalties.sign-magnitude.weight: 0.01}
    seeds: [0, 1, 2]
    orders: [default]
    grid: {training.learning_rate: [1e-3, 2e-3]}                     # every combination; a method may have its own `grid`
    sequences: [{suite: long, order: 4}, {suite: trace, order: 1}]   # instead of orders: settings of each

A method may also list its `trials`, settings that are tried one after another: [{training.learning_rate: 2e-3, ...}, ...]; or
`search: {training.learning_rate: loguniform(1e-4, 1e-2)}` with `trials: 16` lets Optuna choose them (perdure.sweeps.search).

What cannot run is reported before the first run starts.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from perdure.config.run_config import RunConfig, load_config, located_settings
from perdure.errors import ConfigError
from perdure.methods.contract.build import build_method
from perdure.methods.table import PRESETS
from perdure.settings.read import WHICH, Settings, unknown_key, validate, with_override
from perdure.settings.yaml_text import read_yaml
from perdure.tasks.suites import chosen_order, describe

LONGEST_NAME = 100
"""Bytes of a row's name, and of an order in a file name that would otherwise be too long for a disk (255)."""
Grid = dict[str, Annotated[list[Any], Field(min_length=1)]]
GROUPS = ("lora", "training", "budget", "evaluation")
"""Settings that are groups of settings."""


class MethodRow(BaseModel):
    """Keys of a method's row besides any setting of a run, like `training.learning_rate`."""

    model_config = ConfigDict(extra="allow")

    method: str | dict[str, Any] | None = None
    """a preset or a composition of parts; None = the preset of the row's name."""
    grid: Grid = Field(default_factory=dict)
    """settings with lists of values, one run for each combination."""
    trials: list[dict[str, Any]] = Field(default=[{}], min_length=1)
    """settings of one run each."""
    search: dict[str, str | list[Any]] = Field(default_factory=dict)
    """settings that Optuna chooses for this row, besides those that it chooses for all."""


class SweepConfig(Settings):
    """A sweep; see the docstring of this module."""

    name: str
    settings: dict[str, Any] = Field(default_factory=dict)
    methods: dict[str, dict[str, Any]] = Field(min_length=1)
    seeds: tuple[int, ...] = Field(default=(0,), min_length=1)
    orders: tuple[str | None, ...] = Field(default=(None,), min_length=1)
    sequences: tuple[dict[str, Any], ...] = Field(default=({},), min_length=1)
    grid: Grid = Field(default_factory=dict)
    search: dict[str, str | list[Any]] = Field(default_factory=dict)
    trials: int = Field(default=16, ge=1)
    keep_runs: bool = False
    share: bool = True

    @model_validator(mode="after")
    def _check_conflicts(self) -> SweepConfig:
        """The method and the seed of a run are given in one place; an order is not given twice."""
        places = [("settings", self.settings), *(("sequences", sequence) for sequence in self.sequences)]
        for place, settings in places:
            if "method" in settings:
                raise ValueError(f"{place}.method would be every row's method; set it in the rows, under `methods`")
        places += [("grid", self.grid), ("search", self.search)]
        for name, row in self.methods.items():
            places += [(f"methods.{name}", row), (f"methods.{name}.grid", row.get("grid", {}))]
            places += [(f"methods.{name}.trials", trial) for trial in row.get("trials", [])]
            places.append((f"methods.{name}.search", row.get("search", {})))
            if "trials" in row and (self.search or row.get("search")):
                raise ValueError(f"methods.{name} has trials of its own and a search that asks for them; leave one out")
        for place, settings in places:
            if "seed" in settings:
                raise ValueError(f"{place}.seed: set the seeds of a sweep once, under `seeds`")
        if self.orders != (None,) and any("order" in sequence for sequence in self.sequences):
            raise ValueError("orders and the `order` of a sequence exclude each other; leave one out")
        return self

    @field_validator("methods", mode="before")
    @classmethod
    def _rows(cls, methods: Any) -> Any:
        """Every row is valid, and its name can be part of a file name; a row without settings may be empty."""
        if not isinstance(methods, Mapping):
            return methods
        rows = {str(name): {} if row is None else row for name, row in methods.items()}
        for name, row in rows.items():
            valid = name.isprintable() and re.fullmatch(r"[^./\\][^/\\]*", name)
            if not valid or len(name.encode()) > LONGEST_NAME:
                raise ConfigError(
                    f"A method's row cannot be called {name!r:.120}, because files are named after it. Use at most "
                    f"{LONGEST_NAME} letters, no '/' or '\\', and no '.' first; choose the method with `method` in the row."
                )
            place, own = f"methods.{name}", MethodRow.model_fields
            validate(MethodRow, row, place)
            for key in row:
                if key.partition(".")[0] not in {*RunConfig.model_fields, *own}:
                    raise ConfigError(unknown_key(RunConfig, key, row[key], RunConfig, place, beside=own))
        return rows


@dataclass(frozen=True)
class Cell:
    """One run of a sweep: the row it belongs to, what varies, and its whole configuration.

    `sequence`: what the run's sequence sets besides its suite or tasks and their order; it tells runs of a row apart.
    """

    method: str
    varied: Mapping[str, Any]
    config: RunConfig
    sequence: Mapping[str, Any] = field(default_factory=dict)

    @property
    def id(self) -> str:
        """Readable and unique: method, order, seed, and a hash of the settings that are not defaults.

        So a setting that is added to perdure later does not orphan the records made before.
        """
        text = json.dumps(self.config.model_dump(mode="json", exclude_defaults=True), sort_keys=True)
        order = (self.config.order or "default").replace("/", "_")
        if len(f"{self.method}{order}".encode()) > 2 * LONGEST_NAME:  # many tasks by name; the hash covers all of them
            order = f"{order.encode()[:LONGEST_NAME].decode(errors='ignore')}..."
        return f"{self.method}-{order}-{self.config.seed}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def load_sweep(path: Path) -> SweepConfig:
    """The sweep described in a YAML file; the files of its tasks are relative to it.

    Raises:
        ConfigError: no such file, or not a sweep.
    """
    data = read_yaml(path, "sweep")
    if "methods" not in data and data.keys() & {"suite", "tasks", "method"}:
        raise ConfigError(
            f"'{path}' is the configuration of a run, not a sweep: use `perdure run {path}`. A sweep has `methods`, and the "
            "settings of its runs are under `settings`."
        )
    # a sweep has other keys for `method`, `seed` and `order`
    of_a_run = RunConfig.model_fields.keys() - {"method", "seed", "order"}
    if misplaced := [key for key in data if key.partition(".")[0] in of_a_run]:
        raise ConfigError(
            f"{path}: run settings outside `settings`: {', '.join(f'`{key}`' for key in misplaced)}. Write them as "
            f"`settings: {{{misplaced[0]}: ...}}`."
        )

    def located(settings: Any) -> Any:
        return located_settings(settings, path) if isinstance(settings, dict) else settings

    data |= {"settings": located(data["settings"])} if "settings" in data else {}
    if isinstance(sequences := data.get("sequences"), list):
        data["sequences"] = [located(settings) for settings in sequences]
    if isinstance(methods := data.get("methods"), dict):
        data["methods"] = {name: located(row) for name, row in methods.items()}
    return validate(SweepConfig, data, str(path))


def cells(sweep: SweepConfig) -> Iterator[Cell]:
    """Every run of the sweep, validated; seeds outermost, so that an interrupted sweep has whole comparisons.

    Raises:
        ConfigError: a run's settings are wrong; names the row.
    """
    for seed, sequence, order in itertools.product(sweep.seeds, sweep.sequences, sweep.orders):
        others = {key: value for key, value in sequence.items() if key not in ("suite", "order", "tasks")}
        ordered = {} if order is None else {"order": order}
        common = {**_flat(sweep.settings), **ordered, **_flat(sequence), "seed": seed}
        of_method = {key: value for key, value in common.items() if key.startswith("method.")}
        data: dict[str, Any] = {}
        for key, value in common.items():
            if key not in of_method:
                data = with_override(data, key, value)
        for name, row in sweep.methods.items():
            own = {key: value for key, value in row.items() if key not in MethodRow.model_fields}
            for varied in _variants(sweep, row):
                overrides = _flat({**of_method, **own, **varied})
                try:
                    config = load_config({"method": row.get("method", name), **data}, overrides)
                except ConfigError as error:
                    lines = [f"methods.{name}: {line}" for line in str(error).splitlines()]
                    if "method" not in row and name not in PRESETS:
                        lines[-1] += " A row with another name needs `method:`."
                    raise ConfigError("\n".join(lines)) from error
                yield Cell(name, varied, config, others)


def _variants(sweep: SweepConfig, row: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """What varies in a row: every combination of the grid, its trials, or both."""
    grid = {**sweep.grid, **row.get("grid", {})}
    for values in itertools.product(*grid.values()):
        for trial in row.get("trials", [{}]):
            yield {**dict(zip(grid, values, strict=True)), **trial}


def _flat(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings with groups (`training: {epochs: 2}`) as dotted keys, so that they keep the group's other settings.

    So are a backbone's settings without a model: they apply to the model that is named elsewhere.
    """
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        if isinstance(value, Mapping) and (key in GROUPS or (key == "backbone" and not value.keys() & WHICH)):
            flat |= {f"{key}.{inner}": own for inner, own in value.items()}
        else:
            flat[key] = value
    return flat


def check_cells(every: Iterable[Cell]) -> None:
    """Every run has a record of its own, a method that can be built, and a suite with its order; reads no data or model.

    Raises:
        ConfigError, DataError: names the row, or the suite.
    """
    checked, ids = set[str](), set[str]()
    for cell in every:
        place, config = f"methods.{cell.method}", cell.config
        if cell.id in ids:
            raise ConfigError(
                f"{place}: two of its runs ({cell.id}) have the same settings, and so the same record. Leave one out."
            )
        ids.add(cell.id)
        if (config.suite is None) == (not config.tasks):
            raise ConfigError(f"{place}: nothing to learn: give either `suite` (see `perdure suites`) or `tasks`.")
        key = json.dumps([config.method, config.suite, config.order])
        if key in checked:
            continue
        checked.add(key)
        try:
            build_method(config.method)
        except ConfigError as error:
            raise ConfigError(f"{place}: {error}") from error
        if config.suite is not None:
            chosen_order(config.suite, describe(config.suite), config.order)
