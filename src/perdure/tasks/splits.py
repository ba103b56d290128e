"""Disjoint train, validation and test splits: duplicates out, then drawn by seed, stratified by class."""

from __future__ import annotations

import dataclasses
import itertools
import random
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from perdure.errors import DataError
from perdure.tasks.near import near_repeats
from perdure.tasks.pool import Pair, Pool
from perdure.tasks.spec import Size
from perdure.tasks.task import Example, Task, same_task


@dataclass(frozen=True)
class Drawn:
    """What `draw` gives: three disjoint splits, and what the user should know about them."""

    train: list[Pair]
    validation: list[Pair]
    test: list[Pair]
    notes: tuple[str, ...]


def as_task(name: str, drawn: Drawn, pool: Pool, *, labels: dict[str, str], metric: str, template: str = "") -> Task:
    """The task of what was drawn: choices, references and, where none is given, the template are the pool's."""
    train, validation, test = (
        [Example(text, label) for text, label in pairs] for pairs in (drawn.train, drawn.validation, drawn.test)
    )
    texts = {example.text for example in (*train, *validation, *test)}
    return Task(
        name,
        train,
        validation,
        test,
        labels=labels,
        metric=metric,
        notes=drawn.notes,
        template=template or pool.template,
        choices={text: choices for text, choices in pool.choices.items() if text in texts},
        references={text: answers for text, answers in pool.references.items() if text in texts},
    )


def normal(text: str) -> str:
    """The text as duplicates are compared: white space collapsed, upper and lower case alike."""
    return " ".join(text.split()).casefold()


def unique(pairs: Iterable[Pair], free: bool = False) -> tuple[list[Pair], int, int]:
    """Each text once (the first), without texts that come with different labels; and how many rows of each kind went.

    With `free` labels, a text with different ones is no contradiction.

    Returns:
        (pairs, rows removed as repetitions, rows removed as contradictions)
    """
    labels: dict[str, set[str]] = {}
    rows = [(normal(text), text, label) for text, label in pairs]
    for key, _, label in rows:
        labels.setdefault(key, set()).add(label)
    kept: dict[str, Pair] = {}
    contradictions = 0
    for key, text, label in rows:
        if len(labels[key]) > 1 and not free:
            contradictions += 1
        else:
            kept.setdefault(key, (text, label))
    return list(kept.values()), len(rows) - len(kept) - contradictions, contradictions


def without(pairs: Iterable[Pair], *others: Iterable[Pair]) -> list[Pair]:
    """The pairs whose text occurs in none of the others."""
    taken = {normal(text) for other in others for text, _ in other}
    return [pair for pair in pairs if normal(pair[0]) not in taken]


def stratified(
    pairs: Sequence[Pair], size: int, rng: random.Random, free: bool = False
) -> tuple[list[Pair], list[Pair]]:
    """`size` pairs in random order with the classes in proportion, and the rest; plainly random with `free` labels.

    Every class gets its share rounded down, at least one while there are places; the places left over go to the
    largest remainders.
    """
    pairs = rng.sample(list(pairs), len(pairs))
    if free or size >= len(pairs):
        return pairs[:size], pairs[size:]
    quota = _quota(Counter(label for _, label in pairs), size, rng)
    chosen, rest = [], []
    for pair in pairs:
        take = quota[pair[1]] > 0
        quota[pair[1]] -= take
        (chosen if take else rest).append(pair)
    return chosen, rest


def _quota(counts: Counter[str], size: int, rng: random.Random) -> dict[str, int]:
    """How many of `size` places each class gets."""
    ties = sorted(counts) if size >= len(counts) else rng.sample(sorted(counts), len(counts))
    shares = {label: size * counts[label] / counts.total() for label in ties}
    quota = {label: max(int(share), int(size >= len(counts))) for label, share in shares.items()}
    order = sorted(ties, key=lambda label: quota[label] - shares[label])
    while (left := size - sum(quota.values())) != 0:  # raising rare classes to one may have given out too many
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
    pool: Pool, *, train: Size, validation: Size, test: Size, name: str, seed: int = 0, near: bool = False
) -> Drawn:
    """Three disjoint splits of at most these sizes.

    Order of drawing: test, validation, train. The test examples are the same whatever the size of the training split, and
    whatever the seed: what settings were chosen on with one seed is never tested on with another. A given test split stays as
    it is and the training rows that repeat it are removed; without one, it is cut from the rest (at most a quarter). The same
    holds for validation (at most a fifth). With `near`, texts that nearly repeat another one go too (`perdure.tasks.near`),
    from training first.
    """
    notes, free = list(pool.notes), pool.free
    rest = _unique(pool.train, "training", notes, free)
    given_test = None if pool.test is None else _unique(pool.test, "test", notes, free)
    given_validation = None if pool.validation is None else _unique(pool.validation, "validation", notes, free)
    if near:
        given_test, given_validation, rest = _without_near([given_test, given_validation, rest], notes)
    if given_test is not None:
        rest = _without(rest, given_test, "training", "test", notes)
        if given_validation is not None:
            given_validation = _without(given_validation, given_test, "validation", "test", notes)
    if given_validation is not None:
        rest = _without(rest, given_validation, "training", "validation", notes)

    rng = random.Random(f"0/{name}")
    chosen_test, rest = _take(given_test, rest, test, 4, rng, free)
    rng = random.Random(f"{seed}/{name}") if seed else rng
    chosen_validation, rest = _take(given_validation, rest, validation, 5, rng, free)
    chosen_train, _ = stratified(rest, len(rest) if train == "all" else train, rng, free)
    chosen = {"training": chosen_train, "validation": chosen_validation, "test": chosen_test}
    for split, wanted in (("training", train), ("validation", validation), ("test", test)):
        if isinstance(wanted, int) and len(chosen[split]) < wanted:
            notes.append(f"{len(chosen[split])} {split} examples instead of {wanted}: there are no more")
    return Drawn(chosen_train, chosen_validation, chosen_test, tuple(notes))


def _without_near(splits: list[list[Pair] | None], notes: list[str]) -> tuple[Any, Any, Any]:
    """The splits without near repetitions; an earlier split keeps what a later one repeats."""
    drop = near_repeats(text for split in splits for text, _ in split or [])
    position = itertools.count()
    test, validation, rest = (split and [p for p in split if next(position) not in drop] for split in splits)
    if drop:
        notes.append(f"{len(drop)} texts removed that nearly repeat another one")
    return test, validation, rest


def _take(
    given: list[Pair] | None, rest: list[Pair], size: Size, part: int, rng: random.Random, free: bool
) -> tuple[list[Pair], list[Pair]]:
    """(the split, what is left to train on): drawn from the given split, else at most 1/`part` of the rest."""
    if given is not None:
        return stratified(given, len(given) if size == "all" else size, rng, free)[0], rest
    most = len(rest) // part
    return stratified(rest, most if size == "all" else min(size, most), rng, free)


def _unique(pairs: list[Pair], split: str, notes: list[str], free: bool) -> list[Pair]:
    kept, repeated, contradicted = unique(pairs, free)
    if repeated:
        notes.append(f"{repeated} repeated {split} texts removed")
    if contradicted:
        notes.append(f"{contradicted} {split} rows removed whose text comes with different labels")
    return kept


def _without(pairs: list[Pair], others: list[Pair], split: str, other: str, notes: list[str]) -> list[Pair]:
    kept = without(pairs, others)
    if len(kept) < len(pairs):
        notes.append(f"{len(pairs) - len(kept)} {split} texts removed that also occur in the {other} split")
    return kept


def checked(task: Task) -> Task:
    """A task given from Python after the checks that files get; nothing is removed, what files would lose is in its notes.

    Raises:
        DataError: an empty text; says where.
    """
    splits = {split: [(e.text, e.label) for e in getattr(task, split)] for split in ("train", "validation", "test")}
    for split, pairs in splits.items():
        for position, (text, _) in enumerate(pairs):
            if not text.strip():
                raise DataError(
                    f"Task '{task.name}', {split} example {position}: the text is empty; fill it in or remove the example."
                )
    notes = []
    for split, pairs in splits.items():
        _, repeated, contradicted = unique(pairs, free=not task.labels)
        word = "training" if split == "train" else split
        if repeated:
            notes.append(f"{repeated} repeated {word} texts, left as given")
        if contradicted:
            notes.append(f"{contradicted} {word} rows whose text comes with different labels, left as given")
    for split, other in (("train", "test"), ("validation", "test"), ("train", "validation")):
        if both := len(splits[split]) - len(without(splits[split], splits[other])):
            word = "training" if split == "train" else split
            notes.append(
                f"{both} {word} texts also occur in the {other} split, whose score they flatter; left as given"
            )
    notes = [note for note in notes if note not in task.notes]
    return dataclasses.replace(task, notes=(*task.notes, *notes)) if notes else task


def repeated_from_older(tasks: Sequence[Task]) -> list[str]:
    """A line for every older version of a task whose test texts a newer version trains on."""
    found = []
    for position, new in enumerate(tasks):
        trained = {normal(example.text) for example in new.train}
        for old in tasks[:position]:
            if same_task(old.name, new.name) and (n := len(trained & {normal(example.text) for example in old.test})):
                found.append(
                    f"{new.name}: trains on {n} texts of the test split of {old.name}, whose score they flatter"
                )
    return found
