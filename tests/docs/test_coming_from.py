"""The commands of docs/coming-from run as printed, on adapters of the names that they use."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from perdure.cli import app
from tests.merging.test_like_peft import peft_model

PAGES = Path(__file__).resolve().parents[2] / "docs" / "coming-from"


@pytest.mark.parametrize("page", ["add-weighted-adapter", "mergekit"])
def test_the_merges(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    peft_model(tmp_path / "adapters")
    for was, name in (("one", "news"), ("two", "mail")):
        (tmp_path / "adapters" / was).rename(tmp_path / "adapters" / name)
    monkeypatch.chdir(tmp_path)
    text = (PAGES / f"{page}.md").read_text(encoding="utf-8")
    commands = re.findall(r"^    perdure (merge .*)$", text, flags=re.MULTILINE)
    commands += re.findall(r"`perdure (diagnose [^`]*)`", text)
    assert len(commands) == {"add-weighted-adapter": 2, "mergekit": 1}[page]
    for command in commands:
        result = CliRunner().invoke(app, command.split())
        assert result.exit_code == 0, result.output
    assert (tmp_path / "both" / "adapter_model.safetensors").is_file()
