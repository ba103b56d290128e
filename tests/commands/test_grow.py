"""One more task on a finished run, and back: equal to the bit to a run of all tasks, and safe to refuse."""

from __future__ import annotations

import errno
import json
import re
import shutil

import pytest

import perdure
import perdure.commands.grow
import perdure.loop.sequence
import perdure.state.unfinished
from perdure.commands.learn import resume, run_config
from perdure.config.run_config import load_config
from perdure.errors import (
    ConfigError,
    DataError,
    QualityGate,
    RunBusy,
    RunMismatch,
    StoreError,
    UnknownName,
)
from perdure.files.durable import sync_tree
from perdure.methods.table import PRESETS
from perdure.state.answers import StageAnswers
from perdure.state.gate import Gate
from perdure.state.outcomes import Answered, TaskOutcome
from perdure.state.scores import read_scores
from perdure.state.store import Store
from perdure.tasks.sources.files import read_task_spec
from tests.contract.runs import SETTINGS, bits, bits_learnt, short_run
from tests.months import write_config, write_task

FAST = ("inc-lora", "slao", "ewc", "o-lora", "slice+replay", "ties", "per-task")  # ps-lora: every other test here
GROWING = [
    pytest.param(name, marks=() if name in FAST else pytest.mark.slow)
    for name, preset in PRESETS.items()
    if preset.stream == "one-by-one"
]


@pytest.fixture(scope="module")
def begun(tmp_path_factory, encoder_folder):
    """A finished run of two tasks in files, and a third task; copied by `run`."""
    folder = tmp_path_factory.mktemp("begun")
    config = write_config(folder, encoder_folder, ["fruit", "sky"], "ps-lora")
    write_task(folder, "sea")
    run_config(load_config(config), folder / "run")
    return folder


@pytest.fixture
def folder(begun, tmp_path):
    """As begun; data files are shared, since a run names them by absolute paths."""
    shutil.copytree(begun / "run", tmp_path / "run")
    return tmp_path


@pytest.mark.parametrize("method", GROWING)
def test_an_add_equals_learning_all_at_once(method, tmp_path, small_tasks, encoder_folder):
    short_run(tmp_path / "all", small_tasks, encoder_folder, method)
    short_run(tmp_path / "grown", small_tasks[:2], encoder_folder, method)
    grown = perdure.add(tmp_path / "grown", small_tasks[2], tasks=small_tasks[:2])
    together = read_scores(tmp_path / "all")
    assert bits_learnt(tmp_path / "grown") == bits_learnt(tmp_path / "all")
    assert grown.score_matrix[-1] == together.score_matrix[-1]
    assert [row[:2] for row in grown.score_matrix] == [row[:2] for row in together.score_matrix]
    assert [row[2] for row in grown.score_matrix[:-1]] == [None, None]
    assert grown.untrained_scores == together.untrained_scores
    assert grown.forward_transfer is None
    assert (grown.forgetting, grown.average_accuracy) == (together.forgetting, together.average_accuracy)


def test_a_month_with_its_own_settings_is_bit_equal_to_a_configuration_that_says_the_same(
    begun, folder, encoder_folder
):
    run, own = folder / "run", {"epochs": 3, "learning_rate": 0.004}
    names = ["fruit", "sky", "sea"]
    whole = load_config(write_config(folder, encoder_folder, names, "ps-lora"), {"training_by_task": {"sea": own}})
    run_config(whole, folder / "whole")
    perdure.add(run, folder / "sea.yaml", training=own)
    assert bits_learnt(run) == bits_learnt(folder / "whole")
    assert Store(run).manifest["stages"][-1]["added"]["training"] == own
    plain = folder / "plain"
    shutil.copytree(begun / "run", plain)
    perdure.add(plain, folder / "sea.yaml")
    assert bits_learnt(plain) != bits_learnt(run)


def test_settings_of_a_single_task_are_checked_before_anything_is_loaded(begun, folder, small_tasks, encoder_folder):
    run = folder / "run"
    with pytest.raises(ConfigError, match=r"training_by_task\.sea: 'epoch'\. Did you mean 'epochs'"):
        perdure.add(run, begun / "sea.yaml", training={"epoch": 3})
    with pytest.raises(ConfigError, match="checkpoint_minutes is a setting of the run"):
        perdure.add(run, begun / "sea.yaml", training={"checkpoint_minutes": 1})
    with pytest.raises(UnknownName, match="Did you mean 'fruit'"):
        short_run(folder / "new", small_tasks[:2], encoder_folder, "inc-lora", training_by_task={"fruits": {}})
    with pytest.raises(ConfigError, match="trains all tasks together"):
        short_run(folder / "new", small_tasks[:2], encoder_folder, "joint", training_by_task={"fruit": {"epochs": 2}})
    assert not (folder / "new").exists()


def test_a_run_from_files_grows_from_a_file_and_goes_on_from_anywhere(begun, folder, monkeypatch, encoder_folder):
    run = folder / "run"
    before = (run / "run.json").read_bytes()
    scores = perdure.add(run, begun / "sea.yaml")
    assert (scores.tasks, scores.stages) == (["fruit", "sky", "sea"], ["fruit", "sky", "sea"])
    assert (run / "run.json").read_bytes() == before
    config = write_config(folder, encoder_folder, ["fruit", "sky", "sea"], "ps-lora")
    run_config(load_config(config), folder / "all")
    assert bits_learnt(run) == bits_learnt(folder / "all")
    grown = bits(run)
    monkeypatch.chdir(folder)
    assert resume("run").score_matrix == scores.score_matrix
    assert bits(run) == grown
    assert run_config(load_config(begun / "config.yaml"), run).tasks == scores.tasks
    with pytest.raises(RunMismatch, match=r"config\.seed"):
        run_config(load_config(begun / "config.yaml", {"seed": 1}), run)


def test_an_add_that_fails_after_its_training_does_not_train_again(begun, folder, monkeypatch):
    """What was written down inside the stage is kept until the stage counts for all."""
    run = folder / "run"
    before = bits(run)
    real_write, real_save, made = perdure.state.unfinished.Unfinished._write, perdure.loop.sequence.save_deployed, []
    monkeypatch.setattr(
        perdure.state.unfinished.Unfinished,
        "stepped",
        lambda self, training: (made.append(1), real_write(self, training)),
    )

    def fails(*_, **__):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(perdure.loop.sequence, "save_deployed", fails)
    with pytest.raises(OSError, match="Input/output"):
        perdure.add(run, begun / "sea.yaml")
    assert bits(run) == before
    assert made
    made.clear()
    monkeypatch.setattr(perdure.loop.sequence, "save_deployed", real_save)
    assert perdure.add(run, begun / "sea.yaml").stages == ["fruit", "sky", "sea"]
    assert not made
    assert not (run / "unfinished").exists()


def test_adding_with_another_version_is_noticed(begun, folder, monkeypatch):
    monkeypatch.setattr(perdure.commands.grow, "versions", lambda: {"torch": "99.0"})
    perdure.add(folder / "run", begun / "sea.yaml")
    assert any("sea: the run began with torch" in line for line in Store(folder / "run").about["warnings"])


def test_rollback_then_add_equals_the_add(begun, folder):
    run = folder / "run"
    two = bits(run)
    perdure.add(run, begun / "sea.yaml")
    three, deployed = bits(run), sync_tree(run / "deployed")
    scores = perdure.rollback(run, "sky")
    assert scores.stages == ["fruit", "sky"]
    assert bits(run) == two
    assert sync_tree(run / "deployed") == two["deployed"] != deployed
    assert json.loads((run / "aside/03-sea/why.json").read_text())["why"].startswith("'sea' was rolled back")
    perdure.add(run, begun / "sea.yaml")
    assert bits(run) == three
    assert sync_tree(run / "deployed") == deployed


def test_rollback_into_what_the_run_was_begun_with(begun, folder):
    run = folder / "run"
    both = bits_learnt(run)
    scores = perdure.rollback(run, "fruit")
    assert (scores.tasks, scores.stages) == (["fruit"], ["fruit"])
    assert Store(run).finished
    with pytest.raises(StoreError, match=r"rolled back to 'fruit'.*perdure add"):
        run_config(load_config(begun / "config.yaml"), run)
    assert resume(run).stages == ["fruit"]
    perdure.add(run, begun / "sky.yaml")
    assert bits_learnt(run)[0] == both[0]
    assert bits_learnt(run)[2] == both[2]
    with pytest.raises(UnknownName, match=r"Unknown learnt task .* 'sea'.*Known: fruit, sky"):
        perdure.rollback(run, "sea")


def test_an_unfinished_run_ends_by_rollback(begun, folder, tmp_path, monkeypatch):
    import perdure.loop.sequence

    real, calls = perdure.loop.sequence.train, []

    def stop(*args, **kwargs):
        calls.append(args)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(*args, **kwargs)

    monkeypatch.setattr(perdure.loop.sequence, "train", stop)
    with pytest.raises(KeyboardInterrupt):
        run_config(load_config(begun / "config.yaml"), tmp_path / "half")
    monkeypatch.setattr(perdure.loop.sequence, "train", real)
    with pytest.raises(
        StoreError, match=r"not finished \(1 of 2 tasks learnt\).*perdure resume.*rollback .* --to fruit"
    ):
        perdure.add(tmp_path / "half", begun / "sea.yaml")
    perdure.rollback(tmp_path / "half", "fruit")
    assert perdure.add(tmp_path / "half", begun / "sea.yaml").stages == ["fruit", "sea"]


def test_the_gate_refuses_and_leaves_everything(begun, folder, encoder_folder):
    run = folder / "run"
    before, files = bits(run), sync_tree(run / "deployed")
    # the labels of fruit turned round: learning them makes the model forget
    turned = write_task(
        folder, "fruit", ("pears", "apples"), start=50, labels={"a": "about apples", "b": "about pears"}
    )
    wanted = read_scores(run)
    hard = {"method": "seq-lora", "training": {"epochs": 12, "batch_size": 8, "learning_rate": 0.05}}
    config = load_config(begun / "config.yaml", hard)
    first = run_config(config, folder / "hard")
    with pytest.raises(QualityGate) as refused:
        perdure.add(folder / "hard", turned, max_forgetting=2.0)
    message = str(refused.value)
    kept = folder / "hard/aside/03-fruit@2"
    best = max(row[0] for row in first.score_matrix)
    assert f"below its best ({100 * best:.1f} after '" in message
    assert re.search(r"After 'fruit@2', more than 2 points are forgotten: 'fruit' is at", message)
    assert re.search(r"by this stage \(\d+ of 10 answers became worse, 0 better; 95 % interval", message)
    assert str(kept) in message
    assert {"scores.json", "adapter", "state.safetensors", "why.json"} <= {path.name for path in kept.iterdir()}
    assert read_scores(folder / "hard") == first
    assert perdure.add(folder / "hard", turned, max_forgetting=100.0).stages == ["fruit", "sky", "fruit@2"]
    assert (bits(run), sync_tree(run / "deployed"), read_scores(run)) == (before, files, wanted)
    with pytest.raises(ConfigError, match="0 or more"):
        perdure.add(run, begun / "sea.yaml", max_forgetting=-1)


def test_the_gate_stops_a_run_before_the_stage(folder, begun, monkeypatch):
    import perdure.state.gate

    def fallen(store, upcoming=None):
        best, now = (
            Answered(stage, "fruit", StageAnswers(folder), score) for stage, score in (("fruit", 0.9), ("sky", 0.8))
        )
        return [TaskOutcome("fruit", [best, now], 0, None)] if store.stages() else []

    monkeypatch.setattr(perdure.state.gate, "task_outcomes", fallen)
    config = load_config(begun / "config.yaml")
    with pytest.raises(QualityGate, match=r"'fruit' is at 80\.0, 10\.0 below its best \(90\.0 after 'fruit'\)"):
        run_config(config, folder / "gated", gate=Gate(max_forgetting=9.9))
    assert Store(folder / "gated").stages() == ["fruit"]
    assert not (folder / "gated/deployed").exists()
    run_config(config, folder / "gated", gate=Gate(max_forgetting=10.0))
    assert bits(folder / "gated") == bits(folder / "run")


def test_new_data_of_a_known_task_is_its_next_version(begun, folder):
    run = folder / "run"
    with pytest.raises(DataError, match=r"'sky' is already learnt: .* from the same data"):
        perdure.add(run, begun / "sky.yaml")
    new = write_task(folder, "sky", start=7)  # 13 of its 20 numbers are old ones
    scores = perdure.add(run, new)
    assert scores.tasks == ["fruit", "sky", "sky@2"]
    assert None not in scores.score_matrix[-1]
    assert any("sky@2: trains on" in line and "test texts of sky" in line for line in Store(run).about["warnings"])
    write_task(folder, "sky", start=40)
    with pytest.raises(RunMismatch, match=r"data of task 'sky@2' changed.*Restore"):
        perdure.add(run, begun / "sea.yaml")
    other = write_task(folder / "more", "sky", start=60)
    write_task(folder, "sky", start=7)
    assert perdure.add(run, other).stages[-1] == "sky@3"
    with pytest.raises(DataError, match=r"Call the task 'sky'"):
        perdure.add(run, write_task(folder / "again", "sky", start=80, name="sky@3"))


def test_versions_in_a_configuration(tmp_path, encoder_folder):
    config = write_config(tmp_path, encoder_folder, ["fruit", "sky"])
    write_task(tmp_path / "later", "fruit", start=30, name="fruit@2")
    new = read_task_spec(tmp_path / "later/fruit.yaml").located(tmp_path / "later")
    plain = load_config(config)
    run_config(plain.model_copy(update={"tasks": (*plain.tasks, new)}), tmp_path / "all")
    run_config(plain, tmp_path / "grown")
    later = write_task(tmp_path / "later", "fruit", start=30)
    assert perdure.add(tmp_path / "grown", later).stages == ["fruit", "sky", "fruit@2"]
    assert bits_learnt(tmp_path / "grown") == bits_learnt(tmp_path / "all")
    twice = plain.model_copy(update={"tasks": (*plain.tasks, plain.tasks[0])})
    with pytest.raises(DataError, match=r"fruit is given twice.*'fruit@2'"):
        run_config(twice, tmp_path / "twice")
    with pytest.raises(DataError, match="no 'fruit' comes before"):
        run_config(plain.model_copy(update={"tasks": (new,)}), tmp_path / "alone")


def test_tasks_are_given_as_tasks_or_as_files(begun, tmp_path, small_tasks, encoder_folder):
    from perdure.commands.learn import learn

    backbone = {"kind": "encoder", "model": str(encoder_folder), "max_length": 32}
    files = [begun / "fruit.yaml", begun / "sky.yaml"]
    learn(out=tmp_path / "run", tasks=files, method="ps-lora", backbone=backbone, **SETTINGS)
    assert bits(tmp_path / "run") == bits(begun / "run")
    with pytest.raises(ConfigError, match="all tasks as tasks, or all as files"):
        learn(out=tmp_path / "mixed", tasks=[files[0], small_tasks[1]], backbone=backbone)


def test_a_task_is_added_by_one_process(begun, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match="Only a single process can add a task"):
        perdure.add(begun / "run", begun / "sea.yaml")


def test_what_cannot_grow_is_refused_with_the_reason(tmp_path, small_tasks, encoder_folder):
    short_run(tmp_path / "joint", small_tasks[:2], encoder_folder, "joint")
    with pytest.raises(ConfigError, match="training on all of them again"):
        perdure.add(tmp_path / "joint", small_tasks[2], tasks=small_tasks[:2])
    with pytest.raises(StoreError, match="all its tasks in one stage"):
        perdure.rollback(tmp_path / "joint", "fruit")
    with pytest.raises(ConfigError, match="cannot forget: leave max_forgetting out"):
        short_run(tmp_path / "gated", small_tasks[:2], encoder_folder, "joint", max_forgetting=1.0)
    short_run(tmp_path / "run", small_tasks[:2], encoder_folder, "per-task")
    with pytest.raises(StoreError, match=r"'sky' .*was given from Python.*tasks=\[\.\.\.\]"):
        perdure.add(tmp_path / "run", small_tasks[2], tasks=small_tasks[:1])
    with pytest.raises(StoreError, match="'sea' is not a task of the run"):
        perdure.add(tmp_path / "run", small_tasks[2], tasks=small_tasks)
    with pytest.raises(StoreError, match="holds no run"):
        perdure.add(tmp_path / "nothing", small_tasks[2])
    assert Store(tmp_path / "run").stages() == ["fruit", "sky"]


def test_a_changed_base_and_a_busy_folder_are_refused(begun, folder, monkeypatch):
    from filelock import FileLock

    from perdure.backbones.encoder import Encoder

    run = folder / "run"
    before = bits(run)
    with FileLock(run / ".lock"), pytest.raises(RunBusy):
        perdure.add(run, begun / "sea.yaml")
    with FileLock(run / ".lock"), pytest.raises(RunBusy):
        perdure.rollback(run, "fruit")
    real = Encoder.load.__func__  # type: ignore[attr-defined]

    def other_weights(cls, settings):
        encoder = real(cls, settings)
        next(encoder.model.parameters()).data[0, 0] += 1
        return encoder

    monkeypatch.setattr(Encoder, "load", classmethod(other_weights))
    for call in (
        lambda: perdure.add(run, begun / "sea.yaml"),
        lambda: perdure.rollback(run, "fruit"),
        lambda: perdure.predict(run, ["the sun"], task="sky"),
    ):
        with pytest.raises(RunMismatch, match=r"base model .* changed .* fingerprint was \w{12}, now \w{12}"):
            call()
    assert bits(run) == before


def test_grown_runs_are_reported_and_exported(begun, folder):
    from perdure.commands.export import export
    from perdure.report.page import write_report

    run = folder / "run"
    perdure.add(run, begun / "sea.yaml")
    pages = write_report([run], folder / "report")
    assert "sea" in pages["md"].read_text()
    assert re.search(r"Added later\W+sea", pages["md"].read_text())
    export(run, folder / "model", "model")
    assert (folder / "model/config.json").is_file()


def test_an_add_goes_on_inside_the_task_with_the_same_data_only(tmp_path, small_tasks, encoder_folder, monkeypatch):
    from perdure.state.record import StageRecord
    from tests.conftest import small_task

    training = {**SETTINGS["training"], "epochs": 2, "checkpoint_minutes": 1e-9}
    for name in ("whole", "stopped", "other", "fresh"):
        short_run(tmp_path / name, small_tasks[:2], encoder_folder, "ps-lora", training=training)
    perdure.add(tmp_path / "whole", small_tasks[2], tasks=small_tasks[:2])
    other = small_task("sea", "boats", "harbours")
    perdure.add(tmp_path / "fresh", other, tasks=small_tasks[:2])
    real = StageRecord.step

    def stop(self, step, total):
        if step.step == 4:
            raise KeyboardInterrupt
        real(self, step, total)

    for name in ("stopped", "other"):
        monkeypatch.setattr(StageRecord, "step", stop)
        with pytest.raises(KeyboardInterrupt):
            perdure.add(tmp_path / name, small_tasks[2], tasks=small_tasks[:2])
        assert (tmp_path / name / "unfinished/manifest.json").is_file()
        assert Store(tmp_path / name).stages() == ["fruit", "sky"]
        monkeypatch.setattr(StageRecord, "step", real)
    perdure.add(tmp_path / "stopped", small_tasks[2], tasks=small_tasks[:2])
    perdure.add(tmp_path / "other", other, tasks=small_tasks[:2])
    assert bits(tmp_path / "stopped") == bits(tmp_path / "whole")
    assert bits(tmp_path / "other") == bits(tmp_path / "fresh") != bits(tmp_path / "whole")


def test_a_recorded_file_that_is_gone_is_named_as_such(begun, folder, tmp_path, small_tasks):
    """Whether a run is gone on with, begun again or grown."""
    data = tmp_path / "data"
    data.mkdir()
    run = folder / "run"
    about = run / "run.json"
    about.write_text(about.read_text().replace(str(begun), str(data)))
    message = (
        r"fruit.* does not exist: the run in '.*run' recorded that path for task 'fruit'\. Put the file back there"
    )
    for call in (lambda: perdure.add(run, small_tasks[2]), lambda: resume(run)):
        with pytest.raises(DataError, match=message):
            call()
