"""One process alone does nothing; several share the work by their rank; engines perdure does not work with are refused.

Two real processes: tests/processes.
"""

from __future__ import annotations

import pytest
import torch
from torch import nn

from perdure.errors import ConfigError, UnknownName
from perdure.sweeps.plan import SweepConfig
from perdure.sweeps.sweep import run_sweep
from perdure.training.processes import ALONE, Group, _result, _result_or_error, join
from perdure.training.sharding import blocks, gathered, write


def member(rank: int, count: int, sharded: bool = False) -> Group:
    """One of several, not connected to the others."""
    made = Group.__new__(Group)
    made.rank, made.count, made.sharded = rank, count, sharded
    return made


def test_alone_nothing_is_shared():
    parameter = nn.Parameter(torch.ones(2))
    ALONE.reduce([parameter])
    assert parameter.grad is None
    assert ALONE.share("ab") == [("a", 1), ("b", 1)]
    assert ALONE.total(3, 0.5) == [3, 0.5]
    assert ALONE.spread(str.upper, ["a", "b"]) == ["A", "B"]
    assert ALONE.once(max, 1, 2) == 2
    assert ALONE.main_first(lambda: 5) == 5
    assert ALONE.main


def test_every_item_is_computed_once():
    shares = [member(rank, 3).share("abcdefg") for rank in range(3)]
    assert [[item for item, _ in share] for share in shares] == [["a", "d", "g"], ["b", "e"], ["c", "f"]]
    assert all(counts == 1 for share in shares for _, counts in share)


def test_with_a_sharded_base_all_compute_equally_often_and_count_once():
    shares = [member(rank, 3, sharded=True).share("abcdefg") for rank in range(3)]
    assert {len(share) for share in shares} == {3}
    assert sorted(item for share in shares for item, counts in share if counts) == list("abcdefg")


def test_errors_keep_kind_and_message_between_processes():
    def fails() -> None:
        raise UnknownName("method", "pslora", ["ps-lora"])

    with pytest.raises(UnknownName, match="Did you mean 'ps-lora'"):
        _result(_result_or_error(fails))
    with pytest.raises(ZeroDivisionError):  # no user's error: this process ends, and its launcher ends the others
        _result_or_error(lambda: 1 / 0)


@pytest.mark.parametrize(
    "name,value,message",
    [("ACCELERATE_USE_DEEPSPEED", "true", "DeepSpeed keeps gradients in its own buffers"),
     ("ACCELERATE_USE_FSDP", "true", "shard=true, launched without --use_fsdp"),
     ("ACCELERATE_USE_MEGATRON_LM", "true", "Megatron-LM replaces"),
     ("ACCELERATE_USE_PARALLELISM_CONFIG", "true", "tensor, context and sequence parallelism"),
     ("ACCELERATE_MIXED_PRECISION", "bf16", "give precision=bf16 instead of --mixed_precision")],
)  # fmt: skip
def test_engines_are_refused_with_the_reason(name, value, message, monkeypatch):
    monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=message):
        join()


def test_what_accelerate_sets_without_an_engine_is_fine(monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "false")
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert join() is ALONE


def test_a_sweep_is_not_launched(monkeypatch, tmp_path):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match="start it without a launcher"):
        run_sweep(SweepConfig.model_construct(), tmp_path, 1, print)


def test_the_outermost_repeated_modules_are_blocks():
    inner = nn.ModuleList([nn.Linear(1, 1)])
    layer = nn.Sequential(inner)
    model = nn.Sequential(nn.Linear(1, 1), nn.Sequential(nn.ModuleList([layer, nn.Identity()])))
    assert list(blocks(model)) == [layer, model[1][0][1]]


def test_a_whole_tensor_is_itself():
    whole, target = torch.ones(2), torch.zeros(2)
    assert gathered(whole) is whole
    write(target, whole)
    assert torch.equal(target, whole)


def test_a_process_computes_on_its_own_gpu_before_anything_else(monkeypatch):
    """FSDP2 asks torch for the current device, whichever the model is on."""
    import torch.distributed as dist

    seen = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", seen.append)
    monkeypatch.setattr(dist, "is_initialized", lambda: False)
    monkeypatch.setattr(dist, "init_process_group", lambda engines, timeout: seen.append(engines))
    monkeypatch.setattr(dist, "get_rank", lambda: 3)
    monkeypatch.setattr(dist, "get_world_size", lambda: 4)
    monkeypatch.setenv("LOCAL_RANK", "3")
    assert Group().rank == 3
    assert seen == [1, "cpu:gloo,cuda:nccl"]
