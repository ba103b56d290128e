"""Defaults from presets and suites, what the user gives instead; how numbers and file names are read."""

from __future__ import annotations

import re

import pytest

from perdure.config.run_config import RunConfig, load_config
from perdure.errors import ConfigError
from perdure.methods.contract.build import build_method
from perdure.settings.read import Settings, parse_overrides, validate
from perdure.settings.yaml_text import parse_yaml
from perdure.sweeps.plan import SweepConfig


@pytest.mark.parametrize("method", ["slice", {"preset": "slice", "init": {"c": 0.5}}])
def test_a_preset_brings_the_settings_it_wants(method):
    assert load_config({"method": method}).lora.alpha == 2.0
    assert load_config({"method": method, "lora": {"rank": 4}}).lora.alpha == 2.0


def test_given_settings_override_a_presets():
    assert load_config({"method": "slice", "lora": {"alpha": 8.0}}).lora.alpha == 8.0
    assert load_config({"method": "slice"}, {"lora.alpha": 8.0}).lora.alpha == 8.0


def test_other_methods_keep_the_usual_settings():
    usual = RunConfig().lora.alpha
    assert load_config({"method": "ps-lora"}).lora.alpha == usual
    assert load_config({"method": {"preset": "slice", "init": "kaiming", "replay": None}}).lora.alpha == usual


def test_an_init_brings_its_settings_into_any_method():
    assert load_config({"method": {"init": {"kind": "slice"}, "replay": {"kind": "buffer"}}}).lora.alpha == 2.0
    assert load_config({"method": "ps-lora"}, {"method.init": "lora-ga"}).lora.alpha == 2.0
    both = load_config({"method": {"preset": "perdure", "init": "loram"}})
    assert (both.lora.alpha, both.training.average) == (2.0, "last-half")


def test_a_recorded_configuration_reads_back_as_itself():
    config = load_config({"method": "slice", "lora": {"alpha": 8.0}})
    assert load_config(config.model_dump(mode="json")) == config


@pytest.mark.parametrize(
    "written,read",
    [
        ("1e-3", 1e-3),
        ("2E5", 2e5),
        ("4", 4),
        ("'4'", "4"),
        ('"1e-3"', "1e-3"),
        ("'1234e56'", "1234e56"),
        ("abc", "abc"),
    ],
)
def test_only_what_is_not_in_quotes_is_a_number(written, read):
    found = parse_overrides([f"x={written}"])["x"]
    assert (found, type(found)) == (read, type(read))


@pytest.mark.parametrize("value", ["[1", "{a: 1, a: 2}", "!!python/name:os.system x"])
def test_invalid_yaml_is_refused(value, tmp_path):
    with pytest.raises(ConfigError, match=r"The value of 'seed' is not valid YAML: .*Put strings in quotes"):
        parse_overrides([f"seed={value}"])
    (tmp_path / "run.yaml").write_text(f"suite: quickstart\nseed: {value}\n")
    with pytest.raises(ConfigError, match=r"(?s)run.yaml' is not valid YAML: .*line [23]"):
        load_config(tmp_path / "run.yaml")


@pytest.mark.parametrize("value", ["2024-01-01", "2024-13-45", "007", "1_000", "0x1F", "12e34", "yes", "off", "1:30"])
def test_what_may_be_a_label_stays_a_string(value):
    assert parse_yaml(f"label: {value}") == {"label": value}


def test_deep_nesting_is_refused():
    with pytest.raises(ConfigError, match=r"The value of 'x' is not valid YAML"):
        parse_overrides(["x=" + "[" * 5000 + "]" * 5000])


def test_a_file_that_cannot_be_read_is_named(tmp_path, monkeypatch):
    with pytest.raises(ConfigError, match=r"Cannot read configuration file .*: File name too long"):
        load_config(tmp_path / ("x" * 300 + ".yaml"))
    (tmp_path / "run.yaml").write_text("suite: quickstart\n")

    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("pathlib.Path.read_text", refuse)
    with pytest.raises(ConfigError, match=r"run.yaml': Permission denied\. Check the permissions"):
        load_config(tmp_path / "run.yaml")


def test_a_power_of_ten_is_a_number_in_a_file(tmp_path):
    (tmp_path / "run.yaml").write_text("method: {preset: l2, penalties: {l2: {weight: 1e-3}}}\nsuite: quickstart\n")
    assert load_config(tmp_path / "run.yaml").method["penalties"]["l2"]["weight"] == 1e-3


@pytest.mark.parametrize(
    "lora", [{"alpha": 1e39}, {"alpha": 1e39, "rank": 64}, {"alpha": 1e21, "rank": 9, "rslora": True}], ids=str
)
def test_an_alpha_that_would_overflow_at_the_first_step_is_refused(lora):
    with pytest.raises(ConfigError, match=r"lora: lora\.alpha=1e\+.*numbers of 32 bits overflow at the first step"):
        load_config({"lora": lora})
    assert load_config({"lora": {"alpha": 1e19, "rank": 1}}).lora.alpha == 1e19


MEANT = [
    ({"epochs": 3}, "Did you mean 'training.epochs'"),
    ({"learning_rate": 1e-3}, "Did you mean 'training.learning_rate'"),
    ({"rank": 4}, "Did you mean 'lora.rank'"),
    ({"lr": 1e-3}, "Did you mean 'training.learning_rate'"),
    ({"training": {"lr": 1e-3}}, "Unknown setting of training: 'lr'. Did you mean 'learning_rate'"),
    ({"training": {"rank": 4}}, "Did you mean 'lora.rank'"),
    ({"lora": {"r": 4}}, "Did you mean 'rank'"),
    ({"BS": 8}, "Did you mean 'training.batch_size'"),
    ({"batch_sise": 8}, "Did you mean 'training.batch_size'"),
    ({"model": "minilm"}, "Did you mean 'backbone'"),
    ({"max_length": 64}, "Did you mean 'backbone.max_length'"),
    ({"Training": {}}, "Did you mean 'training'"),
    ({"trainig": {}}, "Did you mean 'training'"),
    ({"method": "PS-LoRA"}, "Did you mean 'ps-lora'"),
    ({"training.epochs": 1}, "write training={'epochs': 1} (in a file `training: {epochs: 1}`)"),
    ({"method.init.c": 2}, "write method={'init': {'c': 2}} (in a file `method: {init: {c: 2}}`)"),
]


@pytest.mark.parametrize(("given", "message"), MEANT, ids=str)
def test_an_unknown_key_names_what_was_meant(given, message):
    """In any group of settings, in upper or lower case, and by the name other libraries use."""
    with pytest.raises(ConfigError, match=re.escape(message)):
        load_config(given)


def test_what_other_libraries_call_a_setting_is_meant_only_where_there_is_such_a_setting():
    class Small(Settings):
        molde: int = 0

    with pytest.raises(ConfigError, match="Did you mean 'molde'"):
        validate(Small, {"model": 1})


@pytest.mark.parametrize(
    "key", ["training.epochs", "training.learning_rate", "training.max_grad_norm", "seed", "threads"]
)
def test_a_boolean_is_not_a_number(key):
    for value in (True, False):
        with pytest.raises(ConfigError, match=rf"{key}: should be a number, not true or false \(got {value}\)"):
            load_config({"suite": "quickstart"}, {key: value})


def test_a_boolean_is_not_a_number_in_a_part_a_task_or_a_list():
    with pytest.raises(ConfigError, match="weight: should be a number"):
        build_method(load_config({"method": {"preset": "l2", "penalties": {"l2": {"weight": True}}}}).method)
    with pytest.raises(ConfigError, match=r"tasks\.0\.test_size: should be a number"):
        load_config({"tasks": [{"name": "a", "train": "a.csv", "test_size": True}]})
    with pytest.raises(ConfigError, match="seeds: should be a number"):
        validate(SweepConfig, {"name": "x", "methods": {"l2": {}}, "seeds": [True]})
    assert load_config({}, {"evaluation.every_stage": False, "lora.rslora": True}).lora.rslora


def test_what_a_file_names_beside_it_is_found_from_anywhere(tmp_path):
    for folder in ("model", "data"):
        (tmp_path / folder).mkdir()
    (tmp_path / "mine.yaml").write_text("name: mine\ntasks: {a: {train: a.jsonl}}\n")
    (tmp_path / "run.yaml").write_text("suite: mine.yaml\ndata: data\nbackbone: {kind: encoder, model: ./model}\n")
    config = load_config(tmp_path / "run.yaml")
    assert config.suite == str(tmp_path / "mine.yaml")
    assert config.data == str(tmp_path / "data")
    assert config.backbone["model"] == str(tmp_path / "model")


def test_a_custom_suite_sets_its_sizes(tmp_path):
    suite = tmp_path / "mine.yaml"
    suite.write_text("name: mine\nsizes: {train: 1000, test: all}\ntasks: {a: {train: a.jsonl}}\n")
    usual = RunConfig().budget
    found = load_config({"suite": str(suite)}).budget
    assert (found.train, found.validation, found.test) == (1000, usual.validation, None)
    found = load_config({"suite": str(suite)}, {"budget.train": 7}).budget
    assert (found.train, found.validation, found.test) == (7, usual.validation, None)
    recorded = load_config({"suite": str(suite)}).model_dump(mode="json")
    suite.write_text(suite.read_text().replace("1000", "5"))
    assert load_config(recorded).budget.train == 1000, "a run keeps what it started with"
    assert load_config({"suite": "quickstart"}).budget == usual


def test_a_name_that_stands_for_no_settings_has_none():
    with pytest.raises(ConfigError, match="'suite' is 'quickstart' and has no 'x'"):
        load_config({"suite": "quickstart"}, {"suite.x": 1})


def test_a_setting_of_a_part_given_by_its_name():
    found = load_config({"method": {"preset": "dare", "consolidate": "ties"}}, {"method.consolidate.density": 0.3})
    assert found.method["consolidate"] == {"kind": "ties", "density": 0.3}
