"""The JSON schema for editors accepts what perdure accepts and marks a misspelt key."""

from __future__ import annotations

import json
from pathlib import Path
from urllib.request import url2pathname

import pytest
from jsonschema import Draft202012Validator
from typer.testing import CliRunner

from perdure.cli import app
from perdure.settings.yaml_text import parse_yaml

ROOT = Path(__file__).parents[2]
SCHEMA = ROOT / "src/perdure/config/perdure.schema.json"
VALIDATOR = Draft202012Validator(json.loads(SCHEMA.read_text(encoding="utf-8")))


def test_init_names_the_schema_that_its_configuration_keeps_to(tmp_path: Path) -> None:
    CliRunner().invoke(app, ["init", str(tmp_path / "perdure.yaml")])
    text = (tmp_path / "perdure.yaml").read_text()
    first, rest = text.split("\n", 1)
    mark = "# yaml-language-server: $schema=file://"
    assert first.startswith(mark)
    assert Path(url2pathname(first.removeprefix(mark))).samefile(SCHEMA)
    VALIDATOR.validate(parse_yaml(rest))


@pytest.mark.parametrize(
    "text",
    [
        "{suite: quickstart, order: 1, method: {preset: ps-lora, replay: null, penalties: {l2: {weight: 0.1}}}}",
        "{tasks: [a.yaml, {name: b, train: b.csv, labels: [x, y]}], backbone: {kind: causal, model: org/name}}",
        "{suite: quickstart, training: {epochs: 2, max_grad_norm: null}, evaluation: {every_stage: own}}",
    ],
)
def test_valid_configurations(text: str) -> None:
    VALIDATOR.validate(parse_yaml(text))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{suite: quickstart, trainig: {epochs: 2}}", "'trainig' was unexpected"),
        ("{suite: quickstart, training: {epochs: -1}}", "-1 is less than the minimum of 0"),
        ("{suite: quickstart, lora: {rnk: 4}}", "'rnk' was unexpected"),
        ("{suite: quickstart, method: pslora}", "not valid under any of the given schemas"),
    ],
)
def test_mistakes_are_marked(text: str, message: str) -> None:
    assert any(message in error.message for error in VALIDATOR.iter_errors(parse_yaml(text)))
