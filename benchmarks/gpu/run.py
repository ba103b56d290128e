"""What perdure does on a GPU, in one command of at most ten minutes, on a machine that cannot download anything.

    make gpu                                                     or
    python benchmarks/gpu/run.py [--out DIR] [--seconds 580] [--parts about contract kill ...] [--wheels DIR]

Each part is a process with a time limit of its own, and writes DIR/PART.json after every result, so that what was measured is
kept if the time is up. DIR: --out, else $OUT, else benchmarks/gpu/records. Packages that are missing are taken from wheels in
--wheels (default benchmarks/gpu/wheels), if they are there. `--device cpu --tiny` tries the script itself without a GPU.

    about       the device and the versions
    contract    every preset on the device: the same seed gives the same bits, resumed equals uninterrupted
    kill        a run is killed by SIGKILL inside a task and resumed
    precision   bf16, and 4-bit where bitsandbytes is
    shard       a base split over all devices by FSDP2, against one process
    speed       randomly initialised models at real shapes: a step against transformers' Trainer with PEFT, weight penalties,
                what lies between two tasks, memory
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
SHARES = {"about": 0.05, "contract": 0.35, "kill": 0.1, "precision": 0.1, "shard": 0.1, "speed": 0.3}
"""Part -> its share of the time; what a part leaves goes to the next ones."""
NEEDED = {
    "pydantic": "pydantic", "typer": "typer", "ruamel.yaml": "ruamel", "platformdirs": "platformdirs", "filelock": "filelock",
    "pypi_simple": "pypi", "regex": "regex", "jinja2": "jinja2", "rich": "rich", "datasets": "datasets", "pyarrow": "pyarrow",
    "bitsandbytes": "bitsandbytes",
}  # fmt: skip
"""Module -> how the name of its wheel begins."""


def missing_from_wheels(wheels: Path, into: Path) -> list[str]:
    """Install, into a folder of their own, the wheels of packages that cannot be imported; the names of those modules."""
    lacking = [module for module in NEEDED if importlib.util.find_spec(module.partition(".")[0]) is None]
    there = [*wheels.glob("*.whl")] if wheels.is_dir() else []
    if lacking and there:  # all of them: a wheel may need another one
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--target", str(into)]
        subprocess.run([*pip, *map(str, there)], check=False)
    return lacking


def run_part(part: str, out: Path, seconds: float, rest: list[str], path: str) -> dict[str, object]:
    """How a part ended: 'done', 'time is up' or 'failed' with the end of what it said."""
    began = time.monotonic()
    command = [sys.executable, "-m", "benchmarks.gpu.parts", part, "--out", str(out), *rest]
    env = {**os.environ, "PYTHONPATH": path, "CUBLAS_WORKSPACE_CONFIG": ":4096:8", "TQDM_DISABLE": "1"}
    with tempfile.TemporaryFile("w+") as said:
        try:
            code = subprocess.run(
                command, cwd=ROOT, env=env, timeout=seconds, stdout=said, stderr=said, check=False
            ).returncode
            ended = "done" if code == 0 else "failed"
        except subprocess.TimeoutExpired:
            code, ended = None, "time is up"
        said.seek(0)
        tail = said.read()[-2000:]
    spent = round(time.monotonic() - began, 1)
    return {"ended": ended, "code": code, "seconds": spent, **({} if code == 0 else {"tail": tail})}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(os.environ.get("OUT") or HERE / "records"))
    parser.add_argument("--seconds", type=float, default=580)
    parser.add_argument("--parts", nargs="+", choices=SHARES, default=[*SHARES])
    parser.add_argument("--wheels", type=Path, default=HERE / "wheels")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true", help="tiny shapes, few presets")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    began, summary = time.monotonic(), {}
    with tempfile.TemporaryDirectory() as site:
        lacking = missing_from_wheels(args.wheels, Path(site))
        path = os.pathsep.join([str(ROOT / "src"), str(ROOT), site, *filter(None, [os.environ.get("PYTHONPATH")])])
        rest = ["--device", args.device, *(["--tiny"] if args.tiny else [])]
        for position, part in enumerate(args.parts):
            left = args.seconds - (time.monotonic() - began)
            share = SHARES[part] / sum(SHARES[name] for name in args.parts[position:])
            summary[part] = run_part(part, args.out.resolve(), max(5.0, left * share), rest, path)
            found = {"lacking": lacking, "seconds": round(time.monotonic() - began, 1), "parts": summary}
            (args.out / "summary.json").write_text(json.dumps(found, indent=1) + "\n")
            print(f"{part}: {summary[part]['ended']} after {summary[part]['seconds']} s", flush=True)
            if tail := summary[part].get("tail"):
                print(tail, flush=True)
    return any(ended["ended"] == "failed" for ended in summary.values())


if __name__ == "__main__":
    sys.exit(main())
