"""Row tiles worked on side by side: one Python thread a core, each computing on one core.

A tile's operations are short (tens of microseconds). Splitting each of them over cores costs a wait for the slowest at every
single one, and on a busy machine nearly all of the time; whole tiles side by side wait once.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import torch

from perdure.ops.tiling import Arena, row_tiles


def over_rows(shape: tuple[int, int], work: Callable[[int, int, Arena], None]) -> None:
    """`work(start, stop, arena)` for all row tiles of a matrix [O, I], in no particular order.

    `work` may run in several threads at once: what it writes must not overlap, and it must not depend on order. `arena` is the
    thread's own memory for temporaries; what comes from it is valid until `work` returns.
    """
    ranges = list(row_tiles(shape))
    threads = torch.get_num_threads()
    own = threading.local()

    @torch.no_grad()  # the switch for gradients is each thread's own
    def alone(place: tuple[int, int]) -> None:
        if not hasattr(own, "arena"):
            own.arena = Arena()
        own.arena.reset()
        work(*place, own.arena)

    if min(threads, len(ranges)) < 2:
        for place in ranges:
            alone(place)
        return
    try:
        with ThreadPoolExecutor(min(threads, len(ranges)), initializer=torch.set_num_threads, initargs=(1,)) as pool:
            for _ in pool.map(alone, ranges):
                pass
    finally:
        torch.set_num_threads(threads)


@contextmanager
def on_one_core() -> Iterator[None]:
    """Operations in this block stay on one core: thin factors are done before several cores have found together.

    On a busy machine, cores that wait for each other at every operation cost several times what is computed.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
