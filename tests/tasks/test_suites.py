"""Suite descriptions hold together; the quickstart's real data is what it says it is."""

import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from perdure.errors import ConfigError, DataError, UnknownName
from perdure.tasks import suites
from perdure.tasks.pool import Pool
from perdure.tasks.sources import readers
from perdure.tasks.sources.assets import ASSETS
from perdure.tasks.suites import describe, load_suite, suite_names

LABELS = {"x": "the letter x", "y": "the letter y"}


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """A suite 'small' of two invented tasks."""
    about = {
        "name": "small",
        "version": 3,
        "sizes": {"train": 8, "validation": 4, "test": 4},
        "orders": {"default": ["one", "two"], 2: ["two", "one"]},
        "tasks": {
            n: {"source": {"reader": "made", "asset": "none", "tag": n}, "labels": LABELS} for n in ("one", "two")
        },
    }
    pairs = {tag: [(f"{tag} {i}", "xy"[i % 2]) for i in range(40)] for tag in ("one", "two")}
    monkeypatch.setattr(suites, "suite_names", lambda: ("small",))
    monkeypatch.setattr(suites, "_description", lambda name: about)
    monkeypatch.setitem(readers.READERS, "made", lambda path, tag: Pool(pairs[tag], notes=["invented"]))
    monkeypatch.setattr(readers, "package_file", lambda asset: None)


@pytest.mark.parametrize("name", suite_names())
def test_description_is_whole(name: str) -> None:
    about = describe(name)
    assert about["name"] == name
    assert about["version"] >= 1
    assert set(about["sizes"]) == {"train", "validation", "test"}
    for order in about["orders"].values():
        assert set(order) <= set(about["tasks"])
        assert len(set(order)) == len(order)
    for task in about["tasks"].values():
        assert task["licence"]
        assert task["source"]["reader"] in readers.READERS
        assert task["source"].get("asset") in {None, *ASSETS}
        labels = task.get("labels", [])
        labels = labels if isinstance(labels, dict) else {label: label for label in labels}
        assert all(isinstance(key, str) and isinstance(text, str) and text for key, text in labels.items())
        assert len(set(labels.values())) == len(labels)


def test_sizes_order_and_label_texts(small: None) -> None:
    suite = load_suite("small")
    assert [task.name for task in suite.tasks] == ["one", "two"]
    assert [len(suite.tasks[0].train), len(suite.tasks[0].validation), len(suite.tasks[0].test)] == [8, 4, 4]
    assert suite.tasks[0].labels == LABELS
    assert Counter(example.label for example in suite.tasks[0].train) == {"x": 4, "y": 4}
    assert suite.warnings == ("one, two: invented",)
    assert suite.version == 3


@pytest.mark.parametrize("order", [2, "2", "two,one", ["two", "one"]])
def test_orders_by_name_and_by_tasks(small: None, order: object) -> None:
    assert [task.name for task in load_suite("small", order=order).tasks] == ["two", "one"]  # type: ignore[arg-type]


def test_same_seed_same_data_whatever_the_order(small: None) -> None:
    one, two = load_suite("small", seed=1), load_suite("small", order="2", seed=1)
    assert [task.fingerprint() for task in one.tasks] == [task.fingerprint() for task in reversed(two.tasks)]
    other = load_suite("small", seed=2)
    assert all(a.fingerprint() != b.fingerprint() for a, b in zip(one.tasks, other.tasks, strict=True))


def test_wrong_names_and_sizes_say_what_is_known(small: None) -> None:
    with pytest.raises(UnknownName, match="small"):
        load_suite("smal")
    with pytest.raises(UnknownName, match="order of suite 'small'"):
        load_suite("small", order="7")
    with pytest.raises(UnknownName, match=r"'tow'.*'two'"):
        load_suite("small", order="one,tow")
    with pytest.raises(ConfigError, match="train size is 0"):
        load_suite("small", train=0)


def test_descriptions_need_no_heavy_import() -> None:
    code = (
        "import sys; from perdure.tasks.suites import suite_names, describe; [describe(n) for n in suite_names()]; "
        "print(sorted({'torch', 'transformers', 'pandas', 'datasets', 'requests'} & set(sys.modules)))"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert shown.strip() == "[]"


@pytest.mark.package_data
def test_quickstart_is_what_it_says() -> None:
    suite = load_suite("quickstart")
    assert [task.name for task in suite.tasks] == ["amazon", "bbc", "r8", "rotten-tomatoes", "20newsgroups"]
    for task in suite.tasks:
        assert (len(task.train), len(task.validation), len(task.test)) == (256, 128, 500)
        assert {example.label for example in task.train} == set(task.labels)
        texts = [" ".join(e.text.split()).casefold() for s in (task.train, task.validation, task.test) for e in s]
        assert len(set(texts)) == len(texts)
    assert "r8: 4 training texts removed that are also in the test split" in suite.warnings


@pytest.mark.package_data
@pytest.mark.parametrize(
    "task,train,test,classes",
    [
        ("amazon", 2985, None, 2),
        ("bbc", 2225, None, 5),
        ("r8", 5485, 2189, 8),
        ("rotten-tomatoes", 12808, None, 2),
        ("20newsgroups", 11293, 7528, 20),
    ],
)
def test_package_files_hold_the_published_numbers(task: str, train: int, test: int | None, classes: int) -> None:
    about = describe("quickstart")["tasks"][task]
    pool = readers.read_pool(about)
    assert len(pool.train) == train
    assert (len(pool.test) if pool.test else None) == test
    assert {label for _, label in pool.train} == set(about["labels"])
    assert len(about["labels"]) == classes


def test_the_page_names_every_suite_and_variable() -> None:
    page = (Path(__file__).parents[2] / "docs/suites.md").read_text(encoding="utf-8")
    for name in suite_names():
        assert f"| `{name}` |" in page
        assert describe(name).get("data", {"variable": ""})["variable"] in page


@pytest.mark.parametrize("name", [name for name in suite_names() if "data" in describe(name)])
def test_a_wrong_folder_says_what_was_expected(name: str, tmp_path: Path) -> None:
    (tmp_path / "something else.txt").write_text("no benchmark")
    with pytest.raises(DataError, match=f"{tmp_path} holds none of the tasks") as caught:
        load_suite(name, data=tmp_path)
    about = describe(name)["data"]
    assert f"Expected layout: {about['layout']}" in str(caught.value)
    assert about["origin"] in str(caught.value)
