"""A sweep's runs as tasks of a Ray cluster (extra `ray`): `perdure sweep FILE --engine ray --address HOST:PORT`.

Without an address Ray is started on this machine for the sweep. Every node needs the same perdure, and the data and the base
under the same paths or names. Ray's own retries are off: which jobs are repeated is decided here, by what became of the worker.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from perdure.errors import ConfigError
from perdure.sweeps.engines import LOST, OUT_OF_MEMORY, REPEATS, Done, Ended, Resources, Run, unable
from perdure.sweeps.workers import exit_on_signal

PATIENCE = 1.0
"""Seconds between two looks at signals while nothing ends."""
WAIT_FOR_CLUSTER = 30.0
"""Seconds a cluster has to accept a connection."""


class Ray:
    """See `perdure.sweeps.engines.Engine`; `address` as in `ray.init`."""

    def __init__(self, address: str | None, each: Resources) -> None:
        self._address, self._each, self._ray = address, each, _ray()

    def run_all(self, jobs: Sequence[Any], run: Run, ended: Ended) -> None:
        """See `Engine.run_all`."""
        # twice: Ray minds signals too, once it is connected
        with exit_on_signal(), self._connected(), exit_on_signal():
            self._check_room()
            task = self._ray.remote(run_one).options(**self._options())
            code = self._ray.put(run)
            waiting = {task.remote(code, job): (job, 0) for job in jobs}
            try:
                while waiting:
                    for ready in self._ray.wait([*waiting], timeout=PATIENCE)[0]:
                        job, losses = waiting.pop(ready)
                        done, why = self._result(ready)
                        if done is None and why == LOST and losses < REPEATS:
                            waiting[task.remote(code, job)] = job, losses + 1
                        else:
                            ended(job, done, why.format(times=losses + 1))
            except BaseException:
                for each in waiting:
                    self._ray.cancel(each, force=True)
                raise

    def _options(self) -> dict[str, Any]:
        memory = {} if self._each.memory is None else {"memory": int(self._each.memory * 1e9)}
        return {"num_cpus": self._each.cpus, "num_gpus": self._each.gpus, "max_retries": 0, **memory}

    def _result(self, ready: Any) -> tuple[Done | None, str]:
        """What a task gave, or None and why it gave nothing; ConfigError if no task can run there."""
        errors = self._ray.exceptions
        try:
            return self._ray.get(ready), ""
        except errors.OutOfMemoryError:
            return None, OUT_OF_MEMORY
        except (errors.WorkerCrashedError, errors.NodeDiedError, errors.ObjectLostError, errors.LocalRayletDiedError):
            return None, LOST
        except errors.RayError as error:
            cause = getattr(error, "cause", None) or error
            if isinstance(cause, ConfigError):
                raise ConfigError(str(cause)) from error
            raise ConfigError(unable(f"{type(cause).__name__}: {str(cause).strip().splitlines()[-1]}")) from error

    def _check_room(self) -> None:
        """Raise ConfigError if no node has what a run takes: it would wait for ever."""
        nodes = [node["Resources"] for node in self._ray.nodes() if node["Alive"]]
        wanted = {"CPU": self._each.cpus, "GPU": self._each.gpus, "memory": (self._each.memory or 0) * 1e9}
        if any(all(has.get(name, 0) >= count for name, count in wanted.items()) for has in nodes):
            return
        there = "; ".join(
            f"{has.get('CPU', 0):g} CPUs, {has.get('GPU', 0):g} GPUs, {has.get('memory', 0) / 1e9:.1f} GB"
            for has in nodes
        )
        raise ConfigError(f"A run is to take {self._each}, but the Ray cluster's nodes have: {there}. Ask for less.")

    @contextmanager
    def _connected(self) -> Iterator[None]:
        """Within: connected to the cluster, or to one that is made for the sweep; who was connected before stays so."""
        if self._ray.is_initialized():
            yield
            return
        try:
            _answers(self._address)
            self._ray.init(
                self._address, include_dashboard=False if self._address is None else None, log_to_driver=False
            )
        except (OSError, ValueError, RuntimeError) as error:
            raise ConfigError(
                f"No Ray cluster answers at '{self._address}': {str(error).strip().partition(chr(10))[0]:.200}. Start one with "
                "`ray start --head` and give its address, or leave --address out to use this machine."
            ) from error
        try:
            yield
        finally:
            self._ray.shutdown()


def run_one(run: Run, job: Any) -> Done:
    """The task; Ray has unpacked `run` on the node."""
    return run(job)


def _answers(address: str | None) -> None:
    """Raise an OSError if nothing listens at HOST:PORT; Ray would try again for many minutes."""
    host, colon, port = (address or "").rpartition("://")[2].rpartition(":")
    if colon and port.isdigit():
        socket.create_connection((host.strip("[]"), int(port)), timeout=WAIT_FOR_CLUSTER).close()


def _ray() -> Any:
    try:
        import ray  # pyright: ignore[reportMissingImports]
        import ray.exceptions  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise ConfigError("--engine ray needs Ray. Install it: pip install 'perdure[ray]'.") from error
    return ray
