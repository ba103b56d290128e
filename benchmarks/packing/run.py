"""Training steps in packed rows against padded batches sorted by length: target tokens a second, and the same gradients.

    PERDURE_CL_BENCHMARK=PATH/CL_Benchmark python benchmarks/packing/run.py [--steps 1] [--sizes 8 16]
    make tables

The fifteen sets of CL_Benchmark in O-LoRA's prompts of at most 256 tokens, SmolLM2-135M, r 8 on q,v, fp32. Batches are those of
a run: of similar lengths out of a shuffled pool. Each batch is computed both ways, forward and backward, one after the other.

Times are CPU seconds of this process on one thread, so that other work on the machine hardly counts. What is in the record is not
measured again.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from pathlib import Path
from typing import Any

import torch
import transformers

from perdure.backbones.causal import CausalLM, CausalSettings
from perdure.config.lora_settings import LoraSettings
from perdure.methods.contract.past import Past
from perdure.methods.plain import Kaiming
from perdure.tasks.suites import load_suite
from perdure.tasks.task import Example, Stage
from perdure.training.context import StageContext
from perdure.training.lora import AdaptedModel
from perdure.training.train import cut_batches

MODEL, LONGEST, POOLED = "smollm2-135m", 256, 512
HERE = Path(__file__).parent


def computed(backbone: CausalLM, model: AdaptedModel, examples: list[Example]) -> dict[str, Any]:
    """CPU seconds, positions and gradients of one batch."""
    for parameter in model.parameters():
        parameter.grad = None
    began = time.process_time()
    batch = backbone.collate(examples)
    backbone.forward(batch).loss.backward()
    seconds = time.process_time() - began
    rows = batch.extra.get("packed")
    positions = rows.ids.numel() + len(rows.trunk) if rows else batch.inputs["input_ids"].numel()
    gradients = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    return {"seconds": seconds, "positions": positions, "targets": batch.count, "gradients": gradients}


def main() -> None:
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--steps", type=int, default=1)
    arguments.add_argument("--sizes", type=int, nargs="+", default=[8, 16])
    arguments.add_argument("--out", type=Path, default=HERE / "record.json")
    asked = arguments.parse_args()
    torch.set_num_threads(1)
    tasks = load_suite("long", train=POOLED, validation=0, test=1).tasks
    padded = CausalLM.load(CausalSettings(model=MODEL, chat=False, max_length=LONGEST))
    packed = CausalLM(padded.model, padded.tokenizer, padded.settings.model_copy(update={"packing": True}))  # type: ignore[arg-type]
    for backbone in (padded, packed):
        backbone.prepare(tasks)
    model = AdaptedModel(padded.model, LoraSettings(rank=8), padded.default_targets)
    ctx = StageContext(Stage(tasks[0].name, tasks[:1]), 0, Past(), {}, model, padded, {}, seed=0)
    model.start(Kaiming().start(ctx))
    for module in model.modules.values():  # B is 0 at the start, and A would have no gradient
        torch.nn.init.normal_(module.B, std=0.01, generator=torch.Generator().manual_seed(0))
    about = {"torch": torch.__version__, "transformers": transformers.__version__, "machine": platform.machine()}
    rows = json.loads(asked.out.read_text())["rows"] if asked.out.is_file() else []
    done = {(row["task"], row["size"]) for row in rows}
    for task in tasks:
        for size in asked.sizes:
            if (task.name, size) in done:
                continue
            batches = cut_batches(task.train, size, torch.Generator().manual_seed(0), padded.length)[: asked.steps]
            for examples in batches:
                one, other = (computed(backbone, model, examples) for backbone in (padded, packed))
                off = float((one.pop("gradients") - (g := other.pop("gradients"))).norm() / g.norm())
                rows.append({"task": task.name, "size": size, "padded": one, "packed": other, "off": off})
            asked.out.write_text(json.dumps({**about, "longest": LONGEST, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
