"""Every part and every preset, in one visible table. Imports no torch, so that `perdure methods` is instant.

A preset is a row: which part answers each question of the loop (perdure.methods.parts). Any other mixture is configuration.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Role = Literal["init", "penalty", "step_rule", "consolidate", "replay"]

PARTS: Mapping[Role, Mapping[str, str]] = {
    "init": {
        "kaiming": "perdure.methods.plain:Kaiming",
        "continue": "perdure.methods.plain:Continue",
    },
    "penalty": {
        "l2": "perdure.methods.l2:SquaredNorm",
        "sign-magnitude": "perdure.methods.ps_lora:SignMagnitude",
    },
    "step_rule": {},
    "consolidate": {
        "sum": "perdure.methods.plain:Sum",
        "latest": "perdure.methods.plain:Latest",
        "per-task": "perdure.methods.plain:PerTaskAdapters",
        "max-magnitude": "perdure.methods.ps_lora:MaxMagnitude",
    },
    "replay": {},
}

Settings = Mapping[str, Any]


@dataclass(frozen=True)
class Preset:
    """One row: a named composition, where it comes from, and what it promises in a line."""

    promise: str
    source: str
    init: Settings = field(default_factory=lambda: {"kind": "kaiming"})
    penalties: Mapping[str, Settings] = field(default_factory=dict)
    step_rule: Settings | None = None
    consolidate: Settings = field(default_factory=lambda: {"kind": "sum"})
    replay: Settings | None = None
    stream: Literal["one-by-one", "joint"] = "one-by-one"

    def composition(self) -> dict[str, Any]:
        """The row as the mapping that `perdure.config.resolve_method` works on."""
        row = {
            "init": self.init,
            "penalties": {name: {"kind": name, **settings} for name, settings in self.penalties.items()},
            "step_rule": self.step_rule,
            "consolidate": self.consolidate,
            "replay": self.replay,
            "stream": self.stream,
        }
        return copy.deepcopy(row)


PRESETS: Mapping[str, Preset] = {
    "seq-lora": Preset(
        "one adapter, trained on and on; the usual lower bound",
        "folklore",
        init={"kind": "continue"},
        consolidate={"kind": "latest"},
    ),
    "inc-lora": Preset("a new adapter for every task; their updates are summed", "folklore"),
    "l2": Preset("inc-lora that keeps each update small", "folklore", penalties={"l2": {"weight": 0.01}}),
    "ps-lora": Preset(
        "penalise updates that are large or whose signs oppose the past; merge by larger magnitude",
        "arXiv 2512.08960",
        penalties={"sign-magnitude": {"weight": 0.01, "alpha": 100.0}},
        consolidate={"kind": "max-magnitude"},
    ),
    "joint": Preset("all tasks mixed and trained at once; the usual upper bound", "folklore", stream="joint"),
    "per-task": Preset(
        "one adapter per task, chosen by the task's name; no forgetting by construction",
        "folklore",
        consolidate={"kind": "per-task"},
    ),
}
