"""docs/suites.md: the example suite sets the sizes that the page says."""

from __future__ import annotations

import re
from pathlib import Path

from perdure.config.run_config import load_config
from perdure.settings.read import parse_overrides

PAGE = (Path(__file__).parents[2] / "docs/suites.md").read_text(encoding="utf-8")


def test_the_sizes_of_the_example(tmp_path):
    (suite,) = re.findall(r"^```yaml\n(.*?)^```", PAGE, flags=re.DOTALL | re.MULTILINE)
    (tmp_path / "support.yaml").write_text(suite)
    given = {"suite": str(tmp_path / "support.yaml")}
    assert load_config(given).budget.model_dump() == {"train": 1000, "validation": 200, "test": 500}
    assert "`budget.train=100` learns 100" in PAGE
    assert load_config(given, parse_overrides(["budget.train=100"])).budget.train == 100
