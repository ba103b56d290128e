"""From the options of `perdure sweep` to the engine that computes its runs."""

from __future__ import annotations

from pathlib import Path

from perdure.errors import ConfigError, UnknownName
from perdure.sweeps.engines import Engine, Resources

ENGINES = ("local", "ray", "slurm")


def engine_of(
    name: str, address: str | None, each: Resources, out: Path, hours: float, shared_folder: bool
) -> Engine | None:
    """The engine of that name; None for the processes of this machine (perdure.sweeps.workers).

    Raises:
        ConfigError: no such engine, the package it needs is not installed, or an option that it does not read was given.
    """
    if name not in ENGINES:
        raise UnknownName("engine", name, ENGINES)
    if name == "local":
        if address is not None or each != Resources() or shared_folder:
            raise ConfigError(
                "--address, --cpus, --gpus, --memory and --shared-folder are read with --engine ray or slurm. Leave them out."
            )
        return None
    if name == "ray":
        from perdure.sweeps.ray_engine import Ray

        return Ray(address, each)
    from perdure.sweeps.slurm_engine import Slurm

    return Slurm(address, each, out / "slurm", hours)
