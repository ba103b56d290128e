"""Kill a run with SIGKILL at a named point, in a process forked from one that has everything imported.

The points are reached by replacing what the run calls (a rename, a sync, a forward pass), never by hooks in the product.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from perdure.backbones import token_rows
from perdure.tasks.sources import large
from perdure.tasks.sources.files import load_task
from perdure.tasks.sources.formats import Format

FORK = multiprocessing.get_context("forkserver")
FORK.set_forkserver_preload(
    [
        "perdure.commands.learn",
        "perdure.commands.grow",
        "perdure.backbones.encoder",
        "tests.contract.runs",
        "tests.conftest",
    ]
)


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _terminate() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def _at(number: int, real: Callable[..., Any], after: bool = False, end: Callable[[], None] = _die):
    """`real`, but the process ends at its `number`-th call (from 1), before or after it is made."""
    calls = 0

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == number and not after:
            end()
        result = real(*args, **kwargs)
        if calls == number and after:
            end()
        return result

    return wrapped


def _half_written(number: int, name: str) -> None:
    """Die when the `number`-th file called `name` has been opened and half of something is in it."""
    import safetensors.torch

    import perdure.adapters.folder
    import perdure.state.checkpoint

    def cut(path: Any, count: list[int]) -> None:
        if Path(path).name.removeprefix(".partial-") == name:
            count[0] += 1
            if count[0] == number:
                Path(path).write_bytes(b"half of a file")
                _die()

    count = [0]
    real_open, real_save = Path.open, safetensors.torch.save_file

    def opened(self: Path, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
        if "w" in mode:
            cut(self, count)
        if "+" in mode and self.name == name:  # a line is added: half of it is there
            count[0] += 1
            if count[0] == number:
                with real_open(self, "ab") as file:
                    file.write(b'{"name": "half')
                _die()
        return real_open(self, mode, *args, **kwargs)

    def saved(tensors: Any, path: Any, *args: Any, **kwargs: Any) -> Any:
        cut(path, count)
        return real_save(tensors, path, *args, **kwargs)

    Path.open = opened  # type: ignore[method-assign]
    perdure.state.checkpoint.save_file = saved
    perdure.adapters.folder.save_file = saved


def _armed(point: str, number: int) -> None:
    """From now on this process dies at that point."""
    from perdure.backbones.encoder import Encoder
    from perdure.state.record import StageRecord

    kind, _, name = point.partition(":")
    match kind:
        case "step":
            StageRecord.step = _at(number, StageRecord.step)  # type: ignore[method-assign]
        case "terminated":
            StageRecord.step = _at(number, StageRecord.step, end=_terminate)  # type: ignore[method-assign]
        case "predict":
            Encoder.predict = _at(number, Encoder.predict)  # type: ignore[method-assign]
        case "sync":
            os.fsync = _at(number, os.fsync)
        case "before-rename":
            os.replace = _at(number, os.replace)
        case "after-rename":
            os.replace = _at(number, os.replace, after=True)
        case "half":
            _half_written(number, name)
        case "tokenised":
            Encoder._read = _at(number, Encoder._read)  # type: ignore[method-assign]
        case "row":
            Format.read = _at(number, Format.read)  # type: ignore[method-assign]
        case "token-file":
            np.save = _at(number, np.save, after=True)
        case _:
            raise AssertionError(point)


def _run(out: Path, encoder: Path, method: str, training: dict[str, Any]) -> None:
    from tests.conftest import small_task
    from tests.contract.runs import SETTINGS, short_run

    tasks = [small_task("fruit", "apples", "pears"), small_task("sky", "sun", "moon")]
    short_run(out, tasks, encoder, method, training={**SETTINGS["training"], **training})


def _cached_run(cache: Path, *args: Any) -> None:
    """A run whose token ids lie in files of `cache`."""
    os.environ["PERDURE_CACHE"] = str(cache)
    token_rows.MANY = 1
    _run(*args)


def _read(cache: Path, file: Path) -> None:
    """Reads a task's file as large ones are read."""
    os.environ["PERDURE_CACHE"] = str(cache)
    large.LARGE = 0
    load_task({"name": "t", "train": str(file)})


def _add(out: Path) -> None:
    from perdure.commands.grow import add
    from tests.conftest import small_task

    fruit, sky, sea = (
        small_task(*words) for words in (("fruit", "apples", "pears"), ("sky", "sun", "moon"), ("sea", "waves", "sand"))
    )
    add(out, sea, tasks=[fruit, sky])


def _rollback(out: Path) -> None:
    from perdure.commands.grow import rollback

    rollback(out, "sky")


def _child(point: str, number: int, what: Callable[..., None], args: tuple[Any, ...]) -> None:
    _armed(point, number)
    what(*args)


def killed_at(point: str, number: int, out: Path, encoder: Path, method: str, **training: Any) -> bool:
    """Whether a run was killed at that point (False: it ended before reaching it); `training`: more of its settings.

    Raises:
        AssertionError: it ended in another way.
    """
    return _killed(point, number, _run, (out, encoder, method, training))


def caching_killed_at(point: str, number: int, cache: Path, out: Path, encoder: Path, method: str) -> bool:
    """The same of a run whose token ids lie in files of `cache`."""
    return _killed(point, number, _cached_run, (cache, out, encoder, method, {}))


def reading_killed_at(point: str, number: int, cache: Path, file: Path) -> bool:
    """The same of reading a large file."""
    return _killed(point, number, _read, (cache, file))


def add_killed_at(point: str, number: int, out: Path) -> bool:
    """The same of adding the task 'sea' to the run of 'fruit' and 'sky' in `out`."""
    return _killed(point, number, _add, (out,))


def rollback_killed_at(point: str, number: int, out: Path) -> bool:
    """The same of taking that run back to 'sky'."""
    return _killed(point, number, _rollback, (out,))


def _killed(point: str, number: int, what: Callable[..., None], args: tuple[Any, ...]) -> bool:
    child = FORK.Process(target=_child, args=(point, number, what, args))
    child.start()
    child.join()
    assert child.exitcode in (0, -signal.SIGKILL, 128 + signal.SIGTERM), f"the child ended with {child.exitcode}"
    return child.exitcode != 0
