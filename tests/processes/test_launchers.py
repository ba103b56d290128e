"""The launchers people use: accelerate's and torchrun, two processes on the CPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from perdure.state.scores import read_scores
from perdure.state.store import Store
from tests.backbones.tiny import tiny_causal

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


@pytest.mark.slow
@pytest.mark.parametrize(
    "launcher",
    [["accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1", "--mixed_precision", "no",
      "--dynamo_backend", "no", "--main_process_port", "0"],
     ["torch.distributed.run", "--standalone", "--nproc-per-node", "2"]],
    ids=["accelerate", "torchrun"],
)  # fmt: skip
def test_a_run_is_launched(launcher, tmp_path):
    for name, words in (("fruit", ("apples", "pears")), ("sky", ("sun", "moon"))):
        for file, numbers in ((name, range(5)), (f"{name}-test", range(5, 8))):
            rows = [{"text": f"{word} {n}", "label": word} for n in numbers for word in words]
            (tmp_path / f"{file}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    model = tiny_causal(tmp_path / "model")
    (tmp_path / "run.yaml").write_text(CONFIG.replace("MODEL", str(model)))
    command = [sys.executable, "-m", *launcher, "-m", "perdure", "run", "run.yaml", "--out", "run", "method=ps-lora"]
    environment = {k: v for k, v in os.environ.items() if not k.startswith("ACCELERATE_")}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert Store(tmp_path / "run").stages() == ["fruit", "sky"]
    assert Store(tmp_path / "run").about["processes"] == 2
    assert len(read_scores(tmp_path / "run").score_matrix) == 2
    assert done.stdout.count("Deployed model:") == 1  # one of the two speaks
