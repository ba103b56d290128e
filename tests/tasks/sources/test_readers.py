"""Package formats on small archives with invented contents; the real files where they are marked."""

import bz2
import io
import tarfile
import zipfile
from collections import Counter
from pathlib import Path

import pytest

from perdure.errors import DataError
from perdure.tasks.sources import readers
from perdure.tasks.sources.readers import decoded, read_pool
from perdure.tasks.suites import load_suite


def wheel(path: Path, files: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as file:
        for name, content in files.items():
            file.writestr(name, content)
    return path


def tar(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as file:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            file.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def test_vader_keeps_clear_scores_only(tmp_path: Path) -> None:
    table = b"1\t0.5\tfine, \x85 really\r\n2\t-0.49\tso so\r\n3\t-2.0\tbad\tly made\r\n"
    path = tmp_path / "v.tar.gz"
    path.write_bytes(tar({"v/hutto_ICWSM_2014.tar.gz": tar({"h/a_GroundTruth.txt": table})}))
    pool = readers.read_vader(path, file="a_GroundTruth.txt", threshold=0.5)
    assert pool.train == [("fine, \x85 really", "positive"), ("bad\tly made", "negative")]


def test_folders_name_the_classes(tmp_path: Path) -> None:
    path = wheel(
        tmp_path / "c.whl", {"d/news/1.txt": "5 £".encode("latin-1"), "d/art/2.txt": b"two\n", "e/x.txt": b"no"}
    )
    assert readers.read_folders(path, prefix="d/").train == [("two", "art"), ("5 £", "news")]


def test_orange_tables_have_three_header_rows(tmp_path: Path) -> None:
    head = "Category\tText\nd\tstring\nclass\t\n\n"
    path = wheel(
        tmp_path / "o.whl",
        {"a-train.tab": f'{head}x\tsay "hi\ny\tbye\n'.encode(), "a-test.tab": f"{head}x\tt\n".encode()},
    )
    pool = readers.read_orange(path, train="a-train.tab", test="a-test.tab")
    assert (pool.train, pool.test) == ([('say "hi', "x"), ("bye", "y")], [("t", "x")])


def test_rotten_tomatoes_leaves_plots_out(tmp_path: Path) -> None:
    table = b'category,text,movie_name,has\nplot,"A, b",m,F\nfresh,"So ""good"",\nreally",m,F\nrotten,no,m,F\n'
    path = wheel(tmp_path / "r.whl", {"r.csv.bz2": bz2.compress(table)})
    pool = readers.read_rotten_tomatoes(path, file="r.csv.bz2")
    assert pool.train == [('So "good",\nreally', "fresh"), ("no", "rotten")]


EMAILS = {
    "plain": (b"Subject: Hi\nFrom: a\n\nline one\nline two\n", "Hi line one line two"),
    "html": (
        b"Subject: Buy\nContent-Type: text/html\n\n<style>p{}</style><p>Now &amp; <b>here</b></p>",
        "Buy Now & here",
    ),
    "both": (
        b"Subject: S\nContent-Type: multipart/alternative; boundary=B\n\n--B\nContent-Type: text/html\n\n<p>html</p>\n"
        b"--B\nContent-Type: text/plain\n\nplain\n--B--\n",
        "S plain",
    ),
    "encoded": (b"Subject: =?iso-8859-1?q?caf=E9?=\nContent-Type: text/plain; charset=latin-1\n\nth\xe9", "café thé"),
    "unknown encodings": (
        b"Subject: =?nothing?q?x?=\nContent-Type: text/plain; charset=DEFAULT_CHARSET\n\nth\xe9",
        "=?nothing?q?x?= thé",
    ),
    "no text": (b"Subject: S\nContent-Type: image/png\n\nxx", "S"),
}


@pytest.mark.parametrize("name", EMAILS)
def test_emails_are_subject_and_text(tmp_path: Path, name: str) -> None:
    content, expected = EMAILS[name]
    path = tmp_path / "s.tgz"
    path.write_bytes(tar({"p/data/spam-1/1.txt": content, "p/data/easy-ham-1/1.txt": b"Subject: ok\n\nfine"}))
    pool = readers.read_emails(path, data="p/data/", spam="spam-")
    assert pool.train == [(expected, "spam"), ("ok fine", "ham")]


def test_older_encodings() -> None:
    assert (decoded(b"caf\xc3\xa9"), decoded(b"caf\xe9"), decoded(b"\xef\xbb\xbfa")) == ("café", "café", "a")


def test_a_folder_suite_needs_its_folder() -> None:
    with pytest.raises(DataError, match="give it with `data`"):
        read_pool({"source": {"reader": "trace", "path": "FOMC"}})


@pytest.mark.slow
@pytest.mark.package_data
def test_text_10_is_what_it_says() -> None:
    suite = load_suite("text-10", train="all", validation="all", test="all")
    assert len(suite.tasks) == 10
    seen: Counter[str] = Counter()
    for task in suite.tasks:
        examples = (*task.train, *task.validation, *task.test)
        assert {e.label for e in task.train} == set(task.labels)
        texts = {" ".join(e.text.split()).casefold() for e in examples}
        assert len(texts) == len(examples)
        seen.update(texts)
    shared = [text for text, count in seen.items() if count > 1]
    assert all(len(text.split()) <= 5 for text in shared)  # phrases such as "that would help."
    assert len(shared) < 5
    assert any(w.startswith("spam: ") and "near-duplicate" in w for w in suite.warnings)


@pytest.mark.slow
@pytest.mark.package_data
def test_ni_mini_and_digits_are_what_they_say() -> None:
    metrics = {task.name: task.metric for task in load_suite("ni-mini").tasks}
    assert metrics == {
        "question-typing": "exact-match",
        "winogrande-answer": "rouge-l",
        "qasc-answer": "rouge-l",
        "qasc-wrong-answer": "rouge-l",
        "qasc-related-fact": "rouge-l",
    }
    digits = load_suite("digits-5", train="all", validation="all", test="all")
    assert sum(len(t.train) + len(t.validation) + len(t.test) for t in digits.tasks) == 1797
