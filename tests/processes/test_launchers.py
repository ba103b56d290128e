"""The launchers people use: accelerate's and torchrun, two processes on the CPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from perdure.state.scores import read_scores
from perdure.state.store import Store
from tests.backbones.tiny import tiny_causal
from tests.contract.runs import bits

CONFIG = """\
tasks:
  - {name: fruit, train: fruit.jsonl, test: fruit-test.jsonl}
  - {name: sky, train: sky.jsonl, test: sky-test.jsonl}
backbone: {kind: causal, model: MODEL, max_length: 32}
lora: {rank: 2}
training: {epochs: 1, batch_size: 4}
precision: fp32
threads: 1
"""


def prepare(folder: Path) -> None:
    """A configuration of two tasks, run.yaml, with what it reads."""
    for name, words in (("fruit", ("apples", "pears")), ("sky", ("sun", "moon"))):
        for file, numbers in ((name, range(5)), (f"{name}-test", range(5, 8))):
            rows = [{"text": f"{word} {n}", "label": word} for n in numbers for word in words]
            (folder / f"{file}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "run.yaml").write_text(CONFIG.replace("MODEL", str(tiny_causal(folder / "model"))))


@pytest.mark.slow
@pytest.mark.parametrize(
    "launcher",
    [["accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1", "--mixed_precision", "no",
      "--dynamo_backend", "no", "--main_process_port", "0"],
     ["torch.distributed.run", "--standalone", "--nproc-per-node", "2"]],
    ids=["accelerate", "torchrun"],
)  # fmt: skip
def test_a_run_is_launched(launcher, tmp_path):
    prepare(tmp_path)
    command = [sys.executable, "-m", *launcher, "-m", "perdure", "run", "run.yaml", "--out", "run", "method=ps-lora"]
    environment = {k: v for k, v in os.environ.items() if not k.startswith("ACCELERATE_")}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert Store(tmp_path / "run").stages() == ["fruit", "sky"]
    assert Store(tmp_path / "run").about["processes"] == 2
    assert len(read_scores(tmp_path / "run").score_matrix) == 2
    assert done.stdout.count("Deployed model:") == 1  # one of the two speaks


@pytest.mark.slow
def test_a_process_that_is_killed_ends_the_others_and_the_run_goes_on_as_if_nothing_had_been(tmp_path):
    """SIGKILL after the first task: torchrun ends the other process and names the one that died; resumed, the bits are equal."""
    prepare(tmp_path)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "perdure"]
    manifest, log = tmp_path / "run/manifest.json", tmp_path / "log"
    with log.open("w") as said:
        run = subprocess.Popen(
            [*launch, "run", "run.yaml", "--out", "run", "method=ps-lora"], cwd=tmp_path, stdout=said, stderr=said
        )
        while not (manifest.exists() and "fruit" in manifest.read_text()):
            assert run.poll() is None, log.read_text()
            time.sleep(0.01)
        psutil.Process(run.pid).children()[-1].kill()
        assert run.wait() != 0
    assert "exitcode  : -9" in log.read_text()
    assert Store(tmp_path / "run").stages() == ["fruit"]
    subprocess.run([*launch, "resume", "run"], cwd=tmp_path, check=True)
    subprocess.run([*launch, "run", "run.yaml", "--out", "whole", "method=ps-lora"], cwd=tmp_path, check=True)
    assert bits(tmp_path / "run") == bits(tmp_path / "whole")
