"""Methods that must coincide, to the bit."""

from __future__ import annotations

import pytest
import torch

from perdure.adapters.folder import open_adapter
from perdure.methods.contract.past import Past
from perdure.methods.ps_lora import MaxMagnitude
from perdure.methods.table import PARTS, PRESETS
from perdure.ops.lowrank import LowRank, add_updates, dense
from perdure.state.store import Store
from tests.contract.runs import bits, short_run

WEIGHT_ZERO = {name: {"weight": 0.0} for name in PARTS["penalty"]}


@pytest.fixture(scope="module")
def inc_lora(tmp_path_factory, small_tasks, encoder_folder):
    out = tmp_path_factory.mktemp("inc-lora") / "run"
    short_run(out, small_tasks, encoder_folder, "inc-lora")
    return bits(out)


def _without_state(manifest):
    """All files but the checkpoint: a part with memory keeps it there even at weight 0."""
    return [
        {
            path: digest
            for path, digest in entry["files"].items()
            if path not in ("state.safetensors", "notes.json", "log.jsonl")
        }
        for entry in manifest["stages"]
    ] + [manifest["deployed"]]


@pytest.mark.parametrize("penalty", WEIGHT_ZERO)
def test_a_penalty_at_weight_0_is_inc_lora(penalty, inc_lora, tmp_path, small_tasks, encoder_folder):
    method = {"preset": "inc-lora", "penalties": {penalty: WEIGHT_ZERO[penalty]}}
    short_run(tmp_path / "run", small_tasks, encoder_folder, method)
    assert _without_state(bits(tmp_path / "run")) == _without_state(inc_lora)


def test_the_first_task_is_the_same_for_methods_that_differ_in_the_past_only(
    inc_lora, tmp_path, small_tasks, encoder_folder
):
    short_run(tmp_path / "run", small_tasks, encoder_folder, "seq-lora")
    first = bits(tmp_path / "run")["stages"][1]["files"]
    assert (
        first["adapter/adapter_model.safetensors"]
        == inc_lora["stages"][1]["files"]["adapter/adapter_model.safetensors"]
    )


def test_ps_lora_on_the_first_task_is_l2(tmp_path, small_tasks, encoder_folder):
    weight = {"weight": 0.01}
    short_run(
        tmp_path / "ps", small_tasks[:1], encoder_folder, {"preset": "ps-lora", "penalties": {"sign-magnitude": weight}}
    )
    short_run(tmp_path / "l2", small_tasks[:1], encoder_folder, {"preset": "l2", "penalties": {"l2": weight}})
    left, right = (open_adapter(Store(tmp_path / name).stage_folder(1) / "adapter") for name in ("ps", "l2"))
    for name, delta in left.items():
        assert (delta.B @ delta.A).sub(right[name].B @ right[name].A).abs().max() < 1e-6


def test_merging_at_the_end_gives_what_merging_online_gives_for_the_same_adapters(
    tmp_path, small_tasks, encoder_folder
):

    generator = torch.Generator().manual_seed(0)
    updates = [
        {"m": LowRank(torch.randn(2, 6, generator=generator), torch.randn(5, 2, generator=generator))} for _ in range(4)
    ]
    deployed = {}
    for when in ("online", "end"):
        past, part = Past(), MaxMagnitude(when=when)
        for update in updates:
            folded = part.fold(None, past, update)  # type: ignore[arg-type]  (the part does not look at the context)
            past = Past((*past.stages, "t"), add_updates(past.total, update), folded.carry, folded.deployed)
        deployed[when] = past
    assert torch.equal(dense(deployed["online"].deployed["m"]), dense(deployed["end"].deployed["m"]))
    assert deployed["online"].carry["m"] is not None
    assert torch.allclose(dense(deployed["end"].carry["m"]), sum(dense(u["m"]) for u in updates))


def test_every_preset_names_known_parts():
    for preset in PRESETS.values():
        row = preset.composition()
        assert row["init"]["kind"] in PARTS["init"]
        assert row["consolidate"]["kind"] in PARTS["consolidate"]
        assert all(part["kind"] in PARTS["penalty"] for part in row["penalties"].values())
