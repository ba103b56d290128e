"""A process that dies takes one run with it, and none is left when the sweep is ended."""

from __future__ import annotations

import multiprocessing
import signal
import subprocess
import sys
import time
from functools import partial

import psutil
import pytest

from perdure.sweeps.workers import run_all
from tests.sweeps.sweep_jobs import TOLD, job


def test_a_process_that_dies_takes_its_own_job_with_it_only():
    found = {}
    run_all([0, -1, 0.5, -2, 0.25], 2, job, found.__setitem__)
    assert found == {0: "0", -1: None, 0.5: "0.5", -2: None, 0.25: "0.25"}


def test_an_interrupt_ends_everything():
    began = time.monotonic()
    ended = []

    def interrupt(*how):
        ended.append(how)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_all([1500, 0, 1501, 1502], 2, job, interrupt)
    assert ended == [(0, "0")]
    assert time.monotonic() - began < 1000
    assert not multiprocessing.active_children()


def test_a_process_that_is_told_to_end_takes_its_own_job_with_it_only():
    found = {}
    run_all([0, TOLD, 0.25], 1, job, found.__setitem__)
    assert found == {0: "0", TOLD: None, 0.25: "0.25"}


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGHUP, signal.SIGKILL])
def test_a_sweep_that_is_told_to_end_or_killed_has_its_trainings_written_down(how, tmp_path):
    # under nohup, which these tests may run under, SIGHUP is ignored, and a process inherits that
    heard = partial(signal.signal, signal.SIGHUP, signal.SIG_DFL)
    sweep = subprocess.Popen([sys.executable, "-m", "tests.sweeps.sweep_jobs", tmp_path], preexec_fn=heard)
    while len([*tmp_path.glob("begun-*")]) < 2:
        time.sleep(0.05)
    workers = psutil.Process(sweep.pid).children(recursive=True)
    sweep.send_signal(how)
    assert sweep.wait() == (-signal.SIGKILL if how == signal.SIGKILL else 128 + how)
    assert not psutil.wait_procs(workers, timeout=600)[1]
    assert len([*tmp_path.glob("written-*")]) == 2
