"""Broken inputs end in success or in perdure's words: a sample of `make hostile`, and every limit met by something small."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
import torch

from perdure.adapters import format as adapter_format
from perdure.adapters import weights
from perdure.adapters.folder import Adapter
from perdure.backbones.load_errors import check_sizes
from perdure.errors import AdapterError, ConfigError, CorruptFile
from perdure.files import parsing
from perdure.files.durable import read_json
from perdure.files.parsing import DEEPEST, check_size, parse_json
from perdure.settings import yaml_text
from perdure.settings.yaml_text import YAMLError, parse_yaml, read_yaml
from tests.adapter_cases import hand_folder
from tests.faults.hostile import outcomes
from tests.faults.hostile_place import made
from tests.faults.mutations import mutated

SAMPLE = range(3000, 3100)  # not those of `make hostile`


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made(tmp_path_factory.mktemp("hostile"))


def test_a_sample_of_broken_inputs(pristine: Path) -> None:
    found = outcomes(pristine, pristine.parent, 0, [*SAMPLE])
    assert [one for one in found if one.kind not in ("done", "refused")] == []
    kinds = [one.kind for one in found]
    assert len(kinds) == len(SAMPLE)
    assert kinds.count("refused") > 30, "the inputs are broken"
    assert kinds.count("done") > 5, "some of what is broken does not matter"


def test_the_harness_sees_what_it_is_for(pristine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A command that fails in Python's words, one that writes beside its output, and one that steers the terminal."""
    from tests.faults import hostile

    monkeypatch.setattr(hostile, "CASES", {"in.jsonl": ("show run",)})
    place = pristine.parent / "around/place"
    wanted = iter(("traceback", "changed", "escape"))

    def command() -> None:
        kind = next(wanted)
        if kind == "traceback":
            raise KeyError("x")
        if kind == "changed":
            (place.parent / "outside/canary").write_text("other")
        else:
            print("\x1b[2J")  # noqa: T201

    monkeypatch.setattr("perdure.cli.main", command)
    monkeypatch.chdir(pristine)
    assert [hostile.one_case(pristine, place, 0, i).kind for i in range(3)] == ["traceback", "changed", "escape"]
    (place.parent / "outside/canary").write_text("not perdure's")


def test_a_mutation_is_known_by_its_seed(tmp_path: Path) -> None:
    texts = []
    for _ in range(2):
        (tmp_path / "a.json").write_text('{"a": [1, 2], "b": {"c": "d"}}')
        mutated(tmp_path / "a.json", random.Random(3))
        texts.append((tmp_path / "a.json").read_bytes())
    assert texts[0] == texts[1] != b'{"a": [1, 2], "b": {"c": "d"}}'


@pytest.mark.parametrize("depth,right", [(DEEPEST, True), (DEEPEST + 1, False), (100_000, False)])
def test_depth_of_json(depth: int, right: bool) -> None:
    text = "[" * depth + "]" * depth
    if right:
        assert json.dumps(parse_json(text)) == text
    else:
        with pytest.raises(ValueError, match="nested more than 100 deep"):
            parse_json(text)


@pytest.mark.parametrize(
    "text,why",
    [
        ("[" * 200 + "]" * 200, "nested more than 100 deep"),
        ("&a [*a]", "nested more than 100 deep"),
        ('a: "\\0"', r"'\\x00', which is not a character that can be written"),
        ('a: "\\ud800"', "not a character|surrogate|escape"),
        ("!!int a", "could not convert string"),
    ],
)
def test_yaml_that_no_settings_need(text: str, why: str) -> None:
    with pytest.raises(YAMLError, match=why):
        parse_yaml(text)


def test_aliases_and_merge_keys_count_as_what_they_stand_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Twelve values behind two names, and a mapping doubled three times; both harmless where the limit is larger."""
    lists = "a: &a [1, 2]\nb: &b [*a, *a]\nc: [*b, *b]\n"
    maps = "a: &a {x: 1, y: 2}\nb: &b {<<: [*a, *a]}\nc: {<<: [*b, *b]}\n"
    assert parse_yaml(lists)["c"] == [[[1, 2]] * 2] * 2
    assert parse_yaml(maps)["c"] == {"x": 1, "y": 2}
    monkeypatch.setattr(yaml_text, "MOST", 6)
    for text in (lists, maps):
        with pytest.raises(YAMLError, match="more than 6 values"):
            parse_yaml(text)


def test_long_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.yaml").write_text("a: " + "x" * 100)
    (tmp_path / "a.json").write_text('"' + "x" * 100 + '"')
    assert read_json(tmp_path / "a.json") == read_yaml(tmp_path / "a.yaml", "task")["a"]
    monkeypatch.setattr(yaml_text, "LONGEST", 80)
    with pytest.raises(ConfigError, match="longer than 80 characters"):
        read_yaml(tmp_path / "a.yaml", "task")
    monkeypatch.setattr(yaml_text, "LONGEST", 20)
    with pytest.raises(ConfigError, match="it has 103 bytes, more than the 80 that are read"):
        read_yaml(tmp_path / "a.yaml", "task")
    monkeypatch.setattr(parsing, "LARGEST", 80)
    with pytest.raises(CorruptFile, match="it has 102 bytes, more than the 80"):
        read_json(tmp_path / "a.json")


@pytest.mark.parametrize("text", ["NaN", "[Infinity]", '"\\u0000"', '{"\\ud800": 1}'])
def test_what_no_record_holds(text: str, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(CorruptFile, match=r"a\.json' is not valid JSON"):
        read_json(tmp_path / "a.json")


def test_a_value_that_holds_itself() -> None:
    value: list[object] = []
    value += [value, value]
    with pytest.raises(ValueError, match="more than 1,000 values"):
        check_size(value, 1000)


@pytest.mark.parametrize("pattern", ["(?i)q", "(", "m" * 2001])
def test_patterns_that_peft_could_not_use_either(pattern: str, tmp_path: Path) -> None:
    with pytest.raises(AdapterError, match="pattern"):
        Adapter(hand_folder(tmp_path / "one", rank_pattern={pattern: 2}))


def test_a_pattern_that_takes_too_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Matching stops after a time; here no time is left, so that a plain pattern shows it."""
    adapter = hand_folder(tmp_path / "one", alpha_pattern={"[m]": 6})
    assert Adapter(adapter).config.scaling("m") == 3
    monkeypatch.setattr(adapter_format, "SECONDS", 0.0)
    with pytest.raises(AdapterError, match=r"pattern '\[m\]' in adapter_config.json cannot be matched with 'm'"):
        Adapter(adapter)


def test_a_module_larger_than_any_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = hand_folder(tmp_path / "one")  # [3, 4]
    assert Adapter(folder)["m"].A.dtype == torch.float32
    monkeypatch.setattr(weights, "LARGEST_UPDATE", 11)
    with pytest.raises(AdapterError, match="update of 'm' would be 3 x 4, which is larger than any model's"):
        Adapter(folder)


@pytest.mark.parametrize("dtype,bits", [("F4", 4), ("F6_E2M3", 6), ("U8", 8), ("BOOL", 8), ("C64", 64)])
def test_formats_that_are_not_numbers_to_compute_with(dtype: str, bits: int, tmp_path: Path) -> None:
    folder, size = hand_folder(tmp_path / "one"), bits * 8 // 8
    shapes = {"A": [2, 4], "B": [4, 2]}
    header = {
        f"base_model.model.m.lora_{side}.weight": {
            "dtype": dtype,
            "shape": shape,
            "data_offsets": [i * size, (i + 1) * size],
        }
        for i, (side, shape) in enumerate(shapes.items())
    }
    text = json.dumps(header).encode()
    (folder / weights.WEIGHTS_FILE).write_bytes(len(text).to_bytes(8, "little") + text + bytes(2 * size))
    with pytest.raises(
        AdapterError, match=r"adapter_model\.safetensors: '.*lora_A\.weight' (is stored as|cannot be read)"
    ):
        Adapter(folder)["m"]


@pytest.mark.parametrize(
    "key,size",
    [("num_hidden_layers", 10_001), ("n_head", 10**400), ("hidden_size", 2**28)],
    ids=["layers", "heads", "width"],
)
@pytest.mark.parametrize("inside", [False, True])
def test_a_model_larger_than_any(key: str, size: int, inside: bool, tmp_path: Path) -> None:
    """Found in the file, before anything is built."""
    config = {"model_type": "llama", "rope_theta": 10**9, "hidden_size": 2**20, "num_hidden_layers": 200}
    (tmp_path / "config.json").write_text(json.dumps(config))
    check_sizes(tmp_path)
    (tmp_path / "config.json").write_text(
        json.dumps(config | ({"text_config": {key: size}} if inside else {key: size}))
    )
    with pytest.raises(ConfigError, match=rf"config\.json: {key} is .*, more than any model has"):
        check_sizes(tmp_path)
