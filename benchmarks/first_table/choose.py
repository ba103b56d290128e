"""Step 2 of the first table: from the tuning records, each method's best settings by validation accuracy -> final.yaml.

python benchmarks/first_table/choose.py
"""

from __future__ import annotations

import json
from pathlib import Path

import yaml

HERE = Path(__file__).parent


def best() -> dict[str, dict]:
    """Method -> the settings of its best trial; a tie goes to the smaller forgetting."""
    records = [json.loads(path.read_text()) for path in sorted((HERE / "tuning" / "records").glob("*.json"))]
    chosen: dict[str, dict] = {}
    for record in records:
        scores = record["scores"]
        key = (scores["average_accuracy"], -(scores["forgetting"] or 0.0))
        if record["method"] not in chosen or key > chosen[record["method"]]["key"]:
            chosen[record["method"]] = {"key": key, "varied": record["varied"]}
    return {method: entry["varied"] for method, entry in chosen.items()}


def main() -> None:
    tuning = yaml.safe_load((HERE / "tune.yaml").read_text())
    settings = {key: value for key, value in tuning["settings"].items() if not key.startswith("evaluation.")}
    methods = {}
    for method, varied in best().items():
        fixed = {key: value for key, value in tuning["methods"][method].items() if key != "grid"}
        methods[method] = fixed | varied
    final = {"name": "first-table", "settings": settings, "seeds": [0, 1, 2], "methods": methods}
    head = (
        "# First table, step 3: three seeds on test examples, with the settings that choose.py took from tuning/records.\n"
        "# Generated. Run: perdure sweep benchmarks/first_table/final.yaml --out benchmarks/first_table/final\n"
    )
    (HERE / "final.yaml").write_text(head + yaml.safe_dump(final, sort_keys=False))


if __name__ == "__main__":
    main()
