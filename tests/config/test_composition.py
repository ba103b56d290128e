"""How a composition is resolved: null, and parts of another kind than the preset's."""

from __future__ import annotations

import pytest

from perdure.config.composition import resolve_method
from perdure.errors import ConfigError


@pytest.mark.parametrize("key,without", [("penalties", {}), ("step_rule", None), ("replay", None)])
def test_null_removes_an_optional_part(key, without):
    preset = {"penalties": "ps-lora", "step_rule": "a-gem", "replay": "replay"}[key]
    found = resolve_method({"preset": preset, key: None})
    assert found[key] == without
    assert found["name"] == "custom"


@pytest.mark.parametrize(
    "method,message",
    [
        ({"init": None}, r"method\.init: cannot be empty; choose one with `kind`"),
        ({"preset": "ps-lora", "consolidate": None}, r"method\.consolidate: cannot be empty"),
        ({"init": {"kind": None}}, "'None'"),
        ({"penalties": {"l2": {"kind": None, "weight": 1}}}, "'None'"),
    ],
)
def test_null_is_not_an_init_a_consolidation_or_a_kind(method, message):
    with pytest.raises(ConfigError, match=message):
        resolve_method(method)


def test_a_penalty_of_another_kind_drops_the_settings_of_the_one_it_replaces():
    changed = resolve_method({"preset": "ps-lora", "penalties": {"sign-magnitude": {"kind": "l2", "weight": 0.1}}})
    assert changed["penalties"] == {"sign-magnitude": {"kind": "l2", "weight": 0.1}}
    same = resolve_method({"preset": "ps-lora", "penalties": {"sign-magnitude": {"gradient_share": 0.1}}})
    assert same["penalties"] == {"sign-magnitude": {"kind": "sign-magnitude", "gradient_share": 0.1, "alpha": 1000.0}}
