"""TIES of two LoRA adapters into their base: perdure against mergekit, each in a process and an environment of its own.

    python benchmarks/merge_mergekit/run.py --mergekit VENV [--parameters 2e8] [--rounds 3] [--out record.json]

A random Llama in fp32 and two random rank-16 adapters on all its linear layers. Per round, in turn:
    perdure             reads base and adapters, writes the merged model
    mergekit            reads base and the two models the adapters make, merged beforehand and not timed (kind to mergekit)
    mergekit-adapters   reads base and adapters (its BASE+ADAPTER form), as a user who has adapters would call it
Time is the wall time of the whole command, start of Python included, and its processor time, which other programs on the
machine lengthen less; memory the process's resident peak. The results are
compared: the largest difference, and how many weights differ by more than 1e-5 (entries at the trimming threshold, where
mergekit's model - base has lost digits).
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from safetensors.torch import load_file
from transformers import LlamaConfig, LlamaForCausalLM

from perdure.adapters.folder import write_adapter
from perdure.merging.folders import merge_folders
from perdure.merging.rules import rule_named
from perdure.ops.lowrank import LowRank

RANK, DENSITY, WIDTH, INNER, VOCABULARY = 16, 0.2, 1024, 2816, 8000
PERDURE = """
import sys
from perdure.merging.folders import merge_folders
from perdure.merging.rules import rule_named
base, one, two, out = sys.argv[1:]
merge_folders([one, two], out, rule_named("ties", {"density": DENSITY, "scope": "tensor"}), base=base)
""".replace("DENSITY", str(DENSITY))


def make_inputs(folder: Path, parameters: float) -> int:
    """Base, adapters, and the models the adapters make; returns the number of parameters."""
    layer = 4 * WIDTH * WIDTH + 3 * WIDTH * INNER
    layers = max(1, round((parameters - 2 * VOCABULARY * WIDTH) / layer))
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=WIDTH,
        intermediate_size=INNER,
        num_hidden_layers=layers,
        num_attention_heads=16,
        num_key_value_heads=16,
        tie_word_embeddings=False,
    )
    model = LlamaForCausalLM(config)
    model.save_pretrained(folder / "base")
    linear = {n: m for n, m in model.named_modules() if isinstance(m, torch.nn.Linear) and n != "lm_head"}
    for number in (1, 2):
        update = {
            name: LowRank(torch.randn(RANK, m.in_features) * 0.02, torch.randn(m.out_features, RANK) * 0.01)
            for name, m in linear.items()
        }
        (folder / f"adapter{number}").mkdir()
        write_adapter(folder / f"adapter{number}", update, rank=RANK, base=str(folder / "base"), task_type="CAUSAL_LM")
        merge_folders([folder / f"adapter{number}"], folder / f"model{number}", rule_named("sum"), base=folder / "base")
    for kind in ("model", "adapter"):
        (folder / f"{kind}.yaml").write_text(recipe(folder, kind))
    return sum(parameter.numel() for parameter in model.parameters())


def recipe(folder: Path, kind: str) -> str:
    """mergekit's configuration for full models or for adapters."""
    names = [f"{folder}/model{n}" if kind == "model" else f"{folder}/base+{folder}/adapter{n}" for n in (1, 2)]
    models = "".join(f"  - model: {name}\n    parameters: {{weight: 1.0, density: {DENSITY}}}\n" for name in names)
    return (
        f"models:\n{models}merge_method: ties\nbase_model: {folder}/base\n"
        "parameters: {normalize: true}\ndtype: float32\n"
    )


def command(folder: Path, what: str, mergekit: Path) -> list[str]:
    """The process to run; each writes `folder`/out-<what>."""
    out = str(folder / f"out-{what}")
    if what == "perdure":
        return [sys.executable, "-c", PERDURE, *(str(folder / part) for part in ("base", "adapter1", "adapter2")), out]
    config = folder / ("model.yaml" if what == "mergekit" else "adapter.yaml")
    cache = ["--lora-merge-cache", str(folder / "cache")]
    return [str(mergekit / "bin" / "mergekit-yaml"), str(config), out, "--no-copy-tokenizer", *cache]


def run(folder: Path, what: str, mergekit: Path) -> tuple[float, float, int]:
    """Wall seconds, CPU seconds and resident peak in bytes."""
    for leftover in (folder / f"out-{what}", folder / "cache"):
        shutil.rmtree(leftover, ignore_errors=True)
    started, peak = time.perf_counter(), 0
    with (folder / f"{what}.log").open("w") as log:
        process = subprocess.Popen(command(folder, what, mergekit), stdout=log, stderr=log)
        while not (ended := os.wait4(process.pid, os.WNOHANG))[0]:
            peak = max(peak, resident_peak(process.pid))
            time.sleep(0.02)
    taken, (_, process.returncode, used) = time.perf_counter() - started, ended
    if process.returncode:
        raise SystemExit(f"{what} failed:\n{(folder / f'{what}.log').read_text()[-3000:]}")
    return taken, used.ru_utime + used.ru_stime, peak


def resident_peak(pid: int) -> int:
    """What a process has held at most so far; its own count, since rusage's begins with its parent's peak."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM")), 0)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    """All weights of a model folder."""
    found = {}
    for path in sorted(folder.glob("*.safetensors")):
        found |= load_file(path)
    return found


def main() -> None:
    """Parse, measure, compare, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mergekit", type=Path, required=True, help="an environment with mergekit installed")
    parser.add_argument("--parameters", type=float, default=2e8)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path)
    chosen = parser.parse_args()
    version = subprocess.run(
        [
            chosen.mergekit / "bin" / "python",
            "-c",
            "from importlib.metadata import version; print(version('mergekit'))",
        ],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()
    variants = ("perdure", "mergekit", "mergekit-adapters")
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        count = make_inputs(folder, chosen.parameters)
        taken: dict[str, list[tuple[float, float, int]]] = {what: [] for what in variants}
        for _ in range(chosen.rounds):
            for what in variants:
                taken[what].append(run(folder, what, chosen.mergekit))
        ours, results = weights(folder / "out-perdure"), {}
        for what in variants:
            theirs = weights(folder / f"out-{what}")
            pairs = list(zip(taken[what], taken["perdure"], strict=True))
            results[what] = {
                "seconds": statistics.median(wall for wall, _, _ in taken[what]),
                "processor_seconds": statistics.median(processor for _, processor, _ in taken[what]),
                "time_ratio": statistics.median(mine[0] / us[0] for mine, us in pairs),
                "processor_time_ratio": statistics.median(mine[1] / us[1] for mine, us in pairs),
                "peak_bytes": max(peak for _, _, peak in taken[what]),
                "largest_difference": max(float((ours[n] - theirs[n]).abs().max()) for n in ours),
                "positions_that_differ_by_1e-5": sum(int(((ours[n] - theirs[n]).abs() > 1e-5).sum()) for n in ours),
            }
            print(what, results[what], flush=True)
    commit = subprocess.run(["git", "describe", "--always", "--dirty=+"], capture_output=True, text=True, check=False)
    record = {
        "question": "TIES into a base: perdure against mergekit",
        "commit": commit.stdout.strip() or "unknown",
        "versions": {"python": platform.python_version(), "torch": torch.__version__, "mergekit": version},
        "machine": {"cpus": os.cpu_count(), "processor": platform.machine()},
        "load_average": os.getloadavg()[0],
        "parameters": count,
        "rounds": chosen.rounds,
        "results": results,
    }
    if chosen.out:
        chosen.out.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
