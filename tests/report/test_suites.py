"""`perdure suites show`: tasks, labels and licences of a suite; with its data also sizes, and what is odd about the files."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from perdure.cli import app
from perdure.errors import UnknownName
from perdure.tasks.suites import describe
from tests.tasks.sources.test_benchmarks import write_cl


def shown(*arguments: str) -> list[str]:
    ended = CliRunner().invoke(app, ["suites", "show", *arguments])
    assert ended.exit_code == 0, ended.output
    return ended.stdout.splitlines()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The 15 tasks in their layout, yahoo missing, one unlabelled row in MNLI."""
    for about in describe("long")["tasks"].values():
        write_cl(tmp_path, about["source"]["path"], about["labels"])
    shutil.rmtree(tmp_path / "TC/yahoo")
    for split in ("test", "dev"):
        file = tmp_path / f"NLI/MNLI/{split}.json"
        file.write_text(json.dumps([*json.loads(file.read_text()), {"label": "-", "sentence": "undecided"}]))
    return tmp_path


def test_with_data_sizes_and_what_is_odd(folder: Path) -> None:
    lines = shown("long", "--data", str(folder))
    place = lines.index(next(line for line in lines if line.startswith("agnews:")))
    assert lines[place + 1] == f"  licence: {describe('long')['tasks']['agnews']['licence']}"
    assert lines[place + 2] == "  labels (4): World, Sports, Business, Science or Technology"
    assert lines[place + 3] == "  examples: 39 train, 9 validation, 48 test"
    notes = [line for line in lines if line.startswith("note: ")]
    assert any("agnews" in note and "dev.json is identical to test.json" in note for note in notes)
    assert any("MNLI" in note and "1 unlabelled rows ('-') of test.json removed" in note for note in notes)
    assert any("yahoo: left out, not found: folder TC/yahoo" in note for note in notes)
    assert not any("MNLI" in note and "left out" in note for note in notes)


def test_without_data_what_is_known_and_what_is_expected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PERDURE_CL_BENCHMARK", raising=False)
    lines = shown("standard-cl")
    assert lines[0].startswith("standard-cl, version ")
    assert "  order 2: dbpedia amazon agnews yahoo" in lines
    assert "  labels (4): World, Sports, Business, Science or Technology" in lines
    assert lines[-1].startswith(
        "Give a folder as --data (or $PERDURE_CL_BENCHMARK) for sizes and warnings. Layout: <TYPE>/<dataset>/"
    )
    assert not any(line.startswith("  examples:") for line in lines)


def test_a_suite_out_of_packages_is_described_before_anything_is_fetched(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("PERDURE_CACHE", str(tmp_path / "cache"))
    lines = shown("quickstart")
    assert any(line.startswith("  licence: ") for line in lines)
    assert lines[-1].startswith("Not in the cache yet: ")
    assert " MB)" in lines[-1]
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("data", [["--data", "hub"], []])
def test_nothing_is_read_from_the_hub(data: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither of a suite that may come from there, nor of one's own tasks."""
    monkeypatch.setattr("perdure.tasks.sources.hub.load_split", lambda *_: pytest.fail("fetched"))
    monkeypatch.delenv("PERDURE_CL_BENCHMARK", raising=False)
    monkeypatch.delenv("PERDURE_GLUE", raising=False)
    monkeypatch.setenv("PERDURE_CACHE", str(tmp_path / "cache"))
    lines = shown("standard-cl", *data) if data else shown("glue")
    assert re.fullmatch(r"Read from the hub by a run, which shows their sizes: (\w+, )+\w+\.", lines[-2])
    assert lines[-1].startswith("Give a folder as --data (or $PERDURE_")


def test_of_a_suite_of_ones_own_nothing_is_fetched_either(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("perdure.tasks.sources.hub.load_split", lambda *_: pytest.fail("fetched"))
    monkeypatch.setenv("PERDURE_CACHE", str(tmp_path / "cache"))
    suite = tmp_path / "own.yaml"
    vader = (
        "package: {reader: vader, asset: vaderSentiment, file: amazonReviewSnippets_GroundTruth.txt, threshold: 0.5}"
    )
    suite.write_text(f"name: own\ntasks:\n  one: {{dataset: someone/some, train: train}}\n  two: {{{vader}}}\n")
    ended = CliRunner().invoke(app, ["suites", "show", str(suite)])
    assert isinstance(ended.exception, UnknownName)
    suite.write_text(suite.read_text().replace("vaderSentiment", "vader"))
    lines = shown(str(suite))
    assert lines[-2].startswith("Not in the cache yet: vader (")
    assert lines[-1] == "Read from the hub by a run, which shows their sizes: one."
    assert not (tmp_path / "cache").exists()
