"""What the processes of a sweep are given to do in tests; imports nothing heavy, since each process imports it."""

from __future__ import annotations

import os
import time


def job(seconds: float) -> str:
    """Wait, and say how long; less than nothing: die as a process does that is out of memory."""
    if seconds < 0:
        os._exit(9)
    time.sleep(seconds)
    return f"{seconds}"
