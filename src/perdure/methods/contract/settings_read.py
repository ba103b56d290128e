"""No setting of a part is accepted and ignored: what another setting leaves unread is refused."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from perdure.methods.contract.parts import Part


def check_read(part: Part, choice: str, readers: Mapping[str, tuple[str, ...]]) -> None:
    """Every setting that is not at its default is read by what the part's setting `choice` chooses.

    Args:
        readers: setting -> the choices that read it.

    Raises:
        ValueError: names the setting, and what reads it.
    """
    chosen = getattr(part, choice)
    for name, reading in readers.items():
        if chosen not in reading and getattr(part, name) != type(part).model_fields[name].default:
            raise ValueError(f"{choice} {chosen} does not read {name} (only {' and '.join(reading)}); leave it out")
