"""`perdure methods show`: a preset's parts with every setting as it is there, and parts alone."""

from __future__ import annotations

import pytest

from perdure.config.run_config import load_config
from perdure.errors import UnknownName
from perdure.methods.contract.build import build_method, part_class
from perdure.methods.table import PARTS, PRESETS, WANTED
from perdure.report.methods import method_lines
from perdure.settings.read import parse_overrides
from perdure.settings.words import Key, keys

EVERY_PART = [(role, kind) for role, kinds in PARTS.items() for kind in kinds]


@pytest.mark.parametrize(("role", "kind"), EVERY_PART)
def test_every_setting_of_every_part_is_explained(role, kind):
    found = list(keys(part_class(role, kind)))
    assert [key.name for key in found if not key.meaning] == []
    assert not any("see `GradientInit`" in key.meaning or "see `Penalty`" in key.meaning for key in found)


def test_a_preset_is_shown_as_it_is_set():
    told = list(method_lines("slice+n-lora"))
    assert told[0].startswith("slice+n-lora: ")
    settings = parse_overrides([line.split()[0] for line in told if line.strip().startswith(("method.", "lora."))])
    assert settings["method.init.kind"] == "slice"
    assert settings["method.replay.use"] == "init-only"
    assert settings["method.penalties.sparsity.weight"] == PRESETS["slice+n-lora"].penalties["sparsity"]["weight"]
    assert settings["method.penalties.sparsity.gradient_share"] is None
    assert settings["lora.alpha"] == WANTED["slice"]["lora.alpha"]


@pytest.mark.parametrize("name", PRESETS)
def test_what_is_shown_can_be_given_and_changes_nothing(name):
    shown = [line.split()[0] for line in method_lines(name) if line.strip().startswith("method.")]
    plain, given = (
        build_method(load_config({"suite": "quickstart", "method": name}, more).method).parts()
        for more in ({}, parse_overrides(shown))
    )
    assert {at: part.model_dump() for at, part in plain.items()} == {
        at: part.model_dump() for at, part in given.items()
    }


def test_a_part_is_shown_without_its_preset():
    told = list(method_lines("sign-magnitude"))
    assert "method.penalties.sign-magnitude.kind=sign-magnitude" in told
    assert "  method.penalties.sign-magnitude.alpha=1000.0    number > 0" in told


def test_an_unknown_name_is_told_of():
    with pytest.raises(UnknownName, match=r"Unknown method or part: 'sign-magnitud'. Did you mean 'sign-magnitude'\?"):
        list(method_lines("sign-magnitud"))


def test_the_words_of_the_class_that_is_named_count():
    found = {key.name: key for key in keys(part_class("init", "slice"))}
    assert found["batches"] == Key(
        "batches", "integer >= 1", "8", "of the new task, over which its gradient is averaged."
    )
