"""Row tiles processed in parallel: one Python thread per core, each computing on one core.

A tile's operations are short (tens of microseconds). Splitting every operation over cores means a wait for the slowest core
each time, nearly all of the time on a busy machine; whole tiles in parallel wait once.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import torch

from perdure.ops.tiling import Arena, row_tiles


def over_rows(shape: tuple[int, int], work: Callable[[int, int, Arena], None]) -> None:
    """Call `work(start, stop, arena)` for all row tiles of a matrix [O, I], in no particular order.

    Calls may run in several threads: they must not write to the same place or depend on order. `arena` is the thread's
    memory for temporaries, valid until `work` returns.
    """
    ranges = list(row_tiles(shape))
    threads = torch.get_num_threads()
    local = threading.local()

    @torch.no_grad()  # the setting is per thread
    def process(rows: tuple[int, int]) -> None:
        if not hasattr(local, "arena"):
            local.arena = Arena()
        local.arena.reset()
        work(*rows, local.arena)

    if min(threads, len(ranges)) < 2:
        for rows in ranges:
            process(rows)
        return
    try:
        with ThreadPoolExecutor(min(threads, len(ranges)), initializer=torch.set_num_threads, initargs=(1,)) as pool:
            for _ in pool.map(process, ranges):
                pass
    finally:
        torch.set_num_threads(threads)


@contextmanager
def on_one_core() -> Iterator[None]:
    """Keep operations on one core: for thin factors, synchronising cores costs more than computing, most on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
