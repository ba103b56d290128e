"""The sweeps in the pages are valid: every run's configuration loads and its method can be built."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from perdure.methods.contract.build import build_method
from perdure.sweeps.plan import cells, load_sweep
from perdure.tasks.suites import describe

DOCS = Path(__file__).parents[2] / "docs"


@pytest.mark.parametrize("page,runs", [("sweeps.md", 2 * 3 * 6), ("choosing.md", 2 * 4)])
def test_a_sweep_in_a_page(page, runs, tmp_path):
    (block,) = re.findall(r"```yaml\n(.*?)```", (DOCS / page).read_text(encoding="utf-8"), re.DOTALL)
    (tmp_path / "sweep.yaml").write_text(block)
    found = list(cells(load_sweep(tmp_path / "sweep.yaml")))
    assert len({cell.id for cell in found}) == len(found) == runs
    for cell in found:
        build_method(cell.config.method)
        assert cell.config.order is None or cell.config.order in map(str, describe(cell.config.suite)["orders"])
