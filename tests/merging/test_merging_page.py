"""docs/merging.md: its commands run as they stand, its Python runs, its table names every rule."""

import json
import re
import shlex
from pathlib import Path

import pytest
import torch
import typer
from safetensors.torch import save_file
from typer.testing import CliRunner

from perdure.cli_adapters import add_commands
from perdure.merging.merge_file import read_merge_file
from perdure.merging.rules import RULES
from tests.adapter_cases import random_folder

PAGE = (Path(__file__).parents[2] / "docs" / "merging.md").read_text()
COMMANDS = [line.strip() for line in PAGE.splitlines() if line.startswith("    perdure ")]
SHAPES = {f"model.layers.{i}.self_attn.{kind}": (90, 80) for i in range(2) for kind in ("q_proj", "v_proj")}


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", PAGE, flags=re.DOTALL)


@pytest.fixture
def here(tmp_path, monkeypatch):
    """The folders the page speaks of."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "adapters").mkdir()
    for seed, name in enumerate(("news", "mail")):
        random_folder(tmp_path / "adapters" / name, seed, rank=4, shapes=SHAPES)
    base = tmp_path / "models" / "llama"
    base.mkdir(parents=True)
    save_file({f"{module}.weight": torch.zeros(shape) for module, shape in SHAPES.items()}, base / "model.safetensors")
    (base / "config.json").write_text(json.dumps({"architectures": ["LlamaModel"]}))
    (tmp_path / "merge.yaml").write_text(blocks("yaml")[0])
    return tmp_path


def test_the_commands_run_as_they_stand(here):
    app = typer.Typer()
    add_commands(app)
    ran = 0
    for command in COMMANDS:
        if "--tasks" in command:
            continue  # needs a model and texts: tests/test_guarded_folders.py
        out = re.search(r"--out (\S+)", command)
        if out and (here / out[1]).exists():
            command += " --overwrite"
        result = CliRunner().invoke(app, shlex.split(command)[1:])
        assert result.exit_code == 0, f"{command}\n{result.output}\n{result.exception}"
        ran += 1
    assert ran >= 8


def test_the_python_runs(here):
    for block in blocks("python"):
        exec(block, {})
    assert (here / "merged" / "adapter_config.json").is_file()


def test_the_merge_file_is_valid(here):
    found = read_merge_file(here / "merge.yaml")
    assert [Path(source.path).name for source in found.adapters] == ["news", "mail"]


def test_every_rule_stands_in_the_table():
    table = PAGE.split("| rule |")[1].split("\n\n")[0]
    named = set(re.findall(r"`([a-z-]+)`", table))
    assert named >= {*RULES, "guarded"}
    for name, rule in RULES.items():
        row = next(line for line in table.splitlines() if f"`{name}`" in line)
        assert ("low rank" in row) == rule.low_rank
        assert ("| yes |" in row) == rule.incremental
