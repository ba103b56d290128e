"""Every preset links to its paper, or says why it has none; the link is the one of its page, and `perdure methods` shows it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from perdure.methods.table import BASELINE, OURS, PRESETS
from perdure.report.methods import method_lines

PAGES = Path(__file__).resolve().parents[2] / "docs" / "methods"
WITHOUT_PAPER = {
    BASELINE: {"seq-lora", "inc-lora", "joint", "per-task", "l2", "average"},
    OURS: {"perdure", "perdure+head", "output-drift", "covariance-gain"},
}


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_has_a_reference(name):
    source = PRESETS[name].source
    if source in WITHOUT_PAPER:
        assert name in WITHOUT_PAPER[source]
    else:
        assert re.search(r"https://arxiv\.org/abs/\d{4}\.\d{5}( |$)", source)
    assert source in next(method_lines(name))


@pytest.mark.parametrize("name", PRESETS)
def test_the_page_names_the_same_papers(name):
    stated = (PAGES / f"{name}.md").read_text().partition("\nSource: ")[2].partition("Parts: ")[0]
    assert set(re.findall(r"\d{4}\.\d{5}", PRESETS[name].source)) == set(re.findall(r"\d{4}\.\d{5}", stated))
