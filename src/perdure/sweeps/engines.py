"""Where the runs of a sweep are computed: processes of this machine, a Ray cluster, or Slurm; one seam for all of them.

    run_all(jobs, run, ended)    do `run(job)` for every job somewhere; call `ended` here whenever one is done

An engine needs nothing of perdure but this: `run` can be pickled, and returns what is written here (`Done`), so that no disk
need be shared. A job whose worker or node is lost is repeated alone, `REPEATS` times; Ctrl-C and SIGTERM end all of them.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from perdure.errors import ConfigError

REPEATS = 2
"""How often a job is begun again after its worker or its node was lost."""
LOST = "its worker or node was lost {times} times, perhaps out of memory; run the sweep again to continue it"
OUT_OF_MEMORY = (
    "out of memory: the worker was ended for the memory it took. Give the runs more (--memory), or fewer at once"
)


@dataclass(frozen=True)
class Done:
    """What a run gave: its result in words, and the record or the failure to write; neither if they are written already."""

    words: str
    record: dict[str, Any] | None = None
    failure: dict[str, Any] | None = None


Run = Callable[[Any], Done]
Ended = Callable[[Any, Done | None, str], None]
"""(job, what it gave, or None and why)."""


class Engine(Protocol):
    """A place to compute runs."""

    def run_all(self, jobs: Sequence[Any], run: Run, ended: Ended) -> None:
        """Do `run(job)` for every job, as many at once as there is room for.

        Raises:
            ConfigError: it cannot be reached, has no room for a job, or runs another version of perdure.
        """
        ...


@dataclass(frozen=True)
class Resources:
    """What one run takes: CPU cores, GPUs (a part of one: several runs share it), memory in GB (None: not stated)."""

    cpus: int = 1
    gpus: float = 0
    memory: float | None = None

    def __post_init__(self) -> None:
        if self.cpus < 1 or self.gpus < 0 or (self.memory is not None and self.memory <= 0):
            raise ConfigError(
                f"A run needs at least one CPU, no negative number of GPUs, and memory above 0 GB (got --cpus {self.cpus} "
                f"--gpus {self.gpus:g}{'' if self.memory is None else f' --memory {self.memory:g}'})."
            )

    def __str__(self) -> str:
        memory = "" if self.memory is None else f", {self.memory:g} GB of memory"
        return f"{self.cpus} CPUs, {self.gpus:g} GPUs{memory}"


def unable(why: str) -> str:
    """What is said where a node raised something that is no refusal of ours: often a package that it lacks."""
    return (
        f"A node cannot run the sweep ({why:.300}). Install the same Python packages there as here, perdure among them."
    )


def visible_gpus(count: int) -> list[str]:
    """The names, for CUDA_VISIBLE_DEVICES, of the `count` GPUs that this process may use."""
    named = [name.strip() for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip()]
    return (named or [str(i) for i in range(count)])[:count]
