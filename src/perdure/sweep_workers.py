"""The processes of a sweep: one run at a time in each, and none that outlives the sweep."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

Job = TypeVar("Job")


def run_all(
    jobs: Iterable[Job], processes: int, run: Callable[[Job], str], ended: Callable[[Job, str | None], None]
) -> None:
    """Do `run(job)` for every job, `processes` at once; `ended(job, what it returned)` here whenever one is done.

    A process that dies takes its own job with it only (`ended(job, None)`), and another takes its place. Whatever ends the
    sweep, Ctrl-C for one, ends the processes too: each gets SIGTERM, upon which a training is written down where it stands.
    """
    others = {*multiprocessing.active_children()}
    waiting, running = deque(jobs), dict[Future[str], tuple[Job, ProcessPoolExecutor]]()
    workers = [_worker() for _ in range(min(processes, len(waiting)))]
    free = [*workers]
    try:
        while waiting or running:
            while waiting and free:
                job, worker = waiting.popleft(), free.pop()
                running[worker.submit(run, job)] = job, worker
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                job, worker = running.pop(future)
                if isinstance(future.exception(), BrokenProcessPool):
                    workers.append(worker := _worker())
                    ended(job, None)
                else:
                    ended(job, future.result())
                free.append(worker)
    except BaseException:
        for process in {*multiprocessing.active_children()} - others:
            process.terminate()
        raise
    finally:
        for worker in workers:
            worker.shutdown()


def _worker() -> ProcessPoolExecutor:
    """One process, in a pool of its own: when it dies it is known whose run it was."""
    return ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn"), initializer=_begin)


def _begin() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal's Ctrl-C reaches them too; the sweep tells them to end
    _end_with_parent()


def _end_with_parent() -> None:
    """A sweep that is killed leaves no process behind that goes on with its runs."""

    def mind() -> None:
        parent = multiprocessing.parent_process()
        assert parent is not None
        parent.join()
        os._exit(1)

    threading.Thread(target=mind, daemon=True).start()
