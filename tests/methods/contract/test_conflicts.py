"""Parts that have no meaning together are refused when the method is built, each with the reason; no preset is among them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from perdure.config.composition import resolve_method
from perdure.errors import ConfigError
from perdure.methods.contract.build import build_method
from perdure.methods.table import PARTS, PRESETS

PAGE = Path(__file__).resolve().parents[3] / "docs" / "composition.md"
W = {"weight": 1.0}
SLAO = {"init": "slao", "consolidate": "slao"}
SEQ = {"preset": "seq-lora"}

REFUSED: list[tuple[dict[str, Any], str]] = [
    # inits that go on from the last adapter, where it is carried too
    ({"init": "continue", "consolidate": "sum"}, "init: continue .*count twice. Use the consolidation `latest`"),
    ({"init": "continue", "consolidate": "max-magnitude"}, "count twice"),
    ({"init": "continue", "consolidate": "covariance-gain"}, "count twice"),
    ({"init": "continue", "consolidate": {"kind": "ties", "trains_on": "merged"}}, "count twice"),
    ({"init": "slao", "consolidate": "magmax"}, "init: slao .*Use the consolidation `slao`"),
    # consolidations
    ({"consolidate": "slao"}, "consolidate: slao .*kaiming starts from scratch"),
    ({"init": "lora-ga", "consolidate": "slao"}, "lora-ga starts from scratch"),
    ({"consolidate": {"kind": "magmax", "trains_on": "pretrained"}}, "consolidate: magmax .*trains_on: pretrained"),
    ({"consolidate": {"kind": "magmax", "trains_on": "merged"}}, "trains_on: merged"),
    # penalties on the past, without a past
    *[
        ({"penalties": {name: W}, **rest}, rf"penalties\.{name}: {name} cannot be used here: .*{reason}")
        for name in ("sign-magnitude", "past-energy", "overlap", "fisher", "output-drift", "score-drift", "distillation")
        for rest, reason in (
            ({"stream": "joint"}, "single stage, which has no past"),
            ({"consolidate": "per-task"}, "answered by its own update"),
            ({"consolidate": "latest"}, "nothing of the past is left"),
        )
    ],
    # ... or where the update holds the past already
    *[
        ({"penalties": {name: W}, **rest}, rf"penalties\.{name}: .*continues from the last adapter")
        for name in ("sign-magnitude", "past-energy", "overlap", "output-drift", "score-drift")
        for rest in (SEQ, SLAO)
    ],
    ({"preset": "seq-lora", "penalties": {"fisher": W}}, "carries nothing into the base"),
    ({"consolidate": "average", "penalties": {"fisher": W}}, "carries nothing into the base. .*Use the consolidation `sum`"),
    ({"consolidate": "dare", "penalties": {"distillation": W}}, "the pretrained one and knows no old task"),
    # factors that are frozen, or not the update
    ({"init": "inf-lora", "penalties": {"overlap": W}}, "keeps A frozen"),
    ({"init": "inf-lora", "step_rule": {"kind": "proximal-rows", "on": "columns"}}, "on: columns changes A.*Use on: rows"),
    ({"init": "inf-lora", "step_rule": {"kind": "proximal-rows", "on": "both"}}, "on: both changes A"),
    *[
        ({"init": init, "step_rule": "proximal-rows"}, "step_rule: proximal-rows .*offsets the base")
        for init in ("lora-ga", "loram", "slice-free")
    ],
    ({"init": "loram", "penalties": {"sparsity": {**W, "target": "factors"}}}, "target: factors .*offsets the base"),
    ({"init": "lora-ga", "penalties": {"sparsity": {**W, "target": "released-code"}}}, "target: released-code"),
    *[
        ({"init": init, "penalties": {"factor-norm": W}}, r"penalties\.factor-norm: factor-norm .*towards -s B0 A0")
        for init in ("lora-ga", "loram", "slice-free")
    ],
    # inits and consolidations that protect a past, without one
    *[
        ({"init": init, **rest}, rf"init: {init} cannot be used here: .*{reason}")
        for init in ("slice-free", "inf-lora")
        for rest, reason in (
            ({"stream": "joint"}, "single stage, which has no past"),
            ({"consolidate": "per-task"}, "answered by its own update"),
            ({"consolidate": "latest"}, "nothing of the past is left"),
        )
    ],
    ({"preset": "slice", "consolidate": "per-task"}, "init: slice .*answered by its own update"),
    ({"preset": "slice", "consolidate": "latest"}, "init: slice .*nothing of the past is left"),
    *[
        ({"consolidate": kind, "stream": "joint"}, f"consolidate: {kind} .*single stage, which has no past")
        for kind in ("covariance-gain", "max-magnitude", "average")
    ],
    # less kept than a batch
    ({"preset": "slice", "replay": {"per_task": 8}}, "init: slice .*batches of 16 examples.*keeps 8"),
    ({"preset": "slice", "replay": {"in_all": 15}}, "keeps 15. Raise its budget"),
    ({"preset": "slice", "init": {"batch_size": 256}}, "keeps 128"),
    # step rules and replay
    ({"preset": "a-gem", "consolidate": "per-task"}, "step_rule: a-gem .*its own update"),
    ({"preset": "a-gem", "stream": "joint"}, "step_rule: a-gem .*single stage"),
    ({"preset": "replay", "stream": "joint"}, "replay: buffer .*no earlier task to replay"),
    ({"preset": "slice+ps-lora", "stream": "joint"}, "no past"),
    ({"replay": {"kind": "buffer", "use": "init-only"}}, "none here reads them"),
    ({"preset": "replay", "consolidate": "per-task"}, "replay: buffer .*its own update"),
]  # fmt: skip

ALLOWED: list[dict[str, Any]] = [
    {"preset": "seq-lora", "stream": "joint"},
    {"preset": "seq-lora", "penalties": {"distillation": W, "l2": W, "sparsity": W}},
    {"preset": "slao", "penalties": {"sparsity": W}},
    {"init": "continue", "consolidate": "slao"},
    {"init": "continue", "consolidate": "per-task"},
    {"init": "continue", "consolidate": "average"},
    {"consolidate": "ties", "penalties": {"sign-magnitude": W, "output-drift": W, "overlap": W}},
    {"consolidate": "per-task", "penalties": {"l2": W, "sparsity": W}},
    {"init": "inf-lora", "step_rule": {"kind": "proximal-rows", "on": "rows"}},
    {"init": "inf-lora", "penalties": {"output-drift": W}},
    {"init": "inf-lora", "consolidate": "ties"},
    {"preset": "slice", "replay": {"per_task": 8}, "init": {"batch_size": 8}},
    {"preset": "slice", "replay": {"in_all": 16}},
    {"init": "inf-lora", "penalties": {"factor-norm": W}},
    {"consolidate": "ties", "stream": "joint"},
    {"init": "lora-ga", "penalties": {"overlap": W, "sparsity": W, "fisher": W}},
    {"consolidate": "per-task", "penalties": {"fisher": {"weight": 0.0}}},  # switched off
]


@pytest.mark.parametrize(
    ("composition", "reason"), REFUSED, ids=lambda value: re.sub(r"[^\w=-]+", "_", str(value))[:60]
)
def test_refused_with_the_reason(composition: dict[str, Any], reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        build_method(resolve_method(composition))


@pytest.mark.parametrize("composition", [*PRESETS, *ALLOWED], ids=str)
def test_allowed(composition: str | dict[str, Any]) -> None:
    build_method(resolve_method(composition))


def test_the_pages_example_is_a_method() -> None:
    (example,) = re.findall(r"^```yaml\n(.*?)^```", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    build_method(resolve_method(yaml.safe_load(example)["method"]))


def test_every_part_that_can_refuse_is_tried() -> None:
    """A part whose class says what it cannot stand is blamed for one refusal or more; one that is added later fails here."""
    from perdure.methods.contract.build import part_class
    from perdure.methods.contract.parts import Part

    blamed = set()
    for composition, _ in REFUSED:
        with pytest.raises(ConfigError) as refused:
            build_method(resolve_method(composition))
        found = re.search(r"', (\w+)(?:\.[\w-]+)?: (\S+) cannot be used here", str(refused.value))
        assert found, refused.value
        blamed.add(("penalty" if found[1] == "penalties" else found[1], found[2]))
    assert blamed == {
        (role, kind)
        for role, kinds in PARTS.items()
        for kind in kinds
        if (part := part_class(role, kind)).protects or part.conflicts is not Part.conflicts
    }, "a part with `protects` or `conflicts` needs a line in REFUSED, and one in docs/composition.md"


@pytest.mark.parametrize("penalty", PARTS["penalty"])
def test_a_negative_weight_is_refused(penalty: str) -> None:
    with pytest.raises(
        ConfigError, match=rf"method\.penalties\.{penalty}\.weight: .*greater than or equal to 0 \(got -0\.5\)"
    ):
        build_method(resolve_method({"penalties": {penalty: {"weight": -0.5}}}))


def test_a_negative_weight_of_a_step_rule_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"method\.step_rule\.weight: .*greater than 0"):
        build_method(resolve_method({"step_rule": {"kind": "proximal-rows", "weight": -1.0}}))


def test_a_penalty_on_batches_has_no_gradient_share() -> None:
    with pytest.raises(ConfigError, match=r"method\.penalties\.distillation: give `weight`"):
        build_method(resolve_method({"penalties": {"distillation": {"gradient_share": 0.1}}}))
