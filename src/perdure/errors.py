"""The exceptions perdure raises on purpose. A message says what is wrong, where, and what to do about it.

Exit codes of the command line: 2 a command line that cannot be read, 3 `ConfigError`, 4 `DataError`, 5 `AdapterError`,
6 `StoreError`, 7 `TrainingError`, 8 `QualityGate`.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping


class PerdureError(Exception):
    """Base class of every error a user can cause; `exit_code` is the command line's exit status."""

    exit_code = 1


class ConfigError(PerdureError):
    """A setting, a name or a combination of parts is wrong."""

    exit_code = 3


class UnknownName(ConfigError):
    """Nothing of this kind has that name; the message suggests the nearest one.

    Args:
        meant: the name to suggest, where the caller knows better than the spelling.
        hint: a sentence in place of a suggestion; "" for none.

    >>> str(UnknownName("method", "PSLora", ["ps-lora", "l2"]))
    "Unknown method: 'PSLora'. Did you mean 'ps-lora'? Known: l2, ps-lora."
    """

    def __init__(
        self, kind: str, name: str, known: Iterable[str], meant: str | None = None, hint: str | None = None
    ) -> None:
        names = sorted(known)
        if hint is None:
            meant = meant or nearest(name, {one: one for one in names})
            hint = f"Did you mean '{meant}'?" if meant else ""
        super().__init__(
            f"Unknown {kind}: '{name:.200}'.{' ' + hint if hint else ''} Known: {', '.join(names) or 'none'}."
        )


def nearest(name: str, known: Mapping[str, str], cutoff: float = 0.5) -> str | None:
    """The value of the key spelt most like `name`, ignoring case; None if nothing is close (1 is equal, 0 nothing in common).

    >>> nearest("EPOCH", {"rank": "lora.rank", "epochs": "training.epochs"})
    'training.epochs'
    """
    folded = {key.casefold(): value for key, value in reversed([*known.items()])}  # the first of equal keys wins
    close = difflib.get_close_matches(name.casefold(), folded, n=1, cutoff=cutoff)
    return folded[close[0]] if close else None


class UnmetNeed(ConfigError):
    """A part of the method requires something this run does not offer."""


class DataError(PerdureError):
    """A data file or an example is wrong; the message names the file and, if possible, the line."""

    exit_code = 4


class FetchError(DataError):
    """A file could not be downloaded, or is not the requested file."""


class MissingTask(DataError):
    """A benchmark's folder lacks this task; the suite continues without it and reports that."""


class AdapterError(PerdureError):
    """An adapter cannot be read, or does not fit the base or the other adapters."""

    exit_code = 5


class StoreError(PerdureError):
    """A run folder cannot be used."""

    exit_code = 6


class CorruptFile(StoreError):
    """A stored file's checksum does not match the manifest, or the file cannot be parsed."""


class RunMismatch(StoreError):
    """The run folder belongs to another configuration."""


class RunBusy(StoreError):
    """Another process is writing to the run folder."""


class TrainingError(PerdureError):
    """Training failed; every finished task is kept."""

    exit_code = 7


class Diverged(TrainingError):
    """The loss or the gradient stopped being finite."""


class PartError(TrainingError):
    """A part of the method raised, or returned something its contract does not allow (perdure.parts)."""


class QualityGate(PerdureError):
    """A stage forgot more than the limit and was rejected; the run is unchanged."""

    exit_code = 8
