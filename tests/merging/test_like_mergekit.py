"""`--like mergekit` gives mergekit's numbers: of 0.1.5, computed by mergekit_numbers.py on three small updates."""

import json

import pytest
import torch

from perdure.errors import ConfigError, UnknownName
from perdure.merging.like import rule_like
from perdure.merging.like_mergekit import MERGEKIT
from perdure.ops.lowrank import LowRank, dense
from tests.merging.mergekit_numbers import NUMBERS

STORED = json.loads(NUMBERS.read_text())
UPDATES = [LowRank(torch.tensor(each["A"]), torch.tensor(each["B"])) for each in STORED["updates"]]


def test_every_method_is_held_to_mergekit():
    assert {case["method"] for case in STORED["cases"]} == set(MERGEKIT)


@pytest.mark.parametrize(
    "case", STORED["cases"], ids=lambda c: f"{c['method']}-{c['options']}-{c['weights'] or c['count']}"
)
def test_equals_mergekit(case):
    settings = {**case["options"], **({"weights": case["weights"]} if case["weights"] else {})}
    rule = rule_like("mergekit", case["method"], settings).rule
    deltas = [LowRank(delta.A, delta.B * case["size"]) for delta in UPDATES[: case["count"]]]
    prepared = rule.prepare([{"m": delta} for delta in deltas])
    expected = torch.tensor(case["is"])
    largest = float(expected.abs().max())
    assert largest > 0.1 * case["size"]
    torch.testing.assert_close(dense(prepared.merge("m", deltas)), expected, rtol=1e-6, atol=1e-6 * largest)
    torch.testing.assert_close(prepared.rows("m", deltas)(1, 3), expected[1:3], rtol=1e-6, atol=1e-6 * largest)


@pytest.mark.parametrize(
    ("method", "options", "message"),
    [
        ("linear", {"normalize": False}, "multiplies the base model by the sum of the weights"),
        ("dare_linear", {"normalize": True}, "dare_linear adds updates up: give weights that sum to 1"),
        ("ties", {"int8_mask": True}, "saves memory in mergekit and changes no number"),
        ("ties", {"weight": 0.5}, r"is `weights` here: weights=\[0.7, 0.3\]"),
        ("nuslerp", {"nuslerp_row_wise": True}, "angles are between whole matrices"),
        ("slerp", {}, "t: is missing"),
        ("slerp", {"weights": [1, 1]}, "Unknown setting of mergekit's slerp: 'weights'"),
        ("nuslerp", {"weights": [1, 1, 1]}, "give two weights, not 3"),
        ("della", {"density": 0.9}, "choose a smaller epsilon"),
    ],
)
def test_options_without_a_meaning_are_refused(method, options, message):
    with pytest.raises(ConfigError, match=message):
        rule_like("mergekit", method, options)


@pytest.mark.parametrize(
    ("method", "message"), [("arcee_fusion", "softmax"), ("passthrough", "stacks layers"), ("ramplus_tl", "'ram'")]
)
def test_methods_that_mean_nothing_for_adapters_say_what_to_use(method, message):
    with pytest.raises(UnknownName, match=message):
        rule_like("mergekit", method)


def test_weights_that_cancel_are_an_error_where_mergekit_divides_by_0():
    for method in ("linear", "multislerp"):
        rule = rule_like("mergekit", method, {"weights": [1, -1]}).rule
        with pytest.raises(ConfigError, match="sum to zero"):
            rule.prepare([{"m": delta} for delta in UPDATES[:2]]).merge("m", UPDATES[:2])
