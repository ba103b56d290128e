"""Adapters opened together: names to call them by, and whether they were saved under one model class."""

import pytest

from perdure.errors import AdapterError
from perdure.merging.rules import rule_named
from perdure.merging.sources import open_sources
from perdure.merging.state import merge_into
from tests.adapter_cases import random_folder


def test_a_folder_named_like_a_numbered_one_keeps_its_adapter(tmp_path):
    numbered, plain = (random_folder(tmp_path / name, seed) for seed, name in enumerate(("news (2)", "news")))
    assert list(open_sources([numbered, plain]).adapters) == ["news (2)", "news"]
    assert list(open_sources([plain, plain, numbered]).adapters) == ["news", "news (2)", "news (2) (2)"]


@pytest.mark.parametrize("prefix", ["model.", "_orig_mod.", "base.model."])
def test_adapters_saved_under_two_model_classes_are_refused(tmp_path, prefix):
    """One module in common, a second under two names: merged, no model would load both."""
    shapes = {"layers.0.q": (12, 8), "head": (6, 8)}
    body = random_folder(tmp_path / "body", 0, shapes=shapes)
    whole = random_folder(tmp_path / "whole", 1, shapes={f"{prefix}layers.0.q": (12, 8), "head": (6, 8)})
    said = rf"'layers\.0\.q' of 'body' and '{prefix}layers\.0\.q' of 'whole' .* different model classes"
    for places in ([body, whole], [whole, body]):
        with pytest.raises(AdapterError, match=said):
            open_sources(places)
    merge_into(tmp_path / "state", body, rule_named("sum"))
    with pytest.raises(AdapterError, match=r"'layers\.0\.q' of the state and .*whole' .* different model classes"):
        merge_into(tmp_path / "state", whole)


def test_modules_that_only_look_alike_are_merged(tmp_path):
    """Equal tails under different heads, another shape, an ending within a word; or one adapter has both names."""
    alike = (
        {"encoder.layer.0.q": (8, 8), "decoder.head": (6, 8), "xhead": (8, 8)},
        {"decoder.layer.0.q": (8, 8), "head": (8, 8)},
        {"model.v": (8, 8), "v": (8, 8)},
        {"v": (8, 8)},
        {"model.v": (8, 8)},
    )
    places = [random_folder(tmp_path / str(seed), seed, shapes=shapes) for seed, shapes in enumerate(alike)]
    assert len(open_sources(places).modules) == 7
