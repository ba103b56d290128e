"""Two processes give the gradient and the run of one; one of them writes; errors end both; a stopped run goes on."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from perdure.errors import PartError
from perdure.files.durable import read_json, read_lines
from perdure.state.store import Store
from tests.backbones.tiny import tiny_causal
from tests.processes.cases import STRONG, all_gradients, exact_run, trained
from tests.processes.group import last_error, together


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_causal(tmp_path_factory.mktemp("models") / "tiny-causal")


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory, model_folder: Path) -> Path:
    out = tmp_path_factory.mktemp("alone") / "run"
    exact_run(out, model_folder)
    return out


def test_the_penalty_is_at_least_half_of_the_gradient(alone):
    first = read_lines(Store(alone).stage_folder(2) / "log.jsonl")[0]
    assert first["shares"]["l2"] >= 1


SLOW = [pytest.param(*case, marks=pytest.mark.slow) for case in ((1, 2), (1, 4), (2, 1), (2, 4))]


@pytest.mark.parametrize("processes,accumulation", [(2, 2), *SLOW])
def test_processes_and_accumulation_change_nothing(processes, accumulation, alone, tmp_path, model_folder):
    out, errors = tmp_path / "run", tmp_path / "errors"

    codes = together(processes, exact_run_with, out, model_folder, accumulation, errors=errors)
    assert codes == [0] * processes, (errors / "0").read_text()

    for stage in ("fruit", "sky"):
        expected = all_gradients(alone, stage)
        assert (all_gradients(out, stage) - expected).norm() <= 1e-6 * expected.norm()
    for position in (1, 2):
        for module, pair in trained(alone, position).items():
            found = trained(out, position)[module]
            torch.testing.assert_close(found.A, pair.A, rtol=1e-9, atol=1e-11)
            torch.testing.assert_close(found.B, pair.B, rtol=1e-9, atol=1e-11)
        logs = [read_lines(Store(run).stage_folder(position) / "log.jsonl") for run in (alone, out)]
        assert [row["loss"] for row in logs[1]] == pytest.approx([row["loss"] for row in logs[0]], rel=1e-9)
    assert Store(out).about["processes"] == processes


def exact_run_with(out: Path, model: Path, accumulation: int) -> None:
    exact_run(out, model, accumulation=accumulation)


def fails_on_the_other(out: Path, model: Path) -> None:
    rule = {"kind": "tests.processes.cases:FailsOn", "rank": 1, "stage": "sky"}
    exact_run(out, model, {**STRONG, "step_rule": rule})


def fails_nowhere(out: Path, model: Path) -> None:
    import tests.processes.cases

    tests.processes.cases.FailsOn.gradients = lambda self, ctx, grads: grads  # type: ignore[method-assign]
    fails_on_the_other(out, model)


def test_an_error_on_one_process_ends_both_and_finished_tasks_are_kept(tmp_path, model_folder):
    errors = tmp_path / "errors"
    assert together(2, fails_on_the_other, tmp_path / "run", model_folder, errors=errors) == [1, PartError.exit_code]
    assert "RuntimeError: struck by lightning" in last_error(errors, 1)
    assert "closed" in last_error(errors, 0) or "reset" in last_error(errors, 0)  # the connection
    assert Store(tmp_path / "run").stages() == ["fruit"]


BY_RANK = {"preset": "inc-lora", "init": {"kind": "tests.processes.cases:StartsByRank"}}


def starts_by_rank(out: Path, model: Path) -> None:
    exact_run(out, model, BY_RANK, count=1)


def test_all_start_where_the_main_process_does(tmp_path, model_folder):
    errors = tmp_path / "errors"
    assert together(2, starts_by_rank, tmp_path / "two", model_folder, errors=errors) == [0, 0]
    starts_by_rank(tmp_path / "one", model_folder)
    for module, pair in trained(tmp_path / "one", 1, BY_RANK).items():
        torch.testing.assert_close(trained(tmp_path / "two", 1, BY_RANK)[module].A, pair.A, rtol=1e-9, atol=1e-11)


@pytest.mark.slow
def test_a_run_of_two_goes_on_with_two(tmp_path, model_folder):
    errors = tmp_path / "errors"
    assert together(2, fails_on_the_other, tmp_path / "run", model_folder, errors=errors) == [1, PartError.exit_code]
    assert together(1, fails_nowhere, tmp_path / "run", model_folder, errors=errors) == [6]
    assert "began with 2 processes" in last_error(errors, 0)
    for name in ("run", "whole"):
        assert together(2, fails_nowhere, tmp_path / name, model_folder, errors=errors) == [0, 0]
    assert Store(tmp_path / "run").manifest == Store(tmp_path / "whole").manifest  # to the bit


def signalled(out: Path, model: Path, rank: int) -> None:
    rule = {"kind": "tests.processes.cases:Signalled", "rank": rank, "stage": "sky"}
    exact_run(out, model, {**STRONG, "step_rule": rule})


def goes_on(out: Path, model: Path, rank: int) -> None:
    import tests.processes.cases

    tests.processes.cases.Signalled.gradients = lambda self, ctx, grads: grads  # type: ignore[method-assign]
    signalled(out, model, rank)


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_a_signal_to_one_process_ends_both_when_the_step_is_written(rank, tmp_path, model_folder):
    out, errors = tmp_path / "run", tmp_path / "errors"
    assert together(2, signalled, out, model_folder, rank, errors=errors) == [143, 143]
    assert Store(out).stages() == ["fruit"]
    assert read_json(out / "unfinished" / "manifest.json")["folder"] == "000002"
    for folder in (out, tmp_path / "whole"):
        assert together(2, goes_on, folder, model_folder, rank, errors=errors) == [0, 0], last_error(errors, 0)
    assert Store(out).manifest == Store(tmp_path / "whole").manifest  # to the bit
    assert len(read_lines(Store(out).stage_folder(2) / "log.jsonl")) == 4


def held(out: Path, model: Path) -> None:
    """Both processes: the folder is locked by a third."""
    exact_run(out, model)


def test_an_error_of_the_writer_is_everybodys(tmp_path, model_folder):
    store, errors = Store(tmp_path / "run"), tmp_path / "errors"
    with store.writing():
        assert together(2, held, store.folder, model_folder, errors=errors) == [6, 6]
    assert [last_error(errors, rank).split(":")[0] for rank in (0, 1)] == ["perdure.errors.RunBusy"] * 2


PROTECTED = {"preset": "perdure", "penalties": {"score-drift": {"weight": 1e3}}}


def protected_run(out: Path, model: Path) -> None:
    exact_run(out, model, PROTECTED, count=1, protect={"base": "self", "texts": 8, "tokens": 8})


def test_a_protected_base_is_the_same_on_both_processes(tmp_path, model_folder):
    """The main process writes the texts; the penalty of the first task, and so the adapter, are those of one process."""
    protected_run(tmp_path / "one", model_folder)
    assert together(2, protected_run, tmp_path / "two", model_folder, errors=tmp_path / "errors") == [0, 0]
    one, two = (read_lines(Store(tmp_path / name).stage_folder(1) / "log.jsonl")[-1] for name in ("one", "two"))
    assert one["penalties"]["score-drift"] > 0.1 * one["loss"]
    assert two["penalties"]["score-drift"] == pytest.approx(one["penalties"]["score-drift"], rel=1e-4)
    for module, pair in trained(tmp_path / "one", 1, PROTECTED).items():
        torch.testing.assert_close(trained(tmp_path / "two", 1, PROTECTED)[module].B, pair.B, rtol=1e-4, atol=1e-7)
