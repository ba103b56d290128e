"""The example part in docs/composition.md keeps the contract and is what the page says."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from perdure.report.methods import method_lines
from perdure.testing import check_part

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "composition.md").read_text(encoding="utf-8")


@pytest.fixture(autouse=True)
def _written(tmp_path, monkeypatch):
    (code,) = re.findall(r"^```python\n(.*?)^```", PAGE, flags=re.DOTALL | re.MULTILINE)
    (tmp_path / "my_parts.py").write_text(code)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield
    sys.modules.pop("my_parts", None)


def test_it_passes_its_check():
    (call,) = re.findall(r"(check_part\(\"my_parts:OutputOverlap\".*?\))'", PAGE)
    exec(call, {"check_part": check_part})


def test_it_is_shown_with_its_settings():
    assert any("floor=0.0" in line for line in method_lines("my_parts:OutputOverlap"))
