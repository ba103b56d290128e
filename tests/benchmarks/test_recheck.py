"""`make recheck`: which records are drawn, and what counts as a difference."""

from __future__ import annotations

import json

from benchmarks import recheck


def test_every_candidate_is_a_quickstart_run_with_what_a_comparison_needs():
    found = recheck.candidates()
    assert len(found) >= 2
    for path in found:
        record = json.loads(path.read_text())
        assert record["tasks"]
        assert 0 < record["scores"]["average_accuracy"] <= 1


def test_a_difference():
    record = {"tasks": {"a": "1"}, "scores": {"average_accuracy": 0.80}}
    assert recheck.differs(record, {"tasks": {"a": "1"}, "average_accuracy": 0.81}, 2.0) is None
    assert recheck.differs(record, {"tasks": {"a": "1"}, "average_accuracy": 0.77}, 2.0) == "off by 3.0 points"
    assert recheck.differs(record, {"tasks": {"a": "2"}, "average_accuracy": 0.80}, 2.0) == "the data differ"
