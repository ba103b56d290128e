"""Two gloo processes in a test: forked from one that has everything imported, with the environment a launcher would set."""

from __future__ import annotations

import multiprocessing
import os
import socket
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from perdure.errors import PerdureError

FORK = multiprocessing.get_context("forkserver")
FORK.set_forkserver_preload(
    ["perdure.commands.learn", "perdure.backbones.causal", "tests.processes.cases", "tests.conftest"]
)


def together(count: int, work: Callable[..., Any], *given: Any, errors: Path) -> list[int]:
    """Exit codes of `count` processes that call `work(*given)`; what each raised is in `errors`/<rank>."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    members = [FORK.Process(target=_member, args=(rank, count, port, errors, work, given)) for rank in range(count)]
    for member in members:
        member.start()
    for member in members:
        member.join(1200)  # the others of one that died wait for it; a busy machine is slow, too
        if member.exitcode is None:
            member.kill()
            member.join()
    return [member.exitcode or 0 for member in members]


def _member(rank: int, count: int, port: int, errors: Path, work: Callable[..., Any], given: Any) -> None:
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(count)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    try:
        work(*given)
    except BaseException as error:
        errors.mkdir(parents=True, exist_ok=True)
        (errors / str(rank)).write_text("".join(traceback.format_exception(error)))
        if isinstance(error, SystemExit):
            raise
        sys.exit(error.exit_code if isinstance(error, PerdureError) else 1)


def last_error(errors: Path, rank: int) -> str:
    """The last line of what a process raised."""
    return (errors / str(rank)).read_text().strip().splitlines()[-1]
