"""Does every architecture learn, and does what is deployed answer as the run did? One record per architecture and targets.

    python benchmarks/breadth/run.py [--kind causal] [--only llama,gpt2] [--seconds 100]
    make tables

Tiny random models (architectures.py) learn two tasks with four methods, by default targets and with all linear layers, in
fp32. The deployed folder is then loaded without the run, adapters by PEFT, and its log-probabilities are compared with the run's.
A record that exists is kept: remove it to measure again.
"""

from __future__ import annotations

import argparse
import itertools
import json
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import transformers
from benchmarks.breadth.architectures import KINDS, build
from benchmarks.breadth.bf16 import labels_changed
from benchmarks.breadth.differences import farthest
from benchmarks.breadth.float64 import rounding
from benchmarks.breadth.table import LARGEST
from peft import PeftModel

from perdure import Example, PerdureError, Task, learn
from perdure.backbones import load_backbone
from perdure.commands.doctor import COLOURS, LABELS, TEXTS, picture
from perdure.state.record import load_deployed
from perdure.state.reopen import reopened_model
from perdure.state.store import Store
from perdure.training.evaluation import answer

HERE = Path(__file__).parent
SLOW = {"kimi_linear"}
"""Without its kernels transformers computes it token by token: measured only where --only names it."""
METHODS = ("ps-lora", "perdure", "slice", "n-lora")
TARGETS: dict[str, Any] = {"default": [], "all-linear": "all-linear"}
STORED = {
    *(
        "llama",
        "gpt2",
        "qwen3",
        "gemma2",
        "gpt_neo",
        "bloom",
        "mixtral",
        "gpt_oss",
        "mamba",
        "granitemoehybrid",
        "bamba",
        "lfm2",
    ),
    *("qwen3_5_text", "t5", "bart", "vit", "dinov2"),
}
"""Architectures that are also tried with bases stored in bf16, by default targets."""
SETTINGS: dict[str, Any] = {
    "training": {"epochs": 1, "batch_size": 4, "learning_rate": 5e-3},
    "evaluation": {"every_stage": False, "future": False},
    "precision": "fp32",
    "threads": 1,
}


def tasks(kind: str) -> list[Task]:
    """Two tasks of two classes with other words (or colours); their validation and test examples are those they learn."""
    made = []
    for place, name in enumerate(("first", "second")):
        rows = [
            Example(picture(shifted(colour, place, i)) if kind == "vision" else f"{text}, {name} {i}", label)
            for i in range(3)
            for label in LABELS
            for text, colour in zip(TEXTS[label], COLOURS[label], strict=True)
        ]
        made.append(Task(name, rows, validation=rows, test=rows, labels=LABELS))
    return made


def shifted(colour: tuple[int, int, int], task: int, i: int) -> tuple[int, int, int]:
    """Another shade for every image, and other channels for the second task."""
    red, green, blue = (min(255, value + 9 * i) for value in colour)
    return (green, blue, red) if task else (red, green, blue)


def backbone(kind: str, folder: Path) -> dict[str, Any]:
    """Settings under which every architecture of a kind can be tried."""
    pooling = {"pooling": "mean"} if kind == "vision" else {}
    lengths = {"max_length": 64, "max_new_tokens": 16} if kind in ("causal", "seq2seq") else {}
    return {"kind": kind, "model": str(folder), **pooling, **lengths}


def tried(kind: str, folder: Path, targets: Any, method: str) -> dict[str, Any]:
    """What happened: the largest difference between the run's and the deployed model's log-probabilities, or the refusal."""
    with tempfile.TemporaryDirectory() as place:
        out = Path(place) / "run"
        settings = {**SETTINGS, "lora": {"rank": 2, "targets": targets}}
        try:
            learn(out=out, tasks=tasks(kind), backbone=backbone(kind, folder), method=method, **settings)
            return compared(kind, folder, out)
        except PerdureError as error:
            return {"refused": f"{type(error).__name__}: {str(error).replace(str(folder), folder.name)}"}
        except Exception as error:
            return {"traceback": f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"}


def compared(kind: str, folder: Path, out: Path) -> dict[str, float]:
    """The run and its deployed folder; where they differ by more than fp32 usually rounds, also in float64."""
    found = {"difference": difference(kind, folder, out)}
    if found["difference"] > LARGEST and (out / "deployed/adapter_config.json").is_file():
        found |= rounding(backbone(kind, folder), tasks(kind), out)
    return found


def difference(kind: str, folder: Path, out: Path) -> float:
    """The largest between the answers of the run and of its deployed folder, loaded by transformers and PEFT."""
    deployed, largest = out / "deployed", 0.0
    is_adapter = (deployed / "adapter_config.json").is_file()
    learner: Any = load_backbone(backbone(kind, folder if is_adapter else deployed))
    learnt = tasks(kind)
    learner.prepare(learnt)  # images are compared with features of the pretrained weights
    store = Store(out)
    model, own = reopened_model(store, learnt)
    own.prepare(learnt)
    if is_adapter:
        learner.model = PeftModel.from_pretrained(learner.model, str(deployed)).get_base_model().eval()
    for task in learnt:
        mine = learner.predict(task.test, [task.name])
        runs = answer(model, own, load_deployed(store), task.test, [task.name])
        largest = max(largest, farthest(mine, runs))
    return largest


def measure(kind: str, name: str, targets: str) -> dict[str, Any]:
    """The record of an architecture with these targets."""
    with tempfile.TemporaryDirectory() as place:
        folder = build(kind, name, Path(place) / name)
        begun = time.process_time()
        found = {method: tried(kind, folder, TARGETS[targets], method) for method in METHODS}
        seconds = round(time.process_time() - begun, 1)
        shutil.rmtree(folder)
    versions = {"torch": torch.__version__, "transformers": transformers.__version__}
    return {
        "kind": kind,
        "name": name,
        "targets": targets,
        "methods": found,
        "cpu_seconds": seconds,
        "versions": versions,
    }


def in_bf16(kind: str, name: str, targets: str, **stored: Any) -> dict[str, Any]:
    """What benchmarks.breadth.bf16 finds, or why it finds nothing; `stored`: more settings of the backbone."""
    with tempfile.TemporaryDirectory() as place:
        folder = build(kind, name, Path(place) / name)
        settings = {**SETTINGS, "lora": {"rank": 2, "targets": TARGETS[targets]}}
        try:
            return labels_changed({**backbone(kind, folder), **stored}, settings, Path(place) / "run")
        except PerdureError as error:
            return {"refused": f"{type(error).__name__}: {str(error).replace(str(folder), folder.name)}"}
        except Exception as error:
            return {"traceback": f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kind", choices=KINDS)
    parser.add_argument("--only", default="")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="begin no other record after these")
    asked = parser.parse_args()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    only, end = [name for name in asked.only.split(",") if name], time.monotonic() + asked.seconds
    for targets, kind in itertools.product(TARGETS, KINDS):
        for name in sorted(KINDS[kind]):
            place = HERE / "records" / f"{kind}-{name}-{targets}.json"
            if (name not in only if only else name in SLOW) or asked.kind not in (None, kind):
                continue
            record = json.loads(place.read_text()) if place.exists() else {}
            stores = targets == "default" and kind != "encoder" and name in STORED
            if "bf16" in record and ("stored_in_bf16" in record or not stores):
                continue
            if time.monotonic() > end:
                return
            record = record or measure(kind, name, targets)
            if "bf16" not in record:
                record["bf16"] = in_bf16(kind, name, targets)
            if stores:
                record["stored_in_bf16"] = in_bf16(kind, name, targets, dtype="bfloat16")
            place.parent.mkdir(exist_ok=True)
            place.write_text(json.dumps(record, indent=1) + "\n")
            print(kind, name, targets, record["bf16"], record.get("stored_in_bf16"), flush=True)


if __name__ == "__main__":
    main()
