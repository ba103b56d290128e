"""From `perdure resume` to its first step, against a plain load of the model: CPU seconds and memory.

    python benchmarks/resume/run.py [--repeats 3]
    make tables

SmolLM2-135M in a folder, fp32, one thread; two tasks of 16 rows in files of their own, r 8 on query and value. A run was ended
between its first and second task; what is measured is the whole process from its start (imports included) to the first step
of the second task. The plain load: transformers and PEFT imported, the tokenizer, the model and the adapter of the first task
loaded, to be trained on. The ways take turns, each in a process of its own.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).parent
MODEL = "smollm2-135m"
TASKS = {"weather": ("sunny", "rainy"), "size": ("small", "large")}


def write_config(folder: Path, model: str) -> Path:
    """Two small tasks and their configuration."""
    for name, labels in TASKS.items():
        rows = [{"text": f"{name} {labels[i % 2]}, report number {i}", "label": labels[i % 2]} for i in range(16)]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = {
        "method": "seq-lora",
        "backbone": {"kind": "causal", "model": model, "chat": False},
        "tasks": [{"name": name, "train": str(folder / f"{name}.jsonl")} for name in TASKS],
        "training": {"epochs": 1, "batch_size": 4},
        "precision": "fp32",
        "threads": 1,
    }
    path = folder / "run.json"
    path.write_text(json.dumps(settings))
    return path


def spent() -> dict[str, float]:
    """What this process has used so far."""
    return {"seconds": time.process_time(), "MB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}


def until_step(stages: int, arguments: list[str]) -> None:
    """The command line, ended before the first step of the so-manieth stage that it trains."""
    from perdure.training.state import Training

    began: set[int] = set()

    def ended(training: Training) -> float:
        began.add(id(training))
        if len(began) == stages:
            print(json.dumps(spent()), flush=True)
            os._exit(0)
        return begin(training)

    begin, Training.begin_step = Training.begin_step, ended  # type: ignore[method-assign]
    from perdure.cli import main

    sys.argv = ["perdure", *arguments]
    main()


def plain(folder: str, run: Path) -> None:
    """What a script does before its first step."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    AutoTokenizer.from_pretrained(folder)
    adapter = next(run.rglob("adapter_config.json")).parent
    PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(folder), str(adapter), is_trainable=True)
    print(json.dumps(spent()))


def measured(*arguments: str) -> dict[str, float]:
    """One way, in a process of its own."""
    threads = {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    command = [sys.executable, __file__, "--way", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **threads}, check=True)
    return json.loads(next(line for line in reversed(done.stdout.splitlines()) if line.startswith("{")))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path, default=HERE / "record.json")
    parser.add_argument("--way", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.way:
        way, *rest = args.way
        plain(rest[0], Path(rest[1])) if way == "plain" else until_step(int(way), rest)
        return
    from perdure.backbones.models import model_folder

    model = model_folder(MODEL)
    runs: list[dict[str, dict[str, float]]] = []
    with tempfile.TemporaryDirectory() as folder:
        run = str(Path(folder) / "run")
        measured("2", "run", str(write_config(Path(folder), model)), "--out", run, "--quiet")
        for _ in range(args.repeats):
            runs.append(
                {"plain load": measured("plain", model, run), "perdure resume": measured("1", "resume", run, "--quiet")}
            )
            print(runs[-1], flush=True)
    args.out.write_text(json.dumps({"machine": platform.machine(), "model": MODEL, "runs": runs}, indent=1) + "\n")
    print(f"wrote {args.out}; `make tables` puts it into README.md")


if __name__ == "__main__":
    main()
