"""300,000 rows of an own file, to token ids: against `datasets` and tokenizers doing the same.

    python benchmarks/large_data/run.py [--rows 300000] [--out benchmarks/large_data/record.json]

A JSON lines file of texts of 10 to 40 words and four labels. Ours: `load_task` (rows checked, repetitions and contradictions
found, splits drawn in proportion) and what an encoder does before its first step (every text tokenised with MiniLM's
tokenizer). The other: `load_dataset("json")`, a random split, `map` of the same tokenizer in batches, nothing checked. Each
twice, the second time with what the first left in its cache; each in a process of its own, on one thread. CPU seconds;
memory is the peak above that of the imports and the model, which has answered once.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent


def write_rows(path: Path, rows: int) -> None:
    """The file, the same every time."""
    draw = random.Random(0)
    words = [f"word{i}" for i in range(5000)]
    with path.open("w") as file:
        for i in range(rows):
            text = " ".join([*draw.choices(words, k=draw.randint(10, 40)), str(i)])
            file.write(json.dumps({"text": text, "label": draw.choice("abcd")}) + "\n")


def model() -> Any:
    """MiniLM, whose weights are in memory: so both begin with the same."""
    from perdure import Task
    from perdure.backbones.encoder import Encoder, EncoderSettings

    encoder = Encoder.load(EncoderSettings(model="minilm"))
    encoder.prepare([Task("warm", [("a", "a"), ("a longer text", "b")], test=[("c", "a")], labels=["a", "b"])])
    encoder.predict(encoder._tasks["warm"].test, ["warm"])
    return encoder


def ours(path: Path, cache: Path) -> Callable[[], None]:
    import pyarrow  # noqa: F401  (an import of both ways)

    from perdure import load_task
    from perdure.backbones import token_rows
    from perdure.tasks.sources import large

    encoder, token_rows.cache_folder = model(), lambda: cache
    large.cache_folder = lambda: cache

    def work() -> None:
        lap = time.process_time()
        task = load_task({"name": "large", "train": str(path)})
        print(f"read: {time.process_time() - lap:.2f} s, {above():.0f} MB", file=sys.stderr)
        encoder.prepare([task])

    return work


def library(path: Path, cache: Path) -> Callable[[], None]:
    import datasets

    tokenizer = model().tokenizer
    datasets.disable_progress_bars()

    def tokenised(some: dict[str, list[str]]) -> dict[str, Any]:
        return {"ids": tokenizer(some["text"], truncation=True, max_length=48)["input_ids"]}

    def work() -> None:
        lap = time.process_time()
        rows = datasets.load_dataset("json", data_files=str(path), cache_dir=str(cache), split="train")
        splits = rows.train_test_split(2000, seed=0)
        print(f"read: {time.process_time() - lap:.2f} s, {above():.0f} MB", file=sys.stderr)
        for split, part in splits.items():
            part.map(tokenised, batched=True, new_fingerprint=f"tokenised-{split}", remove_columns=["text"])

    return work


def above() -> float:
    """Peak memory in MB; above that of the first call."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    BASE.append(peak)
    return peak - BASE[0]


BASE: list[float] = []


def measured(way: str, path: Path, cache: Path) -> dict[str, float]:
    """CPU seconds and memory of one way, in a process of its own."""
    one = {"RAYON_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    command = [sys.executable, __file__, "--way", way, "--file", str(path), "--cache", str(cache)]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **one}, check=True)
    print(way, done.stderr.strip().splitlines()[-1])
    return json.loads(done.stdout.strip().splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=300_000)
    parser.add_argument("--out", type=Path, default=HERE / "record.json")
    parser.add_argument("--way", choices=["perdure", "datasets"])
    parser.add_argument("--file", type=Path)
    parser.add_argument("--cache", type=Path)
    args = parser.parse_args()
    if args.way:
        work = {"perdure": ours, "datasets": library}[args.way](args.file, args.cache)
        above()
        started = time.process_time()
        work()
        print(json.dumps({"seconds": time.process_time() - started, "MB": above()}))
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows.jsonl"
        write_rows(path, args.rows)
        found = {
            f"{way}{again}": measured(way, path, Path(folder) / way)
            for way in ("perdure", "datasets")
            for again in ("", ", again")
        }
    record = {"machine": platform.machine(), "rows": args.rows, "runs": found}
    args.out.write_text(json.dumps(record, indent=1) + "\n")
    print(found, f"wrote {args.out}", sep="\n")


if __name__ == "__main__":
    main()
