"""Every part and every preset, in one visible table. Imports no torch, so that `perdure methods` is instant.

A preset is a row: which part answers each question of the loop (perdure.methods.contract.parts), and where it comes from. Any
other mixture is configuration.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from perdure.tasks.task import StreamMode

Role = Literal["init", "penalty", "step_rule", "consolidate", "replay", "head"]

PARTS: Mapping[Role, Mapping[str, str]] = {
    "init": {
        "kaiming": "perdure.methods.plain:Kaiming",
        "continue": "perdure.methods.plain:Continue",
        "slice": "perdure.methods.slice:Slice",
        "slice-free": "perdure.methods.slice_free:SliceFree",
        "lora-ga": "perdure.methods.lora_ga:LoraGa",
        "loram": "perdure.methods.loram:Loram",
        "slao": "perdure.methods.slao:SlaoStart",
        "inf-lora": "perdure.methods.inf_lora:InfLora",
    },
    "penalty": {
        "l2": "perdure.methods.l2:SquaredNorm",
        "sign-magnitude": "perdure.methods.ps_lora:SignMagnitude",
        "sparsity": "perdure.methods.n_lora:Sparsity",
        "overlap": "perdure.methods.o_lora:InputOverlap",
        "factor-norm": "perdure.methods.o_lora:FactorNorm",
        "past-energy": "perdure.methods.ella:PastEnergy",
        "fisher": "perdure.methods.ewc:FisherPenalty",
        "output-drift": "perdure.methods.output_drift:OutputDrift",
        "score-drift": "perdure.methods.score_drift:ScoreDrift",
        "distillation": "perdure.methods.lwf:LwF",
    },
    "step_rule": {
        "a-gem": "perdure.methods.a_gem:AGem",
        "proximal-rows": "perdure.methods.n_lora:ProximalRows",
    },
    "consolidate": {
        "sum": "perdure.methods.plain:Sum",
        "latest": "perdure.methods.plain:Latest",
        "per-task": "perdure.methods.plain:PerTaskAdapters",
        "max-magnitude": "perdure.methods.ps_lora:MaxMagnitude",
        "average": "perdure.methods.merge_rules:Average",
        "ties": "perdure.methods.merge_rules:Ties",
        "dare": "perdure.methods.merge_rules:Dare",
        "magmax": "perdure.methods.merge_rules:MagMax",
        "slao": "perdure.methods.slao:SlaoMerge",
        "covariance-gain": "perdure.methods.covariance_gain:CovarianceGain",
    },
    "replay": {"buffer": "perdure.methods.replay:ExampleBuffer"},
    "head": {"discriminant": "perdure.methods.discriminant:Discriminant"},
}
"""Role -> kind -> the class, imported when a method is built."""


def kind_of(part: object) -> str:
    """A part's name in a configuration: its row of `PARTS`, or `module:Class` for a custom part."""
    place = f"{type(part).__module__}:{type(part).__qualname__}"
    return next((kind for kinds in PARTS.values() for kind, row in kinds.items() if row == place), place)


Settings = Mapping[str, Any]

WANTED: Mapping[str, Settings] = {kind: {"lora.alpha": 2.0} for kind in ("slice", "slice-free", "lora-ga", "loram")}
"""Init -> run settings (dotted) that it needs, in any method, unless the user sets them. Inits that offset the base need
s = .25, SLICE's own, which is alpha 2 at rank 8 (docs/methods/slice.md)."""


@dataclass(frozen=True)
class Preset:
    """One row: a named composition.

    Args:
        summary: what it does, in a line.
        source: the paper's link, or why there is none.
        settings: run settings (dotted, like `training.average`) that the method needs unless the user sets them, beside those
            of its init.
    """

    summary: str
    source: str
    init: Settings = field(default_factory=lambda: {"kind": "kaiming"})
    penalties: Mapping[str, Settings] = field(default_factory=dict)
    step_rule: Settings | None = None
    consolidate: Settings = field(default_factory=lambda: {"kind": "sum"})
    replay: Settings | None = None
    head: Settings | None = None
    stream: StreamMode = "one-by-one"
    settings: Settings = field(default_factory=dict)

    def composition(self) -> dict[str, Any]:
        """The row as the mapping that `perdure.config.composition.resolve_method` works on."""
        row = dataclasses.asdict(self)
        penalties = {name: {"kind": name, **settings} for name, settings in row["penalties"].items()}
        parts = {key: row[key] for key in ("init", "penalties", "step_rule", "consolidate", "replay", "stream")}
        head = (
            {"head": row["head"]} if row["head"] else {}
        )  # left out, not null: runs begun without the role keep their identity
        return {**parts, "penalties": penalties, **head}


SIGN_MAGNITUDE: Settings = {"weight": 0.01, "alpha": 1000.0}
SPARSITY: Settings = {"weight": 1e-4}
OVERLAP: Settings = {"weight": 0.5}
INIT_ONLY: Settings = {"kind": "buffer", "use": "init-only"}
MIXED: Settings = {"kind": "buffer", "use": "mixed"}
MAX_MAGNITUDE: Settings = {"kind": "max-magnitude"}

BASELINE = "a baseline, no paper"
OURS = "this project, no paper"

PRESETS: Mapping[str, Preset] = {
    "perdure": Preset(
        "change old tasks' scores little on old tasks' inputs; keeps statistics, no examples",
        OURS,
        penalties={"score-drift": {"weight": 10.0}},
        settings={"training.average": "last-half", "training.later_learning_rate_factor": 0.5},
    ),
    "frozen-head": Preset(
        "nothing is trained: class means and a shared covariance of what the untouched base reads",
        "this project, after https://arxiv.org/abs/1909.01520 and https://arxiv.org/abs/2307.02251",
        head={"kind": "discriminant"},
        settings={"training.epochs": 0},
    ),
    "perdure+head": Preset(
        "perdure, and beside it the head of frozen-head: adapter and class means answer together",
        OURS,
        penalties={"score-drift": {"weight": 10.0}},
        head={"kind": "discriminant"},
        settings={"training.average": "last-half", "training.later_learning_rate_factor": 0.5},
    ),
    "seq-lora": Preset(
        "one adapter, trained on every task in turn; the usual lower bound",
        BASELINE,
        init={"kind": "continue"},
        consolidate={"kind": "latest"},
    ),
    "inc-lora": Preset("a new adapter for every task; their updates are summed", BASELINE),
    "l2": Preset("inc-lora that keeps each update small", BASELINE, penalties={"l2": {"weight": 0.01}}),
    "ps-lora": Preset(
        "penalise updates that are large or whose signs oppose the past; merge by larger magnitude",
        "https://arxiv.org/abs/2512.08960",
        penalties={"sign-magnitude": SIGN_MAGNITUDE},
        consolidate=MAX_MAGNITUDE,
    ),
    "n-lora": Preset(
        "sparse updates, which seldom touch the same weights",
        "https://arxiv.org/abs/2410.10179",
        penalties={"sparsity": SPARSITY},
    ),
    "n-lora-proximal": Preset(
        "the same with exact zeros: rows of the update vanish in a proximal step",
        "this project, after https://arxiv.org/abs/2410.10179",
        step_rule={"kind": "proximal-rows", "weight": 0.3},
    ),
    "o-lora": Preset(
        "updates that read other input directions than the past ones",
        "https://arxiv.org/abs/2310.14152",
        penalties={"overlap": OVERLAP},
    ),
    "o-lora+n-lora": Preset(
        "both penalties at once",
        "https://arxiv.org/abs/2410.10179",
        penalties={"overlap": OVERLAP, "sparsity": SPARSITY},
    ),
    "slice": Preset(
        "start from the task gradient's SVD, reconciled with the gradients of replayed old tasks",
        "https://arxiv.org/abs/2605.12752",
        init={"kind": "slice"},
        replay=INIT_ONLY,
    ),
    "slice-free": Preset(
        "SLICE on input statistics instead of replayed examples",
        "this project, after https://arxiv.org/abs/2605.12752",
        init={"kind": "slice-free"},
    ),
    "lora-ga": Preset(
        "start from the task gradient's SVD", "https://arxiv.org/abs/2407.05000", init={"kind": "lora-ga"}
    ),
    "loram": Preset(
        "start from fixed sine bases at the weight's magnitude",
        "https://arxiv.org/abs/2507.06558",
        init={"kind": "loram"},
    ),
    "slice+ps-lora": Preset(
        "SLICE's start, PS-LoRA's penalty and merge",
        "https://arxiv.org/abs/2605.12752 and https://arxiv.org/abs/2512.08960",
        init={"kind": "slice"},
        penalties={"sign-magnitude": SIGN_MAGNITUDE},
        consolidate=MAX_MAGNITUDE,
        replay=INIT_ONLY,
    ),
    "slice+n-lora": Preset(
        "SLICE's start, N-LoRA's penalty",
        "https://arxiv.org/abs/2605.12752 and https://arxiv.org/abs/2410.10179",
        init={"kind": "slice"},
        penalties={"sparsity": SPARSITY},
        replay=INIT_ONLY,
    ),
    "slice+replay": Preset(
        "SLICE's start, and old examples mixed into every batch",
        "https://arxiv.org/abs/2605.12752",
        init={"kind": "slice"},
        replay=MIXED,
    ),
    "ewc": Preset(
        "protect weights the Fisher information calls important",
        "https://arxiv.org/abs/1612.00796 and https://arxiv.org/abs/1805.06370",
        penalties={"fisher": {"weight": 100.0}},
    ),
    "ella": Preset(
        "avoid entries where the past put energy",
        "https://arxiv.org/abs/2601.02232",
        penalties={"past-energy": {"weight": 1000.0}},
    ),
    "output-drift": Preset(
        "keep the outputs on old tasks' inputs; keeps statistics, no examples",
        OURS,
        penalties={"output-drift": {"weight": 100.0}},
    ),
    "inf-lora": Preset(
        "train B on a frozen A that old inputs do not reach",
        "https://arxiv.org/abs/2404.00228",
        init={"kind": "inf-lora"},
    ),
    "slao": Preset(
        "orthonormal restart of A, time-aware average of B",
        "https://arxiv.org/abs/2512.23017",
        init={"kind": "slao"},
        consolidate={"kind": "slao"},
    ),
    "a-gem": Preset(
        "gradients that do not increase the loss on old examples",
        "https://arxiv.org/abs/1812.00420",
        step_rule={"kind": "a-gem"},
        replay=INIT_ONLY,
    ),
    "lwf": Preset(
        "old tasks' answers on new inputs stay as they were",
        "https://arxiv.org/abs/1606.09282",
        penalties={"distillation": {"weight": 1.0}},
    ),
    "replay": Preset("old examples mixed into every batch", "https://arxiv.org/abs/1902.10486", replay=MIXED),
    "average": Preset("the mean of all updates answers", BASELINE, consolidate={"kind": "average"}),
    "ties": Preset(
        "trim, elect signs, average what agrees", "https://arxiv.org/abs/2306.01708", consolidate={"kind": "ties"}
    ),
    "dare": Preset(
        "drop entries at random, rescale, sum", "https://arxiv.org/abs/2311.03099", consolidate={"kind": "dare"}
    ),
    "magmax": Preset(
        "the largest entry of the cumulative updates",
        "https://arxiv.org/abs/2407.06322",
        consolidate={"kind": "magmax"},
    ),
    "covariance-gain": Preset(
        "sum updates after turning each away from old inputs", OURS, consolidate={"kind": "covariance-gain"}
    ),
    "joint": Preset("all tasks mixed and trained at once; the usual upper bound", BASELINE, stream="joint"),
    "per-task": Preset(
        "one adapter per task, chosen by the task's name; no forgetting by construction",
        BASELINE,
        consolidate={"kind": "per-task"},
    ),
}
