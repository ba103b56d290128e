"""docs/merging.md: its commands run as they stand, its Python runs, its table names every rule, its figures are right."""

import json
import re
import shlex
from pathlib import Path

import pytest
import torch
import typer
from typer.testing import CliRunner

from perdure.cli.adapters import add_commands
from perdure.merging.max_magnitude import max_magnitude
from perdure.merging.merge_file import read_merge_file
from perdure.merging.rules import RULES
from perdure.ops.lowrank import LowRank
from tests.adapter_cases import random_folder
from tests.backbones.tiny import tiny_causal

PAGE = (Path(__file__).parents[2] / "docs" / "merging.md").read_text()
COMMANDS = [line.strip() for line in PAGE.splitlines() if line.startswith("    perdure ")]
SHAPES = {
    f"model.layers.{i}.self_attn.{kind}": (o, 128) for i in range(2) for kind, o in (("q_proj", 128), ("v_proj", 64))
}
SUITE = "name: mine\ntasks:\n" + "".join(
    f"  {name}: {{train: {name}.jsonl, labels: {{a: a, b: b}}}}\n" for name in ("news", "mail")
)


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", PAGE, flags=re.DOTALL)


@pytest.fixture
def here(tmp_path, monkeypatch):
    """The folders the page speaks of."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "adapters").mkdir()
    for seed, name in enumerate(("news", "mail")):
        random_folder(tmp_path / "adapters" / name, seed, rank=4, shapes=SHAPES)
    tiny_causal(tmp_path / "models" / "llama", hidden=128)
    (tmp_path / "my-tasks.yaml").write_text(SUITE)
    for name in ("news", "mail"):
        rows = [json.dumps({"text": f"{name} {i}", "label": "ab"[i % 2]}) for i in range(12)]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(rows))
    (tmp_path / "merge.yaml").write_text(blocks("yaml")[0])
    return tmp_path


def test_the_commands_run_as_they_stand(here):
    app = typer.Typer()
    add_commands(app)
    ran = 0
    for command in COMMANDS:
        out = re.search(r"--out (\S+)", command)
        if out and (here / out[1]).exists():
            command += " --overwrite"
        result = CliRunner().invoke(app, shlex.split(command)[1:])
        assert result.exit_code == 0, f"{command}\n{result.output}\n{result.exception}"
        ran += 1
    assert ran == 14


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


def test_every_rule_links_its_source():
    rows = PAGE.split("| rule |")[1].split("\n\n")[0].splitlines()[2:]
    for name in (*RULES, "guarded"):
        (row,) = [row for row in rows if f"`{name}`" in row.split("|")[1]]
        link = re.search(r"\]\((https://[^)]+)\)", row)
        assert link, name
        assert name == "guarded" or link[1] == RULES[name].source


def test_the_energy_that_a_dense_merge_keeps():
    """Five random rank-8 updates at width 1024, merged by max-magnitude; within a point of what the page says."""
    found = re.search(r"at width (\d+) keep (.*?)\.\n", PAGE, flags=re.DOTALL)
    assert found is not None
    width, ranks = found.groups()
    said = re.findall(r"(\d+) % at rank (\d+)", ranks)
    draw = torch.Generator().manual_seed(0)
    merged = torch.zeros(int(width), int(width))
    for _ in range(5):
        factors = torch.randn(8, int(width), generator=draw), torch.randn(int(width), 8, generator=draw)
        merged = max_magnitude(merged, LowRank(*factors))
    energies = torch.linalg.svdvals(merged).square()
    assert len(said) == 2
    for percent, rank in said:
        assert 100 * float(energies[: int(rank)].sum() / energies.sum()) == pytest.approx(int(percent), abs=1)
