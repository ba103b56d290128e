"""The sweeps in the pages are valid: every run's configuration loads and its method can be built."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from perdure.methods.contract.build import build_method
from perdure.sweeps.plan import cells, load_sweep
from perdure.sweeps.search import rounds
from perdure.tasks.suites import describe

DOCS = Path(__file__).parents[2] / "docs"


@pytest.mark.parametrize(
    "page,place,runs", [("sweeps.md", 0, 2 * 3 * 6), ("sweeps.md", 1, 2 * 4), ("choosing.md", 0, 2 * 4)]
)
def test_a_sweep_in_a_page(page, place, runs, tmp_path):
    """Of a search the first four trials a row."""
    block = re.findall(r"```yaml\n(.*?)```", (DOCS / page).read_text(encoding="utf-8"), re.DOTALL)[place]
    (tmp_path / "sweep.yaml").write_text(block)
    found = list(cells(next(rounds(load_sweep(tmp_path / "sweep.yaml"), tmp_path))))
    assert len({cell.id for cell in found}) == len(found) == runs
    for cell in found:
        build_method(cell.config.method)
        assert cell.config.order is None or cell.config.order in map(str, describe(cell.config.suite)["orders"])
