"""A new folder in the place of an old one, in a single step where the system has one."""

from __future__ import annotations

import ctypes
import errno
import os
from contextlib import suppress
from pathlib import Path

AT_FDCWD, RENAME_EXCHANGE = -100, 2
"""Linux's names: relative to the working directory; swap the two."""
NOT_OFFERED = (errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP, errno.EPERM)
"""What renameat2 answers where the kernel, the file system or a sandbox does not offer it."""


def exchange(made: Path, folder: Path) -> None:
    """Swap two folders of one file system: afterwards `folder` holds what was made, `made` what was there before.

    One step on Linux, so that a process killed at any point leaves one of the two in place. Elsewhere it takes renames, and one
    that fails is rolled back.
    """
    if _swapped(made, folder):
        return
    old = made.with_name(f"{made.name}.old")
    os.rename(folder, old)
    try:
        os.rename(made, folder)
    except BaseException:
        os.rename(old, folder)
        raise
    with suppress(OSError):  # what was made is in place
        os.rename(old, made)


def _swapped(made: Path, folder: Path) -> bool:
    """Whether one system call swapped them; False where there is none."""
    try:
        rename = ctypes.CDLL(None, use_errno=True).renameat2
    except (OSError, TypeError, AttributeError):  # no C library to load, or one without it
        return False
    if rename(AT_FDCWD, os.fsencode(made), AT_FDCWD, os.fsencode(folder), RENAME_EXCHANGE) == 0:
        return True
    number = ctypes.get_errno()
    if number in NOT_OFFERED:
        return False
    raise OSError(number, os.strerror(number), str(folder))
