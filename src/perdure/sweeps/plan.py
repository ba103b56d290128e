"""What a sweep is, as one file: methods x orders x seeds x settings -> every run with its whole configuration.

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

What cannot run at all is told before the first run starts.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from perdure.config.run_config import RunConfig, load_config, located_settings
from perdure.errors import ConfigError
from perdure.methods.contract.build import build_method
from perdure.methods.table import PRESETS
from perdure.settings.read import WHICH, Settings, read_yaml, unknown_key, validate, with_override
from perdure.tasks.suites import chosen_order, describe

LONGEST = 100  # bytes of a row's name, and of an order's in a file name that would else be too long for a disk (255)
Grid = dict[str, Annotated[list[Any], Field(min_length=1)]]
GROUPS = ("lora", "training", "budget", "evaluation")
"""Settings that are groups of settings."""


class MethodRow(BaseModel):
    """What a method's row may say beside any setting of a run, like `training.learning_rate`."""

    model_config = ConfigDict(extra="allow")

    method: str | dict[str, Any] | None = None
    """a preset or a composition of parts; None = the preset that the row is called."""
    grid: Grid = Field(default_factory=dict)
    """see the file's head."""
    trials: list[dict[str, Any]] = Field(default=[{}], min_length=1)
    """see the file's head."""


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
    def _unique_lines(self) -> SweepConfig:
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
