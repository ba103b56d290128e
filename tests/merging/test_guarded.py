"""The guarded search on scores one can compute in the head."""

from statistics import fmean

import pytest
import torch

from perdure.errors import ConfigError
from perdure.merging.guarded import Guard, blend, by_layer, guarded
from perdure.ops.lowrank import LowRank, dense

STEP = {f"layers.{i}.q": torch.tensor([[1.0]]) for i in range(4)}


def changes(found):
    """Task -> gain (negative: loss) on validation."""
    return {task: fmean(found.after[task]) - fmean(found.before[task]) for task in found.before}


def amount(update, layer):
    """How much of the step is in a layer."""
    name = f"layers.{layer}.q"
    return float(dense(update[name])) if name in update else 0.0


def point(tolerance, **settings):
    """A guard that believes the only example there is."""
    return Guard(tolerance, confidence=None, **settings)


def scores(gain, harm):
    """The outcome of the one example of 'new' and of 'old', linear in the amounts of the layers."""

    def score(update, task):
        weights = gain if task == "new" else harm
        return [0.5 + sum(weight * amount(update, layer) for layer, weight in enumerate(weights))]

    return score


def test_what_harms_nobody_is_taken_whole():
    found = guarded({}, STEP, ["old"], "new", scores([0.1] * 4, [0.0] * 4), point(0.01))
    assert set(found.scales.values()) == {1.0}
    assert found.after == found.unguarded == {"old": [0.5], "new": [pytest.approx(0.9)]}
    assert found.evaluations == 4, "two tasks before, two after"


def test_only_the_harmful_layer_is_held_back():
    found = guarded({}, STEP, ["old"], "new", scores([0.1] * 4, [0, -0.2, 0, 0]), point(0.01))
    assert {name: value for name, value in found.scales.items() if value < 1} == {"layers.1": 1 / 32}
    assert changes(found)["old"] >= -0.01
    assert changes(found)["new"] == pytest.approx(0.1 * (3 + 1 / 32)), "of 0.4 unguarded"


def test_without_refinement_one_scale_serves_all():
    found = guarded({}, STEP, ["old"], "new", scores([0.1] * 4, [0, -0.2, 0, 0]), point(0.01, refine=False))
    assert set(found.scales.values()) == {1 / 32}


def test_the_cheapest_layers_come_first():
    # raising layer 0 costs .008, layer 1 .004, layer 2 .004, layer 3 .1; the tolerance of .01 has room for 1 and 2
    found = guarded(
        {}, STEP, ["old"], "new", scores([0.1] * 4, [-0.008, -0.004, -0.004, -0.1]), point(0.01, bisections=0)
    )
    assert found.scales == {"layers.0": 0, "layers.1": 1, "layers.2": 1, "layers.3": 0}


def test_a_layer_that_does_not_help_is_left_out():
    found = guarded({}, STEP, ["old"], "new", scores([0.1, -0.1, 0.1, 0.1], [0, 0, 0, -1]), point(0.01, bisections=0))
    assert found.scales == {"layers.0": 1, "layers.1": 0, "layers.2": 1, "layers.3": 0}


def test_every_earlier_task_is_protected():
    def score(update, task):
        harmful = {"old": 0, "older": 1, "new": None}[task]
        if harmful is None:
            return [0.5 + 0.1 * sum(amount(update, layer) for layer in range(4))]
        return [0.5 - 0.3 * amount(update, harmful)]

    found = guarded({}, STEP, ["old", "older"], "new", score, point(0.0))
    assert found.scales == {"layers.0": 0, "layers.1": 0, "layers.2": 1, "layers.3": 1}
    assert min(changes(found).values()) >= 0


def answers(lost, of=100):
    """Outcomes of 'old' and 'new': every layer taken whole costs 'old' so many of its examples, each its own, and 'new' gains."""

    def score(update, task):
        if task == "new":
            return [0.1 * sum(amount(update, layer) for layer in range(4))] * of
        wrong = [count if amount(update, layer) > 0.5 else 0 for layer, count in enumerate(lost)]
        return [0.0] * sum(wrong) + [1.0] * (of - sum(wrong))

    return score


def test_what_is_taken_holds_with_the_confidence_asked_for():
    # by hand, with the one added loss: 1/101 and 2/101 lost are bounded by 2.6 % and 4.3 %, 3/101 by 5.8 %
    taken = {}
    for confidence in (None, 0.5, 0.95):
        guard = Guard(0.05, confidence=confidence, bisections=0)
        found = guarded({}, STEP, ["old"], "new", answers([1, 2, 2, 2]), guard)
        taken[confidence] = 100 * -changes(found)["old"]
        assert found.needed is None or confidence == 0.95
    assert taken == {None: pytest.approx(5), 0.5: pytest.approx(3), 0.95: pytest.approx(1)}


def test_too_few_examples_are_told_from_a_loss_too_large():
    few = guarded({}, STEP, ["old"], "new", answers([0] * 4, of=50), Guard(0.02))
    assert few.update == {}
    assert few.needed == pytest.approx(131, abs=3), "nothing lost in 131 examples bounds the loss by 2 %"
    enough = guarded({}, STEP, ["old"], "new", answers([0] * 4, of=few.needed), Guard(0.02))
    assert set(enough.scales.values()) == {1.0}
    lost = guarded({}, STEP, ["old"], "new", answers([10] * 4), Guard(0.02, bisections=0))
    assert (lost.update, lost.needed) == ({}, None)


def test_nothing_can_be_taken():
    found = guarded({}, STEP, ["old"], "new", scores([0.1] * 4, [-10] * 4), point(0.0))
    assert set(found.scales.values()) == {0.0}
    assert found.update == {}


def test_failing_candidates_cost_one_evaluation():
    asked = []

    def score(update, task):
        asked.append(task)
        if task == "fragile":
            return [0.5 - sum(amount(update, layer) for layer in range(4))]
        return [0.5]

    guarded({}, STEP, ["robust", "fragile"], "new", score, point(0.0, bisections=3, refine=False))
    # before and unguarded: all three; three scales; what is left in the end is W, which is known
    assert sorted(asked) == ["fragile"] * 5 + ["new"] * 2 + ["robust"] * 2


def test_no_candidate_is_scored_twice():
    asked = []

    def score(update, task):
        asked.append((tuple(amount(update, layer) for layer in range(4)), task))
        return scores([0.1] * 4, [-0.008, -0.004, -0.004, -0.1])(update, task)

    found = guarded({}, STEP, ["old"], "new", score, point(0.01))
    assert len(asked) == len(set(asked)) == found.evaluations


def test_blend_starts_from_what_is_deployed():
    deployed = {"layers.0.q": torch.tensor([[5.0]]), "other": torch.tensor([[7.0]])}
    step = {"layers.0.q": LowRank(torch.ones(1, 1), torch.ones(1, 1)), "layers.1.q": torch.tensor([[2.0]])}
    found = blend(deployed, step, {"layers.0": 0.5, "layers.1": 0.0}, by_layer(step))
    assert {name: float(dense(delta)) for name, delta in found.items()} == {"layers.0.q": 5.5, "other": 7}


def test_groups_by_layer():
    names = ["model.layers.8.self_attn.q_proj", "encoder.layer.11.query", "head", "0.q"]
    assert list(by_layer(names).values()) == ["model.layers.8", "encoder.layer.11", "head", "0"]


def test_bad_settings():
    with pytest.raises(ConfigError, match="0 or more"):
        Guard(tolerance=-1)
    with pytest.raises(ConfigError, match=r"at least 0\.5 and below 1"):
        Guard(confidence=95)
