"""Tiles side by side: every row once, errors come out, and the number of threads stays as it was."""

import threading

import pytest
import torch

from perdure.ops import magnitude
from perdure.ops.lowrank import LowRank
from perdure.ops.parallel import on_one_core, over_rows
from perdure.ops.tiling import Arena
from tests.merging.merge_cases import assert_same, one_row_tiles, random_updates


@pytest.fixture(params=[1, 3])
def threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def test_every_row_once(threads, monkeypatch):
    one_row_tiles(monkeypatch)
    seen, own, workers = torch.zeros(50), [], set()

    def work(start, stop, arena):
        seen[start:stop] += 1
        own.append(torch.get_num_threads())
        workers.add(threading.get_ident())

    over_rows((50, 4), work)
    assert seen.tolist() == [1] * 50
    assert set(own) == {1}, "each thread computes on one core"
    assert (threading.get_ident() in workers) == (threads == 1)
    assert torch.get_num_threads() == threads


def test_an_error_comes_out(threads, monkeypatch):
    one_row_tiles(monkeypatch)

    def work(start, stop, arena):
        if start == 7:
            raise KeyError("seven")

    with pytest.raises(KeyError, match="seven"):
        over_rows((50, 4), work)
    assert torch.get_num_threads() == threads


def test_no_graph_is_recorded(threads, monkeypatch):
    one_row_tiles(monkeypatch)
    weight, recorded = torch.ones(4, 4, requires_grad=True), []
    over_rows((4, 4), lambda start, stop, arena: recorded.append((weight[start:stop] * 2).requires_grad))
    assert recorded == [False] * 4


def test_an_arena_gives_the_same_memory_again_after_reset():
    arena = Arena()
    one, two = arena.empty(2, 3, torch.float32), arena.empty(4, 5, torch.float64)
    assert (one.shape, two.dtype) == ((2, 3), torch.float64)
    assert one.data_ptr() != two.data_ptr()
    arena.reset()
    assert arena.empty(1, 3, torch.float32).data_ptr() == one.data_ptr()
    assert arena.like(two).data_ptr() == two.data_ptr()
    arena.reset()
    assert arena.empty(50, 50, torch.float32).shape == (50, 50), "it grows where it must"


def test_results_do_not_depend_on_the_number_of_threads(threads, monkeypatch):
    from tests.merging.whole_updates import dare_updates, ties_updates

    one_row_tiles(monkeypatch)
    updates = random_updates(3)
    several = ties_updates(updates, 0.3), dare_updates(updates, 0.5, seed=1)
    torch.set_num_threads(1)
    for found, expected in zip(several, (ties_updates(updates, 0.3), dare_updates(updates, 0.5, seed=1)), strict=True):
        assert_same(found, expected, 0)


def test_the_threshold_does_not_depend_on_the_number_of_threads(threads, monkeypatch):
    one_row_tiles(monkeypatch)
    monkeypatch.setattr(magnitude, "SAMPLE", 500)
    generator = torch.Generator().manual_seed(0)
    delta = LowRank(torch.randn(3, 80, generator=generator), torch.randn(90, 3, generator=generator))
    found = magnitude.magnitude_threshold([delta], 0.2)
    exact = (delta.B @ delta.A).abs().view(-1).sort(descending=True).values[int(0.2 * 7200) - 1]
    assert found == pytest.approx(exact.item(), rel=1e-6)


def test_on_one_core_gives_the_threads_back_also_after_an_error():
    def failing():
        with on_one_core():
            assert torch.get_num_threads() == 1
            raise ValueError("x")

    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with pytest.raises(ValueError, match="x"):
            failing()
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
