"""kill -9 anywhere: what is resumed equals, to the bit, a run that was never stopped."""

from __future__ import annotations

import pytest

from perdure.files.durable import sync_tree
from perdure.state.store import Store
from tests.contract.runs import bits, short_run
from tests.faults.killed import killed_at

METHOD = "ps-lora"  # dense carry, a merged deployed model, a penalty with a cache: the most there is to lose

SYNCS, RENAMES = 54, 13
"""How often the whole run forces something to disk, and renames something. The last of them publish the deployed model."""

POINTS = [
    ("step", 2),  # in the middle of training the first task
    ("step", 5),  # ... the second
    ("predict", 3),  # in the middle of an evaluation
    ("predict", 6),
    *[(f"half:{name}", number) for name, number in [
        ("run.json", 1), ("manifest.json", 1), ("manifest.json", 2), ("manifest.json", 4),
        ("scores.json", 1), ("scores.json", 3), ("predictions.zip", 2), ("log.jsonl", 2), ("notes.json", 1),
        ("adapter_model.safetensors", 2), ("state.safetensors", 1), ("state.safetensors", 2),
    ]],
    *[("before-rename", n) for n in (1, 3, 5, 7, 9, *range(11, RENAMES + 1))],  # from 11 on: the deployed model
    *[("after-rename", n) for n in (2, 4, 6, 7, 8, 10, *range(11, RENAMES + 1))],  # between a rename and the manifest, too
]  # fmt: skip


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory, small_tasks, encoder_folder):
    out = tmp_path_factory.mktemp("whole") / "run"
    short_run(out, small_tasks[:2], encoder_folder, METHOD)
    return bits(out)


def _check(point, number, out, tasks, encoder, uninterrupted):
    assert killed_at(point, number, out, encoder, METHOD), f"the run never reached {point} number {number}"
    finished = Store(out).stages()
    short_run(out, tasks, encoder, METHOD)
    assert bits(out) == uninterrupted
    assert sync_tree(out / "deployed") == uninterrupted["deployed"]
    assert Store(out).stages()[: len(finished)] == finished
    assert not [p for p in out.rglob("*") if p.name.startswith((".partial", ".old"))], "something half-written was left"
    Store(out).verify()


@pytest.mark.parametrize("point,number", POINTS)
def test_killed_and_resumed(point, number, tmp_path, small_tasks, encoder_folder, uninterrupted):
    _check(point, number, tmp_path / "run", small_tasks[:2], encoder_folder, uninterrupted)


@pytest.mark.slow
@pytest.mark.parametrize("number", range(1, SYNCS + 1))
def test_killed_at_every_sync(number, tmp_path, small_tasks, encoder_folder, uninterrupted):
    _check("sync", number, tmp_path / "run", small_tasks[:2], encoder_folder, uninterrupted)


@pytest.mark.slow
@pytest.mark.parametrize("point,last", [("sync", SYNCS), ("before-rename", RENAMES)])
def test_no_point_is_behind_the_last(point, last, tmp_path, encoder_folder):
    assert not killed_at(point, last + 1, tmp_path / "run", encoder_folder, METHOD), f"the run grew: raise {last}"
