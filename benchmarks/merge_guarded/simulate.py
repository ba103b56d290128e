"""How often does a guarded merge lose more than the tolerance where the truth is known? Simulated, in about a minute.

    python benchmarks/merge_guarded/simulate.py [--trials 400] [--out benchmarks/merge_guarded/simulation.json]

A world: six groups of modules; example i of the old task is right while its margin m_i + sum_g s_g e_ig is above 0, with
m_i ~ N(.4, 1), e_ig ~ N(-h_g, spread), the h_g drawn anew with a stated sum; the new task likewise, with e_ig that raise
its margin. The guard of perdure.merging.guarded sees n validation examples; 10,000 fresh ones tell what its choice truly loses:

    point       the validation loss itself must stay within the tolerance (--set confidence=null)
    bound       its one-sided 95 % bound must (the default), the same examples for the whole search
    halves      the search believes one half; its answer is then scaled by 1/8, 2/8 ... while the bound on the other half holds
                (a fixed sequence of tests, as in Learn then Test, arXiv 2110.01052): no selection, half the examples
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path

import numpy as np
import torch

from perdure.merging.guarded import Guard, guarded
from perdure.merging.paired_loss import PairedLoss
from perdure.ops.lowrank import Update

GROUPS, TOLERANCE, FRESH = 6, 0.02, 10_000
STEP = {f"layers.{g}.q": torch.ones(1, 1) for g in range(GROUPS)}
WORLDS = {"mild": (0.1, 0.12), "harsh": (0.3, 0.25)}
"""Name -> (sum of the h_g, spread)."""
Sample = dict[str, tuple[np.ndarray, np.ndarray]]
"""Task -> margins [n] and effects of the groups on them [n, groups]."""


def drawn(draw: np.random.Generator, n: int, harm_G: np.ndarray, gain_G: np.ndarray, spread: float) -> Sample:
    """n examples of each task."""
    return {
        "old": (draw.normal(0.4, 1, n), draw.normal(-harm_G, spread, (n, GROUPS))),
        "new": (draw.normal(0.9, 1, n), draw.normal(gain_G, 0.15, (n, GROUPS))),
    }


def right(sample: Sample, task: str, scale_G: np.ndarray) -> list[float]:
    """Outcomes at the given scales."""
    margins, effects = sample[task]
    return (margins + effects @ scale_G > 0).astype(float).tolist()


def amounts(update: Update) -> np.ndarray:
    """The scales that an update was made with."""
    return np.array([float(update[name].sum()) if name in update else 0.0 for name in STEP])  # type: ignore[union-attr]


def chosen(how: str, sample: Sample) -> np.ndarray:
    """The scales that a way of guarding chooses."""
    half = slice(0, None, 2) if how == "halves" else slice(None)
    guard = Guard(TOLERANCE, confidence=0.95 if how == "bound" else None)
    found = guarded({}, STEP, ["old"], "new", lambda update, task: right(sample, task, amounts(update))[half], guard)
    scale_G = np.array(list(found.scales.values()))
    if how != "halves":
        return scale_G
    before, held = right(sample, "old", 0 * scale_G)[1::2], 0
    while held < 8:
        after = right(sample, "old", scale_G * (held + 1) / 8)[1::2]
        if PairedLoss.of(before, after).bound(0.95) > TOLERANCE:
            break
        held += 1
    return scale_G * held / 8


def trial(how: str, n: int, harm: float, spread: float, seed: int) -> dict[str, float]:
    """True loss of the old task and share of the new task's gain kept, of one world."""
    draw = np.random.default_rng(seed)
    harm_G, gain_G = draw.dirichlet(np.ones(GROUPS)) * harm, draw.dirichlet(2 * np.ones(GROUPS))
    sample, fresh = (drawn(draw, size, harm_G, gain_G, spread) for size in (n, FRESH))
    score = {
        (task, at): statistics.fmean(right(fresh, task, scales))
        for at, scales in (("none", np.zeros(GROUPS)), ("guarded", chosen(how, sample)), ("all", np.ones(GROUPS)))
        for task in ("old", "new")
    }
    gain = score["new", "all"] - score["new", "none"]
    return {
        "loss": score["old", "none"] - score["old", "guarded"],
        "unguarded_loss": score["old", "none"] - score["old", "all"],
        "kept": (score["new", "guarded"] - score["new", "none"]) / gain,
    }


def main() -> None:
    """Simulate, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=400)
    parser.add_argument("--sizes", type=int, nargs="+", default=[256, 1000])
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("simulation.json"))
    asked = parser.parse_args()
    rows = []
    for world, (harm, spread) in WORLDS.items():
        for n in asked.sizes:
            for how in ("point", "bound", "halves"):
                found = [trial(how, n, harm, spread, seed) for seed in range(asked.trials)]
                row = {
                    "world": world,
                    "validation": n,
                    "guard": how,
                    "lost_more_than_tolerance": statistics.fmean(each["loss"] > TOLERANCE for each in found),
                    "loss": statistics.fmean(each["loss"] for each in found),
                    "unguarded_loss": statistics.fmean(each["unguarded_loss"] for each in found),
                    "median_share_of_gain_kept": statistics.median(each["kept"] for each in found),
                }
                print(row, flush=True)
                rows.append(row)
    record = {"tolerance": TOLERANCE, "confidence": 0.95, "trials": asked.trials, "rows": rows}
    asked.out.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
