"""Merging one by one in constant size equals merging all at once, and survives whatever happens to the process."""

import errno
import json
import os

import pytest
import torch
from filelock import FileLock

from perdure.adapters.folder import Adapter
from perdure.errors import AdapterError, ConfigError, RunBusy, StoreError
from perdure.merging.folders import Merger, merge_folders
from perdure.merging.result import write_result
from perdure.merging.rules import RULES, rule_named
from perdure.merging.sources import open_sources
from perdure.merging.state import State, merge_into
from perdure.ops.lowrank import dense
from tests.adapter_cases import hand_folder, random_folder
from tests.merging.merge_cases import assert_same, one_row_tiles

ONE_BY_ONE = [name for name, rule in RULES.items() if rule.incremental]


@pytest.fixture
def places(tmp_path):
    return [random_folder(tmp_path / f"task{i}", seed=i, rank=2) for i in range(4)]


def merged(thing):
    modules = thing.facts.modules if isinstance(thing, State) else thing.sources.modules
    return {module: thing.merge(module) for module in modules}


@pytest.mark.parametrize("name", ONE_BY_ONE)
def test_one_by_one_equals_all_at_once(tmp_path, places, name):
    rule = rule_named(name)
    for place in places:
        merge_into(tmp_path / "state", place, rule)
    state = State(tmp_path / "state")
    at_once = merged(Merger(open_sources(places), rule))
    assert_same(merged(state), at_once, 0 if not rule.low_rank else 1e-5)
    for module in at_once:
        rows, height = state.rows(module), at_once[module].shape[0]
        tiles = torch.cat([rows(2, height), rows(0, 2)])
        torch.testing.assert_close(tiles.roll(2, dims=0), dense(at_once[module]), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", [name for name in ONE_BY_ONE if name != "slao"])
def test_modules_that_come_and_go(tmp_path, name):
    shapes = [{"a.0.q": (6, 5)}, {"a.1.q": (4, 7)}, {"a.0.q": (6, 5), "a.1.q": (4, 7)}]
    places = [random_folder(tmp_path / f"t{i}", seed=i, shapes=chosen) for i, chosen in enumerate(shapes)]
    rule = rule_named(name)
    for place in places:
        merge_into(tmp_path / "state", place, rule)
    assert_same(merged(State(tmp_path / "state")), merged(Merger(open_sources(places), rule)), 1e-5)


def test_row_tiles_do_not_matter(tmp_path, places, monkeypatch):
    for place in places[:2]:
        merge_into(tmp_path / "whole", place, rule_named("ties"))
    one_row_tiles(monkeypatch)
    for place in places[:2]:
        merge_into(tmp_path / "tiled", place, rule_named("ties"))
    assert_same(merged(State(tmp_path / "tiled")), merged(State(tmp_path / "whole")), 1e-6)


@pytest.mark.parametrize("name", ONE_BY_ONE)
def test_the_size_does_not_grow(tmp_path, name):
    sizes = []
    for i in range(12):
        place = random_folder(tmp_path / f"t{i}", seed=i, rank=2)
        state = merge_into(tmp_path / "state", place, rule_named(name))
        sizes.append((state.folder / state.about.file).stat().st_size)
    assert sizes[-1] == sizes[-4], "constant from some task on"
    slots = 4 if name in ("ties", "della") else 2 if name in ("magmax", "ram") else 1
    assert sizes[-1] <= 4 * slots * (12 * 8 + 6 * 10) + 1000
    assert len(list((tmp_path / "state").glob("merged-*"))) == 1


def test_weights_one_by_one(tmp_path, places):
    for rule in ("arithmetic", "average", "ties", "dare"):
        for place, weight in zip(places, (1.0, 0.5, 2.0, 1.0), strict=True):
            merge_into(tmp_path / rule, place, rule_named(rule), weight=weight)
        at_once = Merger(open_sources(places), rule_named(rule, {"weights": [1.0, 0.5, 2.0, 1.0]}))
        assert_same(merged(State(tmp_path / rule)), merged(at_once), 1e-5)
    with pytest.raises(ConfigError, match="takes no weights"):
        merge_into(tmp_path / "max", places[0], rule_named("max-magnitude"), weight=2)
    with pytest.raises(ConfigError, match="its own weight"):
        merge_into(tmp_path / "list", places[0], rule_named("ties", {"weights": [1]}))


def test_the_rule_is_remembered_and_cannot_change(tmp_path, places):
    merge_into(tmp_path / "state", places[0], rule_named("ties", {"density": 0.5}))
    state = merge_into(tmp_path / "state", places[1])
    assert (state.rule, state.about.count) == (rule_named("ties", {"density": 0.5}), 2)
    with pytest.raises(ConfigError, match="need a separate state"):
        merge_into(tmp_path / "state", places[2], rule_named("ties"))
    with pytest.raises(ConfigError, match="A new state needs a rule"):
        merge_into(tmp_path / "other", places[0])


def test_what_cannot_be_merged_one_by_one_says_so(tmp_path, places):
    with pytest.raises(ConfigError, match="'covariance-gain' needs all updates at once"):
        merge_into(tmp_path / "state", places[0], rule_named("covariance-gain"))
    assert not (tmp_path / "state").exists()


def test_the_same_adapter_twice_is_noticed(tmp_path, places):
    merge_into(tmp_path / "state", places[0], rule_named("sum"))
    with pytest.raises(ConfigError, match=r"already holds this adapter \(as 'task0'\)"):
        merge_into(tmp_path / "state", places[0])
    state = merge_into(tmp_path / "state", places[0], again=True)
    assert state.about.adapters == ("task0", "task0 (2)")
    assert_same(merged(state), {m: 2 * dense(d) for m, d in Adapter(places[0]).items()})


def test_export_of_a_state(tmp_path, places):
    for place in places:
        merge_into(tmp_path / "state", place, rule_named("sum"))
    state = State(tmp_path / "state")
    report = write_result(state, state.facts, tmp_path / "out")
    merge_folders(places, tmp_path / "at-once", rule_named("sum"))
    assert report.rank == 8
    assert_same(dict(Adapter(tmp_path / "out")), dict(Adapter(tmp_path / "at-once")), 1e-4)
    assert "- task3" in (tmp_path / "out" / "README.md").read_text()


def test_another_base_is_named_and_changes_nothing(tmp_path, places):
    state = merge_into(tmp_path / "state", places[0], rule_named("max-magnitude"))
    other = random_folder(tmp_path / "other", 9, shapes={"layers.0.q": (12, 9)})
    before = sorted((p.name, p.read_bytes()) for p in state.folder.iterdir())
    with pytest.raises(
        AdapterError,
        match=r"The state and '.*other' are of different bases: module 'layers\.0\.q' is 12 x 8 .* and 12 x 9",
    ):
        merge_into(tmp_path / "state", other)
    assert sorted((p.name, p.read_bytes()) for p in state.folder.iterdir()) == before


@pytest.mark.parametrize("when", ["writing", "committing"])
def test_a_process_that_dies_leaves_the_old_state(tmp_path, places, when, monkeypatch):
    merge_into(tmp_path / "state", places[0], rule_named("max-magnitude"))
    before = merged(State(tmp_path / "state"))
    with monkeypatch.context() as broken:

        def die(*_args, **_kwargs):
            raise KeyboardInterrupt

        if when == "writing":
            broken.setattr("perdure.merging.slots.FoldKeeper.extend", die)
        else:
            broken.setattr("os.replace", die)
        with pytest.raises(KeyboardInterrupt):
            merge_into(tmp_path / "state", places[1])
    assert_same(merged(State(tmp_path / "state")), before, 0)
    after = merge_into(tmp_path / "state", places[1])
    assert_same(merged(after), merged(Merger(open_sources(places[:2]), rule_named("max-magnitude"))), 0)
    assert len(list((tmp_path / "state").glob("merged-*"))) == 1


def test_a_process_that_dies_before_the_first_commit_can_begin_again(tmp_path, places, monkeypatch):
    with monkeypatch.context() as broken:
        broken.setattr("os.replace", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            merge_into(tmp_path / "state", places[0], rule_named("sum"))
    assert merge_into(tmp_path / "state", places[0], rule_named("sum")).about.count == 1


def test_what_another_process_merged_meanwhile_is_kept(tmp_path, places, monkeypatch):
    import perdure.merging.state

    real = perdure.merging.state.open_adapter

    def meanwhile(place, **options):
        if place == places[0]:
            merge_into(tmp_path / "state", places[1], rule_named("ties"))
        return real(place, **options)

    monkeypatch.setattr(perdure.merging.state, "open_adapter", meanwhile)
    assert merge_into(tmp_path / "state", places[0], rule_named("ties")).about.count == 2


def test_one_writer_at_a_time(tmp_path, places):
    merge_into(tmp_path / "state", places[0], rule_named("sum"))
    with FileLock(tmp_path / "state" / ".lock"), pytest.raises(RunBusy, match="Another process"):
        merge_into(tmp_path / "state", places[1])


def test_bad_states(tmp_path, places):
    with pytest.raises(StoreError, match="holds no merge state"):
        State(tmp_path)
    with pytest.raises(StoreError, match="exists and holds no merge state"):
        merge_into(places[0], places[1], rule_named("sum"))
    state = merge_into(tmp_path / "state", places[0], rule_named("sum"))
    about = json.loads((state.folder / "state.json").read_text())
    (state.folder / "state.json").write_text(json.dumps({**about, "file": "../task0/adapter_model.safetensors"}))
    with pytest.raises(StoreError, match="is not a plain name"):
        State(state.folder)
    (state.folder / "state.json").write_text(json.dumps(about))
    with (state.folder / about["file"]).open("r+b") as file:
        file.truncate(os.path.getsize(file.name) - 1)
    with pytest.raises(AdapterError, match="damaged or cut off"):
        merge_into(state.folder, places[1])
    (state.folder / about["file"]).unlink()
    with pytest.raises(StoreError, match=r"lacks 'merged-1\.safetensors'"):
        State(state.folder)


def test_slao_one_by_one_needs_every_module(tmp_path, places):
    merge_into(tmp_path / "state", places[0], rule_named("slao"))
    with pytest.raises(AdapterError, match=r"update 2 has no 'layers\.1\.v'"):
        merge_into(tmp_path / "state", random_folder(tmp_path / "less", 7, shapes={"layers.0.q": (12, 8)}))
    with pytest.raises(AdapterError, match="SLAO needs one rank"):
        merge_into(tmp_path / "state", random_folder(tmp_path / "wider", 7, rank=3))


def test_an_adapter_in_float64_is_taken_in_fp32(tmp_path):
    names = ("base_model.model.m.lora_A.weight", "base_model.model.m.lora_B.weight")
    tensors = dict(zip(names, (torch.ones(2, 4).double(), torch.ones(3, 2).double()), strict=True))
    for rule in ("max-magnitude", "sum", "slao"):
        state = merge_into(tmp_path / rule, hand_folder(tmp_path / f"{rule}-a", tensors), rule_named(rule))
        assert dense(state.merge("m")).tolist() == [[4.0] * 4] * 3


def test_an_adapter_that_names_another_base(tmp_path):
    """Refused where no module is common; else it is said, then and when the state is written out."""
    first = random_folder(tmp_path / "one", 1, shapes={"layers.0.q": (4, 4)}, base="meta/one")
    strange = random_folder(tmp_path / "two", 2, shapes={"h.0.c_attn": (4, 4)}, base="meta/two")
    alike = random_folder(tmp_path / "three", 3, shapes={"layers.0.q": (4, 4)}, base="meta/three")
    merge_into(tmp_path / "state", first, rule_named("sum"))
    with pytest.raises(AdapterError, match=r"The state and '.*two' are of different bases: they name 'meta/one' and"):
        merge_into(tmp_path / "state", strange)
    assert State(tmp_path / "state").about.notes == ()
    state = merge_into(tmp_path / "state", alike)
    (note,) = state.about.notes
    assert "name different bases although their shapes agree (the state: meta/one; three: meta/three)" in note
    assert write_result(state, state.facts, tmp_path / "out").notes == (note,)


def test_a_state_where_a_file_is(tmp_path, places):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(StoreError, match="exists and holds no merge state"):
        merge_into(tmp_path / "file", places[0], rule_named("sum"))
    with pytest.raises(StoreError, match=r"Cannot create folder '.*file/x'"):
        merge_into(tmp_path / "file" / "x", places[0], rule_named("sum"))


def test_a_full_disk_leaves_the_old_state(tmp_path, places, monkeypatch):
    merge_into(tmp_path / "state", places[0], rule_named("max-magnitude"))

    def full(*_args, **_kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("perdure.merging.slots.FoldKeeper.extend", full)
    with pytest.raises(StoreError, match=r"No space left to write '.*state'. The state is unchanged"):
        merge_into(tmp_path / "state", places[1])
    assert State(tmp_path / "state").about.count == 1


def test_weights_of_the_base_that_an_adapter_brings_are_said_not_to_be_kept(tmp_path):
    tensors = {
        "base_model.model.lm_head.lora_A.weight": torch.ones(2, 3),
        "base_model.model.lm_head.lora_B.weight": torch.ones(5, 2),
        "base_model.model.lm_head.base_layer.weight": torch.ones(5, 3),
    }
    for name in ("one", "two"):
        place = hand_folder(tmp_path / name, tensors, target_modules=["lm_head"])
        state = merge_into(tmp_path / "state", place, rule_named("sum"), again=True)
    (note,) = state.facts.notes
    assert "the base's own weight of 'lm_head', which a state does not keep" in note
