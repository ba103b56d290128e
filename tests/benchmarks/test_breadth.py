"""The breadth benchmark: its verdicts by hand, and that transformers knows every architecture it lists."""

from __future__ import annotations

import pytest
from benchmarks.breadth.architectures import KINDS, config
from benchmarks.breadth.table import architecture, verdict

from perdure.backbones.base import Prediction


@pytest.mark.parametrize(
    ("found", "is_"),
    [
        ({"difference": 1e-6}, "works"),
        ({"difference": 2e-5}, "differs"),
        ({"difference": 2e-5, "in_float64": 4e-15}, "rounding"),
        ({"difference": 2e-5, "in_float64": 1.9e-5}, "differs"),
        ({"difference": float("nan")}, "differs"),
        ({"refused": "ConfigError: no"}, "refused"),
        ({"traceback": "ValueError: what"}, "traceback"),
    ],
)
def test_verdicts(found: dict[str, object], is_: str) -> None:
    assert verdict(found) == is_


@pytest.mark.parametrize(
    ("found", "is_"),
    [
        (["works", "refused"], "works"),
        (["refused", "refused"], "refused"),
        (["works", "differs", "refused"], "differs"),
        (["works", "rounding", "refused"], "rounding"),
        (["works", "differs", "traceback"], "traceback"),
    ],
)
def test_an_architecture_works_if_all_that_is_not_refused_works(found: list[str], is_: str) -> None:
    outcomes = {
        "works": {"difference": 0.0},
        "rounding": {"difference": 1.0, "in_float64": 0.0},
        "differs": {"difference": 1.0},
        "refused": {"refused": "no"},
        "traceback": {"traceback": "no"},
    }
    assert architecture({"methods": {str(i): outcomes[each] for i, each in enumerate(found)}}) == is_


def test_transformers_knows_every_architecture() -> None:
    assert sum(map(len, KINDS.values())) > 130
    for kind, names in KINDS.items():
        for name in names:
            assert config(kind, name).model_type


def test_an_error_of_an_unlikely_label_is_seen() -> None:
    """e^-25 and e^-25.5 are both 0.000000 as probabilities, and .5 of 26 apart in logarithms."""
    from math import exp

    from benchmarks.breadth.differences import apart

    assert apart(exp(-25.5), exp(-25)) == pytest.approx(0.5 / 26)
    assert apart(1 - 1e-9, 1.0) < 1e-8
    assert apart(0.0, 1e-40) == 0
    assert apart(0.0, 0.1) == float("inf")


def test_a_label_changed_by_more_than_bf16_moves_the_scores_is_not_a_near_tie() -> None:
    """The best label leads by ln(.6/.3) = .69; bf16 moved no score by more than .02, then one by .4."""
    from benchmarks.breadth.bf16 import near_tie

    alone, rest = Prediction("a", (0.6, 0.3, 0.1)), (0.3, 0.1)
    assert not near_tie("b", alone, Prediction("a", (0.61, 0.3, 0.1)))
    assert near_tie("b", alone, Prediction("a", (0.4, *rest)))
