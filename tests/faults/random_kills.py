"""SIGKILL at random moments of every command that writes: `make kills`, or python -m tests.faults.random_kills --help.

A case copies a small place (tests.faults.hostile_place), begins a command in a child and kills it after a share of the time that
it takes; now and then its repetition is killed too. Then the command is repeated to its end. What it was to write must be equal,
to the byte, to what an uninterrupted command writes, and nothing else may have changed. Counted are kills, not cases that ended
first. A case is known by seed and number; those in the log are not repeated, so that a stopped series goes on.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import io
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import psutil

from tests.faults.hostile import FORK
from tests.faults.hostile_place import made

TWICE = 0.25
"""Share of the cases in which the repetition is killed too."""
COMMANDS: dict[str, str] = {
    "run config.yaml --out new --progress quiet": "new",
    "run config.yaml training.checkpoint_minutes=1e-9 --out new --progress quiet": "new",
    "resume stopped --progress quiet": "stopped",
    "add run sea.yaml --progress quiet": "run",
    "rollback run --to fruit": "run",
    "merge one two --rule ties --rank 2 --out new": "new",
    "merge one two --rule sum --base base --out new": "new",
    "merge two --into state": "state",
    "export run --rank 2 --out new": "new",
    "export run --as model --out new": "new",
    "predict run in.jsonl --task fruit --out new": "new",
    "report run --out new": "new",
    "sweep sweep.yaml --out new --processes 1": "new",
}
"""Command -> what it writes."""
RARE = {"sweep sweep.yaml --out new --processes 1": 0.3}
"""Weights of commands that take long."""


def _command(told: Connection, argv: list[str], place: Path) -> None:
    """In the child: one command, after everything is imported."""
    import torch

    from perdure.cli import main

    os.chdir(place)
    torch.set_num_threads(1)
    sys.argv = ["perdure", *argv]
    told.send("begins")
    began = time.monotonic()
    code: Any = 0
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()) as errors:
        try:
            main()
        except SystemExit as ended:
            code = ended.code or 0
    told.send((code, errors.getvalue(), time.monotonic() - began))


Ended = tuple[Any, str, float]
"""Exit code, messages, seconds."""


def _called(argv: list[str], place: Path, kill_after: float | None = None) -> Ended | None:
    """How the command ended; None if it was killed after that many seconds."""
    ours, theirs = FORK.Pipe()
    child = FORK.Process(target=_command, args=(theirs, argv, place))
    child.start()
    theirs.close()
    ended: Ended | None = None
    try:
        assert ours.recv() == "begins"
        if kill_after is None or ours.poll(kill_after):
            ended = ours.recv()
        else:
            below = psutil.Process(child.pid).children(recursive=True)
            os.kill(child.pid or 0, signal.SIGKILL)
            assert not psutil.wait_procs(below, timeout=120)[1], "a process outlives the command that began it"
    except EOFError:
        ended = (child.exitcode, "the child ended without a word", 0.0)
    child.join()
    return ended


def written(output: Path) -> Any:
    """What a command has written, to be compared: of a run what counts, of a sweep its records without times."""
    from perdure.files.durable import sync_tree
    from perdure.state.store import Store

    if (output / "run.json").is_file():
        store = Store(output)
        store.verify()
        return [store.about, store.manifest, sync_tree(output / "deployed")]
    if (output / "state.json").is_file():
        about = (output / "state.json").read_text()
        return [about, hashlib.sha256((output / json.loads(about)["file"]).read_bytes()).hexdigest()]
    if (output / "records").is_dir():
        records = {path.name: json.loads(path.read_text()) for path in sorted((output / "records").iterdir())}
        return {n: {k: v for k, v in r.items() if "seconds" not in k} for n, r in records.items()}
    return _digests(output, hidden=False)


def _digests(root: Path, hidden: bool, without: str = "") -> dict[str, str]:
    """Path -> digest of every file below (or of the file itself); `without` one folder in it, and what is hidden in its root."""
    files = [root] if root.is_file() else [path for path in sorted(root.rglob("*")) if path.is_file()]
    found = {path.relative_to(root).as_posix(): path for path in files}
    kept = {n: p for n, p in found.items() if n.partition("/")[0] != without and not n.endswith(".lock")}
    return {
        n: hashlib.sha256(p.read_bytes()).hexdigest() for n, p in kept.items() if hidden or not n.startswith(".new")
    }


class Kills:
    """The cases of one seed, in a folder."""

    def __init__(self, folder: Path, seed: int) -> None:
        self._pristine, self._place, self._seed = made(folder), folder / "around/place", seed
        self._known = folder / "uninterrupted.json"
        self._whole: dict[str, Any] = json.loads(self._known.read_text()) if self._known.is_file() else {}

    def _fresh(self) -> None:
        shutil.rmtree(self._place, ignore_errors=True)
        shutil.copytree(self._pristine, self._place)

    def _uninterrupted(self, command: str) -> tuple[Any, float]:
        """What the command writes if nothing stops it, and how many seconds it takes."""
        if command not in self._whole:
            self._fresh()
            ended = _called(command.split(), self._place)
            assert ended, command
            assert ended[0] == 0, f"{command}: {ended[1]}"
            self._whole[command] = json.loads(json.dumps([written(self._place / COMMANDS[command]), ended[2]]))
            self._known.write_text(json.dumps(self._whole))
        expected, seconds = self._whole[command]
        return expected, seconds

    def case(self, number: int) -> dict[str, Any]:
        """One case: {"number", "command", "kills", "result": 'same', 'different' or 'lost'; and why}."""
        draw = random.Random(f"{self._seed}/{number}")
        (command,) = draw.choices([*COMMANDS], [RARE.get(one, 1.0) for one in COMMANDS])
        shares = [draw.random(), *([draw.random()] if draw.random() < TWICE else [])]
        expected, seconds = self._uninterrupted(command)
        self._fresh()
        kills, output = 0, COMMANDS[command]
        others = _digests(self._place, hidden=False, without=output)
        for share in shares:
            kills += _called(command.split(), self._place, share * seconds) is None
        about = {"number": number, "command": command, "kills": kills}
        ended = _called(command.split(), self._place)
        try:
            found = json.loads(json.dumps(written(self._place / output)))
        except Exception as error:
            return {**about, "result": "lost", "why": f"{error!r} after {ended}"}
        if _digests(self._place, hidden=False, without=output) != others:
            return {**about, "result": "lost", "why": "a file beside the output changed"}
        if found != expected:
            return {**about, "result": "different", "why": f"{ended}"}
        return {**about, "result": "same"}


def main() -> None:
    """Kill until so many kills are in the log, and print counts."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kills", type=int, default=500)
    parser.add_argument("--minutes", type=float, default=1e9, help="Stop after this time; the log says where to go on.")
    parser.add_argument("--place", type=Path, help="Keep the place here, and take the one that is there.")
    parser.add_argument("--log", type=Path, default=Path("kills.jsonl"))
    given = parser.parse_args()
    os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
    FORK.set_forkserver_preload(["tests.faults.hostile_imports"])
    rows = [json.loads(line) for line in given.log.read_text().splitlines()] if given.log.is_file() else []
    ends = time.monotonic() + 60 * given.minutes
    with tempfile.TemporaryDirectory() as scratch:
        cases = Kills((given.place or Path(scratch)).absolute(), given.seed)
        while sum(row["kills"] for row in rows) < given.kills and time.monotonic() < ends:
            rows.append(cases.case(len(rows)))
            with given.log.open("a") as file:
                file.write(json.dumps(rows[-1]) + "\n")
    bad = [row for row in rows if row["result"] != "same"]
    sys.stdout.writelines(f"{json.dumps(row)}\n" for row in bad)
    results = Counter(row["result"] for row in rows)
    twice = sum(row["kills"] > 1 for row in rows)
    sys.stdout.write(
        f"{sum(row['kills'] for row in rows)} kills in {len(rows)} cases ({twice} twice): {results['lost']} lost, "
        f"{results['different']} different\n"
    )
    sys.exit(bool(bad))


if __name__ == "__main__":
    main()
