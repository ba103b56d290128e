"""Licences in a card: of a known base by its asset, of a folder by its model card, of data by suite or package."""

from __future__ import annotations

from pathlib import Path

import pytest

from perdure.commands.licences import base_licence, data_licences
from perdure.merging.card import card

MIT = "MIT (package vaderSentiment)"


@pytest.mark.parametrize(
    ("text", "licence"),
    [
        ("---\nlicense: apache-2.0\ntags: [a]\n---\n# A model\n", "apache-2.0"),
        ("---\nlicense: other\nlicense_name: llama3\n---\n", "llama3"),
        ("---\nlicense: [mit]\n---\n", None),
        ("---\n{: broken\n---\n", None),
        ("# A model\n---\nlicense: mit\n---\n", None),
        ("", None),
    ],
)
def test_of_a_folder_by_its_card(text: str, licence: str | None, tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text(text)
    assert base_licence(str(tmp_path)) == licence


def test_of_a_known_base_by_its_asset_and_of_others_unknown(tmp_path: Path) -> None:
    assert base_licence("smollm2-135m") == "Apache-2.0"
    assert base_licence("no-such-org/not-in-the-cache") is None
    assert base_licence(str(tmp_path)) is None


def test_of_data_by_suite_or_package() -> None:
    assert data_licences({"suite": "quickstart"}, ["amazon", "mine"]) == {"amazon": MIT}
    packaged = {"name": "reviews", "package": {"reader": "vader", "asset": "vader"}}
    assert data_licences(
        {"tasks": [packaged, {"name": "mail", "train": "mail.csv", "package": None}]}, ["reviews"]
    ) == {"reviews": "MIT"}
    assert data_licences({"suite": "gone.yaml"}, ["a"]) == {}


def test_the_card_says_them_and_what_is_unknown() -> None:
    record = {
        "form": "adapter", "rank": 2, "energy": 1.0, "method": "sum", "tasks": ["amazon", "mail"],
        "base_licence": "Apache-2.0", "data_licences": {"amazon": MIT},
    }  # fmt: skip
    assert f"Licences, which are yours to follow: base Apache-2.0; data: amazon {MIT}, mail unknown." in card(
        record, None
    )
    assert "Licences" not in card({"form": "adapter", "rank": 2, "energy": 1.0, "rule": "sum"}, None), (
        "a merge of folders"
    )
