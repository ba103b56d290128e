"""Large files give the tasks that small ones give, from an Arrow file of the cache that is read again and never half written."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import perdure.tasks.table as tables
from perdure.errors import DataError, FetchError
from perdure.tasks.sources import large
from perdure.tasks.sources.files import load_task
from perdure.tasks.table import Table, labels_of, taken, write_table
from perdure.tasks.task import Example, Examples, Stage, Task

ROWS = [{"text": f"text number {i % 23}", "label": "ab"[i % 2]} for i in range(30)]  # the last seven repeat others
CHAT = [{"messages": [{"role": r, "content": f"{r} {i}"} for r in ("user", "assistant") * 2]} for i in range(30)]
BAD: list[Any] = [*ROWS[:9], {"text": 3, "label": "a"}, *ROWS[9:], "not a record"]


def csv(rows: list[dict[str, Any]]) -> str:
    return "text,label\n" + "".join(f"{row['text']},{row['label']}\n" for row in rows)


def lines(rows: list[Any]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


CASES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "JSON lines": ("a.jsonl", lines(ROWS), {}),
    "a table": ("a.csv", csv(ROWS), {}),
    "sizes and a seed": ("a.jsonl", lines(ROWS), {"train_size": 5, "test_size": 4, "validation_size": 2, "seed": 3}),
    "numbers of labels": (
        "a.jsonl",
        lines([{**row, "label": i % 2} for i, row in enumerate(ROWS[:23])]),
        {"labels": ["no", "yes"]},
    ),
    "bad rows": ("a.jsonl", lines(BAD), {"bad_rows": "skip"}),
    "labels that are not known": (
        "a.jsonl",
        lines([*ROWS[:20], {"text": "x", "label": "c"}]),
        {"labels": ["a", "b"], "bad_rows": "skip"},
    ),
    "free text": ("a.jsonl", lines([{"prompt": f"p{i % 25}", "completion": f"c{i}"} for i in range(30)]), {}),
    "chats": ("a.jsonl", lines(CHAT), {}),
    "classes of one turn": (
        "a.jsonl",
        lines([{"messages": [*CHAT[i]["messages"][:1], {"role": "assistant", "content": "ab"[i % 2]}]} for i in range(20)]),
        {"labels": ["a", "b"]},
    ),
    "texts": ("a.jsonl", lines([{"text": f"t{i}"} for i in range(20)]), {"metric": "inverse-perplexity"}),
    "images": ("a.jsonl", lines([{"text": f"{i}.png", "label": "ab"[i % 2]} for i in range(20)]), {}),
    "near repeats": ("a.jsonl", lines(ROWS), {"without_near_repeats": True}),
}  # fmt: skip


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PERDURE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(tables, "TOGETHER", 4)
    monkeypatch.setattr(tables, "RELEASE", 3)


def both(load: Callable[[], Any], monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What is loaded from a small file, from a large one, and from what that left in the cache."""
    found = []
    for size in (1 << 30, 0, 0):
        monkeypatch.setattr(large, "LARGE", size)
        found.append(load())
    return found


@pytest.mark.parametrize("classes", [1, 1_000])  # labels read like texts, and held as numbers
@pytest.mark.parametrize("name", CASES)
def test_a_large_file_gives_the_same_task(
    name: str, classes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tables, "CLASSES", classes)
    file, text, settings = CASES[name]
    (tmp_path / file).write_text(text)
    small, *others = both(lambda: load_task({"name": "t", "train": str(tmp_path / file), **settings}), monkeypatch)
    for task in others:
        for key in ("train", "validation", "test", "labels", "metric", "notes", "skipped", "chats"):
            assert getattr(task, key) == getattr(small, key), key
        assert task.fingerprint() == small.fingerprint()
    assert isinstance(others[1].train, Examples) == (name not in ("images", "classes of one turn"))
    if name == "chats":
        train = others[1].train
        assert [train.table.place(i) for i in range(3)] == [small.places[e.text] for e in train[:3]]


def test_given_splits_and_errors_are_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.jsonl").write_text(lines(BAD))
    (tmp_path / "b.jsonl").write_text(lines([*ROWS[:2], {"text": "new", "label": "c"}]))
    given = {"name": "t", "train": str(tmp_path / "a.jsonl"), "test": str(tmp_path / "b.jsonl")}

    def error(**settings: Any) -> str:
        with pytest.raises(DataError) as raised:
            load_task({**given, **settings})
        return str(raised.value)

    for settings, wanted in (
        ({}, "2 of 35 rows cannot be read"),
        ({"bad_rows": "skip"}, "b.jsonl, line 3: label 'c' never"),
    ):
        small, *others = both(lambda settings=settings: error(**settings), monkeypatch)
        assert others == [small, small]
        assert wanted in small


def test_a_changed_file_is_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Even if its size and time are those it had."""
    monkeypatch.setattr(large, "LARGE", 0)
    file = tmp_path / "a.jsonl"
    for word in ("first", "other"):
        file.write_text(lines([{"text": f"{word} {i}", "label": "ab"[i % 2]} for i in range(9)]))
        os.utime(file, (0, 0))
        task = load_task({"name": "t", "train": str(file), "test_size": 2, "validation_size": 0})
        assert all(example.text.startswith(word) for example in (*task.train, *task.test))


def test_a_disk_that_fills_is_said_and_nothing_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: Any) -> None:
        write_table(*args)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(large, "LARGE", 0)
    monkeypatch.setattr(large, "write_table", full)
    (tmp_path / "a.jsonl").write_text(lines(ROWS))
    with pytest.raises(FetchError, match=r"Cannot write .*rows.*: the disk is full: free some space"):
        load_task({"name": "t", "train": str(tmp_path / "a.jsonl")})
    assert not list((tmp_path / "cache").rglob("*.arrow"))


def test_a_table_reads_like_a_list(tmp_path: Path) -> None:
    rows = [(f"t{i}", "ab"[i % 2], i + 1) for i in range(10)]
    write_table(tmp_path / "t.arrow", iter(rows))
    table, pairs = Table(tmp_path / "t.arrow", "file, line"), [row[:2] for row in rows]
    assert list(table) == pairs
    assert (len(table), table[9], table[-1]) == (10, pairs[9], pairs[9])
    with pytest.raises(IndexError):
        table[10]
    some = table[2:8].take([5, 0])
    assert list(some) == [pairs[7], pairs[2]] == taken(pairs[2:8], [5, 0])
    assert [some.place(i) for i in (0, 1)] == ["file, line 8", "file, line 3"]
    assert list(some.renamed({"a": "A"})) == [("t7", "b"), ("t2", "A")]
    assert not table[:0]
    task = Task("x", table[:6], test=table[6:], labels=["a", "b"])
    examples = task.train
    assert examples[1] == Example("t1", "b", "x")
    assert examples == tuple(Example(*pair, "x") for pair in pairs[:6])
    assert examples != examples[:5]
    assert Stage("x", (task,)).train is examples


def test_labels_by_hand(tmp_path: Path) -> None:
    """Of rows in any order, some left out, under other names."""
    write_table(tmp_path / "rows.arrow", [(f"text {i}", "abc"[i % 3], i) for i in range(9)])
    table = Table(tmp_path / "rows.arrow", "file, line").take([8, 0, 4]).renamed({"a": "first"})
    assert list(labels_of(table)) == ["c", "first", "b"] == list(labels_of(list(table)))


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="Linux says how much of a file is in memory")
def test_pages_that_were_read_are_given_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """40 MB of texts are read, and of the file never more than a tenth counts as memory."""

    def mapped() -> int:
        status = Path("/proc/self/status").read_text()
        return int(status.partition("RssFile:")[2].split()[0]) * 1024

    write_table(tmp_path / "rows.arrow", ((f"{i} " * 1_000, "a", i) for i in range(10_000)))
    size = (tmp_path / "rows.arrow").stat().st_size
    assert size > 40_000_000
    monkeypatch.setattr(tables, "RELEASE", 100)
    table = Table(tmp_path / "rows.arrow", "")
    before, most = mapped(), 0
    for i, (text, _) in enumerate(table):
        assert text.startswith(f"{i} ")
        if i % 50 == 0:
            most = max(most, mapped() - before)
    assert most < size / 10
