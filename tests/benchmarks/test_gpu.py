"""`make gpu` runs without a GPU too, at tiny shapes, so that it does not fail on one for a triviality."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]


def run(out: Path, *more: str) -> dict:
    command = [sys.executable, "benchmarks/gpu/run.py", "--out", str(out), "--tiny", *more]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads((out / "summary.json").read_text())


@pytest.mark.slow
def test_every_part_measures_something_on_a_cpu(tmp_path: Path) -> None:
    summary = run(tmp_path, "--device", "cpu", "--seconds", "3000")
    assert {part: found["ended"] for part, found in summary["parts"].items()} == dict.fromkeys(
        ("about", "contract", "kill", "precision", "shard", "speed"), "done"
    )
    found = {path.stem: json.loads(path.read_text()) for path in tmp_path.glob("*.json")}
    for part in summary["parts"]:
        broken = {name: value for name, value in found[part].items() if isinstance(value, dict) and "error" in value}
        assert not broken, broken
    assert found["contract"]["perdure"] == {"same seed": "equal", "resumed": "equal"}
    assert found["kill"]["perdure"] == {"stages when killed": ["task0"], "resumed": "equal"}
    assert found["precision"]["bf16"]["last losses"] == pytest.approx(
        found["precision"]["fp32"]["last losses"], rel=0.1
    )
    assert found["shard"]["perdure"]["processes"] == 2
    assert found["shard"]["perdure"]["farthest weight"] < 1e-3
    assert found["speed"]["Llama, tiny: perdure"]["step"] > 0
    assert found["speed"]["Llama, tiny: Trainer and PEFT"]["step"] > 0
    assert found["speed"]["Llama, tiny, init slice"]["between"] > 0


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so(tmp_path: Path) -> None:
    run(tmp_path, "--parts", "kill")
    assert json.loads((tmp_path / "kill.json").read_text())["skipped"] == "torch finds no CUDA device here"


def test_what_was_measured_is_kept_when_the_time_is_up(tmp_path: Path) -> None:
    from benchmarks.gpu.parts import Record

    record = Record(tmp_path / "part.json")
    record.add("first", lambda: 1)
    record.add("second", lambda: 1 / 0)
    record.add("third", lambda: 3)
    found = json.loads((tmp_path / "part.json").read_text())
    assert (found["first"], found["third"]) == (1, 3)
    assert found["second"]["error"] == "ZeroDivisionError: division by zero"
