"""The report's content, without a browser: numbers, text, files, errors."""

from __future__ import annotations

import json
import re
import sys
from dataclasses import dataclass
from functools import cached_property
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from perdure.errors import ConfigError, CorruptFile, StoreError
from perdure.files.durable import write_json
from perdure.report import charts, notes, settings, steps
from perdure.report import page as report_page
from perdure.report.html import Table, render
from perdure.report.page import write_report
from perdure.report.runs import Run, read_runs
from perdure.report.words import METRICS
from perdure.state.answers import write_answers
from perdure.state.manifest import read_manifest
from perdure.state.scores import read_scores
from perdure.state.words import points
from perdure.training.metrics import FORMULAS
from tests.report.run_folders import HOSTILE, HOSTILE_TASK, LABELS, ROWS, write_hostile_run, write_joint_run, write_run


class Page(HTMLParser):
    """Tables by caption (rows of cells), headings, ids, and the page's text without scripts and styles."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tables: dict[str, list[list[str]]] = {}
        self.headings: list[int] = []
        self.ids: list[str] = []
        self.links: list[str] = []
        self.tags: list[str] = []
        self.text = ""
        self._open: list[str] = []
        self._rows: list[list[str]] = []
        self.feed(html)

    def handle_starttag(self, name: str, attributes: list[tuple[str, str | None]]) -> None:
        given = dict(attributes)
        self.tags.append(name)
        self.ids += [value for key, value in attributes if key == "id" and value]
        self.links += [given[key] or "" for key in ("href", "src") if key in given]
        if name != "meta":
            self._open.append(name)
        if name in ("h1", "h2", "h3", "h4"):
            self.headings.append(int(name[1]))
        if name == "caption":
            self._rows, self._caption = [], ""
        if name == "tr":
            self._rows.append([])
        if name in ("td", "th"):
            self._rows[-1].append("")

    def handle_endtag(self, name: str) -> None:
        assert self._open.pop() == name, f"</{name}> closes another element"
        if name == "table":
            assert self._caption not in self.tables, f"two tables are called {self._caption!r}"
            self.tables[self._caption] = self._rows

    def handle_data(self, data: str) -> None:
        if {"script", "style"} & set(self._open):
            return
        self.text += data
        if "caption" in self._open:
            self._caption += data
        elif {"td", "th"} & set(self._open):
            self._rows[-1][-1] += data


def embedded(html: str) -> dict[str, Any]:
    """The figures in the page."""
    found = re.search(r'<script type="application/json" id="charts">(.*?)</script>', html)
    assert found
    return json.loads(found[1], parse_constant=lambda name: pytest.fail(f"{name} in the page"))


@dataclass(frozen=True)
class Written:
    """The report of a sequential and a joint run; read, never changed."""

    runs: tuple[Path, Path]
    out: Path

    @cached_property
    def html(self) -> str:
        return (self.out / "report.html").read_text(encoding="utf-8")

    @cached_property
    def page(self) -> Page:
        return Page(self.html)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Written:
    folder = tmp_path_factory.mktemp("pair")
    runs = write_run(folder / "ps"), write_joint_run(folder / "joint")
    write_report(runs, folder / "out")
    return Written(runs, folder / "out")


def test_numbers_on_the_page_are_those_of_the_scores(pair: Written) -> None:
    tables = pair.page.tables
    compared = next(rows for caption, rows in tables.items() if caption.startswith("Metrics in points"))
    assert compared[0] == ["Run", *METRICS.values()]
    for row, folder in zip(compared[1:], pair.runs, strict=True):
        scores = read_scores(folder)
        assert row == [scores.method, *(points(getattr(scores, metric)) for metric in METRICS)]
        matrix = next(rows for caption, rows in tables.items() if caption.startswith(f"{scores.method}: test score"))
        assert matrix[0] == ["After stage", *scores.tasks]
        assert matrix[1] == ["(untrained)", *map(points, scores.untrained_scores)]
        assert matrix[2:] == [[s, *map(points, r)] for s, r in zip(scores.stages, scores.score_matrix, strict=True)]


def test_curves_over_the_sequence_by_hand(pair: Written) -> None:
    # rows 100 | 75, 75 | 50, 75, 100 points: averages 100, 75, 75; forgetting -, 25, (50 + 0) / 2
    accuracy = pair.page.tables["Average accuracy over the tasks learnt so far, in points"]
    forgotten = pair.page.tables["Forgetting over the tasks learnt so far, in points"]
    assert accuracy[1] == ["ps-lora", "100.0", "75.0", "75.0"]
    assert forgotten[1] == ["ps-lora", "-", "25.0", "25.0"]
    assert accuracy[2] == ["joint", "-", "-", "-"]


def test_right_then_wrong_by_hand(pair: Written) -> None:
    tables = pair.page.tables
    counts = tables["ps-lora: test examples, right after their task was learnt and at the end"]
    assert counts[1:] == [["mood", "4", "2", "2", "0", "0"], ["topic", "4", "2", "1", "1", "0"]]
    lost = tables["ps-lora: answers that were right when learnt and are wrong at the end"]
    assert sorted(lost[1:]) == [
        ["mood", "bad", "good", "1"],
        ["mood", "good", "bad", "1"],
        ["topic", "sport", "money", "1"],
    ]
    assert "Not compared: spam (learnt last)." in pair.page.text
    assert "Not compared: mood, topic, spam (learnt together with others, or not yet)." in pair.page.text


def test_figures_hold_the_matrix_and_the_log(pair: Written) -> None:
    figures = list(embedded(pair.html).values())
    heat = next(f["data"][0] for f in figures if f["data"][0]["type"] == "heatmap")
    assert heat["z"][1:] == [[100, 50, 50], [75, 75, 50], [50, 75, 100]]
    loss = next(f["data"][0] for f in figures if f["data"][0].get("name") == "task loss")
    assert loss["y"] == [1 / 2, 1 / 3, 1 / 4, None, 1 / 3, 1 / 4, 1 / 5, None, 1 / 4, 1 / 5, 1 / 6, None]
    assert loss["x"] == [1, 2, 3, 3.5, 4, 5, 6, 6.5, 7, 8, 9, 9.5]


def test_every_formula_and_setting_is_there(pair: Written) -> None:
    text = " ".join(pair.page.text.split())
    assert all(formula in text for formula in FORMULAS.values())
    differ = {row[0]: row[1:] for row in pair.page.tables["Settings in which the runs differ"]}
    shared = {row[0]: row[1] for row in pair.page.tables["Settings all runs share"]}
    assert differ["Method"] == ["ps-lora", "joint"]
    assert "sign-magnitude" in differ["Parts"][0]
    assert shared["Seed"] == "0 (data: 0)"
    assert "train 256" in shared["Budget a task"]
    assert shared["Versions"] == "perdure 0.1.0, torch 2.0"


def test_structure_for_who_cannot_see_it(pair: Written) -> None:
    page, html = pair.page, pair.html
    assert page.headings[0] == 1
    assert page.headings.count(1) == 1
    assert all(after - before <= 1 for before, after in zip(page.headings, page.headings[1:], strict=False))
    assert len(page.ids) == len(set(page.ids))
    assert {link.removeprefix("#") for link in page.links if link.startswith("#")} <= set(page.ids)
    charts = re.findall(r'<div id="chart-\d+"[^>]*>', html)
    assert len(charts) > 10
    assert all('role="img"' in chart and re.search(r'aria-label="[^"]{40,}"', chart) for chart in charts)
    assert page.tags.count("table") == page.tags.count("caption")


def test_nothing_points_outside(pair: Written) -> None:
    page, html = pair.page, pair.html
    assert [link for link in page.links if not link.startswith("#")] == []
    policy = re.search(r'http-equiv="Content-Security-Policy" content="([^"]*)"', html)
    assert policy
    assert "default-src &#39;none&#39;" in policy[1]
    assert not {"link", "iframe", "img", "object", "base"} & set(page.tags)


def test_markdown_and_json_say_the_same(pair: Written) -> None:
    text = (pair.out / "report.md").read_text(encoding="utf-8")
    assert "| mood | 4 | 2 | 2 | 0 | 0 |" in text
    assert "| **spam** | **50.0** | **75.0** | **100.0** |" in text
    assert "- **Versions**: perdure 0.1.0, torch 2.0" in text
    data = json.loads((pair.out / "report.json").read_text(encoding="utf-8"))
    assert data["formulas"] == dict(FORMULAS)
    scores = read_scores(pair.runs[0]).as_dict()
    assert {key: data["runs"][0][key] for key in scores} == scores
    assert data["runs"][0]["changes"][1]["became_right"] == 1
    assert data["runs"][0]["about"]["config"]["seed"] == 0


def test_the_same_runs_give_the_same_bytes(run: Path, tmp_path: Path) -> None:
    first, second = (write_report([run], tmp_path / name) for name in ("a", "b"))
    assert all(first[kind].read_bytes() == second[kind].read_bytes() for kind in first)


def test_hostile_names_are_text(tmp_path: Path) -> None:
    run = write_hostile_run(tmp_path / "run")
    paths = write_report([run], tmp_path / "out")
    html = paths["html"].read_text(encoding="utf-8")
    page = Page(html)
    assert page.text.count(HOSTILE) >= 6
    assert page.text.count(HOSTILE_TASK) >= 3
    assert HOSTILE_TASK not in html
    assert "img" not in page.tags
    assert page.tags.count("script") == 3
    assert HOSTILE not in html
    assert "<script" not in paths["md"].read_text(encoding="utf-8")
    assert json.loads(paths["json"].read_text(encoding="utf-8"))["runs"][0]["tasks"][0] == HOSTILE_TASK


def test_templates_escape_values_and_show_control_characters() -> None:
    hostile = '"><b>&\x1b\u202e'
    table = Table(hostile, [hostile], [[hostile]])
    html = render("diagnosis.html", sentences=[hostile], totals=table, updates=table, pairs=[])
    written = "&#34;&gt;&lt;b&gt;&amp;\N{REPLACEMENT CHARACTER}\N{REPLACEMENT CHARACTER}"
    assert f"<p>{written}</p>" in html
    assert f'aria-label="{written}"' in html
    assert html.count(written) == 9
    assert "<b>" not in html
    assert not {"\x1b", "\u202e"} & {*html}


def test_embedded_json_cannot_end_its_script_element() -> None:
    text = report_page.embedded({"a": "</script><!--&", "b": float("nan")})
    assert not {"<", ">", "&"} & set(text)
    assert json.loads(text) == {"a": "</script><!--&", "b": None}


def test_without_plotly_it_says_what_to_install(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "plotly.offline", None)
    with pytest.raises(ConfigError, match=r"pip install 'perdure\[report\]'"):
        write_report([run], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_no_run_and_a_run_twice_and_no_run_there(run: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="at least one run folder"):
        write_report([], tmp_path / "out")
    with pytest.raises(ConfigError, match="is given twice"):
        write_report([run, run / ".." / run.name], tmp_path / "out")
    with pytest.raises(StoreError, match="holds no run"):
        write_report([tmp_path], tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("file", ["log.jsonl", "scores.json", "notes.json"])
def test_a_damaged_file_is_named_with_its_run(run: Path, tmp_path: Path, file: str) -> None:
    (run / "stages" / "02-topic" / file).write_text('{"label": ', encoding="utf-8")
    with pytest.raises(CorruptFile, match=f"{re.escape(str(run))}.*{file}.*Restore it"):
        write_report([run], tmp_path / "out")


@pytest.mark.parametrize("damage", [lambda raw: raw[:-30], lambda raw: b"PK", lambda raw: raw[:40] + b"?" + raw[41:]])
def test_damaged_answers_are_named_with_their_run(run: Path, tmp_path: Path, damage) -> None:
    file = run / "stages/01-mood/predictions.zip"
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(CorruptFile, match=f"{re.escape(str(file))}.*Restore it"):
        write_report([run], tmp_path / "out")


def test_a_run_that_is_not_finished_says_so(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", rows=ROWS[:3])
    page = Page(write_report([run], tmp_path / "out")["html"].read_text(encoding="utf-8"))
    assert "ps-lora is not finished (2 of 3 tasks learnt)" in page.text
    assert {row[0]: row[1] for row in page.tables["Settings"]}["Stages finished"] == "2 of 3"
    assert "is not finished" in (tmp_path / "out" / "report.md").read_text(encoding="utf-8")


def test_a_run_whose_model_is_not_written_is_not_finished(run: Path) -> None:
    manifest = read_manifest(run / "manifest.json")
    assert only(run).finished
    write_json(run / "manifest.json", {key: value for key, value in manifest.items() if key != "deployed"})
    assert settings.warnings([only(run)]) == ["ps-lora is not finished (3 of 3 tasks learnt): it is not deployed yet."]


def test_runs_that_do_not_compare_say_so(run: Path, tmp_path: Path) -> None:
    two = {task: LABELS[task] for task in ("mood", "topic")}
    other = write_run(tmp_path / "two", method="l2", labels=two, rows=[two, two, two])
    seen = write_run(tmp_path / "seen", method="inc-lora", config={"evaluation": {"labels": "seen"}})
    found = settings.warnings(read_runs([run, other, seen]))
    assert found == [
        "l2: learnt from or scored on other data than ps-lora; these numbers may not compare.",
        "inc-lora: scored with another set of labels to choose from than ps-lora; these numbers may not compare.",
    ]


def only(folder: Path) -> Run:
    return read_runs([folder])[0]


def test_a_score_that_is_no_accuracy_is_not_called_right_or_wrong(run: Path) -> None:
    scores = run / "stages" / "03-spam" / "scores.json"
    cells = json.loads(scores.read_text(encoding="utf-8"))
    write_json(scores, {**cells, "mood": {"score": 0.61, "examples": 4}})
    found = only(run)
    assert [change.task for change in found.changes] == ["topic"]
    assert found.without_changes["mood"].startswith("scored by something other")


def test_a_task_that_was_not_scored_when_learnt_has_that_for_its_reason(run: Path) -> None:
    scores = run / "stages" / "01-mood" / "scores.json"
    cells = json.loads(scores.read_text(encoding="utf-8"))
    write_json(scores, {**cells, "mood": {"score": None, "examples": 0}})
    assert only(run).without_changes["mood"] == "not scored right after it was learnt"


def test_examples_of_the_validation_split_are_called_so(tmp_path: Path) -> None:
    run = only(write_run(tmp_path / "run", config={"evaluation": {"split": "validation"}}))
    assert charts.changed_answers(run).layout["xaxis"]["title"]["text"] == "validation examples"


def test_no_chart_of_forgetting_where_none_is_known(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    for stage in ("01-mood", "02-topic"):  # as with evaluation.every_stage: false
        write_json(run / "stages" / stage / "scores.json", {})
    page = Page(write_report([run], tmp_path / "out")["html"].read_text(encoding="utf-8"))
    assert "Average accuracy over the tasks learnt so far, in points" in page.tables
    assert "Forgetting over the tasks learnt so far" not in page.text


def test_own_tasks_have_no_budget_of_a_suite(tmp_path: Path) -> None:
    own = {"suite": None, "tasks": [{"name": "mood", "train": "mood.jsonl"}]}
    described = settings.described(only(write_run(tmp_path / "own", config=own)))
    assert (described["Suite"], described["Seed"]) == ("own tasks", "0")
    assert described["Budget a task"] == "as each task says"


def test_runs_that_differ_at_the_end_of_their_names_differ_in_charts() -> None:
    names = ["n-lora-proximal, seed 0", "n-lora-proximal, seed 1"]
    assert [charts.shown(name) for name in names] == ["n-lora-p…ximal, seed 0", "n-lora-p…ximal, seed 1"]
    assert charts.shown("short") == "short"


def test_another_tasks_label_is_wrong_even_if_it_reads_the_same(run: Path) -> None:
    stage = run / "stages" / "03-spam"
    rows = [{"label": "good", "predicted": "good", "predicted_task": "topic"}, *(
        {"label": w, "predicted": w} for w in LABELS["mood"][1:])]  # fmt: skip
    write_answers(stage, [("mood", rows)])
    cells = json.loads((stage / "scores.json").read_text(encoding="utf-8"))
    write_json(stage / "scores.json", {**cells, "mood": {"score": 0.75, "examples": 4}})
    change = only(run).changes[0]
    assert (change.became_wrong, change.still_right) == (1, 3)
    assert change.confusions[0].predicted == "good (a label of topic)"


def test_an_answer_with_a_strange_line_end_is_one_answer(tmp_path: Path) -> None:
    labels = {"first": ("a\u2028b\x85c", "no"), "second": ("yes", "no")}
    run = only(write_run(tmp_path / "run", labels=labels, rows=[labels] * 3))
    assert run.changes[0].still_right == 2


def test_a_long_log_is_drawn_as_means_and_says_so(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", steps=1000)
    run = only(folder)
    assert steps.bin_size(run) == 3
    line = steps.step_charts(run)[0].data[0]
    assert line["y"][0] == pytest.approx((1 / 2 + 1 / 3 + 1 / 4) / 3)
    assert line["x"][:2] == [2, 5]
    assert len(line["x"]) == 3 * (334 + 1)
    assert "mean of up to 3 neighbouring steps" in write_report([folder], tmp_path / "out")["html"].read_text("utf-8")


def test_numbers_that_are_not_finite_are_left_out(run: Path, tmp_path: Path) -> None:
    log = run / "stages" / "02-topic" / "log.jsonl"
    log.write_text(
        '{"step": 1, "loss": NaN, "learning_rate": 1, "shares": {"l": Infinity}}\n'
    )  # as older runs wrote them
    figures = embedded(write_report([run], tmp_path / "out")["html"].read_text(encoding="utf-8"))
    loss = next(f["data"][0]["y"] for f in figures.values() if f["data"][0].get("name") == "task loss")
    assert loss[4] is None


def test_plotly_knows_every_property_of_every_figure(pair: Written) -> None:
    import plotly.graph_objects

    for figure in embedded(pair.html).values():
        coloured = json.loads(re.sub(r"var\(--[\w-]+\)", "#123456", json.dumps(figure)))
        drawn = plotly.graph_objects.Figure(data=coloured["data"], layout=coloured["layout"])
        assert len(drawn.to_dict()["data"]) == len(figure["data"]) > 0


def test_notes_of_modules_become_median_and_range() -> None:
    noted = {"slice/cosine": -0.25, **{f"slice/gamma/layer.{i}": float(i) for i in range(5)}}
    assert notes.summary(noted) == {"slice/cosine": "-0.25", "slice/gamma of modules": "2 (0 to 4)"}
    four = {f"slice/gamma/layer.{i}": value for i, value in enumerate((7.0, 0.0, 1.0, 2.0))}
    assert notes.summary(four) == {"slice/gamma of modules": "1.5 (0 to 7)"}


def test_notes_are_shown(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", notes={"a-gem/fired": 0.125})
    page = Page(write_report([run], tmp_path / "out")["html"].read_text(encoding="utf-8"))
    assert page.tables["ps-lora: numbers its parts noted in each stage"][1] == ["mood", "0.125"]


def test_the_page_of_one_run_begins_with_its_tasks(tmp_path: Path) -> None:
    """mood: 4 of 4 right when learnt, 2 now, and two examples more that cancel each other: -2/6, and 3/6 - 1/9 over 6."""
    write_report([write_run(tmp_path / "run")], tmp_path / "report")
    text, md = ((tmp_path / f"report/report.{kind}").read_text() for kind in ("html", "md"))
    half = 1.959964 * ((3 / 6 - 1 / 9) / 6) ** 0.5
    interval = f"{100 * (-1 / 3 - half):.1f} to {100 * (-1 / 3 + half):.1f}"
    assert text.index('id="tasks"') < text.index('id="scores"')
    assert f"| mood | not above the baseline | 100.0 | 50.0 | -50.0 | {interval} | 50.0 | 2 | 0 | 4 |" in md
    standing = json.loads((tmp_path / "report/report.json").read_text())["runs"][0]["standing"]
    assert [task["task"] for task in standing] == ["mood", "topic", "spam"]
    assert (standing[0]["became_worse"], standing[0]["baseline_is"]) == (2, "the untouched model")


def test_an_axis_of_scores_shows_twenty_points_at_least(tmp_path: Path) -> None:
    low, high = charts._span([{"y": [80.0, None, 81.0]}])
    assert (low, high) == (70.5, 90.5)


def test_an_axis_ends_where_scores_do() -> None:
    assert charts._span([{"y": [0.0, 100.0]}]) == [0.0, 100.0]
    assert charts._span([{"y": [99.0, 100.0]}]) == [80.0, 100.0]
    assert charts._span([{"y": [0.0, 2.0]}]) == [0.0, 20.0]
    assert charts._span([{"y": [0.0, 2.0]}], (-100.0, 100.0)) == [-9.0, 11.0]


def test_one_run_shows_what_its_tasks_scored_when_learnt_beside_what_they_score(run: Path, tmp_path: Path) -> None:
    """Learnt at 100, 75 and 100 points, and 100 | 75, 75 | 50, 75, 100 after each stage: only the gap was lost."""
    html = write_report([run], tmp_path / "out")["html"].read_text()
    title = "Average accuracy over the tasks learnt so far"
    assert Page(html).tables[f"{title}, in points"][1:] == [
        ["ps-lora", "100.0", "75.0", "75.0"],
        ["when learnt", "100.0", "87.5", "91.7"],
    ]
    chart = charts.over_stages([only(run)], 0, title)
    assert [line["y"] for line in chart.data] == [[100.0, 75.0, 75.0], [100.0, 87.5, pytest.approx(275 / 3)]]
    assert chart.layout["yaxis"]["range"][1] == 100.0


def test_a_loss_is_coloured_and_its_command_is_marked(tmp_path: Path) -> None:
    labels = {"first": ("x", "y") * 20, "second": ("x", "y") * 20}
    untrained, lost = dict.fromkeys(labels, ("x", "x") * 20), {**labels, "first": ("x", "x") * 20}
    run = write_run(tmp_path / "run", labels=labels, rows=[untrained, labels, lost])
    html = write_report([run], tmp_path / "out")["html"].read_text()
    assert re.search(
        r'<tr class="bad"><th scope="row">first</th>\s*<td data-name="In words">not above the baseline</td>', html
    )
    assert f"<code>perdure show {run} --texts</code> lists the answers that changed" in html
