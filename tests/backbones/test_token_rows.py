"""Token ids in a file of the cache are those read from the texts, once, and never another file's or half a file's."""

from __future__ import annotations

import errno
import os
import weakref
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from perdure.backbones import load_backbone, token_rows
from perdure.backbones.token_rows import Again, TokenRows, tokenizer_key
from perdure.errors import FetchError
from perdure.tasks.task import Task
from tests.backbones.tiny import byte_tokenizer, tiny_causal, tiny_encoder, tiny_seq2seq

TEXTS = ["b", "", "ccc", "dd", "Grüße"]


class Letters:
    """Every letter's code, at most three; counts what it is asked to read."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def __call__(self, texts: list[str]) -> tuple[list[Sequence[int]], int]:
        self.asked += texts
        return [[*map(ord, text[:3])] for text in texts], sum(len(text) > 3 for text in texts)


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PERDURE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(token_rows, "MANY", 3)
    monkeypatch.setattr(token_rows, "TOGETHER", 2)


def rows(read: Letters, key: str | None = "k", what: str = "letters") -> TokenRows:
    return TokenRows(what, read, lambda: key)


def test_rows_by_hand() -> None:
    first, again = Letters(), Letters()
    for read in (first, again):
        found = rows(read)
        found.add([*TEXTS, "b"])
        assert [list(found[text]) for text in TEXTS] == [[98], [], [99] * 3, [100] * 2, [*map(ord, "Grü")]]
        assert [len(row) for row in found.extremes()] == [0, 3]
        assert (found.cut, "b" in found, "new" in found) == (1, True, False)
        assert list(found["new"]) == [*map(ord, "new")]
        assert "new" in found
    assert first.asked == [*TEXTS, "new"]
    assert again.asked == ["new"]  # the others lie in the file


def test_many_texts_are_read_later_and_a_sample_stands_for_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two of eight are drawn, two more read one by one; with the third, all are read, and every row is what it would be."""
    monkeypatch.setattr(token_rows, "SAMPLE", 2)
    monkeypatch.setattr(token_rows, "SINGLES", 2)
    read = Letters()
    texts = [f"{letter}-long" for letter in "abcdefgh"]
    later = TokenRows("letters", read, lambda: "k", later=True)
    later.add(texts)
    drawn = list(read.asked)
    assert len(drawn) == 2
    assert (later.cut, later.sampled) == (8, True), "both are cut, so about all are"
    assert [len(row) for row in later.extremes()] == [3, 3]
    later.add(texts)
    assert all(text in later for text in texts)
    assert (read.asked, later.cut) == (drawn, 8), "known, and not read for that"
    singles = [text for text in texts if text not in drawn][:3]
    assert [list(later[text]) for text in (*drawn, *singles[:2])] == [
        [*map(ord, t[:3])] for t in (*drawn, *singles[:2])
    ]
    assert read.asked == [*drawn, *singles[:2]]
    assert not list((tmp_path / "cache").rglob("ids.bin"))
    assert list(later[singles[2]]) == [*map(ord, singles[2][:3])]
    assert read.asked[4:] == texts
    assert [list(later[text]) for text in texts] == [[*map(ord, text[:3])] for text in texts]
    assert (len(read.asked), later.cut) == (12, 8)
    now = rows(Letters())
    now.add(texts)
    assert now._read.asked == [], "the same file"  # type: ignore[attr-defined]
    assert (now.cut, now.sampled) == (8, False)


def test_few_texts_and_readers_without_a_key_stay_in_memory(tmp_path: Path) -> None:
    found = rows(Letters())
    found.add(TEXTS[:2])
    rows(Letters(), key=None).add(TEXTS)
    assert found.extremes() == [[], [98]]
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("other", [{"key": "l"}, {"what": "words"}])
def test_what_is_read_otherwise_is_read_again(other: dict[str, str]) -> None:
    rows(Letters()).add(TEXTS)
    read = Letters()
    rows(read, **other).add(TEXTS)
    assert read.asked == TEXTS


def test_changed_data_are_read_again() -> None:
    """One text more, and one letter less: another file each time, and every row is right."""
    rows(Letters()).add(TEXTS)
    for changed in ([*TEXTS, "more"], ["b", "", "cc", "dd", "Grüße"]):
        read = Letters()
        found = rows(read)
        found.add(changed)
        assert read.asked == changed
        assert [list(found[text]) for text in changed] == [[*map(ord, text[:3])] for text in changed]


def test_a_damaged_file_is_made_again(tmp_path: Path) -> None:
    rows(Letters()).add(TEXTS)
    [file] = (tmp_path / "cache").rglob("ids.bin")
    file.write_bytes(file.read_bytes()[:-4] + b"oops")
    read = Letters()
    found = rows(read)
    found.add(TEXTS)
    assert read.asked == TEXTS
    assert list(found["Grüße"]) == [*map(ord, "Grü")]


def test_a_disk_that_fills_is_said_and_nothing_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(token_rows.np, "save", full)
    with pytest.raises(
        FetchError, match=r"Cannot write .*tokens.*: the disk is full: free some space, or set PERDURE_CACHE"
    ):
        rows(Letters()).add(TEXTS)
    assert not [file for file in (tmp_path / "cache").rglob("*") if file.is_file() and file.suffix != ".lock"]


def test_the_key_is_all_that_decides_how_a_tokenizer_reads() -> None:
    special = {"bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>"}
    made = [byte_tokenizer(special) for _ in range(5)]
    made[1].chat_template = "{{ messages }}"
    made[2].add_tokens(["word"])
    keys = [tokenizer_key(tokenizer, {}) for tokenizer in made[:4]]
    assert keys[0] == keys[3]
    assert len({*keys, tokenizer_key(made[0], {"max_length": 3})}) == 4
    made[4]("text " * 9, truncation=True, max_length=3)  # leaves its mark on the tokenizer, and changes nothing
    assert tokenizer_key(made[4], {}) == keys[0]
    assert tokenizer_key(object(), {}) is None  # type: ignore[arg-type]


KINDS = {"encoder": tiny_encoder, "causal": tiny_causal, "seq2seq": tiny_seq2seq}


@pytest.mark.parametrize("metric", ["accuracy", "rouge-l", "inverse-perplexity"])
@pytest.mark.parametrize("kind", KINDS)
def test_batches_are_the_same_with_and_without_the_file(
    kind: str, metric: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if kind == "encoder" and metric != "accuracy":
        pytest.skip("an encoder learns labels")
    folder = str(KINDS[kind](tmp_path / "model"))
    labels = {"labels": ["a", "b"]} if metric == "accuracy" else {}
    pairs = [(f"{'word ' * i}text {i}", "ab"[i % 2] if labels or "inv" not in metric else "") for i in range(9)]
    task = Task("t", pairs[:6], test=pairs[6:], metric=metric, **labels)
    found = []
    for many in (3, 1000, 3):
        monkeypatch.setattr(token_rows, "MANY", many)
        backbone: Any = load_backbone({"kind": kind, "model": folder, "max_length": 12})
        backbone.prepare([task])
        batch = backbone.collate(task.train)
        found.append(
            (batch.inputs, batch.extra.get("answers"), backbone.truncated, list(map(backbone.length, task.test)))
        )
    assert (tmp_path / "cache/tokens").is_dir()
    assert str(found[0]) == str(found[1]) == str(found[2])


def test_chats_are_the_same_with_and_without_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The loss on all turns, and the first is long."""
    folder = str(tiny_causal(tmp_path / "model", chat=True))
    chats = [
        {"messages": [{"role": role, "content": f"{role} {'x' * i}"} for role in ("user", "assistant") * 2]}
        for i in range(6)
    ]
    task, found = Task("t", chats[:5], test=chats[5:]), []
    for many in (3, 1000, 3):
        monkeypatch.setattr(token_rows, "MANY", many)
        backbone: Any = load_backbone({"kind": "causal", "model": folder, "learn": "all"})
        backbone.prepare([task])
        batch = backbone.collate(task.train)
        found.append((batch.inputs, batch.extra, backbone._known_prompts()))
    assert str(found[0]) == str(found[1]) == str(found[2])


class Followed(str):
    """A string that can be counted while it lives."""


def test_many_texts_are_gone_through_again_and_none_is_held() -> None:
    """Equal texts are read once, in the order of their first; of 300 at most two batches of two and one text live."""
    living: weakref.WeakSet[Followed] = weakref.WeakSet()
    most = 0

    def texts() -> Iterator[str]:
        nonlocal most
        for i in [0, 1, 0, 2, *range(300)]:
            text = Followed(chr(300 + i))
            living.add(text)
            most = max(most, len(living))
            yield text

    read = Letters()
    found = rows(lambda some: read([str(text) for text in some]))  # type: ignore[arg-type]
    found.add(Again(texts))
    assert read.asked == [chr(300 + i) for i in range(300)]
    assert [list(found[chr(300 + i)]) for i in (299, 0)] == [[599], [300]]
    assert most <= 5
    other = Letters()
    rows(other).add([chr(300 + i) for i in range(300)])
    assert other.asked == []  # of the same texts in a list, the same file


def test_a_digest_that_ends_with_a_zero_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """numpy strips the zero; such a text was read again each time."""
    monkeypatch.setattr(token_rows, "_digest", lambda text: text.encode().ljust(16, b"\0"))
    read = Letters()
    found = rows(read)
    found.add(["a", "ab", "abc"])
    assert [list(found[text]) for text in ("a", "ab", "abc")] == [[97], [97, 98], [97, 98, 99]]
    assert read.asked == ["a", "ab", "abc"]
