"""What SLICE's start costs: time against plain forward and backward, and memory of the gradients it keeps.

    python benchmarks/slice_init/run.py [--sizes minilm smollm2] [--targets default all] [--rounds 3] [--out record.json]
    python benchmarks/slice_init/run.py --memory [--out memory.json]
    make tables

Time: the whole of `Slice.start` for the second task (8 batches of the new task, 8 of the replay buffer, 16 examples of 48 tokens
each; surgery, randomised SVD, rescale) in both storages, against plain forward and backward over the same 16 batches with the
full gradients of the same target weights accumulated in `.grad`. Models are randomly initialised at the named model's sizes.
Every variant runs in every round; a ratio is the median over rounds of a variant's time over the plain one's in that round. Times
are CPU seconds of this process on one thread, so that other work on the machine hardly counts.

Memory: gradients of LLaMA-2-7B's layer shapes handed over one at a time, two accumulators (new and old task), rank 8; the rise of
the process's resident peak above what one gradient takes, in a fresh process for each storage, and the same from the formula
for all 224 modules.
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import BertConfig, BertModel, LlamaConfig, LlamaForCausalLM

from perdure.backbones.base import Batch, Outputs, Prediction
from perdure.config.lora_settings import LoraSettings
from perdure.methods.contract.past import Past
from perdure.methods.measured.full_gradients import DenseGradients, FullGradients, SketchedGradients, Sketcher
from perdure.methods.slice import Slice
from perdure.tasks.task import Example, Stage, Task
from perdure.training.context import StageContext
from perdure.training.lora import AdaptedModel

EXAMPLES, TOKENS, VOCABULARY, RANK = 128, 48, 1000, 8
ALL = {
    "minilm": ("query", "key", "value", "dense"),
    "smollm2": ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"),
}
DEFAULT = {"minilm": ("query", "value"), "smollm2": ("q_proj", "v_proj")}
LLAMA_2_7B = [(4096, 4096)] * 4 + [(11008, 4096)] * 2 + [(4096, 11008)]
"""Shapes [O, I] of one layer's linear modules; there are 32 layers."""


class SizedModel:
    """A randomly initialised model of a known size behind the `Backbone` protocol; a text is a seed of token ids."""

    def __init__(self, size: str, layers: int | None) -> None:
        torch.manual_seed(0)
        self.causal = size == "smollm2"
        config = smollm2() if self.causal else minilm()
        config.num_hidden_layers = layers or config.num_hidden_layers
        self.model: nn.Module = (
            LlamaForCausalLM(config) if isinstance(config, LlamaConfig) else BertModel(config, add_pooling_layer=False)
        )
        self.model.eval()
        self.precision: Literal["fp32", "bf16"] = "fp32"
        self.default_targets = DEFAULT[size]

    def prepare(self, tasks: Iterable[Task]) -> None:
        pass

    def collate(self, examples: Sequence[Example]) -> Batch:
        ids = torch.stack([tokens(int(e.text)) for e in examples])
        return Batch(
            examples,
            {"input_ids": ids},
            len(examples),
            extra={"target": torch.tensor([int(e.label) for e in examples])},
        )

    def features(self, batch: Batch) -> Any:
        return self.model(**batch.inputs)

    def forward(self, batch: Batch) -> Outputs:
        if self.causal:
            return Outputs(self.model(**batch.inputs, labels=batch.inputs["input_ids"]).loss)
        pooled = self.features(batch).last_hidden_state.mean(dim=1)
        return Outputs(nn.functional.cross_entropy(pooled[:, :8], batch.extra["target"]))

    def scores(self, batch: Batch, outputs: Outputs | None, task: str) -> Tensor:
        raise NotImplementedError

    def length(self, example: Example) -> int:
        return TOKENS

    def predict(self, examples: Sequence[Example], labels: Sequence[str]) -> list[Prediction]:
        raise NotImplementedError

    def save(self, folder: Path, state_dict: dict[str, Tensor]) -> None:
        raise NotImplementedError


def minilm() -> BertConfig:
    """all-MiniLM-L6-v2 with a small vocabulary (embeddings are no targets)."""
    return BertConfig(
        vocab_size=VOCABULARY,
        hidden_size=384,
        num_hidden_layers=6,
        num_attention_heads=12,
        intermediate_size=1536,
        attn_implementation="eager",
    )


def smollm2() -> LlamaConfig:
    """SmolLM2-135M with a small vocabulary."""
    return LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=576,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        intermediate_size=1536,
        tie_word_embeddings=True,
    )


def tokens(seed: int) -> Tensor:
    return torch.randint(VOCABULARY, (TOKENS,), generator=torch.Generator().manual_seed(seed))


def task(index: int) -> Task:
    rows = [Example(str(10_000 * index + i), str(i % 8), f"task{index}") for i in range(EXAMPLES)]
    return Task(f"task{index}", rows, test=rows[:1], labels={str(i): "" for i in range(8)})


def plain(ctx: StageContext, backbone: SizedModel) -> None:
    """Forward and backward over the same 16 batches, full gradients of the same weights left in `.grad`."""
    weights = [module.base for module in ctx.model.modules.values()]
    for weight in weights:
        weight.requires_grad_(True)
    examples = [*ctx.stage.train, *ctx.buffer["task0"]]
    for start in range(0, len(examples), 16):
        backbone.forward(backbone.collate(examples[start : start + 16])).loss.backward()
    for weight in weights:
        weight.requires_grad_(False)
        weight.grad = None


def time_size(size: str, targets: tuple[str, ...], rounds: int, layers: int | None) -> dict[str, Any]:
    """Seconds of every variant in every round, and the ratios to plain."""
    backbone = SizedModel(size, layers)
    model = AdaptedModel(backbone.model, LoraSettings(rank=RANK, targets=targets), backbone.default_targets)
    tasks = (task(0), task(1))
    past = Past(stages=("task0",))
    stage = Stage("task1", (tasks[1],))
    ctx = StageContext(stage, 1, past, {"task0": tasks[0].train}, model, backbone, {t.name: t for t in tasks}, seed=0)
    variants: dict[str, Callable[[], object]] = {
        "plain": lambda: plain(ctx, backbone),
        "slice dense": lambda: Slice().start(ctx),
        "slice sketched": lambda: Slice(storage="sketched").start(ctx),
    }
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    backbone.forward(backbone.collate(tasks[0].train[:16]))  # warm-up
    for _ in range(rounds):
        for name, variant in variants.items():
            started = time.process_time()
            variant()
            seconds[name].append(time.process_time() - started)
    ratios = {
        name: statistics.median(t / p for t, p in zip(times, seconds["plain"], strict=True))
        for name, times in seconds.items()
    }
    about = {"size": size, "targets": targets, "modules": len(model.modules), "layers": layers or "all"}
    return {**about, "seconds": seconds, "ratios": ratios}


def peak() -> int:
    """Resident peak of this process in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def measure_memory(storage: str) -> dict[str, float]:
    """Rise of the resident peak by two accumulators over one LLaMA-2-7B layer's seven gradients (two batches each)."""

    def generator(purpose: str) -> torch.Generator:
        return torch.Generator().manual_seed(len(purpose))

    sketcher = Sketcher(4 * RANK, 1 << 16, generator)
    new, old = (DenseGradients(generator) if storage == "dense" else SketchedGradients(sketcher) for _ in range(2))
    grad = torch.randn(max(o * i for o, i in LLAMA_2_7B))
    before = peak()
    started = time.process_time()
    add_all(new, grad)
    seconds = time.process_time() - started
    add_all(old, grad)
    return {"rise_mb": (peak() - before) / 1e6, "seconds_per_layer_and_batch": seconds / 2}


def add_all(into: FullGradients, grad: Tensor) -> None:
    for _ in range(2):
        for number, (o, i) in enumerate(LLAMA_2_7B):
            into.add(str(number), grad[: o * i].view(o, i), 0.5)


def formula(width: int, buckets: int) -> dict[str, float]:
    """Gigabytes of both accumulators for all 32 layers."""
    dense = sum(o * i for o, i in LLAMA_2_7B)
    sketched = sum((o + i) * width + (2 * width + 1) ** 2 + buckets for o, i in LLAMA_2_7B)
    return {"dense_gb": 2 * 32 * 4 * dense / 1e9, "sketched_gb": 2 * 32 * 4 * sketched / 1e9}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", nargs="+", default=["minilm", "smollm2"])
    parser.add_argument("--targets", nargs="+", choices=["default", "all"], default=["default"])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--layers", type=int, help="fewer layers than the model has: cost and ratio are the same in each"
    )
    parser.add_argument("--memory", action="store_true")
    parser.add_argument("--storage", choices=["dense", "sketched"], help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.storage:
        print(json.dumps(measure_memory(options.storage)))
        return
    about = {"torch": torch.__version__, "threads": torch.get_num_threads(), "machine": platform.machine()}
    if options.memory:
        command = [sys.executable, __file__, "--storage"]
        measured = {
            storage: json.loads(subprocess.run([*command, storage], check=True, capture_output=True).stdout)
            for storage in ("dense", "sketched")
        }
        record = {**about, "one layer": measured, "all layers": formula(4 * RANK, 1 << 16)}
    else:
        sets = {"default": DEFAULT, "all": ALL}
        runs = [
            time_size(size, sets[which][size], options.rounds, options.layers)
            for size in options.sizes
            for which in options.targets
        ]
        record = {**about, "runs": runs}
        for run in runs:
            print(run["size"], run["targets"], {name: round(ratio, 2) for name, ratio in run["ratios"].items()})
    text = json.dumps(record, indent=1)
    print(text)
    if options.out:
        options.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
