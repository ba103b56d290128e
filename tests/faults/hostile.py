"""Thousands of broken inputs, each given to a command of perdure: `make hostile`, or python -m tests.faults.hostile --help.

A case breaks one file of a small place (see `tests.faults.mutations`) and calls one command on it. Allowed is success, or an
error in perdure's words. Counted are tracebacks, hangs and deaths of the process, files changed that are not the command's
own output, and control characters in what it prints. A case is known by seed and number and can be repeated alone.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import io
import json
import multiprocessing
import os
import random
import shutil
import sys
import tempfile
import time
import traceback
from collections import Counter
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from tests.faults.mutations import mutated

SECONDS = 20
"""A command that takes longer hangs."""
FORK = multiprocessing.get_context("forkserver")
MERGES = ("sum", "average", "max-magnitude", "ties", "dare")
READ = (
    "show run",
    "show run --json",
    "scores run",
    "scores run --json",
    "report run --out new",
    "predict run in.jsonl --task fruit",
)
GROW = ("resume run", "add run sea.yaml", "rollback run --to fruit", "repair run")
EXPORT = ("export run --out new", "export run --out new --as model")
LEARN = ("run config.yaml training.epochs=1 --out new --progress quiet",)
ADAPTERS = (
    "diagnose one two",
    "diagnose one two --json --history",
    *(f"merge one two --rule {rule} --out new" for rule in MERGES),
    "merge one two --rule sum --base base --out new",
    "merge one --rule sum --into new",
    "merge --file merge.yaml --out new",
)
BASE = ("merge one two --rule sum --base base --out new", "run llm.yaml training.epochs=1 --out new --progress quiet")
CASES: dict[str, tuple[str, ...]] = {
    "config.yaml": LEARN,
    "llm.yaml": ("run llm.yaml training.epochs=1 --out new --progress quiet",),
    "data/fruit.jsonl": (*LEARN, "predict run data/fruit.jsonl", "predict run data/fruit.jsonl --task fruit --out new"),
    "data/sky.csv": (*LEARN, "predict run data/sky.csv"),
    "data/sky.yaml": LEARN,
    "sea.yaml": ("add run sea.yaml",),
    "in.jsonl": ("predict run in.jsonl --task fruit", "predict run in.jsonl --task fruit --out new"),
    "suite.yaml": ("suites show suite.yaml",),
    "sweep.yaml": ("sweep-plan sweep.yaml",),
    "run/run.json": (*READ, *GROW, *EXPORT),
    "run/manifest.json": (*READ, *GROW, *EXPORT),
    "run/stages/*/*.json*": (*READ, *GROW),
    "run/stages/*/predictions.zip": ("report run --out new", *GROW),
    "run/stages/*/adapter/*": ("add run sea.yaml", "resume run", "export run --out new"),
    "run/stages/*/state.safetensors": ("add run sea.yaml", "export run --out new", "predict run in.jsonl --task fruit"),
    "run/deployed/*.json": ("predict run in.jsonl --task fruit", *EXPORT),
    "stopped/unfinished/*.json": ("resume stopped", "show stopped"),
    "stopped/unfinished/*/*": ("resume stopped",),
    "one/adapter_config.json": ADAPTERS,
    "one/adapter_model.safetensors": ADAPTERS,
    "merge.yaml": ("merge --file merge.yaml --out new",),
    "state/state.json": ("merge two --into state", "export state --out new", "merge two --into state --again"),
    "state/*.safetensors": ("merge two --into state --again", "export state --out new"),
    "base/config.json": BASE,
    "base/model.safetensors": BASE,
    "base/generation_config.json": BASE,
    "base/tokenizer*.json": ("run llm.yaml training.epochs=1 --out new --progress quiet",),
    "encoder/config.json": LEARN,
    "encoder/tokenizer*.json": LEARN,
    "encoder/modules.json": LEARN,
    "encoder/1_Pooling/config.json": LEARN,
    "records/records/*.json": ("report records --out new",),
}
"""Files to break -> the commands that read them."""
WRITERS = ("resume", "add", "rollback", "repair", "merge")
"""Commands that may change the run or state they are given."""


@dataclass(frozen=True)
class Outcome:
    """How one case ended: 'done', 'refused', 'traceback', 'changed', 'escape', 'hang' or 'died', and what to look at."""

    number: int
    kind: str
    case: str
    detail: str = ""


def one_case(pristine: Path, place: Path, seed: int, number: int) -> Outcome:
    """Break a copy of the place as that number says, call the command in it, and look at what it did."""
    draw = random.Random(f"{seed}/{number}")
    pattern = draw.choice([*CASES])
    command = draw.choice(CASES[pattern])
    shutil.rmtree(place, ignore_errors=True)
    shutil.copytree(pristine, place)
    path = draw.choice(sorted(path for path in place.glob(pattern) if path.is_file()))
    what = mutated(path, draw)
    if draw.random() < 0.6 and _with_fitting_checksum(path, place):
        what += ", checksum fits"
    case = f"{command}  [{pattern}: {what}]"
    argv = command.split()
    own = {"new", *(argv[1:3] if argv[0] in WRITERS else ()), *(["state"] if "state" in argv else [])}
    before = _files(place, own)
    kind, detail = _called(argv, place)
    changed = {name for name, file in (_files(place, own).items() ^ before.items())}
    if changed and kind in ("done", "refused"):
        kind, detail = "changed", ", ".join(sorted(changed))
    return Outcome(number, kind, case, detail)


def _with_fitting_checksum(path: Path, place: Path) -> bool:
    """Change the checksum of the file in the manifest that lists it, as whoever changes the file may do too."""
    for manifest in (place / "run/manifest.json", place / "stopped/unfinished/manifest.json"):
        if path.is_relative_to(manifest.parent) and path != manifest:
            text = manifest.read_text()
            old = hashlib.sha256((place.parents[1] / "pristine" / path.relative_to(place)).read_bytes()).hexdigest()
            manifest.write_text(text.replace(old, hashlib.sha256(path.read_bytes()).hexdigest()))
            return old in text
    return False


def _files(place: Path, own: set[str]) -> dict[str, str]:
    """The digest of every file that is not part of the command's own output, also of those around the place."""
    found: dict[str, str] = {}
    for path in place.parent.rglob("*"):
        inside = path.relative_to(place).parts if path.is_relative_to(place) else ()
        if path.is_file() and not {*inside[:1]} & own and path.name != ".lock":
            found[str(path.relative_to(place.parent))] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


def _called(argv: list[str], place: Path) -> tuple[str, str]:
    from perdure.cli import main
    from perdure.files.terminal import visible
    from perdure.sweeps.plan import load_sweep

    os.chdir(place)
    sys.argv = ["perdure", *argv]
    code: Any = 0
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as err:
        try:
            if argv[0] == "sweep-plan":  # without its runs
                sys.argv = ["perdure", "--version"]
                load_sweep(Path(argv[1]))
            main()
        except SystemExit as ended:
            code = ended.code or 0
        except BaseException as error:
            from perdure.errors import PerdureError

            if not isinstance(error, PerdureError):
                return "traceback", _last_lines(error)
    told = out.getvalue() + err.getvalue()
    if visible(told) != told:
        return "escape", repr(told)[:300]
    return ("refused", err.getvalue()[-400:]) if code else ("done", "")


def _last_lines(error: BaseException) -> str:
    """The error and the innermost lines of perdure in its traceback."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if "/perdure/" in frame.filename]
    places = " < ".join(f"{Path(f.filename).name}:{f.lineno} {f.name}" for f in reversed(own[-4:]))
    return f"{type(error).__name__}: {error!s:.200} | {places} | {frames[-1].filename}:{frames[-1].lineno}"


def serve(asked: Connection, pristine: Path, place: Path, seed: int) -> None:
    """The child: one case after another, as asked."""
    import warnings

    import torch

    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    while (number := asked.recv()) is not None:
        asked.send(one_case(pristine, place, seed, number))


def outcomes(pristine: Path, folder: Path, seed: int, numbers: list[int]) -> list[Outcome]:
    """The outcome of every case, in child processes that are replaced when they hang or die."""
    found: list[Outcome] = []
    child: Any = None
    for number in numbers:
        if child is None:
            ours, theirs = FORK.Pipe()
            child = FORK.Process(target=serve, args=(theirs, pristine, folder / "around" / "place", seed), daemon=True)
            child.start()
            theirs.close()
            wait = SECONDS + 100  # its imports
        ours.send(number)
        try:
            outcome = ours.recv() if ours.poll(wait) else Outcome(number, "hang", "")
        except EOFError:
            outcome = Outcome(number, "died", "")
        found.append(outcome)
        wait = SECONDS
        if outcome.kind in ("hang", "died"):
            child.kill()
            child.join()
            child = None
    if child is not None:
        ours.send(None)
        child.join()
    return found


def main() -> None:
    """Try many cases and print what went wrong, and counts."""
    os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"  # as the command line sets it, before transformers is imported
    from tests.faults.hostile_place import made

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--count", type=int, default=3000)
    parser.add_argument("--place", type=Path, help="Keep the place here, and take the one that is there.")
    parser.add_argument("--json", type=Path, help="Append one line a case.")
    given = parser.parse_args()
    FORK.set_forkserver_preload(["tests.faults.hostile_imports"])
    begun = time.monotonic()
    with tempfile.TemporaryDirectory() as scratch:
        folder = (given.place or Path(scratch)).absolute()
        found = outcomes(made(folder), folder, given.seed, [*range(given.first, given.first + given.count)])
    bad = [one for one in found if one.kind not in ("done", "refused")]
    for one in bad:
        sys.stdout.write(f"{one.number} {one.kind}: {one.case}\n    {one.detail}\n")
    if given.json:
        with given.json.open("a") as file:
            file.writelines(json.dumps(vars(one)) + "\n" for one in found)
    counts = Counter(one.kind for one in found)
    sys.stdout.write(f"{len(found)} cases in {time.monotonic() - begun:.0f} s: {dict(sorted(counts.items()))}\n")
    sys.exit(bool(bad))


if __name__ == "__main__":
    main()
