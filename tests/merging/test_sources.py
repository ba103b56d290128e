"""Adapters opened together: names to call them by, and whether they were saved under one model class."""

import json
import shutil

import pytest
import torch

from perdure.adapters.format import CONFIG_FILE
from perdure.errors import AdapterError
from perdure.merging.folders import merge_folders
from perdure.merging.result import write_result
from perdure.merging.rules import rule_named
from perdure.merging.sources import open_sources
from perdure.merging.state import merge_into
from tests.adapter_cases import hand_folder, random_folder


def test_a_folder_named_like_a_numbered_one_keeps_its_adapter(tmp_path):
    numbered, plain = (random_folder(tmp_path / name, seed) for seed, name in enumerate(("news (2)", "news")))
    assert list(open_sources([numbered, plain]).adapters) == ["news (2)", "news"]
    assert list(open_sources([plain, plain, numbered]).adapters) == ["news", "news (2)", "news (2) (2)"]


@pytest.mark.parametrize("prefix", ["model.", "_orig_mod.", "base.model."])
def test_adapters_saved_under_two_model_classes_are_refused(tmp_path, prefix):
    """A module under two names: merged, no model would load both."""
    body = random_folder(tmp_path / "body", 0, shapes={"layers.0.q": (12, 8)})
    whole = random_folder(tmp_path / "whole", 1, shapes={f"{prefix}layers.0.q": (12, 8), "head": (6, 8)})
    said = rf"'layers\.0\.q' of 'body' and '{prefix}layers\.0\.q' of 'whole' .* different model classes"
    for places in ([body, whole], [whole, body]):
        with pytest.raises(AdapterError, match=said):
            open_sources(places)
    merge_into(tmp_path / "state", body, rule_named("sum"))
    with pytest.raises(AdapterError, match=r"'layers\.0\.q' of the state and .*whole' .* different model classes"):
        merge_into(tmp_path / "state", whole)


def test_modules_that_only_look_alike_are_merged(tmp_path):
    """Equal tails under different heads, another shape, an ending within a word; one adapter has both names, or two share one."""
    alike = (
        {"encoder.layer.0.q": (8, 8), "decoder.head": (6, 8), "xhead": (8, 8)},
        {"decoder.layer.0.q": (8, 8), "head": (8, 8)},
        {"model.v": (8, 8), "v": (8, 8)},
        {"v": (8, 8)},
        {"model.v": (8, 8)},
        {"body.0": (8, 8), "proj": (8, 8)},
        {"body.0": (8, 8), "body.proj": (8, 8)},
    )
    places = [random_folder(tmp_path / str(seed), seed, shapes=shapes) for seed, shapes in enumerate(alike)]
    assert len(open_sources(places).modules) == 10


def test_an_adapter_given_twice_is_noted(tmp_path):
    place, other = (random_folder(tmp_path / name, seed) for seed, name in enumerate(("news", "mail")))
    copy = shutil.copytree(place, tmp_path / "copy")
    assert open_sources([place, other]).notes == ()
    assert open_sources([place, other, place]).notes == (
        "'news' and 'news (2)' are the same adapter, byte for byte, and count as two.",
    )
    assert "'news' and 'copy' are the same adapter" in open_sources([place, copy]).notes[0]


def merged_config(places, out):
    merge_folders(places, out, rule_named("sum"))
    for place in places:
        state = merge_into(out.with_name(f"{out.name}-state"), place, rule_named("sum"))
    write_result(state, state.facts, out.with_name(f"{out.name}-exported"))
    one, two = (json.loads((out.with_name(f"{out.name}{end}") / CONFIG_FILE).read_text()) for end in ("", "-exported"))
    assert [one[key] for key in ("revision", "auto_mapping")] == [two[key] for key in ("revision", "auto_mapping")]
    return one, json.loads((out / "merge.json").read_text())["notes"], state.about.notes


def test_revision_and_class_of_the_base_go_with_the_merged_adapter(tmp_path):
    of = {"base_model_name_or_path": "meta/one", "auto_mapping": {"base_model_class": "M", "parent_library": "m"}}
    tensors = {
        f"base_model.model.m.lora_{side}.weight": torch.ones(*shape) for side, shape in (("A", (2, 4)), ("B", (3, 2)))
    }
    one, two, three, four = (
        hand_folder(tmp_path / name, {key: tensor * scale for key, tensor in tensors.items()}, **of, revision=revision)
        for scale, (name, revision) in enumerate(
            (("one", "v1"), ("two", "v1"), ("three", "v2"), ("four", None)), start=1
        )
    )
    config, notes, said = merged_config([one, two], tmp_path / "same")
    assert (config["revision"], config["auto_mapping"], notes, said) == ("v1", of["auto_mapping"], [], ())
    for name, other, at in (("other", three, " at revision v2"), ("none", four, "")):
        config, (note,), (told,) = merged_config([one, other], tmp_path / name)
        assert (config["revision"], config["auto_mapping"]) == (None, of["auto_mapping"])
        assert (
            f"name different bases although their shapes agree (one: meta/one at revision v1; {other.name}: meta/one{at})"
            in note
        )
        assert f"(the state: meta/one at revision v1; {other.name}: meta/one{at})" in told
