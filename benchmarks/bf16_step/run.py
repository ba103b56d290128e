"""A training step of MiniLM in fp32, in bf16 by torch's own kernels, and in bf16 by rounded operands (perdure.backbones.rounded).

    python benchmarks/bf16_step/run.py [--rounds 5] [--out benchmarks/bf16_step/record.json]
    make tables

Forward and backward of 16 x 48 tokens, r 8 on query and value, the three in turn in every round, on one thread. Times are
CPU seconds. Both bf16 gradients are compared with fp32's: how far they are off is bf16's doing, and should be the same.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor

from perdure.backbones.base import Batch
from perdure.backbones.encoder import Encoder, EncoderSettings
from perdure.backbones.rounded import has_fast_bf16, rounded_autocast
from perdure.config.lora_settings import LoraSettings
from perdure.methods.contract.past import Past
from perdure.methods.plain import Kaiming
from perdure.tasks.suites import load_suite
from perdure.tasks.task import Stage, Task
from perdure.training.context import StageContext
from perdure.training.lora import AdaptedModel

SIZE, TOKENS, RANK, ALPHA = 16, 48, 8, 16
HERE = Path(__file__).parent
WAYS: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    "fp32": nullcontext,
    "bf16, rounded operands": rounded_autocast,
    "bf16, torch's kernels": partial(torch.autocast, "cpu", torch.bfloat16),
}


def learner() -> tuple[AdaptedModel, Encoder, Batch]:
    """MiniLM with an adapter that has begun to learn, and a batch of the longest reviews."""
    backbone = Encoder.load(EncoderSettings(max_length=TOKENS))
    amazon = load_suite("quickstart", train=None, validation=0, test=1).tasks[0]
    backbone.prepare([amazon])
    longest = sorted(amazon.train, key=backbone.length)[-SIZE:]
    task = Task("amazon", longest, test=longest[:1], labels=amazon.labels)
    backbone.prepare([task])
    model = AdaptedModel(backbone.model, LoraSettings(rank=RANK, alpha=ALPHA), backbone.default_targets)
    ctx = StageContext(Stage("amazon", (task,)), 0, Past(), {}, model, backbone, {task.name: task}, seed=0)
    model.start(Kaiming().start(ctx))
    generator = torch.Generator().manual_seed(0)
    for pair in model.factors().values():
        pair.B.data.normal_(std=0.01, generator=generator)
    return model, backbone, backbone.collate(task.train)


def step(way: str, model: AdaptedModel, backbone: Encoder, batch: Batch) -> tuple[float, Tensor]:
    """CPU seconds of a forward and a backward pass, and the gradient, flat.

    The loss is linear in the last hidden states: what the encoder's own adds to the time is the same for all.
    """
    for parameter in model.parameters():
        parameter.grad = None
    began = time.process_time()
    with WAYS[way]():
        hidden_NLD = backbone.model(**batch.inputs).last_hidden_state
    direction = torch.randn(hidden_NLD.shape, generator=torch.Generator().manual_seed(1))
    (hidden_NLD.float() * direction).mean().backward()
    seconds = time.process_time() - began
    return seconds, torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


def measure(rounds: int) -> dict[str, Any]:
    model, backbone, batch = learner()
    seconds: dict[str, list[float]] = {way: [] for way in WAYS}
    gradients: dict[str, Tensor] = {}
    for round_number in range(-1, rounds):  # the first warms up
        for way, times in seconds.items():
            spent, gradients[way] = step(way, model, backbone, batch)
            times += [spent] if round_number >= 0 else []
    exact = gradients["fp32"]
    return {
        "torch": torch.__version__,
        "machine": f"{platform.machine()}, {torch.backends.cpu.get_cpu_capability()}",
        "bf16_instructions": has_fast_bf16(),
        "threads": 1,
        "shape": list(batch.inputs["input_ids"].shape),
        "seconds": seconds,
        "gradient_off_by": {way: float((g - exact).norm() / exact.norm()) for way, g in gradients.items()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=HERE / "record.json")
    args = parser.parse_args()
    torch.set_num_threads(1)
    transformers.utils.logging.set_verbosity_error()
    args.out.write_text(json.dumps(measure(args.rounds), indent=1) + "\n")
    print(f"wrote {args.out}; `make tables` puts it into README.md")


if __name__ == "__main__":
    main()
