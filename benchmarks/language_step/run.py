"""A training step of SmolLM2-135M, and ranking labels, against plain transformers + PEFT.

    python benchmarks/language_step/run.py [--steps 50] [--out benchmarks/language_step/record.json]
    make tables

Step: 8 examples of 64 tokens, r 8 on q,v, AdamW, clipping; `perdure.training.train.train` in fp32 and in bf16 against
`transformers.Trainer` with PEFT in fp32, from the same factors on the same batches. The loss curves are compared over the
last ten steps. Ranking: 8 prompts of 128 tokens under the 14 dbpedia labels against one forward pass over the prompts.

Times are CPU seconds of this process on one thread, so that other work on the machine hardly counts.
"""

from __future__ import annotations

import argparse
import itertools
import json
import platform
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
import transformers
from peft import LoraConfig, get_peft_model, set_peft_model_state_dict
from torch import Tensor
from torch.utils.data import SequentialSampler
from transformers import AutoModelForCausalLM, Trainer, TrainerCallback, TrainingArguments

from perdure.backbones.base import Batch
from perdure.backbones.causal import CausalLM, CausalSettings
from perdure.backbones.models import model_folder
from perdure.backbones.pretrained import answering
from perdure.backbones.ranking import logits_at
from perdure.config.lora_settings import LoraSettings
from perdure.config.run_config import TrainingSettings
from perdure.methods.contract.parts import Method
from perdure.methods.contract.past import Past
from perdure.methods.plain import Kaiming, Sum
from perdure.ops.factors import Factors
from perdure.tasks.suites import load_suite
from perdure.tasks.task import Stage, Task
from perdure.training.context import StageContext
from perdure.training.lora import AdaptedModel
from perdure.training.train import Checkpoints, Step, train

MODEL, SIZE, TOKENS, RANK, ALPHA, RATE = "smollm2-135m", 8, 64, 8, 16, 1e-3
DBPEDIA = (
    "Company", "Educational Institution", "Artist", "Athlete", "Office Holder", "Mean of Transportation", "Building",
    "Natural Place", "Village", "Animal", "Plant", "Album", "Film", "Written Work",
)  # fmt: skip
HERE = Path(__file__).parent


class Unwritten(Checkpoints):
    """Training that is not written down."""


def reviews(backbone: CausalLM, steps: int) -> Task:
    """Amazon reviews run together and cut so that prompt and answer are 64 tokens."""
    amazon = load_suite("quickstart", train=None, validation=0, test=1).tasks[0]
    rows: list[tuple[str, str]] = []
    words: list[str] = []
    for example in amazon.train * 10:
        words += example.text.split()
        ids = backbone.format.prompt(" ".join(words))
        if len(ids) >= TOKENS:
            text = str(backbone.tokenizer.decode(ids[: TOKENS - 3]))
            rows.append((text, example.label))
            words = []
        if len(rows) == steps * SIZE:
            break
    return Task("amazon", rows, test=rows[:1], labels=amazon.labels)


def ours(precision: Literal["fp32", "bf16"], steps: int) -> dict[str, Any]:
    """Seconds and losses of every step, the batches and the factors they started from."""
    backbone = CausalLM.load(CausalSettings(model=MODEL, chat=False, max_length=TOKENS))
    task = reviews(backbone, steps)
    backbone.prepare([task])
    backbone.precision = precision
    model = AdaptedModel(backbone.model, LoraSettings(rank=RANK, alpha=ALPHA), backbone.default_targets)
    ctx = StageContext(Stage("amazon", (task,)), 0, Past(), {}, model, backbone, {task.name: task}, seed=0)
    start = Kaiming().start(ctx)
    model.start(start)
    batches: list[Batch] = []
    collate = backbone.collate

    def kept(examples: Any) -> Batch:
        batches.append(collate(examples))
        return batches[-1]

    backbone.collate = kept  # type: ignore[method-assign]
    clock, losses = [time.process_time()], []

    def report(step: Step, _total: int) -> None:
        clock.append(time.process_time())
        losses.append(step.loss)

    settings = TrainingSettings(learning_rate=RATE, epochs=1, batch_size=SIZE)
    train(model, backbone, Method("inc-lora", Kaiming(), Sum()), ctx, settings, report, Unwritten())
    return {"seconds": differences(clock), "losses": losses, "batches": batches, "factors": start.factors}


def plain(batches: Sequence[Batch], factors: dict[str, Factors]) -> dict[str, Any]:
    """The same with transformers' Trainer and PEFT."""
    config = LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=["q_proj", "v_proj"])
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(model_folder(MODEL)), config)
    state = {f"base_model.model.{n}.lora_A.weight": pair.A for n, pair in factors.items()}
    state |= {f"base_model.model.{n}.lora_B.weight": pair.B for n, pair in factors.items()}
    set_peft_model_state_dict(model, state)
    rows = [
        {"input_ids": ids, "attention_mask": mask, "labels": ids.masked_fill(~targets, -100)}
        for b in batches
        for ids, mask, targets in zip(
            b.inputs["input_ids"], b.inputs["attention_mask"], b.extra["predicting"].roll(1, dims=1), strict=True
        )
    ]
    clock, losses = [], []

    class Watch(TrainerCallback):
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            clock.append(time.process_time())

        def on_log(self, *_: Any, logs: dict[str, Any], **__: Any) -> None:
            if "loss" in logs:
                losses.append(logs["loss"])

    class InOrder(Trainer):
        def _get_train_sampler(self, *_: Any) -> SequentialSampler:
            return SequentialSampler(rows)

    def collate(chosen: list[dict[str, Tensor]]) -> dict[str, Tensor]:
        width = max(len(row["input_ids"]) for row in chosen)
        fill = {"input_ids": 0, "attention_mask": 0, "labels": -100}
        pad = torch.nn.functional.pad
        return {
            name: torch.stack([pad(row[name], (0, width - len(row[name])), value=value) for row in chosen])
            for name, value in fill.items()
        }

    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            folder, per_device_train_batch_size=SIZE, num_train_epochs=1, learning_rate=RATE, weight_decay=0.0,
            lr_scheduler_type="constant", logging_steps=1, save_strategy="no", report_to=[], use_cpu=True,
            disable_tqdm=True, max_grad_norm=1.0,
        )  # fmt: skip
        InOrder(model, arguments, data_collator=collate, train_dataset=rows, callbacks=[Watch()]).train()  # type: ignore[arg-type]
    clock.append(time.process_time())
    return {"seconds": differences(clock), "losses": losses}


def ranking(rounds: int = 5) -> dict[str, Any]:
    """Seconds of ranking 14 labels and of one forward pass over the prompts (the last position's logits)."""
    backbone = CausalLM.load(CausalSettings(model=MODEL, chat=False, max_length=128, predict_batch_size=8))
    rows = [("word " * 200 + f"{i}\nAnswer:", "Company") for i in range(8)]
    task = Task("dbpedia", rows, test=rows, labels=dict(zip(DBPEDIA, DBPEDIA, strict=True)))
    backbone.prepare([task])
    ids = torch.tensor([backbone._prompt(text) for text, _ in rows])
    last = torch.zeros(ids.shape, dtype=torch.bool)
    last[:, -1] = True
    seconds: dict[str, list[float]] = {"prompt": [], "ranking": [], "exhaustive": []}
    plainly = CausalLM(
        backbone.model, backbone.tokenizer, backbone.settings.model_copy(update={"ranking": "exhaustive"})
    )  # type: ignore[arg-type]
    plainly.prepare([task])
    backbone.predict(task.test, ["dbpedia"])  # warm-up, and the check that packing is right
    for index in range(rounds):
        started = time.process_time()
        with answering(backbone.model):
            logits_at(backbone.model, last, input_ids=ids)
        seconds["prompt"].append(time.process_time() - started)
        for name, one in (("ranking", backbone), ("exhaustive", plainly)):
            if name == "exhaustive" and index:
                continue  # fourteen times as long: once is enough
            started = time.process_time()
            one.predict(task.test, ["dbpedia"])
            seconds[name].append(time.process_time() - started)
    return seconds


def differences(clock: Sequence[float]) -> list[float]:
    return [after - before for before, after in itertools.pairwise(clock)]


def measure(steps: int) -> dict[str, Any]:
    found: dict[str, dict[str, Any]] = {"ours fp32": ours("fp32", steps), "ours bf16": ours("bf16", steps)}
    batches, factors = found["ours fp32"].pop("batches"), found["ours fp32"].pop("factors")
    del found["ours bf16"]["batches"], found["ours bf16"]["factors"]
    found["trainer fp32"] = plain(batches, factors)
    about = {"torch": torch.__version__, "transformers": transformers.__version__, "machine": platform.machine()}
    shapes = sorted({tuple(batch.inputs["input_ids"].shape) for batch in batches})
    return {**about, "threads": 1, "steps": steps, "shapes": shapes, "training": found, "ranking": ranking()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--out", type=Path, default=HERE / "record.json")
    args = parser.parse_args()
    torch.set_num_threads(1)
    transformers.utils.logging.set_verbosity_error()
    record = measure(args.steps)
    args.out.write_text(json.dumps(record, indent=1) + "\n")
    print(f"wrote {args.out}; `make tables` puts it into README.md")


if __name__ == "__main__":
    main()
