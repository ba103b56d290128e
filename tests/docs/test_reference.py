"""The generated parts of docs/ are up to date, and what each preset deploys is true in real runs."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import pytest

from perdure.methods.table import PARTS, PRESETS
from tests.contract.runs import short_run

DOCS = Path(__file__).resolve().parents[2] / "docs"


@pytest.fixture(scope="module")
def reference() -> ModuleType:
    spec = importlib.util.spec_from_file_location("docs_reference", DOCS / "reference.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_no_page_is_stale(reference):
    assert [path.name for path, old, new in reference.pages() if old != new] == [], "run `make docs`"


def test_the_kinds_that_are_named_are_known(reference):
    assert set(reference.TWICE) <= PARTS["init"].keys()
    assert set(reference.ONE_ADAPTER) <= PARTS["consolidate"].keys()


OF_EACH_KIND = dict.fromkeys(
    [
        *{row.consolidate["kind"]: name for name, row in reversed(PRESETS.items())}.values(),
        *{row.init["kind"]: name for name, row in reversed(PRESETS.items())}.values(),
        "joint",
    ]
)
"""A preset for each consolidation and each init, including future ones."""


@pytest.mark.parametrize("method", OF_EACH_KIND)
def test_what_is_deployed(method, reference, tmp_path, small_tasks, encoder_folder):
    """Two tasks at rank 2."""
    short_run(tmp_path / "run", small_tasks[:2], encoder_folder, method)
    deployed = tmp_path / "run" / "deployed"
    said = next(line for line in reference.deployed().splitlines() if f"`{method}`" in line)
    _, form, rank, *_ = (part.strip() for part in said.split("|"))
    configs = sorted(deployed.rglob("adapter_config.json"))
    found = {0: "the whole model", 1: "a plain adapter", 2: "an adapter for each task"}[len(configs)]
    assert form == found
    assert (deployed / "config.json").exists() == (form == "the whole model")
    most = {"-": 0, "rank": 2, "tasks x rank": 4, "up to 2 x tasks x rank": 8}[rank]
    ranks = {json.loads(path.read_text())["r"] for path in configs}
    assert ranks == ({most} if most and "up to" not in rank else ranks)
    assert max(ranks, default=0) <= most
