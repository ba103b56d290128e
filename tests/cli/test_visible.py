"""Control characters of names, labels and texts are shown, never sent to the terminal."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from perdure.files.terminal import CONTROL, visible
from perdure.loop.progress import Plain
from tests.adapter_cases import random_folder
from tests.bad_inputs.conftest import finished, place  # noqa: F401
from tests.bad_inputs.place import Place
from tests.own_files import perdure

EVIL = "x\x1b]0;owned\x07\x9b2J\r\x7f"
SHOWN = r"x\u001b]0;owned\u0007\u009b2J\u000d\u007f"


def test_every_control_character_but_two() -> None:
    every = "".join(map(chr, range(0x110000)))
    assert {ord(c) for c in CONTROL.findall(every)} == {*range(32), *range(0x7F, 0xA0), *range(0xD800, 0xE000)} - {
        9,
        10,
    }
    assert visible(EVIL) == SHOWN
    assert visible("größe 日本\t\n") == "größe 日本\t\n"


def test_messages(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    for argv in (("resume", EVIL), ("methods", "show", EVIL), ("suites", "show", EVIL), ("run", f"{EVIL}=1")):
        ended = perdure(monkeypatch, capsys, *argv)
        assert ended.code != 0
        assert not CONTROL.search(ended.err), ended.err
        assert r"\u001b" in ended.err or r"\x1b" in ended.err


@pytest.mark.parametrize("argv", [("show", "run"), ("show", "run", "--json"), ("scores", "run")], ids=" ".join)
def test_a_run_of_somebody_else(argv: tuple[str, ...], place: Place, monkeypatch, capsys) -> None:  # noqa: F811
    path = place.run / "run.json"
    about = json.loads(path.read_text())
    about["warnings"] = [EVIL]
    about["config"]["backbone"]["model"] = EVIL
    path.write_text(json.dumps(about))
    monkeypatch.chdir(place.folder)
    ended = perdure(monkeypatch, capsys, *argv)
    assert ended.code == 0, ended.err
    assert not CONTROL.search(ended.out + ended.err)
    if "--json" in argv:
        assert json.loads(ended.out)["warnings"] == [EVIL], "still the same text for a program"


def test_progress(capsys) -> None:
    report = Plain(EVIL)
    report.begin(["a"], 0)
    report.scored([EVIL], {EVIL: 0.5})
    assert capsys.readouterr().err == f"[{SHOWN}] after {SHOWN}: {SHOWN} 50.0\n"


@pytest.mark.parametrize("argv", [("run", f"--{EVIL}"), (EVIL,), ("show",), ("export", "x", "--as", EVIL)], ids=repr)
def test_usage_errors(argv: tuple[str, ...], tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    ended = perdure(monkeypatch, capsys, *argv)
    assert ended.code == 2
    assert "Usage: perdure" in ended.err
    assert not CONTROL.search(ended.err), ended.err


def test_tables_of_a_diagnosis(tmp_path: Path, monkeypatch, capsys) -> None:
    """A folder's and a module's name reach the cells; markup of rich in them is text too."""
    monkeypatch.setenv("COLUMNS", "200")
    evil = "[red]" + EVIL.replace("/", "")
    folders = [random_folder(tmp_path / name, 1, shapes={"layers.0.q": (4, 4)}) for name in (evil, "two")]
    ended = perdure(monkeypatch, capsys, "diagnose", *folders)
    assert ended.code == 0, ended.err
    assert not CONTROL.search(ended.out)
    assert r"\u001b" in ended.out
    assert "[red]" in ended.out
