"""Merges written down in YAML."""

import pytest

from perdure.errors import ConfigError, UnknownName
from perdure.merging.merge_file import Override, read_merge_file, rules_by_module
from perdure.merging.rules import Arithmetic, MaxMagnitude, Ties, rule_named

MODULES = ["layers.0.v_proj", "layers.0.q_proj", "layers.1.v_proj"]


def written(tmp_path, text):
    path = tmp_path / "merge.yaml"
    path.write_text(text)
    return path


def test_a_whole_file(tmp_path):
    (tmp_path / "a").mkdir()
    found = read_merge_file(
        written(
            tmp_path,
            """
            rule: ties
            density: 0.3
            adapters: [a, {path: owner/b, weight: 0.5}]
            rank: 64
            dtype: bf16
            out: merged
            overrides:
              - {modules: "*.v_proj", rule: max-magnitude}
              - {modules: "*.1.*", density: 0.9}
            """,
        )
    )
    assert [source.path for source in found.adapters] == [str(tmp_path / "a"), "owner/b"]
    assert found.chosen().rule == Ties(density=0.3, weights=(1.0, 0.5))
    assert (found.rank, found.dtype, found.out) == (64, "bf16", str(tmp_path / "merged"))
    rules = rules_by_module(["layers.0.v_proj", "layers.1.q_proj", "head"], found.chosen().rule, found.spelt_out())
    assert rules["layers.0.v_proj"] == MaxMagnitude()
    assert rules["layers.1.q_proj"] == Ties(density=0.9, weights=(1.0, 0.5)), "one setting changed, the others stay"
    assert rules["head"] is rules_by_module(["head"], rules["head"], [])["head"]


def test_the_first_override_that_matches_counts_and_is_one_object():
    overrides = [
        Override.model_validate({"modules": "*.v_proj", "scale": 2}),
        Override.model_validate({"modules": "*.0.*", "scale": 3}),
    ]
    rules = rules_by_module(MODULES, rule_named("arithmetic"), overrides)
    assert rules["layers.0.v_proj"] is rules["layers.1.v_proj"]
    assert rules["layers.0.v_proj"] == Arithmetic(scale=2)
    assert rules["layers.0.q_proj"] == Arithmetic(scale=3)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("adapters: [a]", r"merge\.yaml\.rule: is missing"),
        ("rule: tie", "Unknown merge rule: 'tie'. Did you mean 'ties'"),
        ("rule: ties\ndensity: 2", r"rule ties\.density: should be less than or equal to 1 \(got 2\)"),
        ("rule: sum\nadapters: [{path: a, weight: 2}]", r"'sum' takes no weights; use 'arithmetic'"),
        (
            "rule: ties\nweights: [1]\nadapters: [{path: a, weight: 2}]",
            "beside the adapters or as a list `weights`, not both",
        ),
        (
            "rule: ties\nadapters: [{path: a, wieght: 2}]",
            r"Unknown setting of .*merge\.yaml\.adapters\.0: 'wieght'\. Did you mean 'weight'",
        ),
        ("rule: ties\nrank: 0", r"merge\.yaml\.rank: should be greater than or equal to 1 \(got 0\)"),
        ("rule: ties\nadapters: 5", r"adapters: expected a list, as in \[a, b\] \(got 5\)"),
        ("rule: ties\nadapters: runs/news", r"adapters: expected a list, as in \[a, b\] \(got 'runs/news'\)"),
        ("rule: ties\nsettings: 5", r"merge\.yaml\.settings: expected settings, as in \{key: value\} \(got 5\)"),
        ("rule: ties\nsettings: [density]\ndensity: 1", "settings: expected settings"),
        ("rule: ties\noverrides: [{modules: a, settings: 5}]", r"overrides\.0\.settings: expected settings"),
        ("- rule", r"merge\.yaml' must hold settings as `key: value` lines"),
        ("rule: [", r"merge\.yaml' is not valid YAML"),
    ],
)
def test_bad_files(tmp_path, text, reason):
    with pytest.raises((ConfigError, UnknownName), match=reason):
        read_merge_file(written(tmp_path, text)).chosen()


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(ConfigError, match="No such merge file:"):
        read_merge_file(tmp_path / "merge.yaml")


def test_an_override_that_matches_nothing_is_an_error():
    override = Override.model_validate({"modules": "*.k_proj", "scale": 2})
    with pytest.raises(ConfigError, match=r"No module matches the override '\*\.k_proj'.*layers\.0\.v_proj"):
        rules_by_module(MODULES, rule_named("arithmetic"), [override])
