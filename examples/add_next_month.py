"""Add next month's tickets to the run of examples/own_data.py; the stage is rejected if older tasks are forgotten.

Run:  python examples/own_data.py && python examples/add_next_month.py
"""

from __future__ import annotations

import csv
from pathlib import Path

import perdure

PLACES = ("the clinic", "the bakery", "our garage", "the library", "the tower", "the port", "the farm", "the mill")
APRIL = {"billing": "I was charged twice for {}", "outage": "No signal in {} after the storm"}


def write_month(folder: Path) -> Path:
    """Write the new month into its own files: the run still scores the old ones."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "tickets.csv").open("w", newline="") as file:
        rows = [(text.format(place), label) for place in PLACES for label, text in APRIL.items()]
        csv.writer(file).writerows([("text", "label"), *rows])
    (folder / "tickets.yaml").write_text(
        "name: tickets\ntrain: tickets.csv\nlabels: {billing: a question about a bill, outage: a report of an outage}\n"
    )
    return folder / "tickets.yaml"


def main(folder: Path = Path("runs/own-data"), max_forgetting: float = 5.0) -> perdure.Scores | None:
    """Add the month as a new version of its task; None if it was rejected."""
    run, task = folder / "run", write_month(folder / "april")
    try:
        scores = perdure.add(run, task, max_forgetting=max_forgetting)
    except perdure.QualityGate as refused:
        print(refused)
        return None
    print(f"{scores.stages[-1]} learnt. Scores now: {dict(zip(scores.tasks, scores.score_matrix[-1], strict=True))}")
    print(f"To undo: perdure rollback {run} --to {scores.stages[-2]}")
    return scores


if __name__ == "__main__":
    main()
