"""Whole runs on a language model against a plain script: CPU seconds of both, and accuracy of both.

    PERDURE_CL_BENCHMARK=PATH/CL_Benchmark python benchmarks/language_run/run.py [--train 64 --test 24 --asked 100 --seeds 3]
    (two minutes: --tasks 2 --train 8 --test 8 --asked 8 --seeds 1 --out /tmp/small.json)
    make tables

SmolLM2-135M in fp32 on one thread, LoRA r 8 on query and value, one epoch in batches of 8; one adapter goes from task to task.
Every task is scored before the first and after every task. Ours: the preset `seq-lora`, training rows packed, answers by ranking
the labels. The script: transformers' Trainer with PEFT on the same token ids, answers by greedy generation in batches of 16,
compared as text. What both know at the end is asked again, outside the time, with `--asked` test examples a task. A seed draws
other training examples, another adapter and another order.

Times are CPU seconds, so that other work on the machine counts less. What is in the record is not measured again.
"""

from __future__ import annotations

import argparse
import json
import platform
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, Trainer, TrainingArguments

from perdure.backbones.causal import CausalLM, CausalSettings
from perdure.backbones.models import model_folder
from perdure.backbones.text_metrics import normalise
from perdure.backbones.tokens import padded
from perdure.commands.learn import run_config
from perdure.config.run_config import load_config
from perdure.state.record import load_deployed
from perdure.state.reopen import reopened_model
from perdure.state.store import Store
from perdure.tasks.suites import load_suite
from perdure.tasks.task import Example, Task
from perdure.training.evaluation import answer

MODEL, BATCH, ANSWERED, RATE, LONGEST = "smollm2-135m", 8, 16, 1e-3, 10
HERE = Path(__file__).parent
BACKBONE = {"model": MODEL, "chat": False, "max_new_tokens": LONGEST}


class Clock:
    """CPU seconds of answering, and of everything."""

    def __init__(self) -> None:
        self.answering = 0.0
        self.started = time.process_time()

    def timed(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """`function`, whose time counts as answering."""

        def called(*args: Any, **kwargs: Any) -> Any:
            started = time.process_time()
            try:
                return function(*args, **kwargs)
            finally:
                self.answering += time.process_time() - started

        return called

    def seconds(self) -> dict[str, float]:
        """What was measured."""
        whole = time.process_time() - self.started
        return {"all": whole, "answering": self.answering, "the rest": whole - self.answering}


def ours(tasks: Sequence[Task], more: Sequence[Task], seed: int) -> dict[str, Any]:
    """One run with perdure, what it scored at the end, and the accuracy on `more`."""
    clock, predict = Clock(), CausalLM.predict
    CausalLM.predict = clock.timed(predict)  # type: ignore[method-assign]
    settings = {
        "method": "seq-lora",
        "backbone": {**BACKBONE, "packing": True},
        "training": {"epochs": 1, "batch_size": BATCH, "learning_rate": RATE},
        "precision": "fp32",
        "threads": 1,
        "seed": seed,
    }
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        try:
            scores = run_config(load_config(settings), run, tasks=tasks)
        finally:
            CausalLM.predict = predict  # type: ignore[method-assign]
        seconds = clock.seconds()
        known = after(run, more)
    return {"seconds": seconds, "scores": dict(zip(scores.tasks, scores.score_matrix[-1], strict=True)), "asked": known}


def after(run: Path, tasks: Sequence[Task]) -> dict[str, float]:
    """Accuracy of a finished run's model."""
    store = Store(run)
    model, backbone = reopened_model(store)
    backbone.prepare(tasks)
    deployed, shares = load_deployed(store), {}
    for task in tasks:
        answers = answer(model, backbone, deployed, task.test, [task.name])
        shares[task.name] = sum(a.label == e.label for a, e in zip(answers, task.test, strict=True)) / len(task.test)
    return shares


def script(tasks: Sequence[Task], more: Sequence[Task], seed: int) -> dict[str, Any]:
    """The same by hand."""
    clock = Clock()
    transformers.set_seed(seed)
    backbone = CausalLM.load(CausalSettings(**BACKBONE))  # its tokenizer and prompts alone
    tokenizer, form = backbone.tokenizer, backbone.format
    base = AutoModelForCausalLM.from_pretrained(model_folder(MODEL))
    model = get_peft_model(base, LoraConfig(r=8, lora_alpha=16, target_modules=["q_proj", "v_proj"]))

    def prompt(task: Task, example: Example) -> list[int]:
        ids = form.prompt(task.prompt(example.text))
        half = backbone.settings.max_length // 2
        return ids if len(ids) <= 2 * half else [*ids[:half], *ids[-half:]]

    def row(task: Task, example: Example) -> dict[str, list[int]]:
        asked, answer = prompt(task, example), form.completion(task.labels[example.label])
        return {"input_ids": asked + answer, "labels": [-100] * len(asked) + answer}

    def collate(rows: list[dict[str, list[int]]]) -> dict[str, torch.Tensor]:
        ids, real = padded([r["input_ids"] for r in rows], tokenizer.pad_token_id)  # type: ignore[arg-type]
        labels, _ = padded([r["labels"] for r in rows], -100)
        return {"input_ids": ids, "attention_mask": real.long(), "labels": labels}

    def accuracy(task: Task) -> float:
        model.eval()
        right, examples = 0, sorted(task.test, key=lambda e: -len(prompt(task, e)))
        for start in range(0, len(examples), ANSWERED):
            chosen = examples[start : start + ANSWERED]
            ids, real = padded([prompt(task, e) for e in chosen], tokenizer.pad_token_id, "left")  # type: ignore[arg-type]
            with torch.inference_mode():
                written = model.generate(
                    input_ids=ids, attention_mask=real.long(), max_new_tokens=LONGEST, do_sample=False,
                    pad_token_id=tokenizer.pad_token_id, eos_token_id=tokenizer.eos_token_id,
                )  # fmt: skip
            texts = tokenizer.batch_decode(written[:, ids.shape[1] :], skip_special_tokens=True)
            pairs = zip(texts, chosen, strict=True)
            right += sum(normalise(str(text)) == normalise(task.labels[e.label]) for text, e in pairs)
        return right / len(task.test)

    scored = clock.timed(lambda: {task.name: accuracy(task) for task in tasks})
    scores = scored()
    for task in tasks:
        with tempfile.TemporaryDirectory() as folder:
            arguments = TrainingArguments(
                folder, per_device_train_batch_size=BATCH, num_train_epochs=1, learning_rate=RATE, weight_decay=0.0, seed=seed,
                lr_scheduler_type="constant", save_strategy="no", report_to=[], use_cpu=True, disable_tqdm=True,
                logging_strategy="no", remove_unused_columns=False,
            )  # fmt: skip
            rows: Any = [row(task, e) for e in task.train]
            Trainer(model, arguments, data_collator=collate, train_dataset=rows).train()
        scores = scored()
    seconds = clock.seconds()
    return {"seconds": seconds, "scores": scores, "asked": {task.name: accuracy(task) for task in more}}


def measure(way: str, seed: int, count: int, train: int, test: int, asked: int) -> dict[str, Any]:
    """One run of one way."""
    tasks, more = (
        load_suite("standard-cl", train=train, validation=0, test=size, seed=seed).tasks[:count]
        for size in (test, asked)
    )
    answers = (count + 1) * sum(len(task.test) for task in tasks)
    run = {"perdure": ours, "script": script}[way](tasks, more, seed)
    return {"way": way, "seed": seed, "answers": answers, "examples": {t.name: len(t.test) for t in more}, **run}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", type=int, default=4)
    parser.add_argument("--train", type=int, default=64)
    parser.add_argument("--test", type=int, default=24)
    parser.add_argument("--asked", type=int, default=100)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=HERE / "record.json")
    args = parser.parse_args()
    torch.set_num_threads(1)
    transformers.utils.logging.set_verbosity_error()
    about = {"torch": torch.__version__, "transformers": transformers.__version__, "machine": platform.machine()}
    sizes = {"tasks": args.tasks, "train": args.train, "test": args.test, "asked": args.asked}
    record = json.loads(args.out.read_text()) if args.out.is_file() else {**about, **sizes, "runs": []}
    if any(record[name] != size for name, size in sizes.items()):
        parser.error(f"{args.out} holds runs of other sizes: give another --out, or remove it")
    done = {(run["way"], run["seed"]) for run in record["runs"]}
    for seed in range(args.seeds):
        for way in ("perdure", "script"):
            if (way, seed) in done:
                continue
            run = measure(way, seed, args.tasks, args.train, args.test, args.asked)
            record["runs"].append(run)
            args.out.write_text(json.dumps(record, indent=1) + "\n")
            print(way, seed, {part: round(s, 1) for part, s in run["seconds"].items()}, run["asked"], flush=True)
    print(f"wrote {args.out}; `make tables` puts it into README.md")


if __name__ == "__main__":
    main()
