"""What a person or a program sees of a run from the command line: live, plain, JSON lines, quiet."""

from __future__ import annotations

import json
import os
import re
import sys
from pathlib import Path
from typing import Any

import pytest

from perdure.errors import UnknownName
from perdure.files.durable import read_lines
from perdure.loop.progress import CompositeReporter, Live, Plain, reporter
from perdure.state.scores import read_scores
from perdure.training.reporter import Quiet
from perdure.training.train import Step
from tests.own_files import perdure, write_own_files


@pytest.fixture
def config(tmp_path: Path, encoder_folder: Path) -> Path:
    return write_own_files(tmp_path, encoder_folder)


def test_json_lines_are_all_of_standard_output(config, monkeypatch, capsys) -> None:
    out = config.parent / "run"
    ended = perdure(monkeypatch, capsys, "run", config, "--out", out, "--progress", "json")
    events = [json.loads(line) for line in ended.out.splitlines()]
    steps = [event for event in events if event["event"] == "step"]
    logged = read_lines(out / "stages/01-fruit/log.jsonl") + read_lines(out / "stages/02-sky/log.jsonl")
    assert [{key: event[key] for key in logged[0]} for event in steps] == logged
    others = [event for event in events if event["event"] != "step"]
    begun = next(place for place, event in enumerate(others) if event["event"] != "note")
    assert [event["event"] for event in others[begun:]] == ["begin", *["scored"] * 3, "end"]
    assert others[begun]["stages"] == ["fruit", "sky"]
    assert [event["line"].partition(":")[0] for event in others[1:begun]].count("writes to") <= 1
    assert list(events[-2]["scores"].values()) == read_scores(out).score_matrix[-1]
    assert events[-1]["finished"]
    assert events[-1]["metrics"]["average_accuracy"] == read_scores(out).average_accuracy
    assert (ended.code, ended.err) == (0, "")


def test_plain_lines_where_there_is_no_terminal(config, monkeypatch, capsys) -> None:
    ended = perdure(monkeypatch, capsys, "run", config, "--out", config.parent / "run")
    lines = ended.err.splitlines()
    assert lines.pop(0) == "[ps-lora] adapts 4 modules in 2 of 2 layers, 24 % of the matrix parameters"
    begun = next(place for place, line in enumerate(lines) if line.startswith("[ps-lora] untrained"))
    told, lines = lines[:begun], lines[begun:]
    kinds = [line.removeprefix("[ps-lora] ").partition(":")[0].partition(" to ")[0] for line in told]
    assert kinds == ["Warning"] * 4 + ["fruit", "sky", "writes", "Decide"]  # the one that asks for a decision is last
    assert [line.split(":")[0] for line in lines] == [
        "[ps-lora] untrained", "[ps-lora] fruit", "[ps-lora] fruit", "[ps-lora] after fruit",
        "[ps-lora] sky", "[ps-lora] sky", "[ps-lora] after sky",
    ]  # fmt: skip
    assert "left in this run" in lines[3]
    assert "\x1b" not in ended.err + ended.out, "no escape sequences in a file"
    assert "After stage" in ended.out
    again = perdure(monkeypatch, capsys, "resume", config.parent / "run")
    assert "resumes after sky (2 of 2 stages are finished)" in again.err


def test_a_log_gets_a_line_every_thirty_seconds_with_the_time_left(capsys) -> None:
    """100 steps of 7 s: steps 1, 6, 11, ... are 35 s apart, and at step 51 there are 49 x 7 = 343 s left."""
    now = [0.0]
    plain = Plain("log", clock=lambda: now[0])
    plain.begin(["mail"], 0)
    for number in range(1, 101):
        now[0] += 7
        plain.step("mail", Step(number, 0.5, 0.1), 100)
    lines = capsys.readouterr().err.splitlines()
    assert [int(line.split()[3]) for line in lines] == [*range(1, 100, 5), 100]
    assert lines[10] == "[log] mail: step 51 of 100, loss 0.500, about 6 min left in this task"
    assert lines[0].endswith("loss 0.500")
    assert lines[-1].endswith("loss 0.500")


def test_quiet_and_verbose(config, monkeypatch, capsys) -> None:
    """Their own names for kinds of progress; a quiet run says its warnings with the result, others only before training."""
    out = config.parent
    quiet = perdure(monkeypatch, capsys, "run", config, "--out", out / "quiet", "--quiet")
    assert (quiet.code, quiet.err) == (0, "")
    assert "Warning: fruit: no validation split given" in quiet.out
    verbose = perdure(monkeypatch, capsys, "run", config, "--out", out / "verbose", "-v")
    assert "Warning" not in verbose.out
    assert verbose.err.count("Warning: fruit: no validation split given") == 1
    steps = len(read_lines(out / "verbose/stages/01-fruit/log.jsonl"))
    assert sum(line.startswith("[ps-lora] fruit: step ") for line in verbose.err.splitlines()) == steps > 2
    both = perdure(monkeypatch, capsys, "run", config, "--out", out / "both", "-v", "--progress", "json")
    assert (both.code, both.err) == (3, "perdure: Give one kind of progress, not json and verbose.\n")
    assert not (out / "both").exists()


def test_quiet_says_only_the_result(config, monkeypatch, capsys) -> None:
    ended = perdure(monkeypatch, capsys, "run", config, "--out", config.parent / "run", "--progress", "quiet")
    assert (ended.code, ended.err) == (0, "")
    assert "After stage" in ended.out


def test_a_live_bar_on_a_terminal(config, monkeypatch, capsys) -> None:
    written = _on_a_terminal(monkeypatch, lambda: perdure(monkeypatch, capsys, "run", config, "--out", "run"), config)
    assert "ps-lora · sky (2/2) · loss" in written
    assert "[ps-lora] after sky: fruit" in re.sub(r"\x1b\[[0-9;]*m", "", written)
    assert written.index("\x1b[?25l") < written.rindex("\x1b[?25h"), "the cursor is shown again"


def test_the_cursor_comes_back_after_an_error(config, monkeypatch, capsys) -> None:
    import perdure.loop.sequence

    def fails(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(perdure.loop.sequence, "save_stage", fails)
    ended = []
    run = lambda: ended.append(_perdure(monkeypatch, capsys, "run", config, "--out", "run"))  # noqa: E731
    written = _on_a_terminal(monkeypatch, run, config)
    assert written.rindex("\x1b[?25h") > written.rindex("\x1b[?25l")
    assert ended[0].code == 130
    assert "perdure resume" in written


_perdure = perdure


def _on_a_terminal(monkeypatch: pytest.MonkeyPatch, run: Any, config: Path) -> str:
    """What `run` writes to a standard error that is a terminal of 100 columns."""
    monkeypatch.chdir(config.parent)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "100")
    leader, follower = os.openpty()
    with os.fdopen(follower, "w") as terminal:
        monkeypatch.setattr(sys, "stderr", terminal)
        run()
        terminal.flush()
        os.set_blocking(leader, False)
        written = b""
        while True:
            try:
                written += os.read(leader, 1 << 16)
            except BlockingIOError:
                break
    os.close(leader)
    return written.decode()


def test_several_reporters_are_told_everything_in_order() -> None:
    told: list[tuple[Any, ...]] = []

    class Notes(Quiet):
        def __init__(self, name: str) -> None:
            self.name = name

        def begin(self, *args: Any) -> None:
            told.append((self.name, "begin", *args))

        def step(self, *args: Any) -> None:
            told.append((self.name, "step", *args))

        def scored(self, *args: Any) -> None:
            told.append((self.name, "scored", *args))

        def end(self, *args: Any) -> None:
            told.append((self.name, "end", *args))

    both, step = CompositeReporter(Notes("a"), Notes("b")), Step(1, 0.5, 0.1)
    both.begin(["x"], 0)
    both.step("x", step, 9)
    both.scored(["x"], {"x": 1.0})
    both.end(None)
    events = [("begin", ["x"], 0), ("step", "x", step, 9), ("scored", ["x"], {"x": 1.0}), ("end", None)]
    assert told == [(name, *event) for event in events for name in "ab"]


def test_the_mode_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    assert isinstance(reporter("quiet", "x"), Quiet)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: False, raising=False)
    assert isinstance(reporter("auto", "x"), Plain)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    assert isinstance(reporter("auto", "x"), Live)
    with pytest.raises(UnknownName, match=r"Unknown kind of progress: 'quite'. Did you mean 'quiet'\? Known: auto"):
        reporter("quite", "x")


def test_a_title_with_brackets_is_shown_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    live = Live("run[/b]")
    live.begin(["x"], 0)
    live.step("x", Step(1, 0.5, 0.1), 2)
    live.end(None)
    assert live._bar.tasks[0].description == "run[/b] · x (1/1) · loss 0.500"
