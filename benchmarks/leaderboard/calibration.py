"""How often the leaderboard's comparison finds a difference where there is none, for designs of few orders and seeds.

    python benchmarks/leaderboard/calibration.py
    make tables

Two simulated methods answer the same five tasks of 500 examples. Every run has its own accuracy: a common one, plus training
noise drawn for every order and seed. Their answers agree on most examples, like those of methods that share a base: `examples` is
the standard error, in points, of a paired difference of average accuracies in one cell. Both values below are those of the
records: training noise of about .4 points (the claims' three seeds), examples of .45 to .8.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from perdure.sweeps.comparison import Outcome, compare

TASKS, EXAMPLES, ACCURACY, STUDIES, RESAMPLES = 5, 500, 0.8, 400, 200
DESIGNS = ((1, 1), (1, 2), (2, 1), (3, 1), (3, 2), (9, 1), (9, 2))
NOISES = ((0.4, 0.45), (0.4, 0.8), (1.0, 0.45), (1.0, 0.8))
"""Standard deviations in points: of training, run by run; of a cell's paired difference because of its examples."""
HERE = Path(__file__).parent


def answers(random: np.random.Generator, cell: tuple[str, int], training: float, examples: float) -> list[Outcome]:
    """One run of either method in one cell; the examples on which they differ are drawn to give the standard error asked for."""
    differing = (
        (examples / 100) ** 2 * EXAMPLES * TASKS
    )  # share of examples answered otherwise; its variance is that share
    right: dict[str, dict[str, np.ndarray]] = {"first": {}, "second": {}}
    shift = {method: random.normal(0, training / 100) for method in right}
    for task in map(str, range(TASKS)):
        common = random.random(EXAMPLES) < ACCURACY
        for method, own in right.items():
            share = differing / 2
            lost = random.random(EXAMPLES) < (share - shift[method]) / (2 * ACCURACY)
            won = random.random(EXAMPLES) < (share + shift[method]) / (2 * (1 - ACCURACY))
            own[task] = np.where(common, ~lost, won).astype(np.float64)
    return [Outcome(method, cell, own) for method, own in right.items()]


def false_positives(orders: int, seeds: int, training: float, examples: float) -> float:
    """Share of studies without a difference whose p is below .05."""
    random, found = np.random.default_rng(0), 0
    for number in range(STUDIES):
        cells = [(f"order {order}", seed) for order in range(orders) for seed in range(seeds)]
        outcomes = [outcome for cell in cells for outcome in answers(random, cell, training, examples)]
        found += compare(outcomes, "first", resamples=RESAMPLES, seed=number).comparisons[0].p < 0.05
    return found / STUDIES


def main() -> None:
    rows = [
        {"orders": o, "seeds": s, "training": t, "examples": e, "false_positives": false_positives(o, s, t, e)}
        for o, s in DESIGNS
        for t, e in NOISES
    ]
    path = HERE / "calibration.json"
    path.write_text(json.dumps({"studies": STUDIES, "resamples": RESAMPLES, "rows": rows}, indent=1) + "\n")
    print(f"wrote {path}; `make tables` puts it into docs/protocol.md")


if __name__ == "__main__":
    main()
