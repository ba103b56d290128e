"""Settings that Optuna chooses: the same number of trials for every row, towards what the records say, resumable."""

from __future__ import annotations

import itertools
import json
import math
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from perdure.cli import app
from perdure.errors import ConfigError
from perdure.sweeps.plan import Cell, SweepConfig, cells
from perdure.sweeps.search import best, distribution, rounds
from tests.sweeps.test_sweep import sweep_file  # noqa: F401

RATE = "training.learning_rate"
SWEEP: dict[str, Any] = {
    "name": "searched",
    "settings": {"suite": "quickstart", "evaluation.split": "validation"},
    "search": {RATE: "loguniform(1e-5, 1e-1)"},
    "trials": 16,
    "seeds": [0, 1],
    "methods": {"inc-lora": {}, "l2": {"search": {"method.penalties.l2.weight": "loguniform(1e-3, 10)"}}},
}


def sweep(**changed: Any) -> SweepConfig:
    return SweepConfig.model_validate({**SWEEP, **changed})


def ran(cell: Cell, out: Path) -> None:
    """A record whose score is best at a learning rate of 1e-3."""
    place = out / "records" / f"{cell.id}.json"
    place.parent.mkdir(parents=True, exist_ok=True)
    score = 1 / (1 + abs(math.log10(cell.config.training.learning_rate) + 3)) - cell.config.seed / 100
    place.write_text(json.dumps({"scores": {"average_accuracy": score}}))


def searched(wanted: SweepConfig, out: Path, count: int | None = None, failing: str = "") -> SweepConfig:
    """Ask for `count` rounds (None: all), each run before the next."""
    last = wanted
    for last in itertools.islice(rounds(wanted, out), count):
        for cell in cells(last):
            if not failing or not cell.id.startswith(failing):
                ran(cell, out)
    return last


def trials(of: SweepConfig, name: str) -> list[dict[str, Any]]:
    return of.methods[name]["trials"]


def test_every_row_has_the_same_number_of_trials_and_later_ones_are_better(tmp_path: Path) -> None:
    last = searched(sweep(), tmp_path)
    assert {name: len(row["trials"]) for name, row in last.methods.items()} == {"inc-lora": 16, "l2": 16}
    assert {frozenset(trial) for trial in trials(last, "l2")} == {frozenset({RATE, "method.penalties.l2.weight"})}
    assert len({json.dumps(trial) for trial in trials(last, "inc-lora")}) == 16

    def far(some: list[dict[str, Any]]) -> float:
        return sum(abs(math.log10(trial[RATE]) + 3) for trial in some) / len(some)

    assert far(trials(last, "inc-lora")[8:]) < far(trials(last, "inc-lora")[:8])
    near = min(trials(last, "inc-lora"), key=lambda trial: abs(math.log10(trial[RATE]) + 3))
    assert best(last, tmp_path)[0].startswith("inc-lora: best of 16 trials ")
    assert f"(training.learning_rate {near[RATE]:.3g})" in best(last, tmp_path)[0]


def test_a_search_that_was_stopped_goes_on_with_the_same_trials(tmp_path: Path) -> None:
    whole = searched(sweep(), tmp_path / "whole")
    searched(sweep(), tmp_path / "stopped", count=2)
    again = rounds(sweep(), tmp_path / "stopped")
    assert [len(trials(next(again), "l2")) for _ in range(1)] == [8], "what was asked for comes first"
    assert searched(sweep(), tmp_path / "stopped") == whole


def test_a_trial_that_fails_counts_as_a_trial_and_says_nothing(tmp_path: Path) -> None:
    last = searched(sweep(), tmp_path, failing="l2")
    assert len(trials(last, "l2")) == 16
    assert [line.partition(":")[0] for line in best(last, tmp_path)] == ["inc-lora"]


def test_a_space_of_few_values_ends_when_all_were_tried(tmp_path: Path) -> None:
    last = searched(sweep(search={"training.average": ["none", "last-half"]}, methods={"inc-lora": {}}), tmp_path)
    assert sorted(trial["training.average"] for trial in trials(last, "inc-lora")) == ["last-half", "none"]


def test_a_sweep_without_a_search_is_itself(tmp_path: Path) -> None:
    plain = sweep(search={}, methods={"inc-lora": {}})
    assert [*rounds(plain, tmp_path)] == [plain]
    assert best(plain, tmp_path) == []
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize(
    "given,said",
    [
        ("loguniform(0, 1)", "needs a lower and a higher bound, above 0"),
        ("uniform(2, 1)", "needs a lower and a higher bound"),
        ("uniform(1, inf)", "needs a lower and a higher bound"),
        ("int(1, x)", "no numbers"),
        ("normal(0, 1)", r"expected uniform\(a, b\), loguniform"),
        ([], r"expected uniform\(a, b\), loguniform"),
    ],
)
def test_a_space_that_cannot_be_read(given: Any, said: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=rf"methods\.inc-lora\.search\.training\.learning_rate: .*{said}"):
        next(rounds(sweep(search={RATE: given}), tmp_path))


def test_spaces_as_written() -> None:
    assert distribution("", "int(2, 8)").high == 8
    assert distribution("", " uniform( .1, .5 ) ").low == 0.1
    assert distribution("", [1, "a"]).choices == (1, "a")


def test_what_a_search_refuses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match=r"must not see test examples: set evaluation\.split: validation"):
        next(rounds(sweep(settings={"suite": "quickstart"}), tmp_path))
    with pytest.raises(ValueError, match="trials of its own and a search"):
        sweep(methods={"l2": {"trials": [{RATE: 1e-3}]}})
    searched(sweep(), tmp_path, count=1)
    with pytest.raises(ConfigError, match="holds a search of other spaces"):
        next(rounds(sweep(search={RATE: "loguniform(1e-4, 1e-1)"}), tmp_path))
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(ConfigError, match=r"pip install 'perdure\[search\]'"):
        next(rounds(sweep(), tmp_path))


def test_from_the_command_line(sweep_file: Path, tmp_path: Path) -> None:  # noqa: F811
    file = yaml.safe_load(sweep_file.read_text())
    file |= {"methods": {"inc-lora": {}}, "seeds": [0], "search": {RATE: "loguniform(1e-4, 1e-2)"}, "trials": 3}
    file["settings"]["evaluation.split"] = "validation"
    sweep_file.write_text(yaml.safe_dump(file))
    command = ["sweep", str(sweep_file), "--out", str(tmp_path / "out"), "--processes", "1"]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0, done.output
    assert "inc-lora: best of 3 trials " in done.output
    assert len([*(tmp_path / "out/records").iterdir()]) == 3
    assert "3 runs, 3 of them already done" in CliRunner().invoke(app, command).output
