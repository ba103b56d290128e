"""What does Ray cost? 16 runs on two workers, by local processes and by Ray on the same cores, start included.

    make ray                                                        once: downloads Ray into .ray
    PYTHONPATH=.ray python benchmarks/sweep_engines/run.py [--pairs 3]
    make tables

Wall seconds of `perdure sweep`, in turns, each in an empty folder; records are compared to the bit. Idle cores are needed.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
SWEEP: dict[str, Any] = {
    "name": "engines",
    "share": False,  # what runs have in common is trained once only where they see each other's files
    "settings": {
        "suite": "quickstart",
        "order": "r8,amazon",
        "budget.train": 256,
        "budget.test": 200,
        "backbone": "minilm",
        "precision": "fp32",
        "threads": 1,
        "training.epochs": 2,
    },
    "seeds": [0, 1, 2, 3],
    "methods": {"seq-lora": {}, "inc-lora": {}, "ps-lora": {}, "n-lora": {}},
}
ENGINES = {"local": ["--processes", "2"], "ray": ["--engine", "ray"]}
TIMES = ("seconds", "processor_seconds")


def once(engine: str, folder: Path) -> tuple[float, dict[str, Any]]:
    """Seconds of a whole sweep, and its records without times."""
    began = time.monotonic()
    command = [sys.executable, "-m", "perdure", "sweep", str(folder / "sweep.json"), "--out", str(folder / engine)]
    subprocess.run([*command, *ENGINES[engine]], check=True, stdout=subprocess.DEVNULL)
    seconds = time.monotonic() - began
    records = {path.stem: json.loads(path.read_text()) for path in (folder / engine / "records").glob("*.json")}
    return seconds, {name: {k: v for k, v in row.items() if k not in TIMES} for name, row in records.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--out", type=Path, default=HERE / "record.json")
    args = parser.parse_args()
    pairs = []
    for number in range(args.pairs):
        with tempfile.TemporaryDirectory() as place:
            (Path(place) / "sweep.json").write_text(json.dumps(SWEEP))
            order = [*ENGINES][:: 1 if number % 2 else -1]
            found = {engine: once(engine, Path(place)) for engine in order}
        pairs.append({engine: round(seconds, 1) for engine, (seconds, _) in found.items()})
        runs, other = found["local"][1], found["ray"][1]
        same = sum(runs[name] == other.get(name) for name in runs)
        print(pairs[-1], f"{same} of {len(runs)} records equal", flush=True)
        assert same == len(runs) == 16
    record = {"machine": platform.machine(), "cores": 2, "runs": 16, "ray": version("ray"), "pairs": pairs}
    args.out.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
