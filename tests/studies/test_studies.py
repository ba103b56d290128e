"""Studies on a finished toy run: parts add up, ends are the run's own scores, refusals say why."""

import dataclasses
import json
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch

from perdure.cli.studies import _write
from perdure.config.run_config import RunConfig
from perdure.errors import ConfigError, StoreError
from perdure.methods.contract.build import build_method
from perdure.ops.lowrank import LowRank, dense
from perdure.state.record import load_stage_update
from perdure.state.scores import read_scores
from perdure.state.store import Store
from perdure.studies.signs import NO_PART, WHOLE, OpenRun, ScoredPart, Study, open_run, sign_split, signs
from perdure.tasks.task import Task
from perdure.training.lora import AdaptedModel
from tests.methods.two_layers import CONFIG, Toy, learn_toy, toy_task, toy_tasks
from tests.own_files import perdure


def opened(folder: Path, tasks: tuple[Task, ...]) -> OpenRun:
    toy = Toy()
    toy.prepare(tasks)
    return open_run(folder, tasks, AdaptedModel(toy.model, RunConfig(**CONFIG).lora, toy.default_targets), toy)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> OpenRun:
    """An inc-lora run over three tasks."""
    folder = tmp_path_factory.mktemp("run")
    from perdure.methods.contract.parts import Method
    from perdure.methods.plain import Kaiming, Sum

    learn_toy(Method("inc-lora", Kaiming(), Sum()), folder / "r", toy_tasks(3), epochs=6, method="inc-lora")
    return opened(folder / "r", toy_tasks(3))


def test_sign_split_ends_are_the_runs_scores(run: OpenRun) -> None:
    """Nothing of task t's update = the scores after task t - 1; all of it = the scores after task t."""
    study, scores = sign_split(run, shares=(0.5, 1.0)), read_scores(run.store.folder)
    assert [row.stage for row in study.rows[:2]] == ["task1", "task1"]
    for t, name in ((1, "task1"), (2, "task2")):
        nothing, whole = [row for row in study.rows if row.stage == name and row.part in (NO_PART, WHOLE)]
        before, after = scores.score_matrix[t - 1], scores.score_matrix[t]
        assert nothing.new == before[t]
        assert whole.new == after[t]
        assert whole.old == pytest.approx(sum(after[:t]) / t)  # type: ignore[arg-type]
        assert (nothing.positions, nothing.energy) == (0.0, 0.0)
        assert whole.energy == 1.0


def test_sign_split_parts_are_what_their_names_say(run: OpenRun) -> None:
    """Counted from the stored updates; where the history is 0 (rows of other tasks' units) a position is in neither half."""
    rows = {(r.stage, r.part, r.share): r for r in sign_split(run, shares=(0.5, 1.0), side="top").rows}
    updates = [load_stage_update(run.store, i) for i in range(2)]
    flat = [torch.cat([dense(delta).reshape(-1) for delta in update.values()]) for update in updates]
    for part, sign in (("same sign", 1), ("opposite sign", -1)):
        chosen = (flat[0].sign() * flat[1].sign()) == sign
        assert chosen.any()
        row = rows["task1", part, 1.0]
        assert row.positions == pytest.approx(float(chosen.double().mean()))
        assert row.energy == pytest.approx(float(flat[1][chosen].square().sum() / flat[1].square().sum()), rel=1e-5)
        assert rows["task1", part, 0.5].positions < row.positions
    assert rows["task1", "both signs", 1.0].new == rows["task1", WHOLE, 1.0].new
    assert rows["task1", "both signs", 0.5].energy > 0.6  # the larger half


def test_signs_keeps_what_it_says(run: OpenRun) -> None:
    study = signs(run, shares=(0.25,))
    rows = {(r.stage, r.part): r for r in study.rows}
    assert {stage for stage, _ in rows} == {"task0", "task1", "task2"}
    for stage in ("task0", "task1"):
        assert rows[stage, "signs only"].energy == pytest.approx(1.0, rel=1e-4)
        assert rows[stage, "magnitudes only"].energy == pytest.approx(1.0, rel=1e-4)
        assert rows[stage, "top k %"].positions == pytest.approx(0.25, abs=0.01)
    assert rows["task0", "top k %"].old is None


def test_an_update_that_changes_nothing_has_no_energy(run: OpenRun, monkeypatch: pytest.MonkeyPatch) -> None:
    def nothing(store: Store, index: int) -> dict[str, LowRank]:
        return {name: LowRank(delta.A, 0 * delta.B) for name, delta in load_stage_update(store, index).items()}

    monkeypatch.setattr("perdure.studies.signs.load_stage_update", nothing)
    assert {row.energy for row in [*signs(run, shares=(0.5,)).rows, *sign_split(run, shares=(0.5,)).rows]} == {0.0}


def test_fewer_examples_are_spread_over_the_split(run: OpenRun) -> None:
    task = run.tasks[0]
    few = dataclasses.replace(run, examples=4)
    by_hand = dataclasses.replace(task, test=task.test[::4])  # 16 test examples
    assert few.score({}, task, ["task0"]) == run.score({}, by_hand, ["task0"])


def test_chosen_stages(run: OpenRun) -> None:
    assert {row.stage for row in sign_split(run, shares=(1.0,), stages=["task2"]).rows} == {"task2"}
    with pytest.raises(ConfigError, match="No stage 'task0' with a history"):
        sign_split(run, stages=["task0"])
    with pytest.raises(ConfigError, match="No stage 'nope'"):
        signs(run, stages=["nope"])


def test_table_and_picture() -> None:
    rows = [
        ScoredPart("t", NO_PART, 0.0, 0.0, 0.0, 0.25, 0.5),
        ScoredPart("t", "same sign", 0.2, 0.1, 0.1, 0.75, 0.625),
        ScoredPart("t", "same sign", 0.4, 0.2, 0.2, 0.875, 0.75),
        ScoredPart("u", "same sign", 0.4, 0.2, 0.2, 0.625, 0.25),
    ]
    study = Study("sign split", rows, {"side": "bottom"})
    assert "| t | same sign | 0.40 | 0.200 | 0.200 | 0.875 | 0.750 |" in study.as_markdown()
    assert study.as_dict()["rows"][1]["part"] == "same sign"
    root = ElementTree.fromstring(study.as_svg("new"))
    words = [element.text for element in root.iter("{http://www.w3.org/2000/svg}text")]
    assert {NO_PART, "same sign", "sign split: mean score on the new task"} <= set(words)
    lines = [group for group in root.iter() if group.get("id", "").startswith("series-")]
    assert len(lines) == 2  # same sign, and 'nothing' as a level line


@pytest.mark.parametrize(
    "method,why",
    [
        ("seq-lora", "its update already holds the past"),
        ("slao", "its update already holds the past"),
        ("per-task", "answered by its own update"),
        ("joint", "a single stage, which has no past"),
    ],
)
def test_runs_without_a_past_apart_from_the_update_are_refused(method: str, why: str, tmp_path: Path) -> None:
    config = RunConfig(**{**CONFIG, "method": method})
    made = build_method(config.method)
    learn_toy(made, tmp_path / "r", toy_tasks(2), epochs=1, method=method)
    with pytest.raises(ConfigError, match=f"cannot be studied.*{why}"):
        opened(tmp_path / "r", toy_tasks(2))


def test_a_merged_run_is_studied_on_what_its_tasks_were_trained_on(tmp_path: Path) -> None:
    made = build_method(RunConfig(**{**CONFIG, "method": "ps-lora"}).method)
    learn_toy(made, tmp_path / "r", toy_tasks(2), epochs=1)
    assert [row.stage for row in sign_split(opened(tmp_path / "r", toy_tasks(2)), shares=(1.0,)).rows] == ["task1"] * 5


@pytest.mark.parametrize(
    "command", [["study", "signs", "nowhere"], ["study", "sign-split", "nowhere"], ["mine", "none"]]
)
def test_where_nothing_can_be_written_nothing_is_computed(
    command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Said before it is noticed that there is no such run, and no such suite."""
    (tmp_path / "file").write_text("")
    assert "Cannot create folder" in perdure(monkeypatch, capsys, *command, "--out", tmp_path / "file").err
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert "Pictures need matplotlib" in perdure(monkeypatch, capsys, *command, "--out", tmp_path / "new").err
    assert not (tmp_path / "new").exists()


def test_results_are_not_overwritten_without_leave(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "signs.json").write_text("hours of scoring")
    command = ["study", "signs", "nowhere", "--out", tmp_path]
    assert "signs.json' already exists" in perdure(monkeypatch, capsys, *command).err
    assert "nowhere" in perdure(monkeypatch, capsys, *command, "--overwrite").err
    assert (tmp_path / "signs.json").read_text() == "hours of scoring"


@pytest.mark.parametrize("name", ["signs.md", "signs.svg"])
def test_no_file_of_a_result_is_overwritten_without_leave(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / name).write_text("mine")
    command = ["study", "signs", "nowhere", "--out", tmp_path]
    assert f"{name}' already exists" in perdure(monkeypatch, capsys, *command).err


def test_a_study_is_not_written_into_a_run(
    run: OpenRun, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["study", "signs", run.store.folder, "--out", run.store.folder, "--overwrite"]
    assert "is inside a run" in perdure(monkeypatch, capsys, *command).err


def test_the_data_are_written_before_the_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study = Study("signs", [ScoredPart("t", WHOLE, 1.0, 1.0, 1.0, 0.5, None)])
    monkeypatch.setattr(Study, "as_svg", lambda _: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        _write(study, tmp_path, "signs")
    assert json.loads((tmp_path / "signs.json").read_text())["study"] == "signs"
    assert (tmp_path / "signs.md").read_text() == study.as_markdown()


def test_results_that_cannot_be_written_say_where(tmp_path: Path) -> None:
    (tmp_path / "signs.md").mkdir()
    with pytest.raises(StoreError, match=r"Cannot write '.*signs\.md'"):
        _write(Study("signs", [ScoredPart("t", WHOLE, 1.0, 1.0, 1.0, 0.5, None)]), tmp_path, "signs")


def test_other_tasks_and_unfinished_runs_are_refused(run: OpenRun, tmp_path: Path) -> None:
    folder = run.store.folder
    with pytest.raises(ConfigError, match="learnt 'task2', which is not among"):
        opened(folder, toy_tasks(2))
    other = dataclasses.replace(run.tasks[1], labels=dict.fromkeys(run.tasks[1].labels, "another text"))
    with pytest.raises(ConfigError, match="Task 'task1' differs from the one"):
        opened(folder, (run.tasks[0], other, run.tasks[2]))
    with pytest.raises(StoreError, match="holds no run"):
        opened(tmp_path, toy_tasks(2))
    assert toy_task(0).name == "task0"
