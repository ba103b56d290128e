"""A sweep runs every cell once, survives a failing one, and leaves records that tables can be made from."""

from __future__ import annotations

import json
import subprocess
import sys
import time

import psutil
import pytest
import yaml

from perdure.errors import ConfigError, StoreError
from perdure.report.sweeps import is_sweep, read_records, row_name, write_sweep_report
from perdure.report.text import escaped
from perdure.shared import SECONDS
from perdure.store import Store
from perdure.sweep import SweepConfig, _read_suite, _run_cell, cells, load_sweep, run_sweep
from perdure.sweep_record import outcome_values


@pytest.fixture
def sweep_file(tmp_path, encoder_folder):
    rows = [{"text": f"{word} {i}", "label": label} for i in range(16) for word, label in (("sun", "a"), ("moon", "b"))]
    (tmp_path / "sky.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    tasks = [{"name": name, "train": str(tmp_path / "sky.jsonl")} for name in ("sky", "again")]
    sweep = {
        "name": "small",
        "settings": {
            "tasks": tasks,
            "backbone": {"kind": "encoder", "model": str(encoder_folder)},
            "lora.rank": 2,
            "training.epochs": 1,
            "precision": "fp32",
            "threads": 1,
        },
        "seeds": [0, 1],
        "methods": {
            "inc-lora": {"grid": {"training.learning_rate": [1e-3, 2e-3]}},
            "wide": {"method": "l2", "lora.rank": 1000},
        },
    }
    (tmp_path / "sweep.yaml").write_text(yaml.safe_dump(sweep))
    return tmp_path / "sweep.yaml"


def test_every_combination_is_a_cell_with_a_name_of_its_own(sweep_file):
    found = list(cells(load_sweep(sweep_file)))
    assert len(found) == len({cell.id for cell in found}) == 6
    assert [cell.config.seed for cell in found] == [0, 0, 0, 1, 1, 1], "seeds outermost"
    assert {cell.config.training.learning_rate for cell in found if cell.method == "inc-lora"} == {1e-3, 2e-3}
    assert next(cell for cell in found if cell.method == "wide").config.method_name == "l2"


def test_sequences_and_trials():
    sweep = SweepConfig(
        name="x",
        methods={"l2": {"trials": [{"training.learning_rate": 1e-3}, {"training.epochs": 2}]}, "inc-lora": {}},
        seeds=(1, 2),
        sequences=({"suite": "quickstart", "order": "reversed"}, {"suite": "standard-cl", "order": 2}),
    )
    found = list(cells(sweep))
    assert len(found) == len({cell.id for cell in found}) == 2 * 2 * 3
    assert {(c.config.suite, c.config.order) for c in found} == {("quickstart", "reversed"), ("standard-cl", "2")}
    assert [dict(c.varied) for c in found[:3]] == [{"training.learning_rate": 1e-3}, {"training.epochs": 2}, {}]
    assert found[1].config.training.epochs == 2


@pytest.mark.slow
def test_a_failing_cell_stops_nothing_and_what_is_done_is_not_done_again(sweep_file, tmp_path):
    told: list[str] = []
    records = run_sweep(load_sweep(sweep_file), tmp_path / "out", 2, told.append)
    assert len(records) == 4
    record = json.loads(records[0].read_text())
    assert {"method", "varied", "seconds", "scores", "config", "tasks", "versions", "notes"} <= set(record)
    failures = [json.loads(path.read_text()) for path in (tmp_path / "out" / "failed").iterdir()]
    assert len(failures) == 2
    assert "lora.rank" in failures[0]["error"]
    told.clear()
    assert run_sweep(load_sweep(sweep_file), tmp_path / "out", 1, told.append) == records
    assert told[0] == "small: 6 runs, 4 of them done before"


def test_a_sweep_with_a_misspelt_key(tmp_path):
    (tmp_path / "sweep.yaml").write_text("name: x\nmethods: {inc-lora: {}}\nseed: [1]\n")
    with pytest.raises(ConfigError, match="Did you mean 'seeds'"):
        load_sweep(tmp_path / "sweep.yaml")


@pytest.mark.slow
def test_the_report_of_a_sweep(sweep_file, tmp_path):
    """Records keep the final answers; the report's means are the scores', its failures those of the sweep."""
    run_sweep(load_sweep(sweep_file), tmp_path / "out", 2, lambda _: None)
    records = read_records(tmp_path / "out")
    for record in records:
        final = record["scores"]["score_matrix"][-1]
        values = outcome_values(record)
        assert [values[task].mean() for task in record["scores"]["tasks"]] == pytest.approx(final)
        assert all(len(v) == n for v, n in zip(values.values(), record["scores"]["examples"], strict=True))
        assert 0 <= record["diagnostics"]["opposite_signs"] <= 1
        assert min(record["bytes"].values()) > 0
    paths = write_sweep_report(tmp_path / "out", tmp_path / "report")
    found = json.loads(paths["json"].read_text())
    assert len(found["failed"]) == 2
    text = paths["md"].read_text()
    assert "## Failed" in text
    for name, interval in found["methods"].items():
        own = [r["scores"]["average_accuracy"] for r in records if row_name(r) == name]
        assert interval["mean"] == pytest.approx(sum(own) / len(own))
        assert escaped(name) in text


def test_a_sweep_without_records_says_how_to_go_on(tmp_path):
    (tmp_path / "records").mkdir()
    assert is_sweep(tmp_path)
    with pytest.raises(StoreError, match="perdure sweep FILE"):
        write_sweep_report(tmp_path, tmp_path / "report")


@pytest.mark.slow
def test_a_shared_first_task_changes_nothing_but_is_trained_once(sweep_file, tmp_path):
    sweep = load_sweep(sweep_file).model_copy(update={"methods": {"inc-lora": {}, "o-lora": {}}, "seeds": (0,)})
    apart = sweep.model_copy(update={"share": False})
    rows = [
        [json.loads(path.read_text()) for path in run_sweep(which, tmp_path / name, 1, lambda _: None)]
        for name, which in (("together", sweep), ("apart", apart))
    ]
    assert [row["notes"]["sky"] for row in rows[0]] == [{}, {SECONDS: pytest.approx(0, abs=60)}]
    for together, alone in zip(*rows, strict=True):
        assert together["scores"] == alone["scores"]
        assert together["diagnostics"] == alone["diagnostics"]
    assert not (tmp_path / "together" / "shared").exists()


@pytest.mark.slow
def test_a_killed_sweep_leaves_no_process_behind(sweep_file, tmp_path):
    sweep = subprocess.Popen([sys.executable, "-m", "perdure", "sweep", sweep_file, "--out", tmp_path / "out"])
    while not (tmp_path / "out" / "runs").is_dir():
        time.sleep(0.05)
    workers = psutil.Process(sweep.pid).children(recursive=True)
    sweep.kill()
    sweep.wait()
    assert not psutil.wait_procs(workers, timeout=30)[1]


def test_a_run_that_another_process_is_at_is_left_to_it(sweep_file, tmp_path):
    sweep = load_sweep(sweep_file)
    cell = next(iter(cells(sweep)))
    with Store(tmp_path / "runs" / cell.id).writing():
        assert _run_cell(cell, tmp_path, False, None).startswith("left alone")
    assert not (tmp_path / "failed").exists()


def test_neighbouring_cells_read_their_suite_once(sweep_file, tmp_path):
    sweep = load_sweep(sweep_file)
    tasks = {task["name"]: {"train": task["train"]} for task in sweep.settings["tasks"]}
    (tmp_path / "sky.yaml").write_text(yaml.safe_dump({"name": "sky", "tasks": tasks}))
    settings = {key: value for key, value in sweep.settings.items() if key != "tasks"}
    update = {"settings": {**settings, "suite": str(tmp_path / "sky.yaml")}, "methods": {"inc-lora": {}, "l2": {}}}
    _read_suite.cache_clear()
    for cell in list(cells(sweep.model_copy(update=update)))[:2]:
        assert _run_cell(cell, tmp_path / "out", False, None).startswith("average")
    assert (_read_suite.cache_info().misses, _read_suite.cache_info().hits) == (1, 1)
