"""What a person waits for before training: 50,000 rows of a CSV, --help, show, and a twelfth task.

    python benchmarks/before_training/run.py [--out benchmarks/before_training/record.json]

CPU seconds on one thread, each in a process of its own, the smallest of three. The CSV: texts of 5 to 60 words and four
labels, learnt on MiniLM; everything from the call to the first scoring, after the imports and one answer of the model, with
an empty cache of tokens and with a full one. The twelfth task: `add` to a run of eleven tasks of 64 + 32 rows on MiniLM,
against the training and scoring in it.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import platform
import random
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
WORDS = "invoice router meter bill outage please thanks the a of water works reset password login broken slow late"
TASKS = 12


def write_rows(path: Path, rows: int, labels: str = "abcd", seed: int = 0, longest: int = 60) -> Path:
    draw = random.Random(seed)
    with path.open("w", newline="") as file:
        out = csv.writer(file)
        out.writerow(["text", "label"])
        for i in range(rows):
            text = " ".join([*draw.choices(WORDS.split(), k=draw.randint(5, longest)), str(i)])
            out.writerow([text, draw.choice(labels)])
    return path


def before(folder: Path) -> float:
    """From the call to the first scoring."""
    import torch

    torch.set_num_threads(1)
    from perdure.backbones import load_backbone
    from perdure.commands import learn
    from perdure.config.run_config import load_config
    from perdure.loop.progress import Plain

    settings = {"tasks": [{"name": "big", "train": str(folder / "big.csv")}], "backbone": "minilm", "method": "perdure"}
    config = load_config(settings)
    warm(load_backbone(config.backbone))

    class Began(Exception):
        pass

    def began(*_: Any, **__: Any) -> None:
        raise Began

    learn.run_sequence = began
    shutil.rmtree(folder / "run", ignore_errors=True)
    lap = time.process_time()
    try:
        learn.run_config(config, folder / "run", report=Plain("big"))
    except Began:
        return time.process_time() - lap
    raise AssertionError("the run did not begin")


def warm(encoder: Any) -> None:
    from perdure import Task

    encoder.prepare([Task("warm", [("a", "a"), ("a longer text", "b")], test=[("c", "a")], labels=["a", "b"])])
    encoder.predict(encoder._tasks["warm"].test, ["warm"])


def twelfth(folder: Path) -> dict[str, float]:
    """`add` of the last task, and the training and scoring in it."""
    import torch

    torch.set_num_threads(1)
    import perdure
    from perdure.commands import grow
    from perdure.loop import sequence

    specs = [
        {
            "name": f"t{i}",
            "train": str(write_rows(folder / f"t{i}.csv", 96, "ab", i, 12)),
            "test_size": 32,
            "validation_size": 0,
        }
        for i in range(TASKS)
    ]
    same: dict[str, Any] = {"method": "perdure", "training": {"epochs": 1, "batch_size": 16}, "threads": 1}
    scored = {"every_stage": "own"}
    if not (folder / "eleven/deployed").is_dir():
        perdure.learn(out=folder / "eleven", tasks=specs[:-1], backbone="minilm", evaluation=scored, **same)
    shutil.rmtree(folder / "grown", ignore_errors=True)
    shutil.copytree(folder / "eleven", folder / "grown")
    inside = [0.0]

    def timed(work: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **more: Any) -> Any:
            lap = time.process_time()
            try:
                return work(*args, **more)
            finally:
                inside[0] += time.process_time() - lap

        return call

    for module in (sequence, grow):
        module.score_tasks = timed(module.score_tasks)
    sequence.train = timed(sequence.train)
    for hook in ("before_task", "after_task", "consolidated"):  # what the method itself measures on the task
        setattr(sequence.calls, hook, timed(getattr(sequence.calls, hook)))
    lap = time.process_time()
    perdure.add(folder / "grown", specs[-1])
    return {"add": time.process_time() - lap, "training and scoring": inside[0]}


def command(*words: str) -> float:
    """CPU seconds of a command, imports and all."""
    lap = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-m", "perdure", *words], check=True, stdout=subprocess.DEVNULL)
    now = resource.getrusage(resource.RUSAGE_CHILDREN)
    return now.ru_utime + now.ru_stime - lap.ru_utime - lap.ru_stime


def in_process(what: str, folder: Path, **environment: str) -> Any:
    words = [sys.executable, __file__, "--one", what, "--folder", str(folder)]
    done = subprocess.run(words, env={**os.environ, **environment}, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def linked_cache(folder: Path) -> Path:
    """A cache with the models of the user's own, and without any tokens."""
    from perdure.tasks.sources.packages import cache_folder

    cache = Path(tempfile.mkdtemp(dir=folder))
    for name in ("models", "packages"):
        (cache / name).symlink_to(cache_folder() / name)
    return cache


def main() -> None:
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("--out", type=Path, default=HERE / "record.json")
    words.add_argument("--rows", type=int, default=50_000)
    words.add_argument("--one", choices=["before", "twelfth"])
    words.add_argument("--folder", type=Path)
    given = words.parse_args()
    if given.one:
        print(json.dumps({"before": before, "twelfth": twelfth}[given.one](given.folder)))
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_rows(folder / "big.csv", given.rows)
        cold = [in_process("before", folder, PERDURE_CACHE=str(linked_cache(folder))) for _ in range(3)]
        grown = [in_process("twelfth", folder) for _ in range(3)]
        ratio = min(one["add"] / one["training and scoring"] for one in grown)
        record = {
            "rows": given.rows,
            "before_training": min(cold),
            "help": min(command("--help") for _ in range(3)),
            "show": min(command("show", str(folder / "grown")) for _ in range(3)),
            "twelfth": min(grown, key=lambda one: one["add"]),
            "twelfth_ratio": ratio,
            "machine": platform.machine(),
            "python": platform.python_version(),
        }
    given.out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
