"""A process that dies takes one run with it, and none is left when the sweep is ended."""

from __future__ import annotations

import multiprocessing
import time

import pytest

from perdure.sweep_workers import run_all
from tests.sweep_jobs import job


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
        run_all([300, 0, 301, 302], 2, job, interrupt)
    assert ended == [(0, "0")]
    assert time.monotonic() - began < 60
    assert not multiprocessing.active_children()
