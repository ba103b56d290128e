"""A suite by its paper's protocol: what is read, scored and set, and that nothing changes without it."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from perdure.backbones.causal import CausalSettings
from perdure.backbones.seq2seq import Seq2SeqSettings
from perdure.backbones.text_metrics import TEXT_METRICS
from perdure.backbones.tokens import shortened
from perdure.commands.before_run import check_sources
from perdure.config.run_config import load_config
from perdure.errors import ConfigError, UnknownName
from perdure.report.suites import suite_lines
from perdure.state.reopen import initial_config, load_learner
from perdure.tasks.protocols import OWN, protocols
from perdure.tasks.suites import describe, load_suite, suite_names
from tests.tasks.sources.test_benchmarks import write_cl

PUBLISHED = [name for name in suite_names() if len(protocols(describe(name))) > 1]


def test_the_suites_that_have_a_published_protocol():
    assert PUBLISHED == ["long", "standard-cl", "super-ni", "trace"]
    assert [name for name in suite_names() if protocols(describe(name))[0] != OWN] == ["trace"]


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_protocol_is_whole(name):
    about = describe(name)
    how = about["protocols"]["published"]
    for settings in (CausalSettings, Seq2SeqSettings):
        settings.model_validate({"model": "x", **how["backbone"]})
    assert set(how.get("metrics", {}).values()) <= set(TEXT_METRICS)
    assert how.get("metrics", {}).keys() <= about["tasks"].keys()
    lines = list(suite_lines(name))
    for line in (*how["changes"], *how["differs"]):
        assert any(line in shown for shown in lines)


def trace_folder(tmp_path: Path) -> Path:
    (tmp_path / "FOMC").mkdir()
    for split in ("train", "eval", "test"):
        rows = [{"prompt": f"{split} {i}?", "answer": "ABC"[i % 3]} for i in range(6)]
        (tmp_path / "FOMC" / f"{split}.json").write_text(json.dumps(rows))
    return tmp_path


def test_trace_is_scored_as_published_unless_told_otherwise(tmp_path):
    folder = trace_folder(tmp_path)
    metrics = {
        p: load_suite("trace", data=folder, order="FOMC", protocol=p).tasks[0].metric for p in (None, "published", OWN)
    }
    assert metrics == {None: "trace-exact-match", "published": "trace-exact-match", OWN: "exact-match"}


def super_ni(tmp_path: Path) -> Path:
    """Rows with several answers, and white space around inputs; dev equals test, as distributed."""
    folder = tmp_path / "task363_invented"
    folder.mkdir(parents=True)
    for split, name in (("train", "train"), ("dev", "test"), ("test", "test")):
        rows = [{"input": f" {name} {i} ", "output": [f"{i} yes", f"{i} yeah"]} for i in range(40)]
        (folder / f"{split}.json").write_text(json.dumps({"Definition": "Do.", "Instances": rows}))
    return tmp_path


def test_one_answer_is_drawn_and_inputs_stay_as_they_are(tmp_path):
    folder = super_ni(tmp_path)
    [own], [published] = (
        load_suite("super-ni", data=folder, order="task363", protocol=p).tasks for p in (OWN, "published")
    )
    assert {e.label.split()[1] for e in (*own.train, *own.test)} == {"yes"}
    assert own.answers(own.test[0]) == (own.test[0].label, own.test[0].label.replace("yes", "yeah"))
    assert own.test[0].text == own.test[0].text.strip()
    drawn = {e.text: e.label for e in published.test}
    assert 8 < sum(label.endswith("yeah") for label in drawn.values()) < 32  # about half of 40
    assert published.answers(published.test[0]) == (published.test[0].label,)
    assert all(text.startswith(" test ") and text.endswith(" ") for text in drawn)
    assert any("dev.json is identical to test.json" in note for note in published.notes)
    [again] = load_suite("super-ni", data=folder, order="task363", protocol="published", seed=7).tasks
    assert {e.text: e.label for e in again.test} == drawn


def test_a_protocol_that_a_suite_lacks_is_named(tmp_path):
    with pytest.raises(UnknownName, match=r"protocol of suite 'quickstart'.*'published'.*perdure"):
        load_config({"suite": "quickstart", "protocol": "published"})
    with pytest.raises(UnknownName, match="protocol of suite 'ni-mini'"):
        load_suite("ni-mini", protocol="published")


def test_a_protocol_sets_the_backbone_where_nothing_else_is_said():
    config = load_config({"suite": "standard-cl", "protocol": "published", "backbone": "smollm2-135m"})
    assert config.backbone == {
        "model": "smollm2-135m", "answer_by": "generation", "max_length": 512, "max_new_tokens": 50, "cut": "end",
    }  # fmt: skip
    given = {"model": "smollm2-135m", "max_length": 1024}
    changed = load_config({"suite": "super-ni", "protocol": "published", "backbone": given}).backbone
    assert (changed["max_length"], changed["cut"]) == (1024, "end")
    recorded = config.model_dump(mode="json")
    assert recorded["protocol"] == "published"
    assert load_config(recorded) == config


def test_nothing_is_set_without_a_protocol():
    for suite in ("standard-cl", "long", "super-ni"):
        config = load_config({"suite": suite, "backbone": "smollm2-135m"})
        assert (config.protocol, config.backbone) == (OWN, {"model": "smollm2-135m"})
    assert load_config({"suite": "trace", "backbone": "smollm2-135m"}).protocol == "published"


def test_a_run_begun_before_there_were_protocols_keeps_its_own():
    """Its record has none, also of `trace`, whose default is another now."""
    recorded = {"suite": "trace", "backbone": {"model": "smollm2-135m"}}
    store: Any = SimpleNamespace(initial={"config": recorded}, once=lambda file, read, what: read())
    config = initial_config(store)
    assert (config.protocol, config.backbone) == (OWN, recorded["backbone"])


def test_a_protocol_is_for_suites_and_language_models(tmp_path):
    with pytest.raises(ConfigError, match="protocol"):
        check_sources(
            load_config({"tasks": [{"name": "a", "train": "a.csv"}], "protocol": "published"}), None, begun=False
        )
    for about in describe("standard-cl")["tasks"].values():
        write_cl(tmp_path, about["source"]["path"], about["labels"])
    config = load_config({"suite": "standard-cl", "protocol": "published", "backbone": "minilm"})
    with pytest.raises(ConfigError, match=r"published protocol.*for another model set protocol=perdure"):
        load_learner(config, [])


@pytest.mark.parametrize("cut,kept", [("middle", [0, 1, 5]), ("start", [3, 4, 5]), ("end", [0, 1, 2])])
def test_where_prompts_are_cut(cut, kept):
    assert shortened(range(6), 3, cut) == kept
    assert shortened(range(3), 3, cut) == [0, 1, 2]
