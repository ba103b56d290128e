"""A sweep runs every cell once, survives a failing one, and leaves records that tables can be made from."""

from __future__ import annotations

import datetime
import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from types import SimpleNamespace

import psutil
import pytest
import torch
import yaml
from typer.testing import CliRunner

import perdure.commands.learn
import perdure.sweeps.sweep
from perdure.cli import app
from perdure.errors import ConfigError, CorruptFile, StoreError
from perdure.report.sweeps import cell_of, is_sweep, p_value, read_records, row_name, write_sweep_report
from perdure.report.text import escaped
from perdure.state.shared import SECONDS, Shared
from perdure.state.store import Store
from perdure.sweeps.plan import SweepConfig, cells, load_sweep
from perdure.sweeps.record import outcome_values
from perdure.sweeps.sweep import _read_suite, _run_cell, run_sweep


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
    assert told[0] == "small: 6 runs, 4 of them already done"


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


def test_every_column_of_a_row_is_of_the_cells_that_every_method_has(tmp_path):
    """The second seed of one method only: it is in no mean of that row."""
    (tmp_path / "records").mkdir()
    for method, seed, forgetting in (("l2", 0, 0.1), ("l2", 1, 0.9), ("inc-lora", 0, 0.2)):
        scores = {
            "tasks": ["sky"],
            "score_matrix": [[0.5]],
            "learning_accuracy": forgetting,
            "forgetting": forgetting,
            "backward_transfer": -forgetting,
        }
        record = {
            "method": method,
            "varied": {},
            "config": {"suite": "quickstart", "order": None, "seed": seed},
            "scores": scores,
            "right": {},
            "processor_seconds": 1000 * forgetting,
        }
        (tmp_path / "records" / f"{method}-{seed}.json").write_text(json.dumps(record))
    (tmp_path / "report.html").write_text("Written by perdure about runs")
    text = write_sweep_report(tmp_path, tmp_path)["md"].read_text()
    assert not (tmp_path / "report.html").exists(), "it would stand beside numbers it is not about"
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="Cannot create folder"):
        write_sweep_report(tmp_path, tmp_path / "file")
    assert "3 runs; 1 cells" in text
    assert f"| l2 | {escaped('50.0 [50.0, 50.0]')} | 10.0 | 10.0 | -10.0 |" in text
    assert "| l2 | 100 |" in text
    assert "| Average accuracy " in text  # records of earlier versions do not say
    for path in (tmp_path / "records").iterdir():
        record = json.loads(path.read_text())
        record["scores"]["metrics"] = ["rouge-l"]
        path.write_text(json.dumps(record))
    text = write_sweep_report(tmp_path, tmp_path)["md"].read_text()
    assert "Average ROUGE-L" in text
    assert "accuracy" not in text


def made(method: str, score: float, **about) -> dict:
    """A record without answers."""
    scores = {"score_matrix": [[score]], "learning_accuracy": None, "forgetting": None, "backward_transfer": None}
    record = {
        "method": method,
        "varied": {},
        "config": {"suite": None, "seed": 0},
        "scores": {"tasks": ["a"], **scores},
    }
    return record | about


def test_sequences_are_told_apart_by_their_tasks_and_whatever_they_set():
    config = {"suite": "quickstart", "order": "reversed", "seed": 3}
    assert cell_of(made("m", 0.5, config=config)) == ("quickstart reversed", 3)
    assert cell_of(made("m", 0.5, config=config, sequence={"budget.train": 64})) == (
        "quickstart reversed, budget.train 64",
        3,
    )
    assert cell_of(made("m", 0.5, scores={"tasks": ["b", "a"]})) == ("own b,a", 0)
    sweep = SweepConfig(
        name="x",
        methods={"l2": {}},
        sequences=(
            {"suite": "quickstart", "budget.train": 64},
            {"suite": "quickstart", "order": "reversed", "budget.train": 128},
        ),
    )
    assert [cell.sequence for cell in cells(sweep)] == [{"budget.train": 64}, {"budget.train": 128}]


def test_two_weights_have_two_names():
    weights = ("method.penalties.l2.weight", "method.penalties.overlap.weight", "training.learning_rate")
    assert [row_name(made("m", 0.5, varied={key: 0.1})) for key in weights] == [
        "m (l2.weight 0.1)",
        "m (overlap.weight 0.1)",
        "m (learning_rate 0.1)",
    ]


def test_answers_that_are_no_bits_are_resampled_too():
    values = [0.2, 0.4, 0.9]
    assert outcome_values(made("m", 0.5, values={"a": values}))["a"].tolist() == values
    assert outcome_values(made("m", 0.5))["a"].tolist() == [0.5]


def test_no_p_is_nought():
    assert [p_value(0.0005), p_value(0.0012)] == ["< 0.001", "0.001"]


def test_a_sweep_without_records_says_how_to_go_on(tmp_path):
    (tmp_path / "records").mkdir()
    assert is_sweep(tmp_path)
    with pytest.raises(StoreError, match="perdure sweep FILE"):
        write_sweep_report(tmp_path, tmp_path / "report")


def test_a_damaged_record_is_named(tmp_path):
    (tmp_path / "records").mkdir()
    (tmp_path / "records" / "l2-0.json").write_text("{")
    with pytest.raises(CorruptFile, match=r"l2-0\.json' is not valid JSON"):
        write_sweep_report(tmp_path, tmp_path / "report")


def test_a_sweep_all_of_whose_runs_failed_says_why(tmp_path):
    (tmp_path / "failed").mkdir()
    (tmp_path / "failed" / "l2-0.json").write_text(json.dumps({"id": "l2-0", "error": "no memory left"}))
    assert is_sweep(tmp_path)
    with pytest.raises(StoreError, match="l2-0 failed: no memory left"):
        write_sweep_report(tmp_path, tmp_path / "report")


@pytest.mark.slow
def test_a_shared_first_task_changes_nothing_but_is_trained_once(sweep_file, tmp_path):
    sweep = load_sweep(sweep_file).model_copy(
        update={"methods": {"inc-lora": {}, "o-lora": {}}, "seeds": (0,), "keep_runs": True}
    )
    apart = sweep.model_copy(update={"share": False})
    rows = [
        [json.loads(path.read_text()) for path in run_sweep(which, tmp_path / name, 1, lambda _: None)]
        for name, which in (("together", sweep), ("apart", apart))
    ]
    kept = [
        json.loads(path.read_text()) for path in sorted((tmp_path / "together").glob("runs/*/stages/*sky/notes.json"))
    ]
    assert sorted(kept, key=len) == [{}, {SECONDS: pytest.approx(0, abs=60)}]
    for together, alone in zip(*rows, strict=True):
        assert together["scores"] == alone["scores"]
        assert together["diagnostics"] == alone["diagnostics"]
    assert not (tmp_path / "together" / "shared").exists()


@pytest.mark.slow
def test_a_run_stopped_once_its_first_task_is_shared_leaves_the_same_record(sweep_file, tmp_path, monkeypatch):
    """Its repetition reads what it has trained itself, which is no other run's time."""
    cell, real = next(iter(cells(load_sweep(sweep_file)))), Shared.stepped

    def stopped(self, training):
        real(self, training)
        if training.finished:
            raise KeyboardInterrupt

    found = []
    for name, stepped in (("whole", real), ("stopped", stopped)):
        out = tmp_path / name
        monkeypatch.setattr(Shared, "stepped", stepped)
        with suppress(KeyboardInterrupt):
            _run_cell(cell, out, False, out / "shared")
        monkeypatch.setattr(Shared, "stepped", real)
        _run_cell(cell, out, False, out / "shared")
        assert [*(out / "shared").iterdir()]
        record = json.loads((out / "records" / f"{cell.id}.json").read_text())
        found.append({key: value for key, value in record.items() if "seconds" not in key})
    assert found[0] == found[1]


@pytest.mark.slow
def test_a_killed_sweep_leaves_no_process_behind(sweep_file, tmp_path):
    sweep = subprocess.Popen([sys.executable, "-m", "perdure", "sweep", sweep_file, "--out", tmp_path / "out"])
    while not (tmp_path / "out" / "runs").is_dir():
        time.sleep(0.05)
    workers = psutil.Process(sweep.pid).children(recursive=True)
    sweep.kill()
    sweep.wait()
    assert not psutil.wait_procs(workers, timeout=600)[1]


def test_a_run_that_another_process_is_at_is_left_to_it(sweep_file, tmp_path):
    sweep = load_sweep(sweep_file)
    cell = next(iter(cells(sweep)))
    with Store(tmp_path / "runs" / cell.id).writing():
        assert _run_cell(cell, tmp_path, False, None).startswith("skipped")
    assert not (tmp_path / "failed").exists()


def test_what_another_sweep_did_meanwhile_is_not_done_again(sweep_file, tmp_path, monkeypatch):
    """The run is locked until its record is written and its folder gone; then the record is found."""
    cell, told = next(iter(cells(load_sweep(sweep_file)))), []

    def another(*_):
        told.append(_run_cell(cell, tmp_path, False, None))
        return {"notes": {}}

    monkeypatch.setattr(
        perdure.commands.learn, "run_config", lambda *_, **__: SimpleNamespace(average_accuracy=0.5, forgetting=None)
    )
    monkeypatch.setattr(perdure.sweeps.sweep, "run_record", another)
    assert _run_cell(cell, tmp_path, False, None) == "average 50.0"
    assert _run_cell(cell, tmp_path, False, None) == "skipped: another sweep has done it"
    assert told == ["skipped: another sweep is running it"]
    assert not [*(tmp_path / "runs").iterdir()]


def test_a_run_without_threads_does_not_have_those_of_the_run_before(sweep_file, tmp_path, monkeypatch):
    sweep, threads = load_sweep(sweep_file), []
    own = torch.get_num_threads()

    def fails(*_, **__):
        threads.append(torch.get_num_threads())
        raise ConfigError("enough")

    monkeypatch.setattr(perdure.commands.learn, "run_config", fails)
    settings = {key: value for key, value in sweep.settings.items() if key != "threads"}
    for given in ({"threads": own + 1}, {}):
        cell = next(iter(cells(sweep.model_copy(update={"settings": {**settings, **given}}))))
        assert _run_cell(cell, tmp_path, False, None) == "FAILED, ConfigError: enough"
    assert threads == [own + 1, own]


def test_a_sweep_of_which_runs_failed_ends_with_an_error(sweep_file, tmp_path, monkeypatch):
    monkeypatch.setattr(perdure.sweeps.sweep, "run_all", lambda todo, processes, run, ended: ended(todo[0], None))
    out = tmp_path / "out"
    ended = CliRunner().invoke(app, ["sweep", str(sweep_file), "--out", str(out)])
    assert ended.exit_code == 1
    assert "FAILED, its process died or was stopped, perhaps out of memory; run the sweep again" in ended.output
    assert ended.output.splitlines()[-1] == f"1 failed, see {out / 'failed'}"
    (failure,) = (out / "failed").iterdir()
    assert "died" in json.loads(failure.read_text())["error"]


WRONG = {
    "methods: {inc-lora: {grid: {training.learning_rate: 1.0e-3}}}": r"methods\.inc-lora\.grid\.training\.learning_rate: .* list",
    "methods: {inc-lora: {grid: [1, 2]}}": r"methods\.inc-lora\.grid: expected settings",
    "methods: {inc-lora: {trials: {a: 1}}}": r"methods\.inc-lora\.trials: .* list",
    "methods: {inc-lora: {trials: []}}": r"methods\.inc-lora\.trials: .* at least 1",
    "methods: {inc-lora: 3}": r"methods\.inc-lora: expected settings",
    "methods: {}": r"methods: .* at least 1",
    "methods: [inc-lora]": r"methods: expected settings",
    "methods: {inc/lora: {method: inc-lora}}": r"cannot be called 'inc/lora'.*`method` in the row",
    "{seeds: [], methods: {inc-lora: {}}}": r"seeds: .* at least 1",
    "{grid: {training.epochs: []}, methods: {inc-lora: {}}}": r"grid\.training\.epochs: .* at least 1",
    "{settings: {method: ewc}, methods: {l2: {}}}": r"settings\.method would be every row's method; set it in the rows",
    "{sequences: [{method: ewc}], methods: {l2: {}}}": r"sequences\.method would be every row's",
    "{settings: {seed: 5}, methods: {l2: {}}}": r"settings\.seed: set the seeds of a sweep once, under `seeds`",
    "{methods: {l2: {seed: 5}}}": r"methods\.l2\.seed: ",
    "{methods: {l2: {trials: [{training.epochs: 1}, {seed: 5}]}}}": r"methods\.l2\.trials\.seed: ",
    "{grid: {seed: [1]}, methods: {l2: {}}}": r"grid\.seed: ",
    "{methods: {l2: {gird: {training.epochs: [1]}}}}": r"setting of methods\.l2: 'gird'. Did you mean 'grid'.* trials",
    "{methods: {l2: {trails: [{}]}}}": r"'trails'. Did you mean 'trials'",
    "{methods: {mine: {metod: l2}}}": r"'metod'. Did you mean 'method'",
    "{methods: {l2: {epochs: 3}}}": r"'epochs'. Did you mean 'training\.epochs'",
    "{suite: quickstart, methods: {l2: {}}}": r"run settings outside `settings`: `suite`. Write them as `settings: {suite: ",
    "{training.epochs: 1, lora: {}, methods: {l2: {}}}": r"outside `settings`: `lora`, `training.epochs`. Write them",
    "{method: l2, methods: {l2: {}}}": "'method'. Did you mean 'methods'",
    "{suite: quickstart, method: l2, seed: 3}": r"^'\S*sweep.yaml' is the configuration of a run.*perdure run [^\n]*$",
    "{orders: [a], sequences: [{order: b}], methods: {l2: {}}}": r"orders and the `order` of a sequence",
}


@pytest.mark.parametrize("text", WRONG)
def test_what_is_no_sweep_says_where(text, tmp_path):
    data = {"name": "x", **yaml.safe_load(text)}
    (tmp_path / "sweep.yaml").write_text(yaml.safe_dump(data))
    with pytest.raises(ConfigError, match=WRONG[text]):
        load_sweep(tmp_path / "sweep.yaml")


def test_a_row_may_be_empty(tmp_path):
    (tmp_path / "sweep.yaml").write_text("name: x\nsettings: {suite: quickstart}\nmethods:\n  inc-lora:\n  l2:\n")
    assert [cell.config.method_name for cell in cells(load_sweep(tmp_path / "sweep.yaml"))] == ["inc-lora", "l2"]


def rows(**sweep):
    """Row -> configuration, of a sweep with a run a row."""
    return {cell.method: cell.config for cell in cells(SweepConfig(name="x", **sweep))}


def test_a_part_for_all_rows_leaves_their_methods_alone():
    found = rows(
        settings={"suite": "quickstart", "method.init": {"kind": "loram"}},
        methods={"ps-lora": {}, "renamed": {"method": "l2"}, "own": {"method": "l2", "method.init": "lora-ga"}},
    )
    assert {name: config.method["init"]["kind"] for name, config in found.items()} == {
        "ps-lora": "loram", "renamed": "loram", "own": "lora-ga"}  # fmt: skip
    assert {name: [*config.method["penalties"]] for name, config in found.items()} == {
        "ps-lora": ["sign-magnitude"], "renamed": ["l2"], "own": ["l2"]}  # fmt: skip


def test_a_rows_training_leaves_the_common_training_alone():
    settings = {"suite": "quickstart", "training": {"epochs": 9}}
    found = rows(settings=settings, methods={"l2": {"training": {"learning_rate": 1e-3}}, "inc-lora": {}})["l2"]
    assert (found.training.epochs, found.training.learning_rate) == (9, 1e-3)


def test_a_sequences_groups_leave_the_common_ones_alone():
    settings = {"suite": "quickstart", "training": {"learning_rate": 0.5}}
    found = rows(settings=settings, sequences=[{"training": {"epochs": 2}}], methods={"l2": {}})["l2"]
    assert (found.training.epochs, found.training.learning_rate) == (2, 0.5)


@pytest.mark.parametrize("own", [{"max_length": 64}, {"model": "minilm", "max_length": 64}])
def test_a_rows_backbone_without_a_model_is_of_the_common_one(own):
    found = rows(settings={"suite": "quickstart", "backbone": "minilm-l3"}, methods={"l2": {"backbone": own}})["l2"]
    assert found.backbone == {"model": own.get("model", "minilm-l3"), "max_length": 64}


def test_a_backbones_name_leaves_settings_that_were_given_without_one():
    settings = {"suite": "quickstart", "backbone": {"max_length": 64}}
    sweep = {"settings": settings, "methods": {"l2": {}, "own": {"method": "l2", "backbone": "minilm-l3"}}}
    found = rows(**sweep, sequences=[{"backbone": "minilm"}])
    assert found["l2"].backbone == {"model": "minilm", "max_length": 64}
    assert rows(**sweep)["own"].backbone == {"model": "minilm-l3", "max_length": 64}


def test_a_setting_of_a_part_given_by_its_name_leaves_it_that_part():
    row = {"method": "slice", "method.init": "slice-free", "method.init.batch_size": 4}
    found = rows(settings={"suite": "quickstart"}, methods={"row": row})["row"]
    assert found.method["init"] == {"kind": "slice-free", "batch_size": 4}


def test_a_rows_settings_are_taken_as_they_are():
    """Not written out and read again, which knows no dates and makes other letters of those beyond 16 bits."""
    task = {"name": "t", "train": "\N{SLIGHTLY SMILING FACE}.jsonl"}
    assert rows(methods={"l2": {"tasks": [task]}})["l2"].tasks[0].train == task["train"]
    with pytest.raises(ConfigError, match=r"methods\.l2: lora\.rank"):
        rows(settings={"suite": "quickstart"}, methods={"l2": {"lora.rank": datetime.date(2026, 1, 1)}})


CANNOT_RUN = [
    ({"settings": {"suite": "quickstart", "training": {"epochs": -1}}}, r"^methods\.good: training\.epochs: "),
    (
        {"methods": {"good": {"method": "l2"}, "bad": {"method": "l2", "lora.rnk": 3}}},
        r"^methods\.bad: .*'rnk'. Did you mean 'rank'",
    ),
    ({"methods": {"l2": {"training.epochs": -1, "lora.rank": 0}}}, r"^methods\.l2: .*\nmethods\.l2: "),
    (
        {"methods": {"wide": {"lora.rank": 3}}},
        r"^methods\.wide: Unknown method: 'wide'.* A row with another name needs `method:`",
    ),
    ({"settings": {"suite": "quickstar"}}, "Did you mean 'quickstart'"),
    ({"settings": {"suite": "quickstart"}, "orders": ["default", "revrsed"]}, "Did you mean 'reversed'"),
    ({"settings": {"suite": "quickstart"}, "orders": ["no,such"]}, "Unknown task of suite 'quickstart': 'no'"),
    ({"settings": {}}, r"methods\.good: nothing to learn"),
    (
        {"methods": {"bad": {"method": {"init": "nowhere:Init"}}}},
        r"methods\.bad: 'nowhere:Init' is neither",
    ),
    (
        {"methods": {"bad": {"method": "ps-lora", "method.penalties.sign-magnitude.weight": -1}}},
        r"methods\.bad: .*weight",
    ),
    ({"methods": {"bad": {"method": {"preset": "o-lora", "init": "slao"}}}}, r"methods\.bad: .*cannot be used here"),
    (
        {"methods": {"l2": {"trials": [{}, {}]}}},
        r"methods\.l2: two of its runs \(l2-default-0-\w+\) have the same settings",
    ),
]


@pytest.mark.parametrize(("change", "message"), CANNOT_RUN)
def test_what_cannot_run_is_told_before_anything_does(change, message, tmp_path, monkeypatch):
    monkeypatch.setattr(perdure.sweeps.sweep, "run_all", lambda *_: pytest.fail("begun"))
    sweep = SweepConfig(
        **{"name": "x", "settings": {"suite": "quickstart"}, "methods": {"good": {"method": "l2"}}, **change}
    )
    with pytest.raises(ConfigError, match=message):
        run_sweep(sweep, tmp_path / "out", 1, print)
    assert not (tmp_path / "out").exists()


def test_a_sweep_into_the_folder_of_a_run_or_without_processes(sweep_file, tmp_path):
    with pytest.raises(ConfigError, match="at least one process, not 0"):
        run_sweep(load_sweep(sweep_file), tmp_path / "out", 0, print)
    (tmp_path / "run.json").write_text("{}")
    with pytest.raises(StoreError, match="holds a run"):
        run_sweep(load_sweep(sweep_file), tmp_path, 1, print)


def test_files_of_tasks_are_relative_to_the_sweep(tmp_path, monkeypatch):
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "tickets.yaml").write_text("name: tickets\ntrain: tickets.jsonl\n")
    sweep = {
        "name": "x",
        "settings": {"tasks": ["sub/tickets.yaml", {"name": "own", "train": "own.csv"}]},
        "sequences": [{}, {"tasks": ["sub/tickets.yaml"]}],
        "methods": {"l2": {}, "inc-lora": {"tasks": ["sub/tickets.yaml"]}},
    }
    (tmp_path / "sweep.yaml").write_text(yaml.safe_dump(sweep))
    monkeypatch.chdir(tmp_path / "sub")
    found = [[task.train for task in cell.config.tasks] for cell in cells(load_sweep(tmp_path / "sweep.yaml"))]
    tickets, own = str(tmp_path / "sub" / "tickets.jsonl"), str(tmp_path / "own.csv")
    assert sorted(found) == [[tickets], [tickets], [tickets], [tickets, own]]


def test_file_names_of_runs_fit_on_a_disk():
    order = ",".join(f"a-task-with-a-long-name-{i}" for i in range(17))
    sweep = SweepConfig(
        name="x", settings={"suite": "quickstart"}, methods={"l2": {}}, orders=(order, order[:-1], "a/b")
    )
    ids = [cell.id for cell in cells(sweep)]
    assert len({*ids}) == 3
    assert all(len(f".partial-{one}.json") < 255 and "/" not in one for one in ids)
    assert ids[0].startswith("l2-a-task-with-a-long-name-0,a-task-with-a-long-name-1,")


@pytest.mark.slow
@pytest.mark.usefixtures("heeds_ctrl_c")
def test_ctrl_c_ends_a_sweep_that_can_be_gone_on_with(sweep_file, tmp_path):
    out, sweep = tmp_path / "out", yaml.safe_load(sweep_file.read_text())
    sweep["settings"]["training.epochs"] = (
        100  # as it stands it lasts a second, and is over before a busy machine interrupts it
    )
    sweep_file.write_text(yaml.safe_dump(sweep))
    command = [sys.executable, "-m", "perdure", "sweep", str(sweep_file), "--out", str(out)]
    sweep = subprocess.Popen(command, start_new_session=True, stdout=subprocess.PIPE, text=True)
    while not [*out.glob("runs/*/stages/*")]:
        time.sleep(0.05)
    workers = psutil.Process(sweep.pid).children(recursive=True)
    os.killpg(sweep.pid, signal.SIGINT)
    told, _ = sweep.communicate()
    assert sweep.returncode == 130
    assert "stopped; run the sweep again to continue" in told
    assert "[6/6]" not in told
    assert not psutil.wait_procs(workers, timeout=600)[1]
    assert not (out / "failed").exists()
    assert len(run_sweep(load_sweep(sweep_file), out, 2, lambda _: None)) == 4


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
