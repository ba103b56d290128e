"""A run whose manifest.json is gone is not learnt again in silence: it is repaired from its stages."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

import perdure
from perdure.commands.repair import repair
from perdure.errors import CorruptFile, StoreError
from perdure.files.durable import sync_tree
from perdure.state.answers import read_answers, write_answers
from perdure.state.store import Store
from tests.contract.runs import bits, short_run
from tests.old_runs.test_old_runs import unpacked  # noqa: F401
from tests.own_files import perdure as command

METHOD = "ps-lora"
TASKS = ("fruit", "sky", "sea")


@pytest.fixture(scope="module")
def whole(tmp_path_factory, small_tasks, encoder_folder) -> Path:
    out = tmp_path_factory.mktemp("whole") / "run"
    short_run(out, small_tasks, encoder_folder, METHOD)
    return out


@pytest.fixture
def lost(whole: Path, tmp_path: Path) -> Path:
    """A copy of the run without its manifest."""
    run = shutil.copytree(whole, tmp_path / "run")
    (run / "manifest.json").unlink()
    return run


def contents(run: Path) -> dict[str, bytes]:
    return {str(p.relative_to(run)): p.read_bytes() for p in run.rglob("*") if p.is_file() and p.name != ".lock"}


@pytest.mark.parametrize("argv", ["resume", "scores", "show", "rollback --to sky", "predict inputs.jsonl"])
def test_nothing_is_learnt_again_in_silence(argv: str, lost: Path, monkeypatch, capsys) -> None:
    before = contents(lost)
    (lost.parent / "inputs.jsonl").write_text('{"text": "apples"}\n')
    monkeypatch.chdir(lost.parent)
    verb, *rest = argv.split()
    ended = command(monkeypatch, capsys, verb, "run", *rest)
    assert ended.code == 6
    assert "'run/manifest.json' is missing, but stages of the run are there (01-fruit, 02-sky, 03-sea)" in ended.err
    assert "perdure repair run" in ended.err
    assert contents(lost) == before


def test_learning_again_from_python_is_refused(lost: Path, small_tasks, encoder_folder) -> None:
    before = contents(lost)
    with pytest.raises(CorruptFile, match="perdure repair"):
        short_run(lost, small_tasks, encoder_folder, METHOD)
    assert contents(lost) == before


def test_a_finished_run_is_rebuilt_to_the_bit(lost: Path, whole: Path, small_tasks, encoder_folder) -> None:
    assert repair(lost).stages == ("untrained", "fruit", "sky", "sea")
    assert Store(lost).manifest["stages"] == Store(whole).manifest["stages"]
    Store(lost).verify()
    assert perdure.read_scores(lost).score_matrix == perdure.read_scores(whole).score_matrix
    short_run(lost, small_tasks, encoder_folder, METHOD)
    assert bits(lost) == bits(whole)
    assert sync_tree(lost / "deployed") == bits(whole)["deployed"]


def spoil(run: Path, file: str) -> None:
    """Cut the second half of a file off, or remove it."""
    path = run / file.removeprefix("-")
    if file.startswith("-"):
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize(
    "file, why",
    [
        ("-stages/02-sky/state.safetensors", "lacks state.safetensors"),
        ("-stages/02-sky/predictions.zip", "is incomplete: it holds 0 of"),
        ("stages/02-sky/predictions.zip", "cannot be read (CorruptFile"),
        ("-stages/02-sky/adapter/adapter_config.json", "lacks adapter/adapter_config.json"),
        ("stages/02-sky/state.safetensors", "cannot be read (SafetensorError"),
        ("stages/02-sky/adapter/adapter_model.safetensors", "cannot be read ("),
        ("stages/02-sky/scores.json", "cannot be read (CorruptFile"),
        ("stages/02-sky/log.jsonl", "cannot be read (CorruptFile"),
    ],
)
def test_only_whole_stages_are_kept(file: str, why: str, lost: Path, whole: Path, small_tasks, encoder_folder) -> None:
    """What was left is learnt again, and then equals the run that never lost anything."""
    spoil(lost, file)
    done = repair(lost)
    assert done.stages == ("untrained", "fruit")
    assert [*done.aside] == ["02-sky", "03-sea"]
    assert done.aside["02-sky"].startswith(why)
    assert done.aside["03-sea"] == "comes after a stage that is missing or not kept"
    assert (lost / "aside/03-sea/state.safetensors").is_file(), "nothing is thrown away"
    assert "aside" not in Store(lost).manifest
    short_run(lost, small_tasks, encoder_folder, METHOD)
    assert bits(lost) == bits(whole)


def test_answers_that_are_missing_are_counted(lost: Path) -> None:
    stage = lost / "stages/03-sea"
    write_answers(stage, [(task, read_answers(stage, task)[: -3 if task == "fruit" else None]) for task in TASKS])
    count = json.loads((lost / "stages/03-sea/scores.json").read_text())["fruit"]["examples"]
    why = f"is incomplete: it holds {count - 3} of {count} answers of fruit"
    assert repair(lost).aside == {"03-sea": why}


def test_a_gap_and_a_second_folder_of_a_number(lost: Path) -> None:
    shutil.copytree(lost / "stages/01-fruit", lost / "stages/01-aardvark")
    shutil.rmtree(lost / "stages/02-sky")
    done = repair(lost)
    assert done.stages == ("untrained", "fruit")
    assert {folder: why.split(";")[0] for folder, why in done.aside.items()} == {
        "01-aardvark": "is not a stage that run.json describes",
        "03-sea": "comes after a stage that is missing or not kept",
    }


def test_a_stage_of_another_run_is_not_kept(lost: Path) -> None:
    """Whole and rightly named, but what it remembers are other stages."""
    shutil.rmtree(lost / "stages/02-sky")
    shutil.copytree(lost / "stages/01-fruit", lost / "stages/02-sky")
    assert repair(lost).aside["02-sky"] == "has a state.safetensors of other stages"


def test_a_run_that_cannot_be_repaired_is_left(lost: Path, whole: Path) -> None:
    with pytest.raises(StoreError, match=r"manifest.json' is there: only a missing one"):
        repair(whole)
    (lost / "stages/00-untrained/scores.json").unlink()
    before = contents(lost)
    with pytest.raises(CorruptFile, match=r"No stage .* the first one lacks scores.json. Nothing was changed"):
        repair(lost)
    assert contents(lost) == before
    with pytest.raises(StoreError, match="holds no run"):
        repair(lost.parent)
    assert not (lost.parent / ".lock").exists()


def test_only_the_untrained_stage_without_a_manifest_is_a_killed_beginning(
    lost: Path, whole, small_tasks, encoder_folder
):
    for folder in ("01-fruit", "02-sky", "03-sea"):
        shutil.rmtree(lost / "stages" / folder)
    short_run(lost, small_tasks, encoder_folder, METHOD)
    assert bits(lost) == bits(whole)


def test_the_command_says_what_it_kept(lost: Path, monkeypatch, capsys) -> None:
    spoil(lost, "-stages/03-sea/notes.json")
    monkeypatch.chdir(lost.parent)
    ended = command(monkeypatch, capsys, "repair", "run")
    assert (ended.code, ended.err) == (0, "")
    assert ended.out.splitlines() == [
        "Kept 3 stages: untrained, fruit, sky.",
        "Their checksums are of today: damage from before cannot be noticed any more. manifest.json is new.",
        "Moved to aside/03-sea: it lacks notes.json.",
        "Continue with: perdure resume run",
    ]
    assert command(monkeypatch, capsys, "repair", "run").code == 6


def test_an_old_run_loses_only_what_was_added(unpacked: Path, tmp_path: Path) -> None:  # noqa: F811
    run = shutil.copytree(unpacked / "finished", tmp_path / "run")
    before = Store(run).manifest["stages"]
    (run / "manifest.json").unlink()
    done = repair(run)
    assert done.stages == ("untrained", "fruit", "sky")
    assert Store(run).manifest["stages"] == before[:3]
    assert done.aside.keys() == {"03-sea"}
    assert "has to be added again" in done.aside["03-sea"]
    perdure.resume(run)
    added = Path(str(perdure.read_scores(run).folder)) / "aside/03-sea/why.json"
    assert "added again" in added.read_text()


def test_stages_of_which_not_every_task_was_scored_are_kept(tmp_path, small_tasks, encoder_folder) -> None:
    run, evaluation = tmp_path / "run", {"every_stage": "own", "future": False}
    short_run(run, small_tasks, encoder_folder, "inc-lora", evaluation=evaluation)
    before = Store(run).manifest["stages"]
    (run / "manifest.json").unlink()
    assert repair(run).aside == {}
    assert Store(run).manifest["stages"] == before
