"""Own tasks from files: every format read as it is, and every bad input named with its place and its remedy."""

import json
from pathlib import Path
from typing import Any

import pytest

from perdure.errors import ConfigError, DataError, FetchError, UnknownName
from perdure.tasks.pool import Pool
from perdure.tasks.sources import readers
from perdure.tasks.sources.files import load_task, read_task_spec
from perdure.tasks.sources.formats import choose_format, input_format
from perdure.tasks.sources.rows import Row, read_rows
from perdure.tasks.spec import TaskSpec
from perdure.tasks.task import Task

GOOD = [{"text": f"text {i}", "label": "xy"[i % 2]} for i in range(40)]


def write(path: Path, records: list[dict[str, Any]]) -> Path:
    """The records as the file's ending says."""
    if path.suffix == ".parquet":
        import pyarrow
        from pyarrow import parquet

        parquet.write_table(pyarrow.Table.from_pylist(records), path)
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    elif path.suffix == ".json":
        path.write_text(json.dumps(records), encoding="utf-8")
    else:
        import csv

        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(records[0]), delimiter="\t" if path.suffix == ".tsv" else ",")
            writer.writeheader()
            writer.writerows(records)
    return path


@pytest.mark.parametrize("ending", ["jsonl", "json", "csv", "tsv", "parquet"])
def test_every_kind_of_file_gives_the_same_task(tmp_path: Path, ending: str) -> None:
    write(tmp_path / f"train.{ending}", [*GOOD, {"text": 'a "quoted",\ntwo-line\ttext é', "label": "x"}])
    write(tmp_path / "reference.jsonl", [*GOOD, {"text": 'a "quoted",\ntwo-line\ttext é', "label": "x"}])
    task, reference = (
        load_task(TaskSpec(name="t", train=f"{name}.{kind}"), tmp_path)
        for name, kind in (("train", ending), ("reference", "jsonl"))
    )
    assert task.fingerprint() == reference.fingerprint()


FORMATS = {
    "text-label": ({"text": "a", "label": "x"}, ("a", "x"), False),
    "numbers": ({"text": "a", "label": 3}, ("a", "3"), False),
    "truth values": ({"text": "a", "label": True}, ("a", "True"), False),
    "whole floats": ({"text": "a", "label": 2.0}, ("a", "2"), False),
    "O-LoRA": ({"sentence": "a", "label": "x"}, ("a", "x"), False),
    "prompt-completion": ({"prompt": "a", "completion": "b c"}, ("a", "b c"), True),
    "TRACE": ({"prompt": "a", "answer": "b"}, ("a", "b"), True),
    "input-output": ({"input": "a", "output": "b"}, ("a", "b"), True),
    "instruction": ({"instruction": "i", "input": "a", "output": "b"}, ("i\n\na", "b"), True),
    "instruction alone": ({"instruction": "i", "input": "", "output": "b"}, ("i", "b"), True),
}


@pytest.mark.parametrize("name", FORMATS)
def test_records_are_read_as_they_are(name: str) -> None:
    record, expected, free = FORMATS[name]
    row = Row("here", record)
    form = choose_format(TaskSpec(name="t", train="x"), row)
    assert (form.read(row), form.free) == (expected, free)


def test_own_field_names(tmp_path: Path) -> None:
    write(tmp_path / "a.csv", [{"body": f"t {i}", "team": "xy"[i % 2]} for i in range(20)])
    task = load_task(TaskSpec(name="t", train="a.csv", text_field="body", label_field="team"), tmp_path)
    assert set(task.labels) == {"x", "y"}


def test_given_splits_are_kept_and_duplicates_reported(tmp_path: Path) -> None:
    write(tmp_path / "train.jsonl", GOOD)
    write(tmp_path / "dev.jsonl", [{"text": "dev 1", "label": "x"}, {"text": "TEXT  1", "label": "y"}])
    write(tmp_path / "test.jsonl", [{"text": "text 0 ", "label": "x"}, {"text": "new", "label": "y"}])
    task = load_task(TaskSpec(name="t", train="train.jsonl", validation="dev.jsonl", test="test.jsonl"), tmp_path)
    assert (len(task.train), len(task.validation), len(task.test)) == (38, 2, 2)
    assert task.notes == (
        "1 training texts removed that are also in the test split, the first: train.jsonl, line 1",
        "1 training texts removed that are also in the validation split, the first: train.jsonl, line 2",
    )


def test_splits_are_cut_by_seed_and_said(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", GOOD)
    first, again, other = (load_task(TaskSpec(name="t", train="a.jsonl", seed=seed), tmp_path) for seed in (0, 0, 1))
    assert (len(first.train), len(first.validation), len(first.test)) == (24, 6, 10)
    assert first.fingerprint() == again.fingerprint() != other.fingerprint()
    assert first.notes == ("no validation split given: cut from train", "no test split given: cut from train")


def test_what_is_cut_from_train_is_limited_unless_a_size_asks_for_more(tmp_path: Path) -> None:
    """Of 10,000 rows a quarter would be 2,500, and a fifth of the 8,000 that are left 1,600."""
    rows = [{"text": f"text {i}", "label": "xy"[i % 2]} for i in range(10_000)]
    write(tmp_path / "a.jsonl", rows)
    task = load_task(TaskSpec(name="t", train="a.jsonl"), tmp_path)
    assert (len(task.train), len(task.validation), len(task.test)) == (7_000, 1_000, 2_000)
    limited = "what is cut from train is limited; for more, set "
    assert task.notes[-1] == (
        f"{limited}test_size (2,000 of at most 2,500) and validation_size (1,000 of at most 1,600)"
    )
    task = load_task(TaskSpec(name="t", train="a.jsonl", validation_size="all", test_size="all"), tmp_path)
    assert (len(task.train), len(task.validation), len(task.test)) == (6_000, 1_500, 2_500)
    assert not any(limited in note for note in task.notes)
    task = load_task(TaskSpec(name="t", train="a.jsonl", test_size=2_400), tmp_path)
    assert (len(task.validation), len(task.test)) == (1_000, 2_400)
    write(tmp_path / "test.jsonl", [{"text": f"given {i}", "label": "xy"[i % 2]} for i in range(2_100)])
    task = load_task(TaskSpec(name="t", train="a.jsonl", test="test.jsonl"), tmp_path)
    assert (len(task.validation), len(task.test)) == (1_000, 2_100)  # what is given is kept


BAD = [
    *GOOD,
    {"text": "", "label": "x"},
    {"text": "no label"},
    {"text": "unknown", "label": "z"},
    {"text": 3, "label": "x"},
]


@pytest.mark.parametrize("ending", ["jsonl", "json"])
def test_all_bad_rows_are_listed_or_left_out(tmp_path: Path, ending: str) -> None:
    file = write(tmp_path / f"a.{ending}", BAD)
    at = "line" if ending == "jsonl" else "record"
    first = len(GOOD) + (ending == "jsonl")
    places = [f"{file}, {at} {first + i}: " for i in range(4)]
    problems = [
        f"{places[0]}field 'text' is empty; fill it in or remove the record.",
        f"{places[1]}no field 'label', found 'text'.",
        f"{places[3]}field 'text' must be a string, found int.",
        f"{places[2]}label 'z' is not one of `labels` (x, y).",
    ]
    spec = TaskSpec(name="t", train=f"a.{ending}", labels=("x", "y"))
    with pytest.raises(DataError) as error:
        load_task(spec, tmp_path)
    fix = "4 of 44 rows cannot be read: correct them, or set `bad_rows: skip` to leave them out."
    assert str(error.value).splitlines() == [*problems, fix]

    task = load_task(spec.with_bad_rows("skip"), tmp_path)
    assert task.skipped == tuple(problems)
    assert f"4 of 44 rows left out, the first: {problems[0]}" in task.notes
    write(tmp_path / f"good.{ending}", GOOD)
    good = load_task(TaskSpec(name="t", train=f"good.{ending}", labels=("x", "y")), tmp_path)
    assert task.fingerprint() == good.fingerprint()


def test_lines_that_are_not_json_and_rows_with_cells_too_many(tmp_path: Path) -> None:
    lines = [json.dumps(record) for record in GOOD]
    (tmp_path / "a.jsonl").write_text("\n".join([*lines[:3], "{broken", "[1]", *lines[3:]]))
    task = load_task(TaskSpec(name="t", train="a.jsonl", bad_rows="skip"), tmp_path)
    assert [problem.partition(": ")[0] for problem in task.skipped] == [
        f"{tmp_path / 'a.jsonl'}, line {n}" for n in (4, 5)
    ]
    table = write(tmp_path / "a.csv", GOOD)
    table.write_text(table.read_text() + "one,two,three\n")
    task = load_task(TaskSpec(name="t", train="a.csv", bad_rows="skip"), tmp_path)
    assert task.skipped == (f"{table}, line 42: 3 cells, the header has 2: quote the text.",)
    with pytest.raises(DataError, match=r"line 42: 3 cells, the header has 2: quote the text\.$"):
        load_task(TaskSpec(name="t", train="a.csv"), tmp_path)  # a single problem stands alone


def test_many_bad_rows_are_counted_and_a_file_of_nothing_else_is_refused(tmp_path: Path) -> None:
    write(
        tmp_path / "a.jsonl",
        [{"text": f"text {i}", "label": "xy"[i % 2]} if i % 2 else {"text": ""} for i in range(60)],
    )
    with pytest.raises(DataError, match=r"\.\.\. and 20 more\n30 of 60 rows cannot be read"):
        load_task(TaskSpec(name="t", train="a.jsonl", format="text-label", labels=("x", "y")), tmp_path)
    (tmp_path / "b.jsonl").write_text("broken\n" * 12)
    with pytest.raises(DataError, match=r"12 of 12 rows cannot be read"):
        load_task(TaskSpec(name="t", train="b.jsonl", bad_rows="skip"), tmp_path)


def test_sizes_bound_the_splits(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", GOOD)
    task = load_task(TaskSpec(name="t", train="a.jsonl", train_size=8, validation_size=4, test_size=2), tmp_path)
    assert (len(task.train), len(task.validation), len(task.test)) == (8, 4, 2)


def test_labels_by_number_get_their_names(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", [{"text": f"t {i}", "label": i % 2} for i in range(20)])
    task = load_task(TaskSpec(name="t", train="a.jsonl", labels=("bad", "good")), tmp_path)
    assert {example.label for example in task.train} == {"bad", "good"}
    assert all((int(e.text.split()[1]) % 2 == 1) == (e.label == "good") for e in task.train)


def test_label_texts_and_template(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", GOOD)
    task = load_task(
        TaskSpec(name="t", train="a.jsonl", labels={"x": "an x", "y": "a y"}, template="Q: {text}"), tmp_path
    )
    assert task.labels == {"x": "an x", "y": "a y"}
    assert task.prompt("hm") == "Q: hm"
    assert task.metric == "accuracy"


def test_free_texts_have_no_labels(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", [{"prompt": f"p {i}", "completion": f"c {i % 3}"} for i in range(20)])
    task = load_task(TaskSpec(name="t", train="a.jsonl"), tmp_path)
    assert (task.labels, task.metric) == ({}, "rouge-l")


def test_trace_answers_as_classes(tmp_path: Path) -> None:
    write(tmp_path / "a.json", [{"prompt": f"p {i}", "answer": "AB"[i % 2]} for i in range(20)])
    assert load_task(TaskSpec(name="t", train="a.json", labels=("A", "B")), tmp_path).metric == "accuracy"


def test_identical_validation_and_test_can_be_accepted_by_name(tmp_path: Path) -> None:
    write(tmp_path / "train.jsonl", GOOD)
    write(tmp_path / "test.jsonl", [{"text": "new 1", "label": "x"}, {"text": "new 2", "label": "y"}])
    spec = {"name": "t", "train": "train.jsonl", "validation": "test.jsonl", "test": "test.jsonl"}
    with pytest.raises(DataError, match=r"'t': validation and test hold the same 2 texts.*same_validation_and_test"):
        load_task(TaskSpec(**spec), tmp_path)  # type: ignore[arg-type]
    task = load_task(TaskSpec(**spec, same_validation_and_test=True), tmp_path)  # type: ignore[arg-type]
    assert {e.text for e in task.validation} == {e.text for e in task.test} == {"new 1", "new 2"}
    assert "validation is the test split, as accepted" in task.notes


def test_yaml_and_python_describe_the_same(tmp_path: Path) -> None:
    (tmp_path / "task.yaml").write_text("name: t\ntrain: a.jsonl\nlabels: {0: none, 1: 2}\n")
    assert read_task_spec(tmp_path / "task.yaml") == TaskSpec(name="t", train="a.jsonl", labels={"0": "none", "1": "2"})


def test_other_encodings_by_name(tmp_path: Path) -> None:
    lines = "".join(
        json.dumps({"text": f"café {i}", "label": "xy"[i % 2]}, ensure_ascii=False) + "\n" for i in range(20)
    )
    (tmp_path / "latin.jsonl").write_bytes(lines.encode("latin-1"))
    (tmp_path / "utf16.jsonl").write_bytes(lines.encode("utf-16"))
    (tmp_path / "bom.jsonl").write_bytes(lines.encode("utf-8-sig"))
    tasks = [
        load_task(TaskSpec(name="t", train=f"{name}.jsonl", encoding=encoding), tmp_path)
        for name, encoding in (("latin", "latin-1"), ("utf16", "utf-16"), ("bom", "utf-8"))
    ]
    assert len({task.fingerprint() for task in tasks}) == 1
    assert tasks[0].train[0].text.startswith("café ")


def test_a_line_may_hold_unusual_line_separators(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "one\u2028two\\u0085three", "label": "x"}\n', encoding="utf-8")
    assert read_rows(tmp_path / "a.jsonl")[0].fields["text"] == "one\u2028two\u0085three"


def test_very_long_csv_fields_are_read(tmp_path: Path) -> None:
    import csv

    before = csv.field_size_limit()
    write(tmp_path / "a.csv", [{"text": "long " * 40_000, "label": "x"}])
    assert len(read_rows(tmp_path / "a.csv")[0].fields["text"]) == 200_000
    assert csv.field_size_limit() == before


def test_texts_learnt_as_they_are_need_nothing_else(tmp_path: Path) -> None:
    rows = [{"text": f"story {i}", "label": "x"} if i % 2 else {"text": f"story {i}"} for i in range(20)]
    write(tmp_path / "a.jsonl", rows)
    task = load_task(TaskSpec(name="t", train="a.jsonl", metric="inverse-perplexity"), tmp_path)
    assert task.learns_text
    assert {example.label for example in (*task.train, *task.test)} == {""}
    write(tmp_path / "b.jsonl", [{"body": f"story {i}"} for i in range(20)])
    own = load_task(TaskSpec(name="t", train="b.jsonl", metric="inverse-perplexity", text_field="body"), tmp_path)
    assert own.train == task.train
    write(tmp_path / "c.jsonl", [{"prompt": f"p {i}", "completion": "c"} for i in range(20)])
    with pytest.raises(
        DataError, match=r"line 1: .*inverse-perplexity learns the texts.*'prompt', 'completion'.*`text_field`"
    ):
        load_task(TaskSpec(name="t", train="c.jsonl", metric="inverse-perplexity"), tmp_path)


INPUTS = {
    "the format that was told from the fields": ({}, {"instruction": "i", "text": "a", "label": "x"}, ("a", "x")),
    "the format that was named": ({"format": "text-label"}, {"messages": [], "text": "a", "label": "x"}, ("a", "x")),
    "and without labels": ({"format": "text-label"}, {"messages": [], "text": "a"}, ("a", None)),
    "prompts beside a text": ({}, {"text": "t", "prompt": "a", "completion": "b"}, ("a", "b")),
    "named, without answers": ({"format": "prompt-completion"}, {"text": "t", "prompt": "a"}, ("a", None)),
    "the label's own name": ({"label_field": "team"}, {"prompt": "p", "text": "a", "team": "x"}, ("a", "x")),
    "an instruction without answers": ({}, {"instruction": "i", "input": "a"}, ("i\n\na", None)),
}


@pytest.mark.parametrize("name", INPUTS)
def test_inputs_are_read_as_the_task_was(name: str) -> None:
    settings, record, expected = INPUTS[name]
    spec, row = TaskSpec(name="t", train="x", **settings), Row("here", record)
    assert input_format(spec, row).read_input(row) == expected


def test_several_inputs_are_no_guess() -> None:
    with pytest.raises(
        DataError, match=r"here: several inputs to answer, found the fields 'text', 'prompt'.*`text_field`"
    ):
        input_format(TaskSpec(name="t", train="x"), Row("here", {"text": "t", "prompt": "a"}))


def test_images_are_found_beside_their_data_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def images(folder: Path) -> Task:
        folder.mkdir()
        rows = [{"text": f"{i}.PNG", "label": "xy"[i % 2]} for i in range(20)]
        for i in range(20):
            (folder / f"{i}.PNG").write_bytes(bytes([i]))
        write(
            folder / "a.jsonl", [*rows, {"text": "missing.png", "label": "x"}, {"text": "0.PNG\nor so", "label": "y"}]
        )
        return load_task(TaskSpec(name="t", train=f"{folder.name}/a.jsonl"), folder.parent)

    monkeypatch.chdir(tmp_path)
    one, two = images(tmp_path / "one"), images(tmp_path / "two")
    texts = {example.text for split in (one.train, one.validation, one.test) for example in split}
    assert texts == {*(str(tmp_path / f"one/{i}.PNG") for i in range(20)), "missing.png", "0.PNG\nor so"}
    assert one.fingerprint() == two.fingerprint()  # wherever the folder lies
    (tmp_path / "two/0.PNG").write_bytes(b"other")
    assert one.fingerprint() != two.fingerprint()


BAD_FILES: dict[str, tuple[str, bytes | None, str]] = {
    "missing": ("a.jsonl", None, r"a\.jsonl does not exist; give the path"),
    "unknown kind": ("a.xlsx", b"x", r"a\.xlsx: unknown file type; known: \.jsonl"),
    "empty": ("a.jsonl", b"", r"a\.jsonl is empty"),
    "only blank lines": ("a.jsonl", b"\n \n", r"a\.jsonl holds no records"),
    "malformed line": ("a.jsonl", b'{"text": "a", "label": "x"}\n{"text": ', r"line 2: not valid JSON"),
    "line that is no object": ("a.jsonl", b'["a", "x"]\n', r"line 1: expected an object .* found list"),
    "bottomless nesting": ("a.jsonl", b"[" * 100_000, r"line 1: (nested too deeply|not valid JSON)"),
    "an endless number": (
        "a.jsonl",
        b'{"text": ' + b"9" * 5000 + b', "label": "x"}',
        "line 1: a number has more digits",
    ),
    "bottomless nesting in json": ("a.json", b"[" * 100_000, r"a\.json.*(nested too deeply|not valid JSON)"),
    "wrong byte": ("a.jsonl", b'{"text": "a", "label": "x"}\n{"text": "caf\xe9"}', r"line 2: byte 0xe9 is not UTF-8"),
    "utf-16 unsaid": ("a.jsonl", '{"text": "a"}'.encode("utf-16"), r"is UTF-16: save it as UTF-8"),
    "json lines named json": ("a.json", b'{"text": "a"}\n{"text": "b"}\n', r"Extra data.*name the file \.jsonl"),
    "json without a list": ("a.json", b'{"text": "a"}', r"must hold a list of records"),
    "json item": ("a.json", b'[{"text": "a", "label": "x"}, 3]', r"record 1: expected an object"),
    "csv with a short row": ("a.csv", b"text,label\na,x\nb\n", r"line 3: 1 cells, the header has 2"),
    "csv with a long row": ("a.csv", b"text,label\na, and b,x\n", r"line 2: 3 cells, the header has 2: quote"),
    "csv with an open quote": ("a.csv", b'text,label\n"a,x\n', r"not a valid table"),
    "csv with a name twice": ("a.csv", b"text,text\na,b\n", r"the header names 'text' twice"),
    "csv with a header only": ("a.csv", b"text,label\n", r"holds no records"),
    "not parquet": ("a.parquet", b"PAR1 or not", r"a\.parquet is not a valid Parquet file"),
    "half of the known fields": (
        "a.jsonl",
        b'{"text": "a", "team": "x"}',
        r"line 1: a field 'text' but no 'label', found 'text', 'team'.*`label_field`",
    ),
    "no known fields": (
        "a.jsonl",
        b'{"body": "a", "team": "x"}',
        r"line 1: no known fields, found 'body', 'team'.*text_field",
    ),
    "a field that goes missing": (
        "a.jsonl",
        b'{"text": "a", "label": "x"}\n{"text": "b"}',
        r"line 2: no field 'label', found 'text'",
    ),
    "empty text": ("a.jsonl", b'{"text": " ", "label": "x"}', r"line 1: field 'text' is empty"),
    "empty label": ("a.csv", b"text,label\na,\n", r"line 2: field 'label' is empty"),
    "null label": ("a.jsonl", b'{"text": "a", "label": null}', r"line 1: field 'label' is missing"),
    "list as label": ("a.jsonl", b'{"text": "a", "label": ["x"]}', r"'label' must be a string or an integer"),
    "fraction as label": ("a.jsonl", b'{"text": "a", "label": 0.5}', r"'label' must be a string or an integer"),
    "number as text": ("a.jsonl", b'{"text": 3, "label": "x"}', r"field 'text' must be a string, found int"),
    "chat without an answer": (
        "a.jsonl",
        b'{"messages": [{"role": "user", "content": "a"}]}',
        "line 1: a chat to learn from .* ends with the assistant",
    ),
    "message without a role": ("a.jsonl", b'{"messages": ["a", "b"]}', "line 1, message 0: expected"),
    "instruction with a list": (
        "a.jsonl",
        b'{"instruction": "i", "input": ["a"], "output": "b"}',
        r"field 'input' must be a string",
    ),
    "one class": ("a.jsonl", b'{"text": "a", "label": "x"}\n' * 3, r"only one class in train \('x'\)"),
    "too few": ("a.csv", b"text,label\na,x\nb,y\n", r"'t' has too few examples"),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_a_bad_file_is_named_with_its_place_and_remedy(tmp_path: Path, name: str) -> None:
    file, content, message = BAD_FILES[name]
    if content is not None:
        (tmp_path / file).write_bytes(content)
    with pytest.raises(DataError, match=f"(?s){message}"):
        load_task(TaskSpec(name="t", train=file), tmp_path)


def test_a_label_that_train_never_has_is_named_with_its_line(tmp_path: Path) -> None:
    write(tmp_path / "train.jsonl", GOOD)
    write(tmp_path / "test.jsonl", [{"text": "a", "label": "x"}, {"text": "b", "label": "z"}])
    with pytest.raises(DataError, match=r"test\.jsonl, line 2: label 'z' never occurs in train"):
        load_task(TaskSpec(name="t", train="train.jsonl", test="test.jsonl"), tmp_path)


def test_a_label_outside_the_given_ones_is_named_with_its_line(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", GOOD)
    with pytest.raises(DataError, match=r"a\.jsonl, line 2: label 'y' is not one of `labels` \(x, w\)"):
        load_task(TaskSpec(name="t", train="a.jsonl", labels=("x", "w")), tmp_path)


def test_texts_taken_for_classes_are_noticed(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", [{"text": f"t {i}", "label": f"answer {i}"} for i in range(80)])
    with pytest.raises(DataError, match=r"80 different labels in 80 training examples.*`free: true`"):
        load_task(TaskSpec(name="t", train="a.jsonl"), tmp_path)
    assert load_task(TaskSpec(name="t", train="a.jsonl", free=True), tmp_path).labels == {}


@pytest.mark.parametrize("name", ["../up", "a/b", "", ".hidden", "a b", "<b>", "a\x00"])
def test_a_name_that_is_no_file_name_is_refused(tmp_path: Path, name: str) -> None:
    write(tmp_path / "a.jsonl", GOOD)
    with pytest.raises(DataError, match="Invalid task name"):
        load_task(TaskSpec(name=name, train="a.jsonl"), tmp_path)


def test_hostile_texts_stay_texts(tmp_path: Path) -> None:
    hostile = ["<script>alert(1)</script>", "../../etc/passwd", "{text}", "%s", "\x1b[31m", "'; drop table x"]
    write(tmp_path / "a.jsonl", [{"text": f"{t} {i}", "label": t} for i in range(8) for t in hostile])
    task = load_task(TaskSpec(name="t", train="a.jsonl", template="Q: {text}"), tmp_path)
    assert set(task.labels) == set(hostile)
    assert task.prompt("{text} {0}") == "Q: {text} {0}"


BAD_SETTINGS: dict[str, tuple[str, str]] = {
    "unknown key": ("name: t\ntrain: a.jsonl\nlable_field: x\n", r"lable_field.*Did you mean 'label_field'"),
    "no source": ("name: t\n", "say where the examples come from"),
    "two sources": ("name: t\ndataset: a/b\npackage: {reader: vader}\n", "one of `train`"),
    "config without dataset": ("name: t\ntrain: a.jsonl\nconfig: x\n", "`config` belongs to `dataset`"),
    "package with files": ("name: t\npackage: {reader: vader}\ntest: a.jsonl\n", "brings its own splits"),
    "accepting what is not there": ("name: t\ntrain: a.jsonl\nsame_validation_and_test: true\n", "needs both splits"),
    "package with fields": (
        "name: t\npackage: {reader: vader}\ntext_field: a\n",
        "reads them itself: leave out text_field",
    ),
    "package read freely": ("name: t\npackage: {reader: vader}\nfree: false\n", "reads them itself: leave out free"),
    "package in an encoding": ("name: t\npackage: {reader: vader}\nencoding: latin-1\n", "leave out encoding"),
    "dataset in an encoding": ("name: t\ndataset: a/b\nencoding: latin-1\n", "not a text file: leave out encoding"),
    "format and fields": (
        "name: t\ntrain: a.jsonl\nformat: prompt-completion\ntext_field: a\n",
        "`free: true` if labels are free text: leave out format",
    ),
    "free texts with labels": (
        "name: t\ntrain: a.jsonl\nfree: true\nlabels: [a, b]\n",
        "not classes: leave out labels",
    ),
    "texts to learn with labels": (
        "name: t\ntrain: a.jsonl\nmetric: inverse-perplexity\nlabels: [a, b]\ntemplate: '{text}'\n",
        "learns the texts themselves: leave out labels, template",
    ),
    "unknown format": ("name: t\ntrain: a.jsonl\nformat: alpaca\n", "format"),
    "labels that YAML reads otherwise": ("name: t\ntrain: a.jsonl\nlabels: [true, false]\n", "put labels in quotes"),
    "no name": ("train: a.jsonl\n", "name"),
    "a list": ("- a\n", "key: value"),
    "no yaml": ("name: [\n", "not valid YAML"),
}


@pytest.mark.parametrize("name", BAD_SETTINGS)
def test_bad_settings_are_explained(tmp_path: Path, name: str) -> None:
    content, message = BAD_SETTINGS[name]
    (tmp_path / "task.yaml").write_text(content)
    with pytest.raises((ConfigError, DataError), match=f"(?s){message}"):
        read_task_spec(tmp_path / "task.yaml")


def test_missing_task_file() -> None:
    with pytest.raises(DataError, match=r"No such task file: 'nowhere\.yaml'"):
        read_task_spec("nowhere.yaml")


def test_unknown_encoding(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", GOOD)
    with pytest.raises(DataError, match="Unknown encoding 'utf-9'"):
        load_task(TaskSpec(name="t", train="a.jsonl", encoding="utf-9"), tmp_path)
    (tmp_path / "a.jsonl").write_bytes(b"caf\xe9")
    with pytest.raises(DataError, match="is not ascii: byte 3"):
        load_task(TaskSpec(name="t", train="a.jsonl", encoding="ascii"), tmp_path)


def test_a_package_source_with_wrong_settings() -> None:
    with pytest.raises(UnknownName, match=r"'vadre'.*'vader'"):
        load_task(TaskSpec(name="t", package={"reader": "vadre"}))
    with pytest.raises(UnknownName, match="package file"):
        load_task(TaskSpec(name="t", package={"reader": "folders", "asset": "nothing", "prefix": "x"}))
    with pytest.raises(ConfigError, match=r"settings do not fit reader 'folders': .*prefix"):
        load_task(TaskSpec(name="t", package={"reader": "folders", "asset": "vader"}))


def test_what_a_package_brings_is_used_or_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    pairs = [(f"text {i}", "AB"[i % 2]) for i in range(20)]
    pool = Pool(pairs, choices={text: ("one", "other") for text, _ in pairs})
    spec = TaskSpec(name="t", package={"reader": "made"}, labels=("A", "B"))
    monkeypatch.setattr(readers, "read_pool", lambda about: pool)
    task = load_task(spec)
    assert task.label_texts(task.train[0].text) == ("one", "other")
    pool.free = True
    with pytest.raises(DataError, match=r"'t': its package holds free text.*leave out `labels`"):
        load_task(spec)


def test_a_dataset_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["no", "yes"])})
    asked: list[tuple[str, str | None, str]] = []

    def load(name: str, config: str | None, split: str) -> datasets.Dataset:
        asked.append((name, config, split))
        size = {"train": 20, "test": 4}[split]
        columns = {"text": [f"{split} {i}" for i in range(size)], "label": [i % 2 for i in range(size)]}
        return datasets.Dataset.from_dict(columns, features=features)

    monkeypatch.setattr(datasets, "load_dataset", load)
    task = load_task(TaskSpec(name="t", dataset="org/set", config="c", test="test"))
    assert asked == [("org/set", "c", "train"), ("org/set", "c", "test")]
    assert list(task.labels) == ["no", "yes"]
    assert (len(task.train), len(task.validation), len(task.test)) == (16, 4, 4)


def test_a_dataset_that_cannot_be_had(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    def fail(*args: object, **kwargs: object) -> None:
        raise ConnectionError("no route")

    monkeypatch.setattr(datasets, "load_dataset", fail)
    with pytest.raises(FetchError, match=r"could not load 'org/set', split 'train': no route.*local files"):
        load_task(TaskSpec(name="t", dataset="org/set"))


def test_too_few_examples_say_where_they_went(tmp_path: Path) -> None:
    write(tmp_path / "all.jsonl", GOOD)
    with pytest.raises(
        DataError, match=r"40 to train on give 0 .*\(40 training texts removed that are also in the test split"
    ):
        load_task(TaskSpec(name="t", train="all.jsonl", test="all.jsonl"), tmp_path)
    write(tmp_path / "both.jsonl", [{**row, "label": label} for row in GOOD[:20] for label in "xy"])
    with pytest.raises(
        DataError,
        match=r"40 training rows with conflicting labels for the same text removed, .*line 1\). Correct the data",
    ):
        load_task(TaskSpec(name="t", train="both.jsonl"), tmp_path)


@pytest.mark.parametrize(
    ("name", "header", "message"),
    [
        ("a.csv", "text;label", r"separated by ';': save it with commas"),
        ("a.csv", "text\tlabel", r"separated by '\\t': name the file \.tsv"),
        ("a.tsv", "text,label", r"separated by ',': name the file \.csv"),
        ("a.tsv", "text;label", r"separated by ';': save it with commas"),
    ],
)
def test_another_separator_is_told(tmp_path: Path, name: str, header: str, message: str) -> None:
    (tmp_path / name).write_text(f"{header}\nwell, then;a\n")
    with pytest.raises(DataError, match=message):
        read_rows(tmp_path / name)


def test_fields_in_another_case_are_told() -> None:
    spec = TaskSpec(name="t", train="x.csv")
    with pytest.raises(DataError, match=r"Did you mean `text_field: Text` and `label_field: LABEL`\?"):
        choose_format(spec, Row("x", {"Text": "a", "LABEL": "b"}))
    with pytest.raises(DataError, match=r"Did you mean 'prompt' and 'completion'\?"):
        choose_format(spec, Row("x", {"Prompt": "a", "Completion": "b"}))
    row = Row("x", {"Text": "a", "label": "b"})
    with pytest.raises(DataError, match=r"no field 'text', found 'Text', 'label'\. Did you mean 'Text'\?"):
        choose_format(spec.model_copy(update={"label_field": "label"}), row).read(row)


@pytest.mark.parametrize(
    "value,problem,bad_rows",
    [(3, "must be a string, found int", "error"), (["a"], "must be a string, found list", "skip")],
)
def test_another_type_in_row_200_000_is_named(value: object, problem: str, bad_rows: str, tmp_path: Path) -> None:
    """Readers that guess types from the first rows lose such a row, or the file."""
    rows = [json.dumps({"text": f"text {i}", "label": "ab"[i % 2]}) for i in range(200_001)]
    rows[199_999] = json.dumps({"text": value, "label": "a"})
    (tmp_path / "a.jsonl").write_text("\n".join(rows))
    spec = TaskSpec(name="t", train=str(tmp_path / "a.jsonl"), bad_rows=bad_rows)  # type: ignore[arg-type]
    if bad_rows == "error":
        with pytest.raises(DataError, match=f"line 200000: field 'text' {problem}"):
            load_task(spec)
        return
    task = load_task(spec)
    assert len(task.train) + len(task.validation) + len(task.test) == 200_000
    assert task.skipped[0].startswith(f"{tmp_path}/a.jsonl, line 200000: field 'text' {problem}")


def test_a_data_file_alone_is_a_task_named_after_it(tmp_path: Path) -> None:
    """What `perdure add RUN tickets.csv` reads: the same as its YAML file says, and a bad row is an error as there."""
    rows = [f"please help with parcel {i},{('sales', 'support')[i % 2]}" for i in range(40)]
    file = tmp_path / "tickets.csv"
    file.write_text("\n".join(["message,team", *rows]))
    described = {"name": "tickets", "train": str(file), "text_field": "message", "label_field": "team"}
    assert load_task(str(file)) == load_task(described)
    file.write_text("\n".join(["message,team", *rows, ",sales"]))
    with pytest.raises(DataError, match=r"line 42: field 'message' is empty"):
        load_task(file)
    with pytest.raises(DataError, match=r"gone\.jsonl does not exist"):
        load_task(tmp_path / "gone.jsonl")


@pytest.mark.parametrize("labels,problem", [("a", "only one class"), ("", "look like free text")])
def test_a_data_file_alone_is_not_guessed_to_be_free_text(tmp_path: Path, labels: str, problem: str) -> None:
    """A month of one class, or of more classes than its rows can tell: what it is has to be said."""
    file = tmp_path / "tickets.jsonl"
    rows = [{"text": f"parcel {i}", "label": labels or f"team {i}"} for i in range(80)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(DataError, match=problem):
        load_task(file)


def test_json_may_hold_records_or_a_tasks_settings(tmp_path: Path) -> None:
    records = [{"text": f"a text {i}", "label": "ab"[i % 2]} for i in range(40)]
    data, settings = tmp_path / "records.json", tmp_path / "task.json"
    data.write_text(json.dumps(records))
    settings.write_text(json.dumps({"name": "records", "train": "records.json"}))
    assert load_task(data) == load_task(settings)


@pytest.mark.parametrize("setting,name", [("text_field", "mesage"), ("label_field", "teem")])
def test_a_named_field_that_no_row_has_is_one_error(tmp_path: Path, setting: str, name: str) -> None:
    file = tmp_path / "tickets.csv"
    file.write_text("\n".join(["message,team", *(f"parcel {i},{('sales', 'support')[i % 2]}" for i in range(40))]))
    described = {"name": "t", "train": str(file), "text_field": "message", "label_field": "team", setting: name}
    meant = {"text_field": "message", "label_field": "team"}[setting]
    with pytest.raises(
        DataError, match=rf"line 2: no field '{name}'.*found 'message', 'team'\. Did you mean .*{meant}"
    ) as error:
        load_task(described)
    assert "line 3" not in str(error.value)
