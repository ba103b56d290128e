"""The table of rules: each gives what its own file computes, in tiles too, and does what it promises."""

import inspect
import re
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from perdure.errors import ConfigError, UnknownName
from perdure.merging.elsewhere import MEANINGS
from perdure.merging.linear import average_updates, sum_updates, task_arithmetic_updates
from perdure.merging.max_magnitude import max_magnitude_updates
from perdure.merging.modules import at_module, merge_modules, module_names
from perdure.merging.rules import RULES, Rule, name_of, rule_named
from perdure.merging.slao import slao_chain
from perdure.ops.lowrank import LowRank, Update, dense
from tests.merging.merge_cases import assert_same, gained_sums, random_updates
from tests.merging.slow_rules import (
    breadcrumbs,
    della,
    karcher,
    mean_of_agreeing,
    model_stock,
    multislerp,
    on_stacks,
    ram,
    sce,
    slerp,
)
from tests.merging.whole_updates import dare_updates, magmax_updates, ties_updates


def moments_for(updates):
    generator = torch.Generator().manual_seed(9)
    found = []
    for update in updates:
        inputs = {name: torch.randn(30, delta.shape[1], generator=generator) for name, delta in update.items()}
        found.append({name: x.mT @ x / 30 for name, x in inputs.items()})
    return found


def merged(rule: Rule, updates: Sequence[Update]) -> dict[str, torch.Tensor]:
    prepared = rule.prepare(updates, moments_for(updates))
    return {name: dense(prepared.merge(name, at_module(updates, name))) for name in module_names(updates)}


WHOLE = ["multislerp", "karcher", "sce", "ram", "peft-factors"]
"""Rules that leave one update as it is."""
SETTINGS = {"nearswap": {"t": 0.5}}
"""Settings without a default."""


def of(name: str, settings=None) -> Rule:
    return rule_named(name, {**SETTINGS.get(name, {}), **(settings or {})})


def some_updates(name: str, count: int = 3, seed: int = 0):
    return random_updates(2 if RULES[name].pair else count, seed)


EXPECTED = {
    "sum": lambda u: sum_updates(u),
    "average": lambda u: average_updates(u),
    "arithmetic": lambda u: task_arithmetic_updates(u),
    "ties": lambda u: ties_updates(u, 0.2),
    "dare": lambda u: dare_updates(u, 0.5),
    "max-magnitude": lambda u: max_magnitude_updates(max_magnitude_updates(u[0], u[1]), u[2]),
    "magmax": lambda u: magmax_updates(u),
    "slao": lambda u: dict(merge_modules(u, slao_chain)),
    "covariance-gain": lambda u: gained_sums(u, moments_for(u)),
    "magnitude-prune": lambda u: sum_updates([ties_updates([one], 0.2, "tensor") for one in u]),
    "breadcrumbs": lambda u: on_stacks(u, lambda stack: breadcrumbs(stack, 0.9, 0.01).sum(dim=0)),
    "della": lambda u: on_stacks(u, lambda stack, draws: mean_of_agreeing(della(stack, draws, 0.5, 0.15))),
    "sce": lambda u: on_stacks(u, lambda stack: sce(stack, 1.0)),
    "ram": lambda u: on_stacks(u, lambda stack: ram(stack, 1e-5)),
    "nearswap": lambda u: on_stacks(u, lambda stack: stack[0] + (stack[1] - stack[0]).clamp(-0.5, 0.5)),
    "slerp": lambda u: on_stacks(u, lambda stack: slerp(stack, 0.5)),
    "multislerp": lambda u: on_stacks(u, multislerp),
    "karcher": lambda u: on_stacks(u, karcher),
    "model-stock": lambda u: on_stacks(u, model_stock),
    "peft-factors": lambda u: {
        name: torch.stack([one[name].B for one in u]).sum(dim=0) @ torch.stack([one[name].A for one in u]).sum(dim=0)
        for name in module_names(u)
    },
}


def test_every_rule_is_held_to_its_file():
    assert set(EXPECTED) == set(RULES)


@pytest.mark.parametrize("name", RULES)
def test_a_rule_is_what_its_file_computes(name):
    updates = some_updates(name)
    assert_same(merged(of(name), updates), EXPECTED[name](updates))


@pytest.mark.parametrize("name", RULES)
def test_rows_are_those_of_the_merged_matrix_in_any_order(name):
    updates = some_updates(name)
    rule = of(name)
    whole = merged(rule, updates)
    prepared = rule.prepare(updates, moments_for(updates))
    for module in module_names(updates):
        rows = prepared.rows(module, at_module(updates, module))
        height = whole[module].shape[0]
        found = {start: rows(start, start + 1) for start in reversed(range(height))}
        torch.testing.assert_close(torch.cat([found[start] for start in range(height)]), whole[module])


@pytest.mark.parametrize("name", [name for name, rule in RULES.items() if rule.low_rank])
def test_low_rank_rules_stay_low_rank(name):
    updates = some_updates(name, 4)
    prepared = of(name).prepare(updates, moments_for(updates))
    assert all(isinstance(prepared.merge(m, at_module(updates, m)), LowRank) for m in module_names(updates))


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 99), order=st.permutations([0, 1, 2]), name=st.sampled_from(list(RULES)))
def test_order_matters_only_where_it_is_said_to(seed, order, name):
    if RULES[name].in_order or name in ("dare", "della", "covariance-gain"):
        return  # the masks of DARE and DELLA belong to positions; the moments of the test belong to positions too
    updates = random_updates(3, seed)
    assert_same(merged(rule_named(name), updates), merged(rule_named(name), [updates[i] for i in order]), 1e-4)


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 99), factor=st.floats(0.01, 100), name=st.sampled_from(list(RULES)))
def test_every_rule_scales_with_its_updates(seed, factor, name):
    if name in ("ram", "nearswap"):
        return  # they compare with a size that is given
    updates = random_updates(2, seed)
    larger = [{n: LowRank(d.A, d.B * factor) for n, d in update.items()} for update in updates]
    expected = {n: matrix * factor for n, matrix in merged(rule_named(name), updates).items()}
    found = merged(rule_named(name), larger)
    for module in expected:
        scale = expected[module].abs().max().item() + 1e-30
        torch.testing.assert_close(found[module] / scale, expected[module] / scale, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", ["sum", "average", "arithmetic", "max-magnitude", "slao", *WHOLE])
def test_one_update_alone_stays_as_it_is(name):
    (update,) = random_updates(1)
    assert_same(merged(rule_named(name), [update]), update)


@pytest.mark.parametrize("name", ["average", "max-magnitude", "slao", "slerp", "model-stock", *WHOLE[:-1]])
def test_an_update_merged_with_itself_stays_as_it_is(name):
    (update,) = random_updates(1)
    assert_same(merged(rule_named(name), [update, update]), update)


def test_ties_of_one_update_with_itself_is_the_update_trimmed():
    (update,) = random_updates(1)
    assert_same(merged(rule_named("ties"), [update, update]), ties_updates([update], 0.2))


def test_settings_reach_the_rule():
    updates = random_updates(2)
    found = merged(rule_named("arithmetic", {"weights": [2, -1], "scale": 0.5}), updates)
    assert_same(found, task_arithmetic_updates(updates, [2, -1], 0.5))
    found = merged(rule_named("average", {"weights": [3, 1]}), updates)
    assert_same(found, average_updates(updates, [3, 1]))
    ties = rule_named("ties", {"density": 0.5, "scope": "tensor", "weights": [1, 2], "scale": 2})
    assert_same(merged(ties, updates), ties_updates(updates, 0.5, "tensor", [1, 2], 2))
    dare = rule_named("dare", {"density": 0.3, "seed": 5, "consensus": "ties", "rescale": False})
    assert_same(merged(dare, updates), dare_updates(updates, 0.3, 5, "ties", False))


def test_bad_settings():
    with pytest.raises(UnknownName, match="Did you mean 'ties'"):
        rule_named("tie")
    with pytest.raises(ConfigError, match="density"):
        rule_named("ties", {"densty": 0.2})
    with pytest.raises(ConfigError, match=r"rule ties\.density"):
        rule_named("ties", {"density": 0})
    with pytest.raises(ConfigError, match="'sum' takes no weights; use 'arithmetic'"):
        rule_named("sum", {"weights": [1, 1]})
    with pytest.raises(ConfigError, match="3 weights were given for 2 updates"):
        rule_named("average", {"weights": [1, 1, 1]}).prepare(random_updates(2))
    with pytest.raises(ConfigError, match="input second moments of every adapter"):
        rule_named("covariance-gain").prepare(random_updates(2))


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("linear", "Use 'average' for mergekit's linear, which divides by the sum of the weights, 'arithmetic' for"),
        ("task_arithmetic", "Use 'arithmetic'"),
        ("cat", "Use 'arithmetic'"),
        ("svd", "Use 'arithmetic' with --rank"),
        ("ties_svd", "Use 'ties' with scope=tensor, elect=total and divide=count"),
        ("dare_linear", "Use 'dare'"),
        ("dare_ties", "Use 'dare' with consensus=ties"),
        ("magnitude_prune", "Did you mean 'magnitude-prune'"),
        ("magnitude_prune_svd", "Use 'magnitude-prune'"),
        ("della_linear", "Use 'della' with consensus=sum"),
        ("breadcrumbs_ties", "Use 'breadcrumbs' with consensus=ties"),
        ("nuslerp", "Use 'slerp' with t"),
        ("model_stock", "Did you mean 'model-stock'"),
        ("Karcher", "Did you mean 'karcher'"),
        ("arcee_fusion", "use 'sce' or 'breadcrumbs'"),
        ("ties-merging", "Did you mean 'ties'"),
        ("averag", "Did you mean 'average'"),
        ("liner", "Use 'average' for mergekit's linear"),
    ],
)
def test_names_of_other_tools_lead_to_ours_by_meaning(name, meant):
    with pytest.raises(UnknownName) as error:
        rule_named(name)
    assert f"Unknown merge rule: '{name}'. {meant}" in str(error.value) or meant in str(error.value)


@pytest.mark.parametrize("name", ["emr", "karl", "median", "zipit", "git-rebasin"])
def test_no_name_is_suggested_for_its_spelling_alone(name):
    with pytest.raises(UnknownName, match=rf"'{name}'\. Known:"):
        rule_named(name)


def test_every_hint_leads_to_a_rule():
    for name, text in MEANINGS.items():
        named = re.findall(r"'([a-z-]+)'", text)
        assert named, name
        assert set(named) <= set(RULES), name
        assert name not in RULES


def test_names_lead_back():
    assert [name_of(of(name)) for name in RULES] == list(RULES)
    assert all(inspect.getdoc(rule) for rule in RULES.values())
