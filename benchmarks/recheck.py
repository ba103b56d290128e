"""Do committed numbers come out again? Two quickstart runs, drawn by a seed, are run anew and compared with their records.

    python benchmarks/recheck.py [--seed 0] [--count 2] [--tolerance 2.0]

Tolerance: points of final average accuracy. The same processor and versions give the same bits; another processor rounds bf16
products otherwise, and the runs then differ by what a handful of test examples is worth. The data's hashes must be equal.
About two minutes of one core a run.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent


def candidates() -> list[Path]:
    """Committed records of quickstart runs, in a fixed order."""
    paths = sorted(HERE.glob("*/records/*.json")) + sorted(HERE.glob("*/*/records/*.json"))
    return [path for path in paths if json.loads(path.read_text()).get("config", {}).get("suite") == "quickstart"]


def again(record: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Run the record's configuration in `folder`: its final average accuracy and the hashes of its data."""
    from perdure.commands.learn import run_config
    from perdure.config.run_config import load_config
    from perdure.state.store import Store

    scores = run_config(load_config(record["config"]), folder)
    return {"average_accuracy": scores.average_accuracy, "tasks": Store(folder).about["tasks"]}


def differs(record: Mapping[str, Any], found: Mapping[str, Any], tolerance: float) -> str | None:
    """Why the new run is not the recorded one, or None."""
    if record["tasks"] != found["tasks"]:
        return "the data differ"
    off = 100 * abs(record["scores"]["average_accuracy"] - found["average_accuracy"])
    return f"off by {off:.1f} points" if off > tolerance else None


def main() -> None:
    """Draw, run, compare; exit 1 on a difference."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--count", type=int, default=2)
    parser.add_argument("--tolerance", type=float, default=2.0)
    chosen = parser.parse_args()
    failed = False
    for path in random.Random(chosen.seed).sample(candidates(), chosen.count):
        record = json.loads(path.read_text())
        with tempfile.TemporaryDirectory() as folder:
            found = again(record, Path(folder) / "run")
        wrong = differs(record, found, chosen.tolerance)
        failed |= wrong is not None
        before, now = (100 * row["average_accuracy"] for row in (record["scores"], found))
        print(
            f"{path.relative_to(HERE)}: recorded {before:.2f}, now {now:.2f}; {wrong or f'within {chosen.tolerance:g} points'}",
            flush=True,
        )
    sys.exit(failed)


if __name__ == "__main__":
    main()
