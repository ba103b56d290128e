"""Every exception perdure raises on purpose.

    PerdureError
    ├── ConfigError              a setting, a name or a combination is wrong        exit 3
    │   ├── UnknownName          no method, suite, key ... of that name (nearest one given)
    │   └── UnmetNeed            a part requires what this run does not offer
    ├── DataError                a file or an example is wrong                      exit 4
    │   ├── FetchError           a download failed or is not what was asked for
    │   └── MissingTask          a benchmark's folder does not have this task
    ├── AdapterError             an adapter cannot be read, or does not fit         exit 5
    ├── StoreError               a run folder cannot be used                        exit 6
    │   ├── CorruptFile          a checksum does not match
    │   ├── RunMismatch          the folder belongs to another configuration
    │   └── RunBusy              another process is writing to the folder
    ├── TrainingError            training itself failed; finished tasks are kept     exit 7
    │   ├── Diverged             the loss is not a finite number
    │   └── PartError            a part of the method raised, or gave what it must not
    └── QualityGate              a stage forgot more than was allowed                exit 2

A message says what is wrong, where, and what to do about it.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping


class PerdureError(Exception):
    """Root of every error a user can cause; `exit_code` is what the command line returns."""

    exit_code = 1


class ConfigError(PerdureError):
    """A setting, a name or a combination of parts is wrong."""

    exit_code = 3


class UnknownName(ConfigError):
    """Nothing of this kind has that name.

    Args:
        meant: what was meant, where the caller knows better than by the spelling.

    >>> str(UnknownName("method", "PSLora", ["ps-lora", "l2"]))
    "No method is called 'PSLora'. Did you mean 'ps-lora'? Known: l2, ps-lora."
    """

    def __init__(self, kind: str, name: str, known: Iterable[str], meant: str | None = None) -> None:
        names = sorted(known)
        meant = meant or nearest(name, {one: one for one in names})
        hint = f" Did you mean '{meant}'?" if meant else ""
        super().__init__(f"No {kind} is called '{name}'.{hint} Known: {', '.join(names) or 'none'}.")


def nearest(name: str, known: Mapping[str, str]) -> str | None:
    """The value of the key that is spelt most like `name`, in upper or lower case; None where none is near.

    >>> nearest("EPOCH", {"rank": "lora.rank", "epochs": "training.epochs"})
    'training.epochs'
    """
    folded = {key.casefold(): value for key, value in reversed([*known.items()])}  # of two that are the same the first
    close = difflib.get_close_matches(name.casefold(), folded, n=1, cutoff=0.5)
    return folded[close[0]] if close else None


class UnmetNeed(ConfigError):
    """A part of the method requires something this run does not offer."""


class DataError(PerdureError):
    """A data file or an example is wrong; names the file and, where there is one, the line."""

    exit_code = 4


class FetchError(DataError):
    """A file could not be downloaded, or is not the file that was asked for."""


class MissingTask(DataError):
    """A benchmark's folder does not have this task; a suite goes on without it and says so."""


class AdapterError(PerdureError):
    """An adapter cannot be read, or does not fit the base or the other adapters."""

    exit_code = 5


class StoreError(PerdureError):
    """A run folder cannot be used."""

    exit_code = 6


class CorruptFile(StoreError):
    """A stored file's checksum does not match the manifest."""


class RunMismatch(StoreError):
    """The run folder belongs to another configuration."""


class RunBusy(StoreError):
    """Another process is writing to the run folder."""


class TrainingError(PerdureError):
    """Training failed; every finished task is kept."""

    exit_code = 7


class Diverged(TrainingError):
    """The loss or the gradient stopped being a finite number."""


class PartError(TrainingError):
    """A part of the method raised, or gave something else than its contract says (perdure.parts)."""


class QualityGate(PerdureError):
    """A stage was learnt but not accepted: it forgot more than was allowed. The run stays as it was."""

    exit_code = 2
