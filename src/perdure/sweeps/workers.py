"""The processes of a sweep: one run at a time in each, and none that outlives the sweep."""

from __future__ import annotations

import itertools
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

from perdure.sweeps.engines import visible_gpus

Job = TypeVar("Job")
GRACE = 60.0
"""Seconds a process has to save its training once the sweep is gone."""


def run_all(
    jobs: Iterable[Job], processes: int, run: Callable[[Job], str], ended: Callable[[Job, str | None], None]
) -> None:
    """Do `run(job)` for every job, `processes` at once; call `ended(job, result)` here whenever one is done.

    Where there are GPUs each process sees one of them, in turns. A process that dies or exits loses only its own job
    (`ended(job, None)`), and another takes its place. Whatever ends the sweep, Ctrl-C, SIGTERM or SIGHUP (its terminal is
    closed), ends the processes too: each gets SIGTERM, on which a training saves its state.

    Raises:
        SystemExit: the sweep got SIGTERM or SIGHUP.
    """
    others = {*multiprocessing.active_children()}
    waiting, running = deque(jobs), dict[Future[str], tuple[Job, ProcessPoolExecutor]]()
    with exit_on_signal():
        gpus = own_gpus(min(processes, len(waiting)))
        workers = [_worker(gpu) for gpu in gpus]
        gpu_of, idle = dict(zip(workers, gpus, strict=True)), [*workers]
        try:
            while waiting or running:
                while waiting and idle:
                    job, worker = waiting.popleft(), idle.pop()
                    running[worker.submit(_run_job, run, job)] = job, worker
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    job, worker = running.pop(future)
                    error = future.exception()
                    if isinstance(error, BrokenProcessPool):
                        gpu = gpu_of.pop(worker)
                        workers.append(worker := _worker(gpu))
                        gpu_of[worker] = gpu
                    ended(job, None if isinstance(error, BrokenProcessPool | SystemExit) else future.result())
                    idle.append(worker)
        except BaseException:
            for process in {*multiprocessing.active_children()} - others:
                process.terminate()
            raise
        finally:
            for worker in workers:
                worker.shutdown()


@contextmanager
def exit_on_signal() -> Iterator[None]:
    """Within: SIGTERM and SIGHUP raise `SystemExit`, so that the processes can be ended too. In a thread: nothing.

    A SIGHUP that is ignored, as under nohup, stays ignored.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def end(number: int, _: object) -> None:
        raise SystemExit(128 + number)

    numbers = [number for name in ("SIGTERM", "SIGHUP") if (number := getattr(signal, name, None)) is not None]
    minded = [number for number in numbers if number == signal.SIGTERM or signal.getsignal(number) != signal.SIG_IGN]
    before = {number: signal.signal(number, end) for number in minded}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def own_gpus(workers: int) -> list[str | None]:
    """For each worker the name of one GPU, in turns; None without GPUs."""
    import torch  # here: the workers import this module, and need it only for a run

    count = torch.cuda.device_count()
    gpus = visible_gpus(count) if count else [None]
    return [*itertools.islice(itertools.cycle(gpus), workers)]


def _worker(gpu: str | None) -> ProcessPoolExecutor:
    """One process in a pool of its own: if it dies, its job is known. `gpu`: the only one it sees, if there are any."""
    spawn = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(1, mp_context=spawn, initializer=_start, initargs=(gpu,))


def _start(gpu: str | None) -> None:
    """Set up a worker process."""
    if gpu is not None:  # torch has not asked for its GPUs yet
        os.environ["CUDA_VISIBLE_DEVICES"] = gpu
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C in a terminal reaches it too; the sweep ends it by SIGTERM
    if hasattr(signal, "SIGHUP"):  # as does the end of the terminal
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _run_job(run: Callable[[Job], str], job: Job) -> str:
    try:
        return run(job)
    except SystemExit:
        if not _parent().is_alive():
            os._exit(1)
        raise


def _end_with_parent() -> None:
    """A sweep that is killed leaves no process behind that continues its runs."""
    _parent().join()
    os.kill(os.getpid(), signal.SIGTERM)  # a training saves its state first
    time.sleep(GRACE)
    os._exit(1)


def _parent() -> Any:
    return multiprocessing.parent_process()
