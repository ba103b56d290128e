"""Learn two tasks from your own files, one CSV and one JSON lines, then predict.

Run:  python examples/own_data.py        (about a minute with MiniLM; then examples/add_next_month.py)
"""

from __future__ import annotations

import csv
import json
from pathlib import Path

import perdure

PLACES = ("the office", "the warehouse", "our shop", "the hotel", "my flat", "the station", "the school", "the lab")
TICKETS = {"billing": "The bill for {} is too high", "outage": "The line in {} is dead since noon"}
REVIEWS = {"good": "A wonderful evening near {}", "bad": "Cold food and rude staff near {}"}


def write_files(folder: Path) -> list[Path]:
    """Write what you would already have: a data file and a few lines of YAML per task."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "tickets.csv").open("w", newline="") as file:
        rows = [(text.format(place), label) for place in PLACES for label, text in TICKETS.items()]
        csv.writer(file).writerows([("text", "label"), *rows])
    with (folder / "reviews.jsonl").open("w") as file:
        for place in PLACES:
            for label, text in REVIEWS.items():
                file.write(json.dumps({"text": text.format(place), "label": label}) + "\n")
    (folder / "tickets.yaml").write_text(
        "name: tickets\ntrain: tickets.csv\nlabels: {billing: a question about a bill, outage: a report of an outage}\n"
    )
    (folder / "reviews.yaml").write_text("name: reviews\ntrain: reviews.jsonl\n")
    return [folder / "tickets.yaml", folder / "reviews.yaml"]


def main(folder: Path = Path("runs/own-data"), backbone: str | dict = "minilm", **settings) -> perdure.Scores:
    """Learn both tasks into folder/run and classify two new texts."""
    tasks = write_files(folder)
    scores = perdure.learn(tasks=tasks, method="ps-lora", backbone=backbone, out=folder / "run", **settings)
    print(f"scores after each task: {scores.score_matrix}")
    for row in perdure.predict(folder / "run", ["No internet in the hospital", "Why do I pay twice?"], task="tickets"):
        print(f"{row['input']} -> {row['label']} ({max(row['probabilities'].values()):.2f})")
    return scores


if __name__ == "__main__":
    main()
