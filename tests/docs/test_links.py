"""Every file and heading that README and docs link to exists."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def anchors(page: str) -> Iterator[str]:
    """The anchors of all headings, as GitHub and the documentation site make them."""
    seen: Counter[str] = Counter()
    for heading in re.findall(r"^#{1,6} +(.+)$", re.sub(r"^```.*?^```", "", page, flags=re.M | re.S), flags=re.M):
        text = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading).lower()
        slug = re.sub(r"[^\w -]", "", text).strip().replace(" ", "-")
        yield f"{slug}-{seen[slug]}" if seen[slug] else slug
        seen[slug] += 1


def test_anchors_by_hand():
    page = "# The paper's [claims](x.md)\n```\n# no heading\n```\n## Which `lora.alpha`?\n## Numbers\n### Numbers\n#no"
    assert list(anchors(page)) == ["the-papers-claims", "which-loraalpha", "numbers", "numbers-1"]


@pytest.mark.parametrize("page", [ROOT / "README.md", *sorted(ROOT.glob("docs/**/*.md"))], ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^):]+)\)", page.read_text(encoding="utf-8")):
        name, _, anchor = target.partition("#")
        file = page.parent / name if name else page
        assert file.exists(), f"{page.name} links to {target}"
        if anchor:
            assert anchor in anchors(file.read_text(encoding="utf-8")), (
                f"{page.name} links to {target}: no such heading"
            )
