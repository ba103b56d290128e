"""kill -9 while a stage is written down after every step: what is resumed equals, to the bit, a run that was never stopped."""

from __future__ import annotations

import json

import pytest

from perdure.files.durable import sync_tree
from perdure.state.store import Store
from tests.contract.runs import SETTINGS, bits, short_run
from tests.faults.killed import killed_at
from tests.faults.test_kill import METHOD, uninterrupted  # noqa: F401  (a fixture)

EVERY_STEP = {"checkpoint_minutes": 1e-9}

SYNCS, RENAMES = 108, 25
"""As in test_kill, of a run with a checkpoint after every step."""

POINTS = [
    ("step", 3),  # after the checkpoint of the first task's second step
    ("step", 6),  # the same in the second task
    ("half:training.safetensors", 1),
    ("half:training.safetensors", 2),  # half-way through writing one, while an older one stands
    ("half:training.safetensors", 5),
    ("half:log.jsonl", 2),
    ("half:manifest.json", 3),  # the one that is to name the new checkpoint
    ("half:adapter_model.safetensors", 1),  # the stage is trained, its record is being written
    *[("before-rename", number) for number in range(5, RENAMES + 1, 4)],
    *[("after-rename", number) for number in range(7, RENAMES + 1, 4)],
]


def _check(point, number, out, tasks, encoder, expected):
    assert killed_at(point, number, out, encoder, METHOD, **EVERY_STEP), f"the run never reached {point} {number}"
    short_run(out, tasks, encoder, METHOD)
    assert bits(out) == expected
    assert sync_tree(out / "deployed") == expected["deployed"]
    left = [p for p in out.rglob("*") if p.name.startswith((".partial", ".old", "unfinished"))]
    assert not left, "something half-written was left"
    Store(out).verify()


@pytest.mark.parametrize("point,number", POINTS)
def test_killed_inside_and_resumed(point, number, tmp_path, small_tasks, encoder_folder, uninterrupted):  # noqa: F811
    _check(point, number, tmp_path / "run", small_tasks[:2], encoder_folder, uninterrupted)


@pytest.mark.slow
@pytest.mark.parametrize("number", range(1, SYNCS + 1))
def test_killed_at_every_sync(number, tmp_path, small_tasks, encoder_folder, uninterrupted):  # noqa: F811
    _check("sync", number, tmp_path / "run", small_tasks[:2], encoder_folder, uninterrupted)


@pytest.mark.slow
@pytest.mark.parametrize("point,last", [("sync", SYNCS), ("before-rename", RENAMES)])
def test_no_point_is_behind_the_last(point, last, tmp_path, encoder_folder):
    out = tmp_path / "run"
    assert not killed_at(point, last + 1, out, encoder_folder, METHOD, **EVERY_STEP), f"the run grew: raise {last}"


def test_sigterm_writes_the_step_it_meets(tmp_path, small_tasks, encoder_folder, uninterrupted):  # noqa: F811
    assert killed_at("terminated", 5, tmp_path / "run", encoder_folder, METHOD)
    about = json.loads((tmp_path / "run/unfinished/manifest.json").read_text())
    assert (about["stage"], about["folder"]) == ("sky", "000002")
    short_run(tmp_path / "run", small_tasks[:2], encoder_folder, METHOD)
    assert bits(tmp_path / "run") == uninterrupted


@pytest.mark.parametrize("damage", ["flipped", "missing", "manifest"])
def test_a_damaged_checkpoint_is_not_trusted(damage, tmp_path, small_tasks, encoder_folder, uninterrupted):  # noqa: F811
    assert killed_at("step", 6, tmp_path / "run", encoder_folder, METHOD, **EVERY_STEP)
    (state,) = (tmp_path / "run/unfinished").glob("*/training.safetensors")
    if damage == "flipped":
        data = bytearray(state.read_bytes())
        data[-5] ^= 1
        state.write_bytes(data)
    elif damage == "missing":
        state.unlink()
    else:
        (tmp_path / "run/unfinished/manifest.json").write_text('{"stage": "sky", "ind')
    short_run(tmp_path / "run", small_tasks[:2], encoder_folder, METHOD)
    assert bits(tmp_path / "run") == uninterrupted


def test_a_checkpoint_of_another_stage_is_ignored(tmp_path, small_tasks, encoder_folder, uninterrupted):  # noqa: F811
    """As after a kill between the first stage's entry into the manifest and the removal of its checkpoint."""
    out = tmp_path / "run"
    assert killed_at("step", 6, out, encoder_folder, METHOD, **EVERY_STEP)
    manifest = out / "unfinished/manifest.json"
    about = json.loads(manifest.read_text())
    assert (about["stage"], about["index"]) == ("sky", 1)
    manifest.write_text(json.dumps({**about, "stage": "fruit", "index": 0}))
    short_run(out, small_tasks[:2], encoder_folder, METHOD)
    assert bits(out) == uninterrupted


def test_how_often_it_is_written_is_no_other_configuration(tmp_path, small_tasks, encoder_folder, uninterrupted):  # noqa: F811
    for minutes in (None, 5.0):
        training = {**SETTINGS["training"], "checkpoint_minutes": minutes}
        short_run(tmp_path / "run", small_tasks[:2], encoder_folder, METHOD, training=training)
    assert bits(tmp_path / "run") == uninterrupted
    about = Store(tmp_path / "run").about
    assert about["checkpoint_minutes"] is None
    assert "checkpoint_minutes" not in about["config"]["training"]
