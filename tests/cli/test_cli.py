"""The command line: fast where it should be, with errors that say what to do."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from importlib.metadata import version

import pytest
from typer.testing import CliRunner

from perdure.cli import INTERRUPTED, app, main
from perdure.methods.table import PRESETS
from tests.contract.runs import short_run


def fails(monkeypatch, capsys, *argv: str) -> tuple[int, str]:
    monkeypatch.setattr(sys, "argv", ["perdure", *argv])
    with pytest.raises(SystemExit) as ended:
        main()
    return int(str(ended.value.code)), capsys.readouterr().err


def test_completion_and_listings_as_json(monkeypatch):
    """The shell's completion knows the commands; every listing has its JSON."""
    command = "import sys; sys.argv = ['perdure']; from perdure.cli import main; main()"
    asked = {**os.environ, "_PERDURE_COMPLETE": "complete_bash", "COMP_WORDS": "perdure su", "COMP_CWORD": "1"}
    done = subprocess.run([sys.executable, "-c", command], env=asked, capture_output=True, text=True, timeout=200)
    assert done.stdout.split() == ["suites"], done.stderr
    suites = json.loads(CliRunner().invoke(app, ["suites", "--json"], catch_exceptions=False).stdout)
    one = json.loads(CliRunner().invoke(app, ["suites", "show", "quickstart", "--json"], catch_exceptions=False).stdout)
    assert suites["quickstart"] == one
    assert set(json.loads(CliRunner().invoke(app, ["methods", "--json"]).stdout)) == set(PRESETS)


BAD = [
    (["run", "--suite", "quickstart", "--method", "pslora"], 3, "Did you mean 'ps-lora'?"),
    (["run", "--suite", "quickstar"], 3, "Did you mean 'quickstart'?"),
    (["run", "--suite", "quickstart", "trainig.epochs=2"], 3, "Did you mean 'training'?"),
    (["run", "--suite", "quickstart", "training.epoch=2"], 3, "Did you mean 'epochs'?"),
    (["run", "--suite", "quickstart", "training.epochs=0"], 3, "training.epochs"),
    (["run", "--suite", "quickstart", "training.epochs=many"], 3, "training.epochs"),
    (["run", "--suite", "quickstart", "lora.rank=0"], 3, "lora.rank"),
    (["run", "--suite", "quickstart", "seed=-1"], 3, "seed"),
    (["run", "--suite", "quickstart", "precision=fp8"], 3, "precision"),
    (["run", "--suite", "quickstart", "method.penalty.x=1"], 3, "Did you mean 'penalties'?"),
    (["run", "--suite", "quickstart", "method.penalties.sign-magnitud.weight=1"], 3, "Did you mean 'sign-magnitude'?"),
    (["run", "--suite", "quickstart", "method.penalties.sign-magnitude.weight=-1"], 3, "sign-magnitude.weight"),
    (["run", "--suite", "quickstart", "method.penalties.sign-magnitude.alpa=1"], 3, "Did you mean 'alpha'?"),
    (["run", "--suite", "quickstart", "method.consolidate.kind=max-magnitud"], 3, "Did you mean 'max-magnitude'?"),
    (["run", "--suite", "quickstart", "backbone=no-such-model"], 3, "minilm"),
    (["run", "--suite", "quickstart", "backbone.max_lenght=3"], 3, "Did you mean 'max_length'?"),
    (["run"], 3, "Nothing to learn"),
    (["run", "no-such-file.yaml"], 3, "No such configuration file: 'no-such-file.yaml'"),
    (["run", "--suite", "quickstart", "training.epochs=2", "oops"], 3, "Write key=value"),
    (["scores", "no-such-run"], 6, "holds no run"),
    (["resume", "no-such-run"], 6, "holds no run"),
    (["suites", "show", "quickstar"], 3, "Did you mean 'quickstart'?"),
    (["sweep", "no-such-sweep.yaml"], 3, "No such sweep file:"),
]


@pytest.mark.parametrize("argv,code,message", BAD, ids=[" ".join(row[0]) for row in BAD])
def test_bad_input(argv, code, message, monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    found, error = fails(monkeypatch, capsys, *argv)
    assert (found, "Traceback" in error) == (code, False)
    assert message in error
    assert not (tmp_path / "runs" / "run" / "run.json").exists(), "nothing was started"


@pytest.mark.parametrize(
    "command,says",
    [
        ("run", "perdure resume RUN"),
        ("sweep", "repeat the command to continue"),
        ("add", "The run is unchanged"),
        ("merge", "run the command again"),
    ],
)
def test_an_interrupted_command_says_how_to_continue(command, says, monkeypatch, capsys):
    monkeypatch.setattr("perdure.cli.app", lambda standalone_mode: INTERRUPTED)
    code, error = fails(monkeypatch, capsys, command)
    assert code == INTERRUPTED
    assert says in error


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_stopped_run_says_how_to_resume_it(number, tmp_path, monkeypatch, capsys):
    def stopped(config, out, **_):
        out.mkdir()
        (out / "run.json").write_text("{}")
        raise KeyboardInterrupt if number == signal.SIGINT else SystemExit(128 + number)

    monkeypatch.setattr("perdure.commands.learn.run_config", stopped)
    code, error = fails(monkeypatch, capsys, "run", "--suite", "quickstart", "--out", tmp_path / "mine")
    assert code == 128 + number
    assert f"continue with `perdure resume {tmp_path / 'mine'}`" in error
    monkeypatch.setattr("perdure.commands.learn.run_config", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
    error = fails(monkeypatch, capsys, "run", "--suite", "quickstart", "--out", tmp_path / "not-begun")[1]
    assert "run the command again" in error


def test_a_custom_part_is_found_in_the_current_folder(tmp_path, monkeypatch, capsys):
    """Like the installed script, whose sys.path starts with its own folder; a sweep's processes inherit sys.path."""
    (tmp_path / "own_part_here.py").write_text("from perdure.methods.l2 import SquaredNorm as Mine\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [place for place in sys.path if place])
    error = fails(
        monkeypatch, capsys, "run", "--suite", "no.yaml", "method.penalties={'own_part_here:Mine': {weight: 0.1}}"
    )[1]
    assert "No such suite file: 'no.yaml'" in error
    from perdure.methods.contract.build import part_class

    assert part_class("penalty", "own_part_here:Mine").__name__ == "SquaredNorm"


def test_version():
    done = CliRunner().invoke(app, ["--version"])
    assert (done.exit_code, done.stdout) == (0, f"perdure {version('perdure')}\n")


def test_methods_are_listed_one_a_line():
    lines = CliRunner().invoke(app, ["methods"]).stdout.splitlines()
    assert [line.split()[0] for line in lines] == list(PRESETS)


def test_scores_as_json(tmp_path, small_tasks, encoder_folder):
    short_run(tmp_path / "run", small_tasks[:2], encoder_folder, "ps-lora")
    found = json.loads(CliRunner().invoke(app, ["scores", str(tmp_path / "run"), "--json"]).stdout)
    assert {
        "tasks", "score_matrix", "untrained_scores", "average_accuracy", "sample_weighted_accuracy", "learning_accuracy",
        "forgetting", "backward_transfer", "forward_transfer", "method", "seed",
    } <= set(found)  # fmt: skip
    assert found["method"] == "ps-lora"
    assert all(0 <= score <= 1 for row in found["score_matrix"] for score in row)


def test_help_and_methods_import_nothing_heavy():
    """What makes them fast, independent of the machine's load."""
    code = (
        "import sys\nfrom typer.testing import CliRunner\nfrom perdure.cli import app\n"
        "CliRunner().invoke(app, ['--help']); CliRunner().invoke(app, ['--version'])\n"
        "print(sorted({'rich', 'pydantic', 'numpy'} & sys.modules.keys()), len(sys.modules) < 250)\n"
        "CliRunner().invoke(app, ['methods'])\n"
        "print([m for m in ('torch', 'transformers', 'peft', 'datasets', 'numpy') if m in sys.modules])"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ended.stdout.splitlines() == ["[] True", "[]"]
