"""A sweep's runs as Slurm jobs, by submitit (extra `slurm`): `perdure sweep FILE --engine slurm --shared-folder`.

submitit hands jobs and results over in files, so the sweep's folder lies on a disk that the nodes share.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from perdure.errors import ConfigError
from perdure.sweeps.engines import LOST, OUT_OF_MEMORY, REPEATS, Done, Ended, Resources, Run, unable
from perdure.sweeps.workers import exit_on_signal

PATIENCE = 2.0
"""Seconds between two looks at the jobs."""


class Slurm:
    """See `perdure.sweeps.engines.Engine`; `cluster`: submitit's, None = Slurm ('local': processes, for trying)."""

    def __init__(self, cluster: str | None, each: Resources, folder: Path, hours: float) -> None:
        self._cluster, self._each, self._folder, self._hours = cluster, each, folder, hours
        self._submitit = _submitit()

    def run_all(self, jobs: Sequence[Any], run: Run, ended: Ended) -> None:
        """See `Engine.run_all`."""
        executor = self._executor()
        with exit_on_signal():
            waiting = [(executor.submit(run, job), job, 0) for job in jobs]
            try:
                while waiting:
                    over = [entry for entry in waiting if entry[0].done()]
                    waiting = [entry for entry in waiting if entry not in over]
                    for submitted, job, losses in over:
                        done, why = self._result(submitted)
                        if done is None and why == LOST and losses < REPEATS:
                            waiting.append((executor.submit(run, job), job, losses + 1))
                        else:
                            ended(job, done, why.format(times=losses + 1))
                    if waiting and not over:
                        time.sleep(PATIENCE)
            except BaseException:
                for submitted, *_ in waiting:
                    submitted.cancel()
                raise

    def _executor(self) -> Any:
        executor = self._submitit.AutoExecutor(self._folder, cluster=self._cluster or "slurm")
        memory = {} if self._each.memory is None else {"mem_gb": self._each.memory}
        if self._each.gpus != int(self._each.gpus):
            raise ConfigError(f"Slurm gives whole GPUs (got --gpus {self._each.gpus:g}).")
        executor.update_parameters(
            name="perdure", timeout_min=int(60 * self._hours), cpus_per_task=self._each.cpus, gpus_per_node=int(self._each.gpus),
            **memory,
        )  # fmt: skip
        return executor

    def _result(self, submitted: Any) -> tuple[Done | None, str]:
        utils = self._submitit.core.utils
        try:
            return submitted.result(), ""
        except utils.FailedJobError as error:  # an exception on the node: a run that fails gives a `Done`
            said = raised(str(error))
            refused = said.removeprefix(f"{ConfigError.__module__}.{ConfigError.__name__}: ")
            raise ConfigError(refused if refused != said else unable(said)) from error
        except utils.UncompletedJobError:
            return None, OUT_OF_MEMORY if "OUT_OF_ME" in str(submitted.state) else LOST


def raised(message: str) -> str:
    """The exception at the end of the trace that submitit quotes between two rules, or the whole message."""
    parts = message.split("\n----------------------\n")
    return parts[1].strip().rpartition("\n")[2] if len(parts) == 3 else message


def _submitit() -> Any:
    try:
        import submitit  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise ConfigError("--engine slurm needs submitit. Install it: pip install 'perdure[slurm]'.") from error
    return submitit
