"""The processes of a sweep: one run at a time in each, and none that outlives the sweep."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import Any, TypeVar

Job = TypeVar("Job")
GRACE = 60.0
"""Seconds a process has to write its training down, once the sweep is gone."""


def run_all(
    jobs: Iterable[Job], processes: int, run: Callable[[Job], str], ended: Callable[[Job, str | None], None]
) -> None:
    """Do `run(job)` for every job, `processes` at once; `ended(job, what it returned)` here whenever one is done.

    A process that dies, or is told to end, takes its own job with it only (`ended(job, None)`), and another takes its place.
    Whatever ends the sweep, Ctrl-C or SIGTERM, ends the processes too: each gets SIGTERM, upon which a training is written
    down where it stands.

    Raises:
        SystemExit: the sweep was told to end.
    """
    with _ending_on_sigterm():
        _run_all(jobs, processes, run, ended)


def _run_all(
    jobs: Iterable[Job], processes: int, run: Callable[[Job], str], ended: Callable[[Job, str | None], None]
) -> None:
    others = {*multiprocessing.active_children()}
    waiting, running = deque(jobs), dict[Future[str], tuple[Job, ProcessPoolExecutor]]()
    workers = [_worker() for _ in range(min(processes, len(waiting)))]
    free = [*workers]
    try:
        while waiting or running:
            while waiting and free:
                job, worker = waiting.popleft(), free.pop()
                running[worker.submit(_done, run, job)] = job, worker
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                job, worker = running.pop(future)
                if isinstance(future.exception(), BrokenProcessPool):
                    workers.append(worker := _worker())
                    ended(job, None)
                elif isinstance(future.exception(), SystemExit):  # told to end, it wrote its training down
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


@contextmanager
def _ending_on_sigterm() -> Iterator[None]:
    """Within: SIGTERM raises, so that the processes are told too."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def end(*_: object) -> None:
        raise SystemExit(128 + signal.SIGTERM)

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _worker() -> ProcessPoolExecutor:
    """One process, in a pool of its own: when it dies it is known whose run it was."""
    return ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn"), initializer=_begin)


def _done(run: Callable[[Job], str], job: Job) -> str:
    """What a process does with a job; one that was told to end, by a sweep that is gone, ends."""
    try:
        return run(job)
    except SystemExit:
        if not _parent().is_alive():
            os._exit(1)
        raise


def _parent() -> Any:
    parent = multiprocessing.parent_process()
    assert parent is not None
    return parent


def _begin() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal's Ctrl-C reaches them too; the sweep tells them to end
    _end_with_parent()


def _end_with_parent() -> None:
    """A sweep that is killed leaves no process behind that goes on with its runs."""

    def mind() -> None:
        _parent().join()
        os.kill(os.getpid(), signal.SIGTERM)  # a training is written down first
        time.sleep(GRACE)
        os._exit(1)

    threading.Thread(target=mind, daemon=True).start()
