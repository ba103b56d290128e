"""What does task 100 cost, against task 3? A toy run of 100 tasks: its stages, its files, and the commands on it.

    python benchmarks/many_tasks/run.py [--tasks 100] [--presets inc-lora perdure ...] [--out record.json]
    make tables

Tasks of two words each (40 texts in a file) on a randomly initialised encoder of two layers, `every_stage: own`. Of every
preset the time of a stage, early and late, and the bytes of its state; of a run with `inc-lora` the files, the manifest, and
`show`, `scores`, `predict`, `report`, `add` and the start of `resume`, at 3 tasks and at all.

Times are CPU seconds of this process on one thread, after everything is imported. Presets that are in the record already are
measured again only if they are named.
"""

from __future__ import annotations

import argparse
import json
import platform
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
import transformers
from tests.backbones.tiny import tiny_encoder

import perdure
from perdure.commands.learn import resume
from perdure.commands.show import describe_run
from perdure.methods.table import PRESETS
from perdure.training.reporter import Quiet

HERE = Path(__file__).parent
FEW, CLOSE = 3, 7
"""Tasks of the short run; stages whose times give a median."""


def task(folder: Path, number: int) -> dict[str, Any]:
    """Task `number` as settings: texts of two classes, told apart by one word."""
    file = folder / f"task{number}.jsonl"
    words = (f"left{number}", f"right{number}")
    rows = [{"text": f"{words[i % 2]} and number {i} of {number}", "label": "ab"[i % 2]} for i in range(40)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    labels = {"a": f"about {words[0]}", "b": f"about {words[1]}"}
    return {"name": f"task{number}", "train": str(file), "labels": labels}


class Watch(Quiet):
    """When each stage was scored, in CPU seconds, and what the manifest was then; `stop`: the stage in which it raises."""

    def __init__(self, run: Path, stop: int | None = None) -> None:
        self.run, self.stop, self.steps = run, stop, 0
        self.clock: list[float] = []
        self.manifest: list[tuple[int, int]] = []
        self.first_step: float | None = None

    def step(self, stage: str, step: Any, total: int) -> None:
        if self.first_step is None:
            self.first_step = time.process_time()
        if self.stop is not None and len(self.clock) > self.stop:
            raise KeyboardInterrupt

    def scored(self, learnt: Sequence[str], scores: Mapping[str, float | None]) -> None:
        self.clock.append(time.process_time())
        with suppress(OSError):
            found = (self.run / "manifest.json").stat()
            self.manifest.append((found.st_ino, found.st_size))

    def seconds(self) -> list[float]:
        """Of each stage but the last, which scores every task."""
        return [after - before for before, after in zip(self.clock[:-2], self.clock[1:-1], strict=True)]

    def written(self) -> int:
        """Bytes of all writings of the manifest: the whole file where it was replaced, else what it grew by."""
        total, before = 0, (0, 0)
        for now in self.manifest:
            total += now[1] - before[1] if now[0] == before[0] else now[1]
            before = now
        return total


def learnt(folder: Path, encoder: Path, count: int, preset: str, watch: Watch) -> None:
    """A run of `count` tasks in `watch.run`."""
    backbone = {"kind": "encoder", "model": str(encoder), "max_length": 32}
    settings = {"epochs": 1, "batch_size": 8, "learning_rate": 0.01}
    evaluation = {"every_stage": "own", "future": False}
    tasks = [task(folder, i) for i in range(count)]
    perdure.learn(
        out=watch.run, tasks=tasks, method=preset, backbone=backbone, training=settings, lora={"rank": 2, "alpha": 4},
        evaluation=evaluation, threads=1, precision="fp32", report=watch,
    )  # fmt: skip


def of_preset(encoder: Path, count: int, preset: str) -> dict[str, Any]:
    """Seconds of an early and a late stage, the bytes of their states, and the number of files in the largest stage."""
    with tempfile.TemporaryDirectory() as place:
        watch = Watch(Path(place) / "run")
        learnt(Path(place), encoder, count, preset, watch)
        seconds = watch.seconds()
        stages = sorted((watch.run / "stages").iterdir())
        size = [sum(path.stat().st_size for path in stage.glob("state*")) for stage in stages]
        files = [sum(path.is_file() for path in stage.rglob("*")) for stage in stages[1:-1]]
        return {
            "early": statistics.median(seconds[1 : CLOSE + 1]),
            "late": statistics.median(seconds[-CLOSE:]),
            "state": [size[min(FEW, len(size) - 1)], size[-1]],
            "files": max(files, default=0),
        }


def timed(call: Callable[[], Any], rounds: int = 3) -> float:
    """The least CPU seconds of a few rounds."""
    spent = []
    for _ in range(rounds):
        began = time.process_time()
        call()
        spent.append(time.process_time() - began)
    return min(spent)


def of_commands(encoder: Path, count: int) -> dict[str, Any]:
    """What the commands take on a run of `count` tasks, and what lies there."""
    with tempfile.TemporaryDirectory() as place:
        folder, run = Path(place), Path(place) / "run"
        watch = Watch(run)
        learnt(folder, encoder, count, "inc-lora", watch)
        found: dict[str, Any] = {
            "files": sum(path.is_file() for path in run.rglob("*")),
            "empty": sum(path.is_file() and path.stat().st_size == 0 for path in run.rglob("*.jsonl")),
            "manifest": watch.manifest[-1][1],
            "manifest_written": watch.written(),
            "show": timed(lambda: describe_run(run)),
            "scores": timed(lambda: perdure.read_scores(run)),
            "predict": timed(lambda: perdure.predict(run, ["left0 and number 3"], task="task0")),
            "report": timed(lambda: perdure.write_report([run], folder / "report")),
            "report_bytes": {p.suffix[1:]: p.stat().st_size for p in sorted((folder / "report").iterdir())},
        }
        new = task(folder, count)

        def add(number: int) -> float:
            grown = folder / f"grown{number}"
            shutil.copytree(run, grown)
            spent = timed(lambda: perdure.add(grown, new), rounds=1)
            shutil.rmtree(grown)
            return spent

        found["add"] = min(add(number) for number in range(3))
        found["resume"] = resume_start(folder, encoder, count)
        return found


def resume_start(folder: Path, encoder: Path, count: int) -> float:
    """From the call of `resume` to the first step, of a run that was stopped in its last stage."""
    run, spent = folder / "stopped", []
    with suppress(KeyboardInterrupt):
        learnt(folder, encoder, count, "inc-lora", Watch(run, stop=count - 1))
    for _ in range(3):
        watch, began = Watch(run, stop=-1), time.process_time()
        with suppress(KeyboardInterrupt):
            resume(run, report=watch)
        assert watch.first_step is not None
        spent.append(watch.first_step - began)
    return min(spent)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", type=int, default=100)
    parser.add_argument(
        "--presets",
        nargs="*",
        help="default: those missing, and the commands; no names: the commands",
    )
    parser.add_argument("--out", type=Path, default=HERE / "record.json")
    args = parser.parse_args()
    torch.set_num_threads(1)
    transformers.utils.logging.set_verbosity_error()
    about = {"torch": torch.__version__, "machine": platform.machine(), "tasks": args.tasks}
    known = json.loads(args.out.read_text()) if args.out.is_file() else {}
    record: dict[str, Any] = {"presets": {}, **known, **about}
    with tempfile.TemporaryDirectory() as place:
        encoder = tiny_encoder(Path(place) / "encoder")
        if not args.presets:
            of_commands(encoder, FEW)  # everything is imported and warm
            record["commands"] = {str(count): of_commands(encoder, count) for count in (FEW, args.tasks)}
        missing = [
            name for name, preset in PRESETS.items() if preset.stream != "joint" and name not in record["presets"]
        ]
        for preset in missing if args.presets is None else args.presets:
            record["presets"][preset] = of_preset(encoder, args.tasks, preset)
            print(preset, record["presets"][preset], flush=True)
            args.out.write_text(json.dumps(record, indent=1) + "\n")
    args.out.write_text(json.dumps(record, indent=1) + "\n")
    print(f"wrote {args.out}; `make tables` puts it into README.md")


if __name__ == "__main__":
    main()
