"""Bad data: every message names file and line, or the task, and the fix; no run is started."""

from __future__ import annotations

import json

import pytest

from perdure.state.answers import read_answers
from tests.bad_inputs.place import GOOD, RUN, Bad, Place, refused

BOTH = [{"text": "the same", "label": "a"}, {"text": "the very same", "label": "b"}]


def lines(*rows: object) -> bytes:
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


def tasks(*given: object):
    return lambda place: place.config(tasks=list(given))


SKY = "data/sky.yaml"
CASES: dict[str, Bad] = {
    "missing file": Bad(lambda p: p.task(None), ("data/bad.jsonl does not exist", "give the path"), 4),
    "folder for a file": Bad(lambda p: p.config(tasks=[{"name": "bad", "train": "data"}]), ("is a folder, not a file",), 4),
    "unknown kind of file": Bad(lambda p: p.task(b"x", "bad.xlsx"), ("bad.xlsx: unknown file type", ".jsonl, .json, .csv"), 4),
    "empty file": Bad(lambda p: p.task(b""), ("bad.jsonl is empty",), 4),
    "header without rows": Bad(lambda p: p.task(b"text,label\n", "bad.csv"), ("bad.csv holds no records",), 4),
    "malformed JSON line": Bad(lambda p: p.task(lines(*GOOD) + b'{"text": '), ("bad.jsonl, line 41: not valid JSON",), 4),
    "line that is no object": Bad(lambda p: p.task(lines(["a", "b"])), ("bad.jsonl, line 1: expected an object",), 4),
    "JSON lines called .json": Bad(lambda p: p.task(lines(*GOOD), "bad.json"), ("line 2: not valid JSON", ".jsonl"), 4),
    "malformed table row": Bad(
        lambda p: p.task(b"text,label\na,x\na,b,c\n", "bad.csv"), ("bad.csv, line 3: 3 cells", "quote the text"), 4
    ),
    "column twice": Bad(lambda p: p.task(b"text,text,label\na,b,c\n", "bad.csv"), ("header names 'text' twice",), 4),
    "malformed Parquet": Bad(lambda p: p.task(b"PAR1 not", "bad.parquet"), ("bad.parquet is not a valid Parquet",), 4),
    "mixed encodings": Bad(
        lambda p: p.task(lines(*GOOD) + b'{"text": "caf\xe9", "label": "a"}\n'),
        ("bad.jsonl, line 41: byte 0xe9 is not UTF-8", "Save the whole file as UTF-8", "`encoding`"),
        4,
    ),
    "UTF-16 unsaid": Bad(lambda p: p.task('{"text": "a"}'.encode("utf-16")), ("is UTF-16", "`encoding: utf-16`"), 4),
    "unknown encoding": Bad(lambda p: p.task(encoding="utf-9"), ("Unknown encoding 'utf-9'", "latin-1"), 4),
    "unknown fields": Bad(
        lambda p: p.task([{"body": "a", "team": "x"}]), ("line 1: no known fields", "'body'", "`text_field`"), 4
    ),
    "field missing in one record": Bad(
        lambda p: p.task([*GOOD, {"text": "a"}]), ("line 41: no field 'label'", "found 'text'"), 4
    ),
    "empty text": Bad(lambda p: p.task([*GOOD, {"text": " ", "label": "a"}]), ("line 41: field 'text' is empty",), 4),
    "no label": Bad(lambda p: p.task([*GOOD, {"text": "a", "label": None}]), ("line 41: field 'label' is missing",), 4),
    "label that is a list": Bad(lambda p: p.task([*GOOD, {"text": "a", "label": ["x"]}]), ("line 41", "found list"), 4),
    "label that train never has": Bad(
        lambda p: p.splits(train=GOOD, test=[*BOTH, {"text": "new", "label": "c"}]),
        ("test.jsonl, line 3: label 'c' never occurs in train", "Add training examples", "remove it here"),
        4,
    ),
    "label outside labels": Bad(
        lambda p: p.task([*GOOD, {"text": "x", "label": "c"}], labels=["a", "b"]),
        ("line 41: label 'c' is not one of `labels` (a, b)",),
        4,
    ),
    "one class only": Bad(
        lambda p: p.task([row for row in GOOD if row["label"] == "a"]),
        ("'bad' has only one class", "Add examples of another class", "`free: true`"),
        4,
    ),
    "as many classes as texts": Bad(
        lambda p: p.task([{"text": f"t {i}", "label": f"l {i}"} for i in range(80)]),
        ("'bad' has 80 different labels", "`free: true`", "`labels`"),
        4,
    ),
    "too few examples": Bad(lambda p: p.task(GOOD[:2]), ("'bad' has too few examples", "Add examples"), 4),
    "identical validation and test": Bad(
        lambda p: p.splits(train=GOOD, validation=BOTH, test=BOTH),
        ("'bad': validation and test hold the same 2 texts", "Leave out `validation`", "`same_validation_and_test: true`"),
        4,
    ),
    "free texts for an encoder": Bad(
        lambda p: p.task([{"prompt": f"p {i}", "completion": f"c {i}"} for i in range(20)]),
        ("'bad' has no labels", "take a language model"),
        4,
    ),
    "task twice": Bad(tasks(SKY, SKY), ("Task sky is given twice", "or name it 'sky@2'"), 4),
    "no task": Bad(tasks(), ("Nothing to learn", "`suite`", "`tasks`"), 3),
    "tasks that are no list": Bad(lambda p: p.config(tasks=5), ("tasks", "5"), 3),
    "path as a name": Bad(lambda p: p.task(name="../../etc/passwd"), ("'../../etc/passwd'", "use letters, digits"), 4),
    "HTML as a name": Bad(lambda p: p.task(name="<img src=x>"), ("'<img src=x>'", "use letters, digits"), 4),
    "hidden name": Bad(lambda p: p.task(name=".partial-x"), ("'.partial-x'", "use letters, digits"), 4),
    "no name": Bad(tasks({"train": "data/fruit.jsonl"}), ("tasks.0.name",), 3),
    "no source": Bad(tasks({"name": "bad"}), ("tasks.0", "say where the examples come from"), 3),
    "unknown key of a task": Bad(tasks({"name": "bad", "trian": "x"}), ("'trian'", "Did you mean 'train'"), 3),
    "task file that is not there": Bad(tasks("data/no.yaml"), ("No such task file", "data/no.yaml", "config.yaml"), 3),
    "task file that is no YAML": Bad(
        lambda p: ((p.folder / "data/sky.yaml").write_text("name: [sky\n"), tasks(SKY)(p)), ("data/sky.yaml", "line"), 3
    ),
    "task that is a number": Bad(tasks(7), ("tasks.0", "7"), 3),
    "unknown format": Bad(lambda p: p.task(format="alpaca"), ("tasks.0.format", "'alpaca'", "instruction"), 3),
    "labels that YAML reads as truth": Bad(lambda p: p.task(labels=[True, False]), ("put labels in quotes",), 3),
    "negative size": Bad(lambda p: p.task(train_size=-1), ("tasks.0.train_size", "-1"), 3),
    "no test examples": Bad(lambda p: p.task(test_size=0), ("tasks.0.test_size", "0"), 3),
    "template without a place": Bad(lambda p: p.task(template="Answer:"), ("'bad': the template has no", "{text}"), 4),
    "unknown metric": Bad(lambda p: p.task(metric="acuracy"), ("'acuracy'", "Did you mean 'accuracy'"), 3),
    "same validation and test without both": Bad(
        lambda p: p.task(same_validation_and_test=True), ("`same_validation_and_test` needs both splits",), 3
    ),
    "two sources": Bad(lambda p: p.task(dataset="imdb", package={"reader": "x"}), ("one of `train`",), 3),
    "unknown reader": Bad(tasks({"name": "bad", "package": {"reader": "vadr"}}), ("'vadr'", "Did you mean 'vader'"), 3),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_bad_data(name: str, place: Place, monkeypatch, capsys) -> None:
    refused(CASES[name], place, monkeypatch, capsys)


def test_over_long_texts_are_counted_and_reported(place: Place, monkeypatch, capsys) -> None:
    from tests.own_files import perdure

    place.task([*GOOD, {"text": "word " * 200, "label": "a"}, {"text": "words " * 200, "label": "b"}])
    monkeypatch.chdir(place.folder)
    ended = perdure(monkeypatch, capsys, *RUN)
    assert ended.code == 0
    said = "2 texts are longer than backbone.max_length (32) and are cut"
    assert said in ended.err
    assert said in json.loads((place.folder / "new/run.json").read_text())["warnings"][-1]


def test_identical_validation_and_test_can_be_accepted_by_name(place: Place, monkeypatch, capsys) -> None:
    from tests.own_files import perdure

    place.splits(train=GOOD, validation=BOTH, test=BOTH)
    files = {split: f"data/{split}.jsonl" for split in ("train", "validation", "test")}
    place.config(tasks=[{"name": "bad", **files, "same_validation_and_test": True}])
    monkeypatch.chdir(place.folder)
    ended = perdure(monkeypatch, capsys, *RUN)
    assert ended.code == 0
    assert "validation is the test split, as accepted" in ended.err


HOSTILE = "</script><script>owned=1</script><img src=x onerror=owned=1>\x1b[31m\u202e"


def test_hostile_texts_and_labels_are_only_text(place: Place, monkeypatch, capsys) -> None:
    """They are learnt, stored and shown; the page escapes them (`tests/report/test_report_browser.py` opens such a page)."""
    from tests.own_files import perdure

    rows = [{"text": f"{HOSTILE} {i}", "label": (HOSTILE, "../../b")[i % 2]} for i in range(40)]
    place.task(rows)
    monkeypatch.chdir(place.folder)
    before = {path.name for path in place.folder.iterdir()}
    ended = perdure(monkeypatch, capsys, *RUN)
    assert ended.code == 0
    assert "\x1b" not in ended.out + ended.err
    assert perdure(monkeypatch, capsys, "report", "new", "--out", "page").code == 0
    assert {path.name for path in place.folder.iterdir()} - before == {"new", "page"}
    html = (place.folder / "page/report.html").read_text()
    stored = read_answers(place.folder / "new/stages/01-bad", "bad")
    assert {row["label"] for row in stored} == {HOSTILE, "../../b"}
    assert "<img src=x" not in html
    assert "<script>owned" not in html
