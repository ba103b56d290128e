"""Whole runs on the two-layer net: every method with memory or replay, killed and resumed, ends in the same bits."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from perdure.backbones.base import Batch, Outputs
from perdure.methods.a_gem import AGem
from perdure.methods.contract.parts import Method
from perdure.methods.contract.past import Past, PerTask
from perdure.methods.inf_lora import InfLora
from perdure.methods.lora_ga import LoraGa
from perdure.methods.loram import Loram
from perdure.methods.lwf import LwF
from perdure.methods.plain import Kaiming, Sum
from perdure.methods.ps_lora import MaxMagnitude, SignMagnitude
from perdure.methods.replay import ExampleBuffer
from perdure.methods.slao import SlaoMerge, SlaoStart
from perdure.methods.slice import Slice
from perdure.methods.slice_free import SliceFree
from perdure.ops.lowrank import dense
from perdure.state.store import Store
from tests.methods.two_layers import RESUMED, Toy, killed_and_resumed, learn_toy, toy_tasks

SMALL = {"batches": 3, "batch_size": 8}
METHODS: dict[str, Callable[[], Method]] = {
    "slice": lambda: Method("slice", Slice(**SMALL), Sum(), replay=ExampleBuffer(use="init-only", per_task=16)),
    "slice+ps-lora": lambda: Method(
        "slice+ps-lora",
        Slice(**SMALL, storage="sketched"),
        MaxMagnitude(),
        penalties={"sign-magnitude": SignMagnitude(weight=0.01, alpha=100.0)},
        replay=ExampleBuffer(per_task=16),
    ),
    "slice-gradvac": lambda: Method(
        "slice-gradvac",
        Slice(**SMALL, operator="gradvac", scope="per-module"),
        Sum(),
        replay=ExampleBuffer(in_all=24, choose="reservoir"),
    ),
    "slice-free": lambda: Method("slice-free", SliceFree(**SMALL), Sum()),
    "lora-ga": lambda: Method("lora-ga", LoraGa(**SMALL), Sum()),
    "loram": lambda: Method("loram", Loram(), Sum()),
    "slao": lambda: Method("slao", SlaoStart(), SlaoMerge()),
    "inf-lora": lambda: Method("inf-lora", InfLora(threshold=0.5, threshold_end=0.5), Sum()),
    "a-gem": lambda: Method(
        "a-gem", Kaiming(), Sum(), step_rule=AGem(batch_size=8), replay=ExampleBuffer(use="init-only", per_task=16)
    ),
    "lwf": lambda: Method("lwf", Kaiming(), Sum(), penalties={"lwf": LwF(weight=1.0)}),
    "replay": lambda: Method("replay", Kaiming(), Sum(), replay=ExampleBuffer(per_task=16)),
}


def same_bits(one: Past, other: Past) -> bool:
    assert not isinstance(one.deployed, PerTask)
    assert not isinstance(other.deployed, PerTask)
    assert one.stages == other.stages
    pairs = [(dense(one.deployed[m]), dense(other.deployed[m])) for m in one.deployed]
    pairs += [(one.factors[m].A, other.factors[m].A) for m in one.factors]
    pairs += [(one.factors[m].B, other.factors[m].B) for m in one.factors]
    return len(pairs) == 6 and all(torch.equal(a, b) for a, b in pairs)


@RESUMED
@pytest.mark.parametrize("name", METHODS)
def test_killed_and_resumed_gives_the_same_bits(name: str, minutes: float | None, tmp_path: Path) -> None:
    tasks = toy_tasks()
    whole = learn_toy(METHODS[name](), tmp_path / "whole", tasks)
    killed_and_resumed(METHODS[name], tmp_path / "killed", tasks, minutes)
    resumed = learn_toy(METHODS[name](), tmp_path / "killed", tasks)
    assert same_bits(whole, resumed)
    assert any(dense(delta).abs().max() > 1e-3 for delta in whole.deployed.values())  # type: ignore[union-attr]


@pytest.mark.parametrize("name", METHODS)
def test_it_learns(name: str, tmp_path: Path) -> None:
    """Every method at least changes what its first task needs: training accuracy of one task rises above chance."""
    learn_toy(METHODS[name](), tmp_path, toy_tasks(1), epochs=20)
    scores = json.loads((Store(tmp_path).stage_folder(1) / "scores.json").read_text())
    assert scores["task0"]["score"] >= 0.7


@pytest.mark.parametrize("storage", ["dense", "sketched"])
def test_killed_during_the_gradient_pass(storage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed at the 4th of the second task's 5 gradient batches (the 1st of the replayed ones), then resumed."""

    def method() -> Method:
        init = Slice(**SMALL, storage=storage)  # type: ignore[arg-type]
        return Method("slice", init, Sum(), replay=ExampleBuffer(use="init-only", per_task=16))

    tasks, forward, passes = toy_tasks(2), Toy.forward, 0
    whole = learn_toy(method(), tmp_path / "whole", tasks)

    def killed(toy: Toy, batch: Batch) -> Outputs:
        nonlocal passes
        passes += 1
        if passes == 3 + 12 + 4:  # gradient batches and steps of the first task come before
            raise KeyboardInterrupt
        return forward(toy, batch)

    monkeypatch.setattr(Toy, "forward", killed)
    with pytest.raises(KeyboardInterrupt):
        learn_toy(method(), tmp_path / "killed", tasks)
    assert Store(tmp_path / "killed").stages() == ["task0"]
    monkeypatch.setattr(Toy, "forward", forward)
    assert same_bits(whole, learn_toy(method(), tmp_path / "killed", tasks))
