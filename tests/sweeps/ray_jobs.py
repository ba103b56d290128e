"""What the workers of Ray and Slurm are given to do in tests."""

from __future__ import annotations

import importlib
import os
import sys
import time
import uuid
from dataclasses import dataclass
from pathlib import Path

from perdure.errors import ConfigError
from perdure.sweeps.engines import Done, Resources


@dataclass(frozen=True)
class hold:  # noqa: N801
    """A job, known by its name; it leaves a file each time it begins."""

    name: str
    folder: Path

    @staticmethod
    def run(job: hold) -> Done:
        """Die, wait for ever, be out of memory, be refused, lack a package, or say the name."""
        (job.folder / f"{job.name}-{uuid.uuid4().hex}").touch()
        if job.name == "die":
            os._exit(9)
        if job.name == "memory":
            import ray.exceptions  # pyright: ignore[reportMissingImports]

            raise ray.exceptions.OutOfMemoryError("for a test")
        if job.name == "refused":
            raise ConfigError("this node has another perdure")
        if job.name == "lacking":
            importlib.import_module("perdured")
        if job.name == "sleep":
            time.sleep(3600)
        return Done(job.name)


if __name__ == "__main__":
    from perdure.sweeps.ray_engine import Ray

    Ray(None, Resources()).run_all([hold("sleep", Path(sys.argv[1]))], hold.run, print)
