"""What a preset wants of the run's settings, and that what the user says goes before it."""

from __future__ import annotations

import pytest

from perdure.config import RunConfig, load_config


@pytest.mark.parametrize("method", ["slice", {"preset": "slice", "init": {"c": 0.5}}])
def test_a_preset_brings_the_settings_it_wants(method):
    assert load_config({"method": method}).lora.alpha == 2.0
    assert load_config({"method": method, "lora": {"rank": 4}}).lora.alpha == 2.0


def test_what_is_given_goes_before_what_a_preset_wants():
    assert load_config({"method": "slice", "lora": {"alpha": 8.0}}).lora.alpha == 8.0
    assert load_config({"method": "slice"}, {"lora.alpha": 8.0}).lora.alpha == 8.0


def test_other_methods_keep_the_usual_settings():
    usual = RunConfig().lora.alpha
    assert load_config({"method": "ps-lora"}).lora.alpha == usual
    assert load_config({"method": {"init": {"kind": "slice"}, "replay": {"kind": "buffer"}}}).lora.alpha == usual


def test_a_recorded_configuration_reads_back_as_itself():
    config = load_config({"method": "slice", "lora": {"alpha": 8.0}})
    assert load_config(config.model_dump(mode="json")) == config
