"""300,000 rows of an own file, to token ids: against `datasets` and tokenizers doing the same.

    python benchmarks/large_data/run.py [--rows 300000] [--out benchmarks/large_data/record.json]

A JSON lines file of texts of 10 to 40 words and four labels. Ours: `load_task` (rows checked, repetitions and contradictions
found, splits drawn in proportion) and what an encoder does before its first step (every text tokenised with MiniLM's
tokenizer). The other: `load_dataset("json")`, a random split, `map` of the same tokenizer in batches, nothing checked. Each in a
process of its own, on one thread. CPU seconds; memory is the peak above that after the imports.
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

HERE = Path(__file__).parent


def write_rows(path: Path, rows: int) -> None:
    """The file, the same every time."""
    draw = random.Random(0)
    words = [f"word{i}" for i in range(5000)]
    with path.open("w") as file:
        for i in range(rows):
            text = " ".join([*draw.choices(words, k=draw.randint(10, 40)), str(i)])
            file.write(json.dumps({"text": text, "label": draw.choice("abcd")}) + "\n")


def ours(path: Path) -> Callable[[], None]:
    import transformers  # noqa: F401

    from perdure import load_task
    from perdure.backbones.encoder import Encoder, EncoderSettings

    encoder = Encoder.load(EncoderSettings(model="minilm"))

    def work() -> None:
        lap = time.process_time()
        task = load_task({"name": "large", "train": str(path)})
        print(f"read: {time.process_time() - lap:.2f} s, {above():.0f} MB", file=sys.stderr)
        encoder.prepare([task])

    return work


def library(path: Path) -> Callable[[], None]:
    import datasets
    from transformers import AutoTokenizer

    from perdure.backbones.encoder import Encoder, EncoderSettings
    from perdure.backbones.models import model_folder

    Encoder.load(EncoderSettings(model="minilm"))  # so that both begin with the same imports and weights
    tokenizer = AutoTokenizer.from_pretrained(model_folder("minilm"))
    datasets.disable_progress_bars()

    def work() -> None:
        with tempfile.TemporaryDirectory() as cache:
            lap = time.process_time()
            rows = datasets.load_dataset("json", data_files=str(path), cache_dir=cache, split="train")
            splits = rows.train_test_split(2000, seed=0)
            print(f"read: {time.process_time() - lap:.2f} s, {above():.0f} MB", file=sys.stderr)
            limit = {"truncation": True, "max_length": 128}
            splits.map(lambda some: {"ids": tokenizer(some["text"], **limit)["input_ids"]}, batched=True)

    return work


def above() -> float:
    """Peak memory in MB; above that of the first call."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    BASE.append(peak)
    return peak - BASE[0]


BASE: list[float] = []


def measured(way: str, path: Path) -> dict[str, float]:
    """CPU seconds and memory of one way, in a process of its own."""
    one = {"RAYON_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    command = [sys.executable, __file__, "--way", way, "--file", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **one}, check=True)
    print(way, done.stderr.strip().splitlines()[-1])
    return json.loads(done.stdout.strip().splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=300_000)
    parser.add_argument("--out", type=Path, default=HERE / "record.json")
    parser.add_argument("--way", choices=["perdure", "datasets"])
    parser.add_argument("--file", type=Path)
    args = parser.parse_args()
    if args.way:
        work = {"perdure": ours, "datasets": library}[args.way](args.file)
        above()
        started = time.process_time()
        work()
        print(json.dumps({"seconds": time.process_time() - started, "MB": above()}))
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows.jsonl"
        write_rows(path, args.rows)
        found = {way: measured(way, path) for way in ("perdure", "datasets")}
    record = {"machine": platform.machine(), "rows": args.rows, "runs": found}
    args.out.write_text(json.dumps(record, indent=1) + "\n")
    print(found, f"wrote {args.out}", sep="\n")


if __name__ == "__main__":
    main()
