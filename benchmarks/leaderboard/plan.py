"""The sweeps of the leaderboard, written from sequences.yaml, spaces.yaml and the records so far.

    python benchmarks/leaderboard/plan.py tune          -> tune.yaml: 8 trials of every method on the first tuning sequence
    python benchmarks/leaderboard/plan.py runoff        -> runoff.yaml: each method's best 3 of them on the second
    python benchmarks/leaderboard/plan.py screen        -> screen.yaml: each method's best trial on both, another seed
    python benchmarks/leaderboard/plan.py finals        -> finals.yaml, long.yaml: finalists and bounds, held-back sequences;
                                                           later.yaml: rows added since

Each step refuses to run on an incomplete step before it. What a step chose is in the file it wrote; no number is typed.
"""

from __future__ import annotations

import random
import statistics
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parents[1]))

from benchmarks.records import records  # noqa: E402

BOUNDS = ("joint", "per-task", "seq-lora")
FINALISTS = 5


def read(name: str) -> dict[str, Any]:
    """A YAML file of this folder."""
    return yaml.safe_load((HERE / name).read_text(encoding="utf-8"))


def drawn(space: Mapping[str, Any], count: int, random_state: random.Random) -> list[dict[str, Any]]:
    """`count` points of a space: log ranges stratified into `count` parts, choices in turn, both in random order."""
    columns: dict[str, list[Any]] = {}
    for key, values in space.items():
        if "log" in values:
            low, high = map(float, values["log"])
            at = [(i + random_state.random()) / count for i in range(count)]
            column: list[Any] = [float(f"{low * (high / low) ** x:.2g}") for x in at]
        else:
            column = [values["choice"][i % len(values["choice"])] for i in range(count)]
        random_state.shuffle(column)
        columns[key] = column
    return [{key: column[i] for key, column in columns.items()} for i in range(count)]


def trials(spaces: Mapping[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """Method -> its trials."""
    count, seed = spaces["trials"], spaces["seed"]
    loop = drawn(spaces["loop"], count, random.Random(seed))
    found = {}
    for method, own in spaces["methods"].items():
        if method in spaces.get("untrained", ()):
            found[method] = [{}]  # nothing of the loop's space acts on it
            continue
        mine = drawn(own, count, random.Random(f"{seed} {method}"))
        skip = {"training.later_learning_rate_factor"} if method in spaces["once"] else set()
        found[method] = [
            {**{k: v for k, v in a.items() if k not in skip}, **b} for a, b in zip(loop, mine, strict=True)
        ]
    return found


def tune() -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Every trial of every method on the first tuning sequence."""
    chosen = trials(read("spaces.yaml"))
    about = "Every method's trials on the first tuning sequence, scored on validation examples."
    yield "tune", about, _choosing("tune", chosen, slice(0, 1))


def runoff() -> Iterator[tuple[str, str, dict[str, Any]]]:
    """The best trials of every method on the second."""
    kept = best_trials(complete("tune"), read("spaces.yaml")["runoff"])
    about = "Each method's best trials on the second tuning sequence, scored on validation examples."
    yield "runoff", about, _choosing("runoff", kept, slice(1, None))


def screen() -> Iterator[tuple[str, str, dict[str, Any]]]:
    """The best trial of every method on whole sequences, with the screening's seeds."""
    sequences = read("sequences.yaml")
    settings = {**sequences["settings"], "evaluation.split": "validation"}
    about = "Each method's best trial again, with other seeds, on validation examples."
    yield (
        "screen",
        about,
        {"name": "screen", "settings": settings, **sequences["screening"], "methods": chosen_trials()},
    )


def finals() -> Iterator[tuple[str, str, dict[str, Any]]]:
    """The finalists and the bounds on the held-back sequences."""
    rows, chosen = complete("screen"), chosen_trials()
    ranked = sorted(chosen, key=lambda method: -_mean(rows, method))
    spaces = read("spaces.yaml")
    later = spaces["later"]
    rivals = [method for method in ranked if method not in (*BOUNDS, *later)][:FINALISTS]
    sequences = read("sequences.yaml")
    held = sequences["held_back"]
    methods = {method: chosen[method] for method in dict.fromkeys((*rivals, *held["always"], *BOUNDS))}
    methods |= _variants(held["variants"], chosen)
    added = {method: chosen[method] for method in later} | _variants(spaces["later_variants"], chosen)
    own = {"data_seed": "data_seed", "budget.test": "budget_test", "evaluation.every_stage": "every_stage"}
    fixed = {**sequences["settings"], **{setting: held[key] for setting, key in own.items()}}
    about = "Finalists and bounds on the held-back sequences, scored on test examples."
    for name in ("finals", "long"):
        yield name, about, {"name": name, "settings": fixed, **held[name], "methods": methods}
    about = "Rows added after the finals, on the same sequences."
    yield "later", about, {"name": "later", "settings": fixed, **held["finals"], "methods": added}


def _variants(named: Mapping[str, Any], chosen: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """A row of its own each: a preset with the settings chosen for it, and a change."""
    return {name: {"method": v["preset"], **chosen[v["preset"]], **v["change"]} for name, v in named.items()}


def chosen_trials() -> dict[str, dict[str, Any]]:
    """Method -> of the trials in the runoff the one that is best over all tuning sequences."""
    runoff = complete("runoff")
    again = [(row["method"], row["varied"]) for row in runoff]
    rows = [*runoff, *(row for row in complete("tune") if (row["method"], row["varied"]) in again)]
    return {method: {**_fixed(method), **own[0]} for method, own in best_trials(rows, 1).items()}


def best_trials(rows: Sequence[Mapping[str, Any]], count: int) -> dict[str, list[dict[str, Any]]]:
    """Method -> its `count` trials of the best average accuracy over the rows' sequences; a tie goes to the earlier trial."""
    best = {}
    for method, own in trials(read("spaces.yaml")).items():
        means = []
        for trial in own:
            scores = [r["scores"]["average_accuracy"] for r in rows if r["method"] == method and r["varied"] == trial]
            means += [(statistics.mean(scores), trial)] if scores else []
        best[method] = [trial for _, trial in sorted(means, key=lambda scored: -scored[0])[:count]]
    return {method: own for method, own in best.items() if own}


def _fixed(method: str) -> dict[str, Any]:
    return read("spaces.yaml")["fixed"].get(method, {})


def _choosing(step: str, chosen: Mapping[str, Sequence[Mapping[str, Any]]], which: slice) -> dict[str, Any]:
    """A sweep on some of the tuning sequences, of which only the final average accuracy counts."""
    sequences = read("sequences.yaml")
    settings = {**sequences["settings"], "evaluation.split": "validation", "evaluation.every_stage": False}
    tuning = sequences["tuning"]
    return {
        "name": step,
        "settings": settings,
        "seeds": tuning["seeds"],
        "sequences": tuning["sequences"][which],
        "methods": {method: {**_fixed(method), "trials": list(own)} for method, own in chosen.items()},
    }


def complete(step: str, folder: Path = HERE) -> list[dict[str, Any]]:
    """The records of a step, all of them (failed runs are final: they count as they are, see docs/protocol.md)."""
    from perdure.sweeps.plan import cells, load_sweep

    wanted = {cell.id for cell in cells(load_sweep(folder / f"{step}.yaml"))}
    rows = [row for row in records(f"{folder.name}/{step}/records") if row["id"] in wanted]
    failed = {row["id"] for row in records(f"{folder.name}/{step}/failed")}
    if missing := wanted - failed - {row["id"] for row in rows}:
        target = f"make {folder.name.replace('_', '-')}"
        raise SystemExit(f"{step}: {len(missing)} of {len(wanted)} runs have no record yet; go on with `{target}`.")
    return rows


def _mean(rows: Sequence[Mapping[str, Any]], method: str) -> float:
    """Average accuracy over a step's runs; of a method of which a run failed, the least there is."""
    scores = [row["scores"]["average_accuracy"] for row in rows if row["method"] == method]
    most = max(Counter(row["method"] for row in rows).values(), default=0)
    return statistics.mean(scores) if 0 < len(scores) == most else float("-inf")


def main() -> None:
    for name, about, sweep in {"tune": tune, "runoff": runoff, "screen": screen, "finals": finals}[sys.argv[1]]():
        head = f"# {about} Written by plan.py; do not edit.\n"
        (HERE / f"{name}.yaml").write_text(head + yaml.safe_dump(sweep, sort_keys=False, width=120), encoding="utf-8")


if __name__ == "__main__":
    main()
