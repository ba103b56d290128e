"""Disjoint train, validation and test splits: without duplicates, drawn by seed, stratified by class."""

from __future__ import annotations

import dataclasses
import itertools
import random
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from perdure.errors import DataError
from perdure.tasks.near import near_repeats
from perdure.tasks.pool import Pair, Pool
from perdure.tasks.spec import Size
from perdure.tasks.table import Table, labels_of, taken
from perdure.tasks.task import SPLITS, Task, same_task

OVERLAPS = (("train", "test"), ("validation", "test"), ("train", "validation"))
"""(split, other): a text that is in both leaves the first."""
MOST_CUT = {"validation": 1_000, "test": 2_000}
"""How many examples of a split that is not given are cut from train, unless a size is asked for: enough for +- 2 points."""
ADJECTIVE = {"train": "training", "validation": "validation", "test": "test"}


def as_task(name: str, drawn: Pool, *, labels: dict[str, str], metric: str, template: str = "") -> Task:
    """The task of a drawn pool; the pool's template is used where none is given."""
    splits: dict[str, Any] = {split: getattr(drawn, split) or () for split in SPLITS}
    known = drawn.choices.keys() | drawn.references.keys() | drawn.places.keys()
    tables = any(isinstance(pairs, Table) for pairs in splits.values())  # of many rows: not read to drop a few places
    texts = (
        known
        if tables
        else {text for pairs in splits.values() for text, _ in pairs if text in known}
        if known
        else set()
    )
    return Task(
        name,
        **splits,
        labels=labels,
        metric=metric,
        notes=tuple(drawn.notes),
        template=template or drawn.template,
        skipped=drawn.skipped,
        choices={text: choices for text, choices in drawn.choices.items() if text in texts},
        references={text: answers for text, answers in drawn.references.items() if text in texts},
        chats=drawn.chats,
        rows=drawn.rows,
        places={text: place for text, place in drawn.places.items() if text in texts},
    )


def normal(text: str) -> str:
    """The text as compared for duplicates: whitespace collapsed, case folded."""
    return " ".join(text.split()).casefold()


def unique(
    pairs: Sequence[Pair],
    split: str,
    free: bool = False,
    done: str = "removed",
    where: Callable[[int], str] | None = None,
) -> tuple[Sequence[Pair], list[str]]:
    """Keep the first of each text and drop texts with conflicting labels (with `free` labels, none conflict).

    Args:
        where: the place of each row, to name the first of a kind; None: not known.

    Returns:
        (pairs, notes on the rows of `split` that were removed, or what else was `done` with them)
    """
    import numpy as np

    # equal texts have equal hashes: few texts need to be held twice
    hashes = np.fromiter((hash(normal(text)) for text, _ in pairs), np.int64, len(pairs))
    ordered = np.sort(hashes)
    often = set(ordered[1:][ordered[1:] == ordered[:-1]].tolist())
    if not often:
        return pairs, []
    labels: dict[str, set[str]] = {}
    for (text, label), value in zip(pairs, hashes.tolist(), strict=True):
        if value in often:
            labels.setdefault(normal(text), set()).add(label)
    kept: list[int] = []
    seen: set[str] = set()
    duplicates: list[int] = []
    conflicts: list[int] = []
    for position, value in enumerate(hashes.tolist()):
        key = normal(pairs[position][0]) if value in often else ""
        if value in often and not free and len(labels[key]) > 1:
            conflicts.append(position)
        elif value in often and key in seen:
            duplicates.append(position)
        else:
            kept.append(position)
            seen |= {key} if value in often else set()
    notes = []
    if duplicates:
        place = first_place(where, duplicates)
        notes.append(f"{len(duplicates)} duplicate {ADJECTIVE[split]} texts {done}{place}")
    if conflicts:
        same = f"{ADJECTIVE[split]} rows with conflicting labels for the same text"
        notes.append(f"{len(conflicts)} {same} {done}{first_place(where, conflicts)}")
    return taken(pairs, kept), notes


def first_place(where: Callable[[int], str] | None, positions: Sequence[int]) -> str:
    """', the first: tickets.csv, line 9', to follow a note on the rows at `positions`; '' where their places are not known."""
    return f", the first: {Path(where(positions[0])).name}" if where and positions else ""


def without(pairs: Sequence[Pair], others: Iterable[Pair]) -> Sequence[Pair]:
    """The pairs whose text does not occur in `others`."""
    known = {normal(text) for text, _ in others}
    if not known:
        return pairs
    return taken(pairs, [i for i, (text, _) in enumerate(pairs) if normal(text) not in known])


def stratified(
    pairs: Sequence[Pair], size: int, rng: random.Random, free: bool = False
) -> tuple[Sequence[Pair], Sequence[Pair]]:
    """Draw `size` pairs in random order with classes in proportion (plainly random with `free` labels).

    Each class gets its share rounded down, and at least one if there are enough places; remaining places go to the
    largest remainders.

    Returns:
        (drawn pairs, the rest)
    """
    pairs = taken(pairs, rng.sample(range(len(pairs)), len(pairs)))
    if free or size >= len(pairs):
        return pairs[:size], pairs[size:]
    quota = _quota(Counter(labels_of(pairs)), size, rng)
    chosen, rest = array("q"), array("q")
    for i, label in enumerate(labels_of(pairs)):
        take = quota[label] > 0
        quota[label] -= take
        (chosen if take else rest).append(i)
    return taken(pairs, chosen), taken(pairs, rest)


def _quota(counts: Counter[str], size: int, rng: random.Random) -> dict[str, int]:
    """How many of `size` places each class gets."""
    ties = sorted(counts) if size >= len(counts) else rng.sample(sorted(counts), len(counts))
    shares = {label: size * counts[label] / counts.total() for label in ties}
    quota = {label: max(int(share), int(size >= len(counts))) for label, share in shares.items()}
    order = sorted(ties, key=lambda label: quota[label] - shares[label])
    while (left := size - sum(quota.values())) != 0:  # negative if raising rare classes to one took too many
        for label in order if left > 0 else sorted(quota, key=lambda label: (-quota[label], label)):
            if left == 0:
                break
            step = 1 if left > 0 else -1
            if step < 0 and quota[label] <= 1:
                continue
            quota[label] += step
            left -= step
    return quota


def draw(
    pool: Pool,
    *,
    train: Size,
    validation: Size | None,
    test: Size | None,
    name: str,
    seed: int = 0,
    near: bool = False,
) -> Pool:
    """The pool with three disjoint splits of at most these sizes, drawn from its own, and notes on what was removed.

    Test is drawn first, then validation, then train. The test examples depend neither on the training size nor on the
    seed: an example used to choose settings under one seed is never tested on under another. A given test split is kept,
    and training rows that repeat it are removed; without one, it is cut from the rest (at most a quarter). The same holds
    for validation (at most a fifth). A size of None is all of a given split, and at most `MOST_CUT` of one that is cut.
    With `near`, near-duplicates are removed too (`perdure.tasks.near`), from training first.
    """
    notes, free = list(pool.notes), pool.free
    splits: dict[str, Sequence[Pair] | None] = {"train": pool.train, "test": pool.test, "validation": pool.validation}
    for split, pairs in splits.items():
        if pairs:
            splits[split], removed = unique(pairs, split, free, where=pool.where.get(split))
            notes += removed
    if near:
        keepers_first = ("test", "validation", "train")
        drop = near_repeats(text for split in keepers_first for text, _ in splits[split] or ())
        position = itertools.count()
        for split in keepers_first:
            pairs = splits[split]
            splits[split] = pairs and taken(pairs, [i for i in range(len(pairs)) if next(position) not in drop])
        if drop:
            notes.append(f"{len(drop)} near-duplicate texts removed")
    for split, other in OVERLAPS:
        pairs = splits[split] or []
        kept = without(pairs, splits[other] or ())
        if len(kept) < len(pairs):
            both = f"{ADJECTIVE[split]} texts removed that are also in the {other} split"
            notes.append(f"{len(pairs) - len(kept)} {both}{_first_gone(pool, split, pairs, kept)}")
            splits[split] = kept

    rng = random.Random(f"0/{name}")
    sizes: dict[str, Size] = {"train": train}
    sizes["test"], whole = _size(test, "test", splits["test"], len(splits["train"] or ()) // 4)
    chosen_test, rest = _take(splits["test"], splits["train"] or [], sizes["test"], 4, rng, free)
    rng = random.Random(f"{seed}/{name}") if seed else rng
    sizes["validation"], also = _size(validation, "validation", splits["validation"], len(rest) // 5)
    chosen_validation, rest = _take(splits["validation"], rest, sizes["validation"], 5, rng, free)
    chosen_train, _ = stratified(rest, len(rest) if train == "all" else train, rng, free)
    if kept := [f"{split}_size ({MOST_CUT[split]:,} of at most {n:,})" for split, n in (*whole.items(), *also.items())]:
        notes.append(f"what is cut from train is limited; for more, set {' and '.join(kept)}")
    chosen: dict[str, Any] = {"train": chosen_train, "validation": chosen_validation, "test": chosen_test}
    for split, pairs in chosen.items():
        if isinstance(size := sizes[split], int) and len(pairs) < size:
            notes.append(f"only {len(pairs)} {ADJECTIVE[split]} examples available, {size} requested")
    return dataclasses.replace(pool, **chosen, notes=notes, where={})


def _first_gone(pool: Pool, split: str, pairs: Sequence[Pair], kept: Sequence[Pair]) -> str:
    """`first_place` of the first of `pairs` that is not among `kept`, in the rows that were read."""
    if split not in pool.where:
        return ""
    gone = next(pair for pair, other in itertools.zip_longest(pairs, kept) if pair != other)
    return first_place(pool.where[split], [getattr(pool, split).index(gone)])


def _size(size: Size | None, split: str, given: Sequence[Pair] | None, most: int) -> tuple[Size, dict[str, int]]:
    """The size to draw, and for a split that is cut smaller than it could be: how large that is."""
    if size is not None or given is not None or most <= MOST_CUT[split]:
        return "all" if size is None else size, {}
    return MOST_CUT[split], {split: most}


def _take(
    given: Sequence[Pair] | None, rest: Sequence[Pair], size: Size, part: int, rng: random.Random, free: bool
) -> tuple[Sequence[Pair], Sequence[Pair]]:
    """(the split, what is left to train on): drawn from the given split, else at most 1/`part` of the rest."""
    if given is not None:
        return stratified(given, len(given) if size == "all" else size, rng, free)[0], rest
    most = len(rest) // part
    return stratified(rest, most if size == "all" else min(size, most), rng, free)


def checked(task: Task) -> Task:
    """A task given from Python, checked like one read from files; what files would lose is kept and added to its notes.

    Raises:
        DataError: an empty text; says where.
    """
    splits: dict[str, Sequence[Pair]] = {split: [(e.text, e.label) for e in getattr(task, split)] for split in SPLITS}
    notes: list[str] = []
    for split, pairs in splits.items():
        for position, (text, _) in enumerate(pairs):
            if not text.strip():
                raise DataError(
                    f"Task '{task.name}', {split} example {position}: the text is empty; fill it in or remove the example."
                )
        notes += unique(pairs, split, not task.labels, "kept as given")[1]
    for split, other in OVERLAPS:
        if both := len(splits[split]) - len(without(splits[split], splits[other])):
            notes.append(
                f"{both} {ADJECTIVE[split]} texts are also in the {other} split, which inflates its score; kept as given"
            )
    notes = [note for note in notes if note not in task.notes]
    return dataclasses.replace(task, notes=(*task.notes, *notes)) if notes else task


def check_new_data(new: Task, earlier: Sequence[Task]) -> None:
    """Raise DataError if an earlier task, whatever its name, holds every example of `new` with its label already."""
    pairs = {(normal(example.text), example.label) for split in SPLITS for example in getattr(new, split)}
    for old in earlier:
        if pairs <= {(normal(example.text), example.label) for split in SPLITS for example in getattr(old, split)}:
            raise DataError(
                f"'{new.name}' holds nothing new: each of its {len(pairs)} examples is already in '{old.name}', with the same "
                "label. Nothing was added."
            )


def repeated_from_older(tasks: Sequence[Task]) -> list[str]:
    """One line for each older version of a task whose test texts a newer version trains on."""
    lines = []
    for position, new in enumerate(tasks):
        older = [old for old in tasks[:position] if same_task(old.name, new.name)]
        trained = {normal(example.text) for example in new.train} if older else set()
        for old in older:
            if n := len(trained & {normal(example.text) for example in old.test}):
                lines.append(f"{new.name}: trains on {n} test texts of {old.name}, which inflates its score")
    return lines
