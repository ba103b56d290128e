"""The layouts of published benchmarks, on small folders with invented contents."""

import json
from pathlib import Path
from typing import Any

import pytest

from perdure.errors import DataError, MissingTask
from perdure.tasks.sources.benchmarks import read_cl_benchmark
from perdure.tasks.sources.cl_benchmark_hub import HUB_FORMS
from perdure.tasks.suites import describe, load_suite


def write_cl(root: Path, path: str, labels: list[str], *, same: bool = True, per_label: int = 12) -> Path:
    """One task in CL_Benchmark's layout, with invented sentences."""
    folder = root / path
    folder.mkdir(parents=True)

    def rows(split: str) -> list[dict[str, str]]:
        return [{"label": n, "sentence": f"{path} {split} {n} {i}"} for i in range(per_label) for n in labels]

    contents: dict[str, Any] = {"train": rows("train"), "test": rows("test"), "labels": labels}
    contents["dev"] = contents["test"] if same else rows("dev")
    for name, content in contents.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    return folder


@pytest.fixture
def standard(tmp_path: Path) -> Path:
    for about in describe("standard-cl")["tasks"].values():
        write_cl(tmp_path, about["source"]["path"], about["labels"])
    return tmp_path


def test_standard_suite_from_its_layout(standard: Path) -> None:
    suite = load_suite("standard-cl", order=2, data=standard)
    assert [task.name for task in suite.tasks] == ["dbpedia", "amazon", "agnews", "yahoo"]
    agnews = suite.tasks[2]
    assert (len(agnews.train), len(agnews.validation), len(agnews.test)) == (39, 9, 48)
    assert list(agnews.labels) == ["World", "Sports", "Business", "Science or Technology"]
    assert agnews.prompt("X").endswith("Option: World, Sports, Business, Science or Technology \nX\nAnswer:")
    assert suite.warnings[0] == (
        "dbpedia, amazon, agnews, yahoo: dev.json is identical to test.json: validation is cut from train.json instead"
    )


def test_the_environment_names_the_folder(standard: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PERDURE_CL_BENCHMARK", str(standard))
    assert len(load_suite("standard-cl").tasks) == 4


def test_no_folder_given_or_a_wrong_one_says_what_is_expected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PERDURE_CL_BENCHMARK", raising=False)
    with pytest.raises(DataError, match=r"PERDURE_CL_BENCHMARK.*<TYPE>/<dataset>/"):
        load_suite("standard-cl")
    with pytest.raises(DataError, match="No such folder"):
        load_suite("standard-cl", data=tmp_path / "nowhere")
    with pytest.raises(DataError, match=r"holds none of the tasks of suite 'standard-cl'. Expected layout: <TYPE>"):
        load_suite("standard-cl", data=tmp_path)


def test_a_missing_task_is_left_out_and_said(standard: Path) -> None:
    for file in (standard / "TC/yahoo").iterdir():
        file.unlink()
    (standard / "TC/yahoo").rmdir()
    suite = load_suite("standard-cl", data=standard)
    assert [task.name for task in suite.tasks] == ["dbpedia", "amazon", "agnews"]
    assert any(w.startswith("yahoo: left out, not found: folder TC/yahoo in") for w in suite.warnings)


def test_unlabelled_rows_go_and_are_counted(tmp_path: Path) -> None:
    folder = write_cl(tmp_path, "NLI/MNLI", ["neutral", "entailment"])
    rows = json.loads((folder / "test.json").read_text())
    for name in ("test", "dev"):
        (folder / f"{name}.json").write_text(json.dumps([*rows, {"label": "-", "sentence": "undecided"}]))
    pool = read_cl_benchmark(tmp_path, path="NLI/MNLI", labels=["entailment", "neutral"])
    assert pool.test is not None
    assert len(pool.test) == 24
    assert pool.notes[0] == "1 unlabelled rows ('-') of test.json removed"


def test_a_real_dev_split_is_the_validation_split(tmp_path: Path) -> None:
    write_cl(tmp_path, "SC/IMDB", ["Good", "Bad"], same=False)
    pool = read_cl_benchmark(tmp_path, path="SC/IMDB", labels=["Good", "Bad"])
    assert pool.validation is not None
    assert pool.validation[0] == ("SC/IMDB dev Good 0", "Good")
    assert pool.notes == []


def test_copa_knows_each_texts_alternatives(tmp_path: Path) -> None:
    folder = write_cl(tmp_path, "COPA/COPA", ["A", "B"])
    text = 'Which sentence is the effect of "He sang."? Choose one between A and B.\nA: They left.\nB: It rained.'
    (folder / "train.json").write_text(json.dumps([{"label": "A", "sentence": text}]))
    pool = read_cl_benchmark(tmp_path, path="COPA/COPA", labels=["A", "B"])
    assert pool.choices == {text: ("They left.", "It rained.")}


def test_sentences_are_verbatim(tmp_path: Path) -> None:
    folder = write_cl(tmp_path, "SC/SST-2", ["Good", "Bad"])
    (folder / "train.json").write_text(json.dumps([{"label": "Bad", "sentence": "Text: {0} a\\n joy . \n"}]))
    pool = read_cl_benchmark(tmp_path, path="SC/SST-2", labels=["Good", "Bad"])
    assert pool.train == [("Text: {0} a\\n joy . \n", "Bad")]


@pytest.mark.parametrize(
    "file,content,message",
    [
        ("train.json", None, r"train\.json is missing"),
        ("train.json", '[{"label": "Good",\n oops', r"train\.json, line 2: not valid JSON"),
        ("train.json", '{"data": []}', r"must be a list .* found dict"),
        ("train.json", '[{"label": "Good"}]', r"train\.json, row 0: expected"),
        ("test.json", '[{"label": "Fine", "sentence": "x"}]', r"test\.json, row 0: label 'Fine'"),
        ("labels.json", '["Good", "Poor"]', r"labels\.json lists .*Poor.* expects .*Bad"),
        ("labels.json", '{"Good": 1}', r"labels\.json must be a list of label names"),
    ],
)
def test_wrong_files_are_named(tmp_path: Path, file: str, content: str | None, message: str) -> None:
    folder = write_cl(tmp_path, "SC/IMDB", ["Good", "Bad"])
    if content is None:
        (folder / file).unlink()
    else:
        (folder / file).write_text(content)
    with pytest.raises(DataError, match=message):
        read_cl_benchmark(tmp_path, path="SC/IMDB", labels=["Good", "Bad"])


def test_not_utf8_is_named(tmp_path: Path) -> None:
    folder = write_cl(tmp_path, "SC/IMDB", ["Good", "Bad"])
    (folder / "train.json").write_bytes(b'[{"label": "Good", "sentence": "caf\xe9"}]')
    with pytest.raises(DataError, match=r"train\.json is not UTF-8"):
        read_cl_benchmark(tmp_path, path="SC/IMDB", labels=["Good", "Bad"])


def test_missing_folder_is_an_error_of_its_own(tmp_path: Path) -> None:
    with pytest.raises(MissingTask, match="not found: folder TC/agnews"):
        read_cl_benchmark(tmp_path, path="TC/agnews", labels=["World"])


def test_trace_layout(tmp_path: Path) -> None:
    folder = tmp_path / "FOMC"
    folder.mkdir()
    for split in ("train", "eval", "test"):
        rows = [{"prompt": f"{split} {i}?", "answer": "ABC"[i % 3]} for i in range(6)]
        (folder / f"{split}.json").write_text(json.dumps(rows))
    suite = load_suite("trace", data=tmp_path, order="FOMC,20Minuten")
    [task] = suite.tasks
    assert (len(task.train), len(task.validation), len(task.test), task.metric) == (6, 6, 6, "trace-exact-match")
    assert task.prompt("eval 0?") == "eval 0?"
    assert suite.warnings == (f"20Minuten: left out, not found: folder 20Minuten in {tmp_path}",)


@pytest.mark.parametrize(
    "content,message",
    [('{"prompt": "a"}', "must be a list"), ('[{"prompt": "a", "answer": 3}]', "row 0: expected")],
)
def test_wrong_trace_files_are_named(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "FOMC").mkdir()
    (tmp_path / "FOMC/train.json").write_text(content)
    with pytest.raises(DataError, match=rf"train\.json.*{message}"):
        load_suite("trace", data=tmp_path, order="FOMC")


def hub_stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every set of the hub, with invented rows in the fields its form names."""
    import re

    import datasets

    def load(name: str, config: str | None, split: str) -> datasets.Dataset:
        path, form = next((p, f) for p, f in HUB_FORMS.items() if (f.dataset, f.config) == (name, config))
        [known] = [t["labels"] for t in describe("long")["tasks"].values() if t["source"]["path"] == path]
        assert split in ("train", form.test)
        count, fields = 3 * len(known), re.findall(r"{(\w+)}", form.text)
        columns: dict[str, Any] = {field: [f"{split} {field} {i}" for i in range(count)] for field in fields}
        columns[form.label] = [i % len(known) for i in range(count)]
        return datasets.Dataset.from_dict(columns)

    monkeypatch.setattr(datasets, "load_dataset", load)


def test_all_fifteen_from_the_hub_in_the_papers_words(monkeypatch: pytest.MonkeyPatch) -> None:
    hub_stand_in(monkeypatch)
    suite = load_suite("long", data="hub")
    assert len(suite.tasks) == 15
    by_name = {task.name: task for task in suite.tasks}
    for name, about in describe("long")["tasks"].items():
        names = HUB_FORMS[about["source"]["path"]].names
        assert not names or set(names) == set(about["labels"])
        assert {e.label for e in by_name[name].train} <= set(about["labels"])
    dbpedia = by_name["dbpedia"]
    first = next(e for e in (*dbpedia.train, *dbpedia.validation, *dbpedia.test) if e.text.endswith(" 13"))
    assert first.label == "Written Work"
    rte = by_name["RTE"]
    assert rte.test[0].text.startswith("sentence 1: validation premise ")
    assert rte.prompt("X").endswith("Option: contradiction, entailment \nX\nAnswer:")
    copa = by_name["COPA"]
    i = copa.train[0].text.split()[-1]
    assert copa.label_texts(copa.train[0].text) == (f"train choice1 {i}", f"train choice2 {i}")
    assert any("from the hub: other samples than the papers' files" in warning for warning in suite.warnings)


def test_the_hub_is_read_only_when_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PERDURE_TRACE", raising=False)
    monkeypatch.delenv("PERDURE_CL_BENCHMARK", raising=False)
    with pytest.raises(DataError, match="or to hub, to read the same sets from there"):
        load_suite("standard-cl")
    with pytest.raises(DataError, match="No such folder: hub"):
        load_suite("trace", data="hub")


@pytest.mark.parametrize(
    "columns,message",
    [({"text": ["a"], "label": [7]}, "label 7 is not a number from 0 to 3"), ({"label": [0]}, "no field 'text'")],
)
def test_other_fields_on_the_hub_are_named(
    monkeypatch: pytest.MonkeyPatch, columns: dict[str, Any], message: str
) -> None:
    import datasets

    monkeypatch.setattr(datasets, "load_dataset", lambda *a, **k: datasets.Dataset.from_dict(columns))
    with pytest.raises(DataError, match=rf"fancyzhx/ag_news, train 0: {message}"):
        load_suite("standard-cl", data="hub", order="agnews")


def write_glue(root: Path, config: str, fields: dict[str, str], labels: list[object], test: str) -> None:
    (root / config).mkdir()
    for split in ("train", test):
        lines = [
            json.dumps(
                {name: f"{split} {text} {i}" for name, text in fields.items()} | {"label": labels[i % len(labels)]}
            )
            for i in range(30)
        ]
        (root / config / f"{split}.jsonl").write_text("\n".join(lines))


def test_glue_from_local_files(tmp_path: Path) -> None:
    write_glue(tmp_path, "sst2", {"sentence": "s"}, [0, 1], "validation")
    write_glue(tmp_path, "mnli", {"premise": "p", "hypothesis": "h"}, ["neutral", 2, 0], "validation_matched")
    suite = load_suite("glue", data=tmp_path, order="sst2,mnli")
    sst2, mnli = suite.tasks
    assert {e.label for e in sst2.train} == {"negative", "positive"}
    assert {e.label for e in mnli.test} == {"neutral", "contradiction", "entailment"}
    assert mnli.test[0].text.startswith("premise: validation_matched p ")
    assert len(mnli.test) == 30


@pytest.mark.parametrize(
    "record,message",
    [({"text": "a", "label": 0}, "no field 'sentence'"), ({"sentence": "a", "label": -1}, "label '-1' is not one of")],
)
def test_wrong_glue_records_are_named(tmp_path: Path, record: dict[str, object], message: str) -> None:
    (tmp_path / "sst2").mkdir()
    (tmp_path / "sst2/train.jsonl").write_text(json.dumps(record))
    with pytest.raises(DataError, match=rf"train\.jsonl, line 1: {message}"):
        load_suite("glue", data=tmp_path, order="sst2")


def test_glue_from_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    names = datasets.ClassLabel(names=["negative", "positive"])
    features = datasets.Features({"sentence": datasets.Value("string"), "label": names})

    def load(name: str, config: str, split: str) -> datasets.Dataset:
        assert (name, config) == ("nyu-mll/glue", "sst2")
        columns = {"sentence": [f"{split} {i}" for i in range(20)], "label": [i % 2 for i in range(20)]}
        return datasets.Dataset.from_dict(columns, features=features)

    monkeypatch.setattr(datasets, "load_dataset", load)
    monkeypatch.delenv("PERDURE_GLUE", raising=False)
    [task] = load_suite("glue", order="sst2").tasks
    assert (len(task.train), len(task.validation), len(task.test)) == (16, 4, 20)
    assert task.labels == {"negative": "negative", "positive": "positive"}
