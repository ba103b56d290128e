"""kill -9 anywhere in an add or a rollback: the run is the old one or the new one, whole; doing it again gives the same bits."""

from __future__ import annotations

import shutil

import pytest

import perdure
from perdure.commands.learn import resume
from perdure.errors import DataError
from perdure.files.durable import sync_tree
from perdure.state.scores import read_scores
from perdure.state.store import Store
from tests.contract.runs import bits, short_run
from tests.faults.killed import add_killed_at, rollback_killed_at

METHOD = "ps-lora"  # dense carry, a merged deployed model: the most there is to lose
IN_ADD = [
    ("step", 1),
    ("step", 3),
    ("predict", 2),
    *[(f"half:{name}", 1) for name in ("manifest.json", "scores.json", "log.jsonl", "state.safetensors",
                                       "adapter_model.safetensors")],
    *[("before-rename", n) for n in range(1, 7)],
    *[("after-rename", n) for n in range(1, 7)],
]  # fmt: skip
IN_ROLLBACK = [
    ("half:manifest.json", 1),
    *[("before-rename", n) for n in range(1, 9)],
    *[("after-rename", n) for n in range(1, 9)],
]


@pytest.fixture(scope="module")
def two(tmp_path_factory, small_tasks, encoder_folder):
    """A finished run of two tasks."""
    out = tmp_path_factory.mktemp("two") / "run"
    short_run(out, small_tasks[:2], encoder_folder, METHOD)
    return out


@pytest.fixture(scope="module")
def three(two, tmp_path_factory, small_tasks):
    """The same with a third one added."""
    out = shutil.copytree(two, tmp_path_factory.mktemp("three") / "run")
    perdure.add(out, small_tasks[2], tasks=small_tasks[:2])
    return out


def is_whole(out, before, after):
    """It is one of both, and can be read; `deployed/` is one of both too, and after the next command the one that counts."""
    assert bits(out) in (bits(before), bits(after))
    Store(out).verify()
    read_scores(out)
    with Store(out).writing():
        assert sync_tree(out / "deployed") == bits(out)["deployed"]
    assert not [p for p in out.iterdir() if p.name.startswith((".next", ".old"))]


def _check_add(point, number, out, two, three, small_tasks):
    assert add_killed_at(point, number, out), f"the add never reached {point} number {number}"
    happened = bits(out) == bits(three)
    if not happened:
        assert sync_tree(out / "deployed") == bits(two)["deployed"], "the old model is in its place"
    is_whole(out, two, three)
    if happened:
        with pytest.raises(DataError, match="already learnt"):
            perdure.add(out, small_tasks[2], tasks=small_tasks[:2])
        resume(out, tasks=small_tasks)
    else:
        perdure.add(out, small_tasks[2], tasks=small_tasks[:2])
    assert bits(out) == bits(three)
    assert sync_tree(out / "deployed") == bits(three)["deployed"]
    assert not [p for p in out.rglob("*") if p.name.startswith((".partial", ".old", ".next"))], "something was left"


@pytest.mark.parametrize("point,number", IN_ADD)
def test_add_killed(point, number, tmp_path, two, three, small_tasks):
    _check_add(point, number, shutil.copytree(two, tmp_path / "run"), two, three, small_tasks)


@pytest.mark.slow
@pytest.mark.parametrize("number", range(1, 33))
def test_add_killed_at_every_sync(number, tmp_path, two, three, small_tasks):
    if not add_killed_at("sync", number, shutil.copytree(two, tmp_path / "probe")):
        assert number > 15, "an add syncs at least fifteen files"
        return
    _check_add("sync", number, shutil.copytree(two, tmp_path / "run"), two, three, small_tasks)


@pytest.mark.parametrize("point,number", IN_ROLLBACK)
def test_rollback_killed(point, number, tmp_path, two, three, small_tasks):
    out = shutil.copytree(three, tmp_path / "run")
    if not rollback_killed_at(point, number, out):
        assert number > 5, "a rollback renames at least five times"
        return
    is_whole(out, three, two)
    perdure.rollback(out, "sky")
    assert bits(out) == bits(two)
    assert sync_tree(out / "deployed") == bits(two)["deployed"]
    assert (out / "aside/03-sea/why.json").is_file()
    assert sync_tree(out / "aside/03-sea").items() >= bits(three)["stages"][3]["files"].items()
    perdure.add(out, small_tasks[2], tasks=small_tasks[:2])
    assert bits(out) == bits(three)
