"""General ability after every finished run of the finals, then the run's folder is removed.

    python benchmarks/language_leaderboard/ability.py labels
    python benchmarks/language_leaderboard/ability.py texts

One record a run, `STEP/ability/ID.json`: the rows of `perdure ability` for the untouched model and for what the run deploys. A
method that deploys an update for each task is left out: its answer to other questions is the untouched model's.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parents[1]))

from benchmarks.language_leaderboard.plan import read  # noqa: E402

from perdure.files.durable import read_json, write_json  # noqa: E402
from perdure.studies.ability import general_ability  # noqa: E402

UNTOUCHED = ("per-task",)


def main() -> None:
    step, asked = HERE / sys.argv[1], read("sequences.yaml")["ability"]
    for path in sorted((step / "records").glob("*.json")):
        folder, kept = step / "runs" / path.stem, step / "ability" / path.name
        method = read_json(path)["method"]
        if not folder.is_dir():
            continue
        if method not in UNTOUCHED and not kept.is_file():
            kept.parent.mkdir(exist_ok=True)
            found = general_ability(folder, shots=tuple(asked["shots"]), examples=asked["examples"])
            write_json(kept, {"id": path.stem, **found.as_dict(), "method": method})
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
