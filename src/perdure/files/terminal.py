"""Standard output and error: their reader may go away, and texts from data must not steer a terminal."""

from __future__ import annotations

import os
import re
import sys
from contextlib import suppress
from typing import Any, Literal

CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")
"""C0 without tab and newline, DEL, C1; halves of characters, which no terminal's encoding has."""


class WhileOpen:
    """Standard output or error, as a file; what is written after its reader has gone (`| head`, a closed terminal) is dropped."""

    def __init__(self, name: Literal["stdout", "stderr"]) -> None:
        self._name = name
        self._gone = False

    def __getattr__(self, attribute: str) -> Any:
        return getattr(self._stream(), attribute)

    def _stream(self) -> Any:
        stream = getattr(sys, self._name)
        return getattr(stream, "rich_proxied_file", stream)  # a live bar puts itself in its place

    def write(self, text: str) -> int:
        """Write, unless nobody reads any more."""
        stream = self._stream()
        if stream is not None and not self._gone:
            try:
                stream.write(text)
            except (OSError, ValueError):
                self._give_up()
        return len(text)

    def flush(self) -> None:
        """Flush, unless nobody reads any more."""
        stream = self._stream()
        if stream is not None and not self._gone:
            try:
                stream.flush()
            except (OSError, ValueError):
                self._give_up()

    def isatty(self) -> bool:
        """Whether a person reads it at a terminal."""
        stream = self._stream()
        return stream is not None and stream.isatty()

    def _give_up(self) -> None:
        self._gone = True
        discard(self._stream())


def discard(stream: Any) -> None:
    """Send what is still written to a closed stream nowhere, also what Python flushes as it ends."""
    with suppress(OSError, ValueError, AttributeError):
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, stream.fileno())
        os.close(null)


def visible(text: str) -> str:
    r"""The text with control characters shown (as in JSON), except newlines and tabs: a name must not steer the terminal.

    >>> visible("a\x1b[2J\x9b\r\n\tb")
    'a\\u001b[2J\\u009b\\u000d\n\tb'
    """
    return CONTROL.sub(lambda found: f"\\u{ord(found[0]):04x}", text)
