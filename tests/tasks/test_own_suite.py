"""Suites of your own: a YAML file, with tasks from files or from the package's readers."""

import json
from pathlib import Path

import pytest

from perdure.errors import ConfigError, DataError, UnknownName
from perdure.settings.read import validate
from perdure.tasks import suites
from perdure.tasks.own_suite import SourceTask
from perdure.tasks.pool import Pool
from perdure.tasks.sources import readers
from perdure.tasks.suites import describe, load_suite

SUITE = """
name: mine
tasks:
  letters: {train: letters.jsonl}
  numbers: {train: numbers.jsonl, labels: {"0": none, "1": one}}
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, labels in (("letters", "xy"), ("numbers", "01")):
        lines = [json.dumps({"text": f"{name} {i}", "label": labels[i % 2]}) for i in range(40)]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines))
    (tmp_path / "mine.yaml").write_text(SUITE)
    return tmp_path


def test_tasks_from_files_beside_the_suite(folder: Path) -> None:
    suite = load_suite(str(folder / "mine.yaml"), train=8, test=4)
    assert [task.name for task in suite.tasks] == ["letters", "numbers"]
    assert [len(task.train) for task in suite.tasks] == [8, 8]
    assert suite.tasks[1].labels == {"0": "none", "1": "one"}
    assert (suite.order, suite.version) == ("default", 1)
    other = load_suite(str(folder / "mine.yaml"), train=8, test=4, seed=1)
    assert suite.tasks[0].fingerprint() != other.tasks[0].fingerprint()


def test_orders_and_sizes(folder: Path) -> None:
    extra = "sizes: {train: 10, validation: 2, test: 5}\norders: {back: [numbers, letters]}\n"
    (folder / "mine.yaml").write_text(SUITE + extra)
    [first, _] = load_suite(str(folder / "mine.yaml")).tasks
    assert (first.name, len(first.train), len(first.validation), len(first.test)) == ("numbers", 10, 2, 5)


def test_tasks_of_another_suite_may_be_used(folder: Path) -> None:
    taken = "tasks_of: {quickstart: [bbc]}\n"
    (folder / "mine.yaml").write_text(SUITE + taken)
    about = describe(str(folder / "mine.yaml"))
    assert about["orders"] == {"default": ["letters", "numbers", "bbc"]}
    assert about["tasks"]["bbc"] == describe("quickstart")["tasks"]["bbc"]
    for wrong, message in (("[bcc]", "bcc.*bbc"), ("[letters]", "letters.*quickstart|task of suite 'quickstart'")):
        (folder / "mine.yaml").write_text(SUITE.replace("letters:", "other:") + taken.replace("[bbc]", wrong))
        with pytest.raises(UnknownName, match=f"(?s){message}"):
            describe(str(folder / "mine.yaml"))
    (folder / "mine.yaml").write_text(SUITE.replace("letters:", "bbc:") + taken)
    with pytest.raises(ConfigError, match="bbc is in tasks or tasks_of more than once"):
        describe(str(folder / "mine.yaml"))


def test_more_than_fifteen_tasks() -> None:
    about = describe("text-24")
    assert about["data"]["variable"] == "PERDURE_CL_BENCHMARK"
    assert all(sorted(order) == sorted(about["tasks"]) and len(order) == 24 for order in about["orders"].values())


def test_tasks_taken_from_a_suite_stay_without_near_repeats(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: dict[str, bool] = {}

    def draw(pool: Pool, *, name: str, near: bool, **_: object) -> Pool:
        drawn[name] = near
        return Pool([("a text", label := pool.train[0][1])], [("another", label)])

    monkeypatch.setattr(suites, "draw", draw)
    monkeypatch.setattr(readers, "read_pool", lambda about, **_: Pool([("a", next(iter(about["labels"])))]))
    monkeypatch.setenv("PERDURE_CL_BENCHMARK", str(Path(__file__).parent))
    nine = {*describe("text-24")["tasks_of"]["text-10"]}
    ten = {*describe("text-10")["tasks"]}
    for suite, near in (
        ("text-24", nine),
        ("text-10", ten),
        ("quickstart", set()),
        ("long", set()),
        ("standard-cl", set()),
    ):
        drawn.clear()
        assert len(load_suite(suite).tasks) == len(drawn)
        assert {name for name, removed in drawn.items() if removed} == near


@pytest.mark.parametrize("of_suite,of_task,removed", [("true", "", 1), ("false", "true", 1), ("true", "false", 0)])
def test_near_repeats_leave_tasks_of_files_too(folder: Path, of_suite: str, of_task: str, removed: int) -> None:
    long = [" ".join(f"{i}word{n}" for n in range(30)) for i in range(40)]
    rows = [{"text": text, "label": "xy"[i % 2]} for i, text in enumerate([*long, f"{long[0]} more"])]
    (folder / "letters.jsonl").write_text("\n".join(map(json.dumps, rows)))
    own = f", without_near_repeats: {of_task}" if of_task else ""
    (folder / "mine.yaml").write_text(
        f"name: mine\nwithout_near_repeats: {of_suite}\ntasks: {{letters: {{train: letters.jsonl{own}}}}}\n"
    )
    [task] = load_suite(str(folder / "mine.yaml")).tasks
    assert len({*task.train, *task.validation, *task.test}) == 41 - removed
    assert ("1 near-duplicate texts removed" in task.notes) == bool(removed)


def test_readers_of_the_package_may_be_used(folder: Path) -> None:
    (folder / "FOMC").mkdir()
    for split in ("train", "eval", "test"):
        rows = [{"prompt": f"{split} {i}", "answer": "AB"[i % 2]} for i in range(8)]
        (folder / f"FOMC/{split}.json").write_text(json.dumps(rows))
    (folder / "own.yaml").write_text(
        "name: own\ndata: {variable: NONE_SUCH, layout: folders, origin: me}\n"
        "tasks:\n  fomc: {source: {reader: trace, path: FOMC}, metric: exact-match}\n"
    )
    [task] = load_suite(str(folder / "own.yaml"), data=folder).tasks
    assert (task.metric, len(task.test)) == ("exact-match", 8)


@pytest.mark.parametrize(
    "content,message",
    [
        ("name: x\n", "a suite needs tasks, or tasks_of another one"),
        ("name: x\ntasks: {}\n", "a suite needs tasks, or tasks_of another one"),
        ("name: x\ntask: {}\ntasks: {a: {train: a.jsonl}}\n", "Did you mean 'tasks'"),
        ("name: x\norders: {1: [b]}\ntasks: {a: {train: a.jsonl}}\n", "order 1 names b"),
        ("name: [", "not valid YAML"),
        (
            "name: x\nsizes: {test: 0}\ntasks: {a: {train: a.jsonl}}\n",
            "sizes.test: should be greater than or equal to 1",
        ),
    ],
)
def test_wrong_files_are_explained(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "x.yaml").write_text(content)
    with pytest.raises((ConfigError, DataError), match=f"(?s)x.yaml.*{message}"):
        describe(str(tmp_path / "x.yaml"))


def test_a_data_folder_that_nothing_is_read_from_is_refused(folder: Path) -> None:
    for suite in (str(folder / "mine.yaml"), "quickstart"):
        with pytest.raises(ConfigError, match="needs no data folder: leave out `data`"):
            load_suite(suite, data=folder)


@pytest.mark.parametrize(
    "own,tasks_of,folders",
    [
        ("", "{long: [yelp], trace: [FOMC]}", "'trace'.*in PERDURE_TRACE, others from the one in PERDURE_CL_BENCHMARK"),
        (
            "data: {variable: MINE, layout: folders, origin: me}\n",
            "{long: [yelp]}",
            "'long'.*others from the one in MINE",
        ),
    ],
)
def test_tasks_from_two_data_folders_are_refused(folder: Path, own: str, tasks_of: str, folders: str) -> None:
    path = folder / "mine.yaml"
    path.write_text(f"{SUITE}{own}tasks_of: {tasks_of}\n")
    with pytest.raises(ConfigError, match=f"tasks of {folders}.*make two suites"):
        describe(str(path))
    path.write_text(SUITE + "tasks_of: {long: [yelp], text-24: [RTE, bbc]}\n")  # one folder, and a package
    assert describe(str(path))["data"]["variable"] == "PERDURE_CL_BENCHMARK"


def test_a_wrong_task_is_named(folder: Path) -> None:
    (folder / "mine.yaml").write_text(SUITE.replace("train: letters", "trian: letters"))
    with pytest.raises(ConfigError, match=r"task letters:(.|\n)*trian.*Did you mean 'train'"):
        load_suite(str(folder / "mine.yaml"))


SOURCE = "source: {reader: vader, asset: vader, labels: true}"


@pytest.mark.parametrize(
    "task,message",
    [
        (f"{SOURCE}, lables: [a, b]", "'lables'.*Did you mean 'labels'"),
        (SOURCE, "`labels: true`, so its reader needs the task's `labels`"),
        ("source: vader", r"source: expected settings, as in \{key: value\}"),
        ("source: {asset: vader}", "source.reader: is missing"),
        (f"{SOURCE}, labels: [true, false]", "put labels in quotes"),
        ("trian: x.jsonl", "'trian'.*Did you mean 'train'"),
        ("train: x.jsonl, folder: y", "'folder'"),
    ],
)
def test_wrong_tasks_are_named_when_the_file_is_read(tmp_path: Path, task: str, message: str) -> None:
    (tmp_path / "x.yaml").write_text(f"name: x\ntasks:\n  some: {{{task}}}\n")
    with pytest.raises(ConfigError, match=f"(?s)x.yaml: task some: .*{message}"):
        describe(str(tmp_path / "x.yaml"))


@pytest.mark.parametrize("name", suites.suite_names())
def test_every_task_of_the_package_is_a_source_task(name: str) -> None:
    for task in describe(name)["tasks"].values():
        assert validate(SourceTask, task).source.reader in readers.READERS


def test_labels_that_are_numbers_are_texts(tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_text(f"name: x\ntasks:\n  some: {{{SOURCE}, labels: [0, 1]}}\n")
    assert describe(str(tmp_path / "x.yaml"))["tasks"]["some"]["labels"] == ("0", "1")


def test_a_suite_takes_no_tasks_of_a_file(folder: Path) -> None:
    path = folder / "mine.yaml"
    path.write_text(f"{SUITE}tasks_of: {{'{path}': [bbc]}}\n")
    with pytest.raises(UnknownName, match=r"Unknown built-in suite: .*mine\.yaml.*Known: .*quickstart"):
        describe(str(path))


def test_missing_suite_file() -> None:
    with pytest.raises(DataError, match=r"No such suite file: 'nowhere\.yaml'"):
        describe("nowhere.yaml")
