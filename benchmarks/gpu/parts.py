"""The parts of benchmarks/gpu/run.py, each run as a process: python -m benchmarks.gpu.parts PART --out DIR --device cuda"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import itertools
import json
import os
import platform
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers
from benchmarks.gpu import models
from safetensors.torch import load_file
from tests.contract.runs import bits

import perdure
from perdure.methods.table import PRESETS
from perdure.training.reporter import Quiet

SIZE, TOKENS, RANK, STEPS = 8, 1024, 16, 12
PENALTIES: dict[str, dict[str, Any]] = {
    "none": {},
    "l2": {"l2": {"weight": 0.01}},
    "sign-magnitude": {"sign-magnitude": {"weight": 0.01, "alpha": 1000.0}},
    "sparsity": {"sparsity": {"weight": 1e-4}},
    "overlap": {"overlap": {"weight": 0.5}},
    "past-energy": {"past-energy": {"weight": 1000.0}},
    "fisher": {"fisher": {"weight": 100.0}},
    "output-drift": {"output-drift": {"weight": 100.0}},
    "score-drift": {"score-drift": {"weight": 10.0}},
}
INITS: dict[str, dict[str, Any]] = {
    "slice": {"init": {"kind": "slice", "batch_size": 8}, "replay": {"kind": "buffer", "use": "init-only"}},
    "lora-ga": {"init": {"kind": "lora-ga", "batch_size": 8}},
}


@dataclass
class Record:
    """What a part found, written whenever something is added."""

    path: Path
    found: dict[str, Any] = field(default_factory=dict)

    def add(self, name: str, measure: Callable[[], Any]) -> Any:
        """What `measure` gives under `name`; what it raises, as a record of that: the other measurements go on."""
        began = time.monotonic()
        try:
            value = measure()
        except Exception as error:
            why = traceback.format_exc().splitlines()[-12:]
            value = {"error": f"{type(error).__name__}: {error}"[:500], "trace": why}
        self.found[name] = value
        self.found.setdefault("seconds", {})[name] = round(time.monotonic() - began, 2)
        partial = self.path.with_suffix(".partial")
        partial.write_text(json.dumps(self.found, indent=1, default=str) + "\n")
        os.replace(partial, self.path)
        return value


class Interrupt(Quiet):
    """Ends a run at a step, as a killed process would."""

    def __init__(self, stage: str, step: int) -> None:
        self.at = (stage, step)

    def step(self, stage: str, step: Any, total: int) -> None:
        if (stage, step.step) == self.at:
            raise KeyboardInterrupt


def about(record: Record, device: str, tiny: bool) -> None:  # noqa: ARG001
    """Device and versions."""
    names = ("torch", "transformers", "peft", "accelerate", "bitsandbytes", "safetensors")

    def versions() -> dict[str, str]:
        return {name: importlib.metadata.version(name) for name in names if importlib.util.find_spec(name)}

    record.add("versions", versions)
    record.add(
        "machine", lambda: {"python": platform.python_version(), "cores": os.cpu_count(), "system": platform.platform()}
    )
    if device != "cuda":
        record.add("device", lambda: device)
        return
    record.add("device", lambda: [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())])
    record.add("memory", lambda: [round(size / 1e9, 1) for size in torch.cuda.mem_get_info()])
    record.add("cuda", lambda: {"cuda": torch.version.cuda, "cudnn": torch.backends.cudnn.version()})


def short_run(out: Path, model: Path, kind: str, method: Any, device: str, **settings: Any) -> perdure.Scores:
    """A run of two tiny tasks."""
    training = {"epochs": 1, "batch_size": 8, "learning_rate": 0.01, "checkpoint_minutes": 1e-9}
    backbone = {"kind": kind, "model": str(model), "device": device, "max_length": 64, **settings.pop("backbone", {})}
    given = {"lora": {"rank": 2, "alpha": 4}, "training": training, "precision": "fp32", "threads": 1, **settings}
    return perdure.learn(out=out, tasks=models.small_tasks(), method=method, backbone=backbone, **given)


def differing(one: Path, other: Path) -> list[str]:
    """Files of two runs that are not equal to the bit."""

    def files(run: Path) -> dict[str, str]:
        found = bits(run)
        stages = {f"{e['folder']}/{name}": digest for e in found["stages"] for name, digest in e["files"].items()}
        return stages | {f"deployed/{name}": digest for name, digest in found.get("deployed", {}).items()}

    first, second = files(one), files(other)
    return sorted(name for name in first.keys() | second.keys() if first.get(name) != second.get(name))


def contract(record: Record, device: str, tiny: bool) -> None:
    """Every preset: the same seed, the same bits; stopped inside the second task and resumed, the same bits."""
    torch.use_deterministic_algorithms(True, warn_only=True)  # the bits tell
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        encoder = models.saved_encoder(folder / "encoder")

        def preset(name: str) -> dict[str, Any]:
            whole, again, stopped = (folder / f"{name}-{which}" for which in ("whole", "again", "stopped"))
            short_run(whole, encoder, "encoder", name, device)
            short_run(again, encoder, "encoder", name, device)
            last = ("joint", 4) if PRESETS[name].stream == "joint" else ("task1", 2)
            with suppress(KeyboardInterrupt):
                short_run(stopped, encoder, "encoder", name, device, report=Interrupt(*last))
            short_run(stopped, encoder, "encoder", name, device)
            return {"same seed": differing(whole, again) or "equal", "resumed": differing(whole, stopped) or "equal"}

        for name in ["inc-lora", "perdure", "joint"] if tiny else PRESETS:
            record.add(name, lambda name=name: preset(name))


def kill(record: Record, device: str, tiny: bool) -> None:
    """SIGKILL while the second task is trained; what is resumed equals a run that was not killed."""
    torch.use_deterministic_algorithms(True, warn_only=True)  # the bits tell
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        encoder = models.saved_encoder(folder / "encoder")

        def killed(method: str) -> dict[str, Any]:
            run, whole = folder / f"{method}-killed", folder / f"{method}-whole"
            child = [sys.executable, "-m", "benchmarks.gpu.parts", "child", "--out", str(run), "--device", device]
            process = subprocess.Popen([*child, "--model", str(encoder), "--method", method])
            known = run / "unfinished/manifest.json"
            while process.poll() is None and not (known.is_file() and "task1" in known.read_text()):
                time.sleep(0.005)
            process.send_signal(signal.SIGKILL)
            process.wait()
            stages = perdure.read_scores(run).stages
            short_run(run, encoder, "encoder", method, device)
            short_run(whole, encoder, "encoder", method, device)
            return {"stages when killed": stages, "resumed": differing(run, whole) or "equal"}

        for method in ("perdure",) if tiny else ("perdure", "ps-lora", "slice+replay"):
            record.add(method, lambda method=method: killed(method))


def child(out: Path, model: Path, method: str, device: str) -> None:
    """The run that is killed: it waits after each step, to give the killer time."""

    class Slow(Quiet):
        def step(self, stage: str, step: Any, total: int) -> None:
            time.sleep(0.2)

    torch.use_deterministic_algorithms(True, warn_only=True)  # the bits tell
    short_run(out, model, "encoder", method, device, report=Slow())


def precision(record: Record, device: str, tiny: bool) -> None:  # noqa: ARG001
    """bf16, and 4- and 8-bit bases: the run ends, scores are numbers, and losses are near those of fp32."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        causal = models.saved_causal(folder / "causal")

        def run(name: str, **settings: Any) -> dict[str, Any]:
            out = folder / name
            scores = short_run(out, causal, "causal", "perdure", device, **settings)
            stages = sorted((out / "stages").glob("*/log.jsonl"))
            losses = [[json.loads(line)["loss"] for line in path.read_text().splitlines()] for path in stages]
            return {"average": scores.average_accuracy, "last losses": [log[-1] for log in losses]}

        record.add("fp32", lambda: run("fp32"))
        record.add("bf16", lambda: run("bf16", precision="bf16"))
        record.add("bf16 base", lambda: run("bf16-base", precision="bf16", backbone={"dtype": "bfloat16"}))
        if importlib.util.find_spec("bitsandbytes") is None:
            record.add("4-bit", lambda: {"skipped": "bitsandbytes is not installed"})
            return
        for bits_ in ("4-bit", "8-bit"):
            record.add(bits_, lambda bits_=bits_: run(bits_, precision="bf16", backbone={"quantization": bits_}))


def shard(record: Record, device: str, tiny: bool) -> None:  # noqa: ARG001
    """A base split by FSDP2 over all devices (two processes without one), beside one process: how far apart they end."""
    count = torch.cuda.device_count() if device == "cuda" else 2
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        causal = models.saved_causal(folder / "causal")

        def split(method: str) -> dict[str, Any]:
            launcher = ["torch.distributed.run", "--standalone", "--nproc-per-node", str(count)]
            rest = ["--out", str(folder / "split"), "--device", device, "--model", str(causal), "--method", method]
            began = time.monotonic()
            done = subprocess.run(
                [sys.executable, "-m", *launcher, "-m", "benchmarks.gpu.parts", "sharded", *rest],
                capture_output=True,
                text=True,
                check=False,
            )
            if done.returncode:
                raise RuntimeError(done.stderr[-1500:])
            seconds = round(time.monotonic() - began, 1)
            whole = short_run(folder / "whole", causal, "causal", method, device)
            apart = perdure.read_scores(folder / "split")
            return {
                "processes": count,
                "seconds": seconds,
                "average": apart.average_accuracy,
                "average of one process": whole.average_accuracy,
                "farthest weight": farthest(folder / "split", folder / "whole"),
            }

        record.add("perdure", lambda: split("perdure"))


def farthest(one: Path, other: Path) -> float:
    """The largest difference of two runs' deployed factors, over the largest of them."""
    first, second = (load_file(run / "deployed/adapter_model.safetensors") for run in (one, other))
    largest = max(float(tensor.abs().max()) for tensor in first.values())
    return max(float((first[name] - second[name]).abs().max()) for name in first) / largest


class Clock(Quiet):
    """When each step ended, by stage, with the device's work done."""

    def __init__(self, device: str) -> None:
        self.device, self.ends = device, dict[str, list[float]]()

    def step(self, stage: str, step: Any, total: int) -> None:
        self.ends.setdefault(stage, []).append(now(self.device))

    def seconds(self, stage: str) -> float:
        """The median of a stage's steps without the first two."""
        ends = self.ends[stage][1:]
        return statistics.median(after - before for before, after in itertools.pairwise(ends))


def now(device: str) -> float:
    """The time, once the device has nothing left to do."""
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def peak(device: str) -> float | None:
    """GB at most allocated on the device since the last call."""
    if device != "cuda":
        return None
    found = torch.cuda.max_memory_allocated() / 1e9
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    return round(found, 3)


def speed(record: Record, device: str, tiny: bool) -> None:
    """A step at real shapes; then penalties and inits on the first of them."""
    shapes = models.TINY if tiny else models.SHAPES
    size, tokens, steps = (2, 64, 4) if tiny else (SIZE, TOKENS, STEPS)
    for number, (name, shape) in enumerate(shapes.items()):
        targets = "all-linear" if shape["kind"] == "Llama" else ("q_proj", "k_proj", "v_proj", "o_proj")
        record.add(
            f"{name}: perdure", lambda s=shape, t=targets: ours(s, device, t, "inc-lora", 1, size, tokens, steps)
        )
        record.add(f"{name}: Trainer and PEFT", lambda s=shape, t=targets: theirs(s, device, t, size, tokens, steps))
        if number:
            continue
        for kind, penalties in [*PENALTIES.items()][: 2 if tiny else None]:
            method = {"preset": "inc-lora", "penalties": penalties}
            record.add(
                f"{name}, penalty {kind}", lambda m=method, s=shape: ours(s, device, (), m, 2, size, tokens, steps)
            )
        for kind, parts in [*INITS.items()][: 1 if tiny else None]:
            method = {"preset": "inc-lora", **parts}
            record.add(f"{name}, init {kind}", lambda m=method, s=shape: ours(s, device, (), m, 2, size, tokens, steps))


def ours(
    shape: dict[str, Any], device: str, targets: Any, method: Any, tasks: int, size: int, tokens: int, steps: int
) -> dict[str, Any]:
    """A run of one or two tasks: seconds a step of the last one, seconds between two tasks, and memory."""
    from perdure.backbones.causal import CausalLM, CausalSettings
    from perdure.config.run_config import load_config
    from perdure.loop.sequence import run_sequence
    from perdure.methods.contract.build import build_method
    from perdure.state.store import Store
    from perdure.training.lora import AdaptedModel

    peak(device)
    settings = CausalSettings(
        model="random", max_length=tokens, max_new_tokens=16, dtype="bfloat16", device=device, chat=False
    )
    backbone = CausalLM(models.causal(shape, device, torch.bfloat16), models.tokenizer(), settings)
    backbone.precision = "bf16"
    training = {"epochs": 1, "batch_size": size, "learning_rate": 1e-4, "checkpoint_minutes": None}
    evaluation = {"every_stage": False, "future": False, "examples": 1}
    config = load_config(
        {
            "method": method, "backbone": {"kind": "causal", "model": "random"}, "training": training, "precision": "bf16",
            "lora": {"rank": RANK, "alpha": 2 * RANK, "targets": targets}, "evaluation": evaluation,
        }
    )  # fmt: skip
    chosen = tuple(models.long_tasks(tasks, size * steps, tokens - 24))
    backbone.prepare(chosen)
    model = AdaptedModel(backbone.model, config.lora, backbone.default_targets)
    clock = Clock(device)
    with tempfile.TemporaryDirectory() as place:
        store = Store(Path(place) / "run")
        with store.writing():
            run_sequence(chosen, build_method(config.method), model, backbone, config, store, clock)
    ends = [*clock.ends.values()]
    between = {"between": round(ends[1][0] - ends[0][-1], 4)} if tasks > 1 else {}
    return {"step": round(clock.seconds(chosen[-1].name), 5), **between, "peak GB": peak(device)}


def theirs(shape: dict[str, Any], device: str, targets: Any, size: int, tokens: int, steps: int) -> dict[str, Any]:
    """The same step by transformers' Trainer with PEFT, in bf16, on rows of the same length with the same answers to learn."""
    from peft import LoraConfig, get_peft_model
    from transformers import Trainer, TrainerCallback, TrainingArguments

    peak(device)
    wanted = targets if isinstance(targets, str) else list(targets)
    config = LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules=wanted, task_type="CAUSAL_LM")
    model = get_peft_model(models.causal(shape, device, torch.bfloat16), config)  # type: ignore[arg-type]
    ids = torch.arange(tokens).remainder(250) + 3
    labels = torch.where(torch.arange(tokens) < tokens - 16, -100, ids)
    rows: Sequence[Mapping[str, Any]] = [
        {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels} for _ in range(size * steps)
    ]
    ends: list[float] = []

    class Watch(TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            ends.append(now(device))

    with tempfile.TemporaryDirectory() as place:
        arguments = TrainingArguments(
            place, per_device_train_batch_size=size, num_train_epochs=1, learning_rate=1e-4, bf16=True, report_to=[],
            save_strategy="no", logging_strategy="no", disable_tqdm=True, use_cpu=device == "cpu", optim="adamw_torch",
        )  # fmt: skip
        Trainer(model, arguments, train_dataset=rows, callbacks=[Watch()]).train()  # type: ignore[arg-type]
    seconds = [after - before for before, after in itertools.pairwise(ends)]
    return {"step": round(statistics.median(seconds), 5), "peak GB": peak(device)}


PARTS: dict[str, Callable[[Record, str, bool], None]] = {
    "about": about, "contract": contract, "kill": kill, "precision": precision, "shard": shard,
    "speed": speed,
}  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("part", choices=[*PARTS, "child", "sharded"])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--model", type=Path)
    parser.add_argument("--method", default="perdure")
    args = parser.parse_args()
    transformers.utils.logging.set_verbosity_error()
    if args.part == "child":
        child(args.out, args.model, args.method, args.device)
        return 0
    if args.part == "sharded":
        short_run(args.out, args.model, "causal", args.method, args.device, shard=True)
        return 0
    record = Record(args.out / f"{args.part}.json")
    if args.device == "cuda" and not torch.cuda.is_available():
        record.add("skipped", lambda: "torch finds no CUDA device here")
        return 0
    PARTS[args.part](record, args.device, args.tiny)
    return 0


if __name__ == "__main__":
    sys.exit(main())
