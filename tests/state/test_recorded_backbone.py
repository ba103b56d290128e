"""A run is reopened with the settings of its model as it began, whatever the defaults are now."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import perdure
from perdure.backbones.encoder import Encoder, EncoderSettings
from perdure.errors import RunMismatch
from perdure.state.answers import read_answers
from perdure.state.reopen import learner_config, reopened_model
from perdure.state.store import Store
from perdure.tasks.task import Task
from tests.contract.runs import SETTINGS


@pytest.fixture
def run(tmp_path: Path, small_tasks: list[Task], encoder_folder: Path) -> Path:
    """A finished run of one task on its own copy of the tiny encoder; no setting of the backbone is given."""
    shutil.copytree(encoder_folder, tmp_path / "base")
    learn(tmp_path, small_tasks[:1])
    return tmp_path / "run"


def learn(folder: Path, tasks: list[Task], **backbone: Any) -> perdure.Scores:
    given = {"kind": "encoder", "model": str(folder / "base"), **backbone}
    return perdure.learn(out=folder / "run", tasks=tasks, method="inc-lora", backbone=given, **SETTINGS)


@pytest.fixture
def other_defaults() -> Iterator[None]:
    """As a later version might have them: another temperature and pooling."""
    fields = EncoderSettings.model_fields
    before = {name: fields[name].default for name in ("temperature", "pooling")}
    try:
        for name, value in (("temperature", 0.5), ("pooling", "cls")):
            fields[name].default = value
        EncoderSettings.model_rebuild(force=True)
        assert EncoderSettings().temperature == 0.5
        yield
    finally:
        for name, value in before.items():
            fields[name].default = value
        EncoderSettings.model_rebuild(force=True)


def reopened(run: Path) -> Encoder:
    _, backbone = reopened_model(Store(run))
    assert isinstance(backbone, Encoder)
    return backbone


def test_every_setting_is_in_run_json(run: Path) -> None:
    about = json.loads((run / "run.json").read_text())
    assert set(about["config"]["backbone"]) == {"kind", "model"}
    assert about["backbone"] == EncoderSettings(model=about["config"]["backbone"]["model"]).model_dump()
    assert about["backbone"]["temperature"] == 0.05
    assert about["backbone"]["pooling"] == "auto"


def test_answers_are_those_of_the_run_after_a_default_changed(
    run: Path, small_tasks: list[Task], other_defaults: None
) -> None:
    stored = read_answers(Store(run).stage_folder(1), "fruit")
    rows = perdure.predict(run, [example.text for example in small_tasks[0].test])
    assert [max(row["probabilities"].values()) for row in rows] == [row["probability"] for row in stored]
    settings = reopened(run).settings
    assert (settings.temperature, settings.pooling) == (0.05, "auto")
    again = learn(run.parent, small_tasks[:1])  # the same configuration: nothing to learn, and no mismatch
    assert again.stages == ["fruit"]
    with pytest.raises(RunMismatch, match=r"config.backbone.temperature was None, now 0.5"):
        learn(run.parent, small_tasks[:1], temperature=0.5)


def test_without_the_record_it_opens_as_before(run: Path, other_defaults: None) -> None:
    """By the defaults of today, as runs of 0.1 do; but an encoder by its mean, which was not yet a setting."""
    about = json.loads((run / "run.json").read_text())
    del about["backbone"]
    (run / "run.json").write_text(json.dumps(about))
    assert learner_config(Store(run)).backbone == {**about["config"]["backbone"], "pooling": "mean"}
    settings = reopened(run).settings
    assert (settings.temperature, settings.pooling) == (0.5, "mean")


def test_an_old_run_of_a_folder_with_another_pooling_keeps_the_mean(run: Path, small_tasks: list[Task]) -> None:
    base = run.parent / "base"
    steps = [("", "Transformer"), ("1_Pooling", "Pooling")]
    listed = [{"path": path, "type": f"sentence_transformers.models.{kind}"} for path, kind in steps]
    (base / "modules.json").write_text(json.dumps(listed))
    (base / "1_Pooling").mkdir()
    (base / "1_Pooling" / "config.json").write_text('{"word_embedding_dimension": 32, "pooling_mode_cls_token": true}')
    with pytest.raises(RunMismatch, match=r"pools otherwise than when the run began: mean then, cls now"):
        reopened(run)
    with pytest.raises(RunMismatch, match=r"pools otherwise than when the run began: mean then, cls now"):
        learn(run.parent, small_tasks[:1])
    about = json.loads((run / "run.json").read_text())
    del about["backbone"], about["pooling"]
    (run / "run.json").write_text(json.dumps(about))
    assert reopened(run).pooling.modes == ("mean",)
    assert math.isclose(reopened(run).settings.temperature, 0.05)
