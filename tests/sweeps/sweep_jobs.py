"""What the processes of a sweep are given to do in tests; imports nothing heavy, since each process imports it."""

from __future__ import annotations

import os
import signal
import sys
import time
from functools import partial
from pathlib import Path

TOLD = -15.0
"""A job that ends as a training does that was told to end."""


def job(seconds: float) -> str:
    """Wait, and say how long; less than nothing: die as a process does that is out of memory."""
    if seconds == TOLD:
        raise SystemExit(143)
    if seconds < 0:
        os._exit(9)
    time.sleep(seconds)
    return f"{seconds}"


def visible_gpu(seconds: str) -> str:
    """Wait as `job` does, and say which GPUs this process sees."""
    job(float(seconds))
    return os.environ["CUDA_VISIBLE_DEVICES"]


def minding(name: str, folder: Path) -> str:
    """A training that never ends, and is written down when it is told to."""
    told = []
    signal.signal(signal.SIGTERM, lambda *_: told.append(1))
    (folder / f"begun-{name}").touch()
    while not told:
        time.sleep(0.05)
    time.sleep(0.2)
    (folder / f"written-{name}").touch()
    raise SystemExit(143)


if __name__ == "__main__":
    from perdure.sweeps.workers import run_all

    run_all(["a", "b"], 2, partial(minding, folder=Path(sys.argv[1])), lambda *_: None)
