"""A report replaces reports, and nothing else."""

import pytest

from perdure.errors import StoreError
from perdure.report.own import check_own
from perdure.report.page import write_report
from tests.report.run_folders import write_run


def test_only_its_own_files_are_replaced(tmp_path):
    run = write_run(tmp_path / "run")
    write_report([run], tmp_path / "out")
    check_own(tmp_path / "out")
    write_report([run], tmp_path / "out")
    for kind, content in (("html", "<h1>mine</h1>"), ("md", "# My report"), ("json", "{}")):
        folder = tmp_path / kind
        folder.mkdir()
        (folder / f"report.{kind}").write_text(content)
        with pytest.raises(StoreError, match=rf"report\.{kind}' was not written by `perdure report`"):
            write_report([run], folder)
        assert [path.name for path in folder.iterdir()] == [f"report.{kind}"]
        assert (folder / f"report.{kind}").read_text() == content


def test_a_report_of_a_sweep_is_its_own_too(tmp_path):
    (tmp_path / "report.md").write_text("# Sweep\n\n2 runs")
    (tmp_path / "report.json").write_text('{"cells": [], "comparisons": []}')
    check_own(tmp_path)
