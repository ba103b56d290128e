"""Adapters opened together: names to call them by."""

from perdure.merging.sources import open_sources
from tests.adapter_cases import random_folder


def test_a_folder_named_like_a_numbered_one_keeps_its_adapter(tmp_path):
    numbered, plain = (random_folder(tmp_path / name, seed) for seed, name in enumerate(("news (2)", "news")))
    assert list(open_sources([numbered, plain]).adapters) == ["news (2)", "news"]
    assert list(open_sources([plain, plain, numbered]).adapters) == ["news", "news (2)", "news (2) (2)"]
