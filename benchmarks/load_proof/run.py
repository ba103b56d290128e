"""What it costs to prove, when a model is loaded, that it answers alike packed, padded and alone; and what packing costs.

    python benchmarks/load_proof/run.py [--rounds 5] [--out benchmarks/load_proof/record.json]
    make tables

A run of suite quickstart loads MiniLM, and one loads SmolLM2-135M: seconds of everything that is tried on the model before
the first step (one example read, padding, packing), with an empty cache, with the verdict in it, and of what keeping it adds.
Ranking: 8 prompts of 128 tokens under the 14 dbpedia labels, nothing shared, against one forward pass over the prompts.

Times are CPU seconds of this process on one thread, so that other work on the machine hardly counts.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
import transformers

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parents[1]))

from benchmarks.language_step.run import DBPEDIA  # noqa: E402

from perdure.backbones import load_backbone, verdicts  # noqa: E402
from perdure.backbones.base import Backbone  # noqa: E402
from perdure.backbones.causal import CausalLM, CausalSettings  # noqa: E402
from perdure.backbones.pretrained import answering  # noqa: E402
from perdure.backbones.ranking import logits_at  # noqa: E402
from perdure.config.lora_settings import LoraSettings  # noqa: E402
from perdure.tasks.suites import load_suite  # noqa: E402
from perdure.tasks.task import Task  # noqa: E402
from perdure.training.lora import AdaptedModel  # noqa: E402

MODELS = ("minilm", "smollm2-135m")
TRIED = ("_try_reading", "_try_padding", "how_ranked")


@contextmanager
def clocked(backbone: Backbone, spent: dict[str, float]) -> Iterator[None]:
    """Within: the CPU seconds of the backbone's trials are added up in `spent`."""

    def timed(name: str, own: Callable[..., Any]) -> Callable[..., Any]:
        def call(*given: Any, **named: Any) -> Any:
            begun = time.process_time()
            try:
                return own(*given, **named)
            finally:
                spent[name.strip("_")] = spent.get(name.strip("_"), 0.0) + time.process_time() - begun

        return call

    found = {name: getattr(backbone, name) for name in TRIED if hasattr(backbone, name)}
    with patch.multiple(backbone, **{name: timed(name, own) for name, own in found.items()}):
        yield


def loaded(model: str) -> dict[str, Any]:
    """Seconds of every trial while a run is begun with this model, and the verdict."""
    tasks = load_suite("quickstart", train=200, validation=0, test=50).tasks
    backbone, spent = load_backbone({"model": model}), dict[str, float]()
    with clocked(backbone, spent):
        backbone.prepare(tasks)
        AdaptedModel(backbone.model, LoraSettings(), backbone.default_targets)
        verdict = getattr(backbone, "how_ranked", lambda: None)()
    return {"seconds": spent, "verdict": verdict}


def measure(model: str, rounds: int) -> dict[str, Any]:
    """Without the cache (nothing is kept), with nothing in it yet, and with the verdict in it; `rounds` times each."""
    found: dict[str, list[Any]] = {"without": [], "first": [], "kept": []}
    for _ in range(rounds):
        with tempfile.TemporaryDirectory() as folder:
            inside = patch.object(verdicts, "cache_folder", lambda folder=folder: Path(folder))
            with inside, patch.object(verdicts, "SLOW", float("inf")):
                found["without"].append(loaded(model))
            with inside:
                found["first"].append(loaded(model))
                found["kept"].append(loaded(model))
            found.setdefault("files", []).append(len(os.listdir(Path(folder, "verdicts"))) if os.listdir(folder) else 0)
    return found


def ranking(rounds: int) -> dict[str, list[float]]:
    """Seconds of ranking 14 labels, and of one forward pass over the prompts (the last position's logits)."""
    settings = CausalSettings(
        model="smollm2-135m", chat=False, max_length=128, predict_batch_size=8, share_prefix=False
    )
    backbone = CausalLM.load(settings)
    rows = [(f"{i} word" * 200 + "\nAnswer:", "Company") for i in range(8)]
    task = Task("dbpedia", rows, test=rows, labels=dict(zip(DBPEDIA, DBPEDIA, strict=True)))
    backbone.prepare([task])
    ids = torch.tensor([backbone._prompt(text) for text, _ in rows])
    last = torch.zeros(ids.shape, dtype=torch.bool)
    last[:, -1] = True
    backbone.predict(task.test, ["dbpedia"])  # warm-up, and the proof
    seconds: dict[str, list[float]] = {"prompt": [], "ranking": []}
    for _ in range(rounds):
        started = time.process_time()
        with answering(backbone.model):
            logits_at(backbone.model, last, input_ids=ids)
        seconds["prompt"].append(time.process_time() - started)
        started = time.process_time()
        backbone.predict(task.test, ["dbpedia"])
        seconds["ranking"].append(time.process_time() - started)
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=HERE / "record.json")
    args = parser.parse_args()
    torch.set_num_threads(1)
    transformers.utils.logging.set_verbosity_error()
    record = {
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "machine": f"{platform.machine()}, {torch.backends.cpu.get_cpu_capability()}",
        "threads": 1,
        "models": {model: measure(model, args.rounds) for model in MODELS},
        "ranking": ranking(args.rounds),
    }
    args.out.write_text(json.dumps(record, indent=1) + "\n")
    print(f"wrote {args.out}; `make tables` puts it into README.md")


if __name__ == "__main__":
    main()
