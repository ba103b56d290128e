"""`deploy.rank`: the nearest update of a rank, what that costs, and nothing else where it is not reached."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from perdure.adapters.folder import open_adapter, own_update
from perdure.cli import app
from perdure.commands import preview
from perdure.commands.export import export
from perdure.commands.grow import rollback
from perdure.methods.contract.past import PerTask
from perdure.ops.lowrank import LowRank, dense
from perdure.state.bounded import bounded
from perdure.state.rank_file import bound_in_words
from perdure.state.record import load_deployed
from perdure.state.store import Store
from perdure.tasks.task import Stage
from tests.contract.runs import bits, short_run

DIAGONAL = LowRank(torch.eye(2, 4), torch.eye(4, 2) * torch.tensor([3.0, 1.0]))
"""diag(3, 1, 0, 0): singular values 3 and 1."""
SMALL = LowRank(torch.eye(1, 4), torch.eye(4, 1) * 2.0)
"""diag(2, 0, 0, 0): of rank 1."""


@pytest.mark.parametrize("first", [DIAGONAL, dense(DIAGONAL)], ids=["factors", "dense"])
def test_the_first_directions_are_kept_by_hand(first: Any) -> None:
    """Of 9 + 1 + 4 the bound takes 1 away."""
    less = bounded({"a": first, "b": SMALL}, 1)
    assert less is not None
    assert isinstance(less.deployed, dict)
    assert torch.allclose(dense(less.deployed["a"]), torch.diag(torch.tensor([3.0, 0, 0, 0])), atol=1e-6)
    assert less.deployed["b"] is SMALL
    assert less.energy == pytest.approx(13 / 14)
    assert (less.before, less.modules) == (None if isinstance(first, torch.Tensor) else 2, 1)


def test_where_the_rank_is_not_reached_there_is_nothing_to_do() -> None:
    assert bounded({"a": DIAGONAL}, 2) is None
    assert bounded({"a": DIAGONAL}, None) is None
    assert bounded({"a": dense(DIAGONAL)}, 4) is None, "no matrix of four rows has more"


def test_one_update_a_task_is_bounded_one_by_one() -> None:
    less = bounded(PerTask({"x": {"a": DIAGONAL}, "y": {"a": SMALL}}), 1)
    assert less is not None
    assert isinstance(less.deployed, PerTask)
    assert less.deployed.updates["y"]["a"] is SMALL
    assert less.energy == pytest.approx(13 / 14)


def test_it_is_said_in_words() -> None:
    cells = {
        "news": {"examples": 100, "changed": 3, "scores": [0.815, 0.81]},
        "mail": {"examples": 50, "changed": 0, "scores": [0.5, 0.5]},
    }
    record = {"rank": 8, "before": 24, "energy": 0.971, "answers": cells}
    said = "rank 8 of 24, 97.1 % of the energy; 3 of 150 answers changed (news: 81.0 instead of 81.5)"
    assert bound_in_words(record) == said
    assert bound_in_words({**record, "before": None, "answers": None}).endswith("its answers were not compared")


def test_a_run_deploys_the_bounded_update_and_says_what_it_costs(tmp_path, small_tasks, encoder_folder):
    """Three updates of rank 2, bounded to 2: stages are the same to the bit; 6 is not reached, and all is the same."""
    runs = {rank: tmp_path / f"rank-{rank}" for rank in (None, 2, 6)}
    for rank, out in runs.items():
        short_run(out, small_tasks, encoder_folder, "inc-lora", deploy={"rank": rank})
    whole, less, same = (bits(out) for out in runs.values())
    assert whole == same
    assert whole["stages"] == less["stages"]
    assert not (runs[6] / "deployed/rank.json").exists()
    adapter = open_adapter(runs[2] / "deployed")
    assert adapter.config.rank == 2
    expected = load_deployed(Store(runs[None]))
    record = json.loads((runs[2] / "deployed/rank.json").read_text())
    assert (record["rank"], record["before"], record["modules"]) == (2, 6, len(own_update(adapter)))
    kept = total = 0.0
    for module, update in own_update(adapter).items():
        U, s, Vt = torch.linalg.svd(dense(expected[module]).double())  # type: ignore[index]
        assert torch.allclose(dense(update).double(), U[:, :2] * s[:2] @ Vt[:2], atol=1e-5)
        kept, total = kept + float(s[:2].square().sum()), total + float(s.square().sum())
    assert record["energy"] == pytest.approx(kept / total, rel=1e-4)
    assert list(record["answers"]) == [task.name for task in small_tasks]
    for task in small_tasks:
        cell = record["answers"][task.name]
        assert cell["examples"] == len(task.validation or task.test)
        assert 0 <= cell["changed"] <= cell["examples"]
    assert f"deployed: adapter of rank 2 of 6, {100 * record['energy']:.1f} % of the energy" in (
        CliRunner().invoke(app, ["show", str(runs[2])]).stdout
    )
    report = export(runs[2], tmp_path / "exported")
    assert report.rank == 2
    assert any(note.startswith("deploy.rank: rank 2 of 6") for note in report.notes)
    assert "What that costs: rank 2 of 6" in (tmp_path / "exported/README.md").read_text()
    rollback(runs[2], small_tasks[1].name, tasks=small_tasks)
    back = json.loads((runs[2] / "deployed/rank.json").read_text())
    assert (back["rank"], back["before"], back["answers"]) == (2, 4, None)


def test_a_run_says_before_that_the_rank_will_pass_what_vllm_takes() -> None:
    """Updates of rank 64 of 4096 x 4096: the ninth sum has rank 576, of an init that offsets the base the fifth."""
    module = SimpleNamespace(A=torch.empty(64, 4096), B=torch.empty(4096, 64))
    model: Any = SimpleNamespace(modules={"layer": module})

    def lines(earlier: int, init: str = "kaiming", consolidate: str = "sum", rank: int | None = None) -> list[str]:
        config: Any = SimpleNamespace(
            method={"init": {"kind": init}, "consolidate": {"kind": consolidate}},
            history=(),
            deploy=SimpleNamespace(rank=rank),
        )
        return [*preview._rank_line([Stage("new", ())], earlier, model, config)]

    assert lines(7) == []
    assert "after 9 stages the deployed adapter has rank 576, and vLLM takes 512 at most" in lines(8)[0]
    assert "after 5 stages the deployed adapter has rank 640" in lines(4, init="slice")[0]
    assert lines(8, rank=256) == lines(8, consolidate="latest") == []
    assert lines(32) == [], "such a sum is dense, and deployed as a model"
