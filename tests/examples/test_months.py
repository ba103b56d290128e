"""examples/months.py, as a person runs it: real files, the real model, and the numbers of the record up to noise."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_three_months(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    import months  # pyright: ignore[reportMissingImports]

    said = months.main(tmp_path)
    assert "always answering 'negative' scores" in said["before"]
    assert "the untouched model: about" in said["before"]
    assert "airlines was learnt" in said["january"]
    assert "No earlier task lost more than noise explains." in said["now"]
    assert "answers became worse since their task was learnt" in said["texts"]
    [run] = json.loads((tmp_path / "page/report.json").read_text())["runs"]
    record = json.loads((ROOT / "benchmarks/months/record.json").read_text())
    for task, recorded in zip(run["standing"], record["standing"], strict=True):
        assert task["now"] > task["baseline"]
        assert abs(task["now"] - recorded["now"]) < 0.03
    assert run["noticed"] == record["noticed"]
    assert sum(stage.is_dir() for stage in (tmp_path / "run/stages").iterdir()) == 4  # untrained, then a month each
