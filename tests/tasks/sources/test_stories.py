"""Stories by theme, on invented ones in TinyStories' layout; what a language model makes of texts is in test_perplexity."""

from pathlib import Path

import pytest

from perdure.errors import DataError
from perdure.tasks.sources.stories import read_stories
from perdure.tasks.suites import load_suite
from perdure.tasks.task import Task

THEMES = {"pets": ["dog", "cat"], "baking": ["cake"]}
STORIES = [f"One day a dog ran {i} times.\nIt was a happy dog." for i in range(8)]
OTHER = ["A cake for the dog.", "Nothing here.", "The Cake was big."]


def write(folder: Path) -> None:
    text = "\n<|endoftext|>\n".join([*OTHER, *STORIES])
    (folder / "TinyStories-train.txt").write_text(text)
    (folder / "TinyStories-valid.txt").write_text("A cat sat.\n<|endoftext|>\nA cake.\n<|endoftext|>\n")


def test_stories_of_one_theme_only(tmp_path: Path) -> None:
    write(tmp_path)
    pool = read_stories(tmp_path, dataset="", theme="pets", themes=THEMES)
    assert pool.train == [(story, "") for story in STORIES]
    assert pool.test == [("A cat sat.", "")]
    assert read_stories(tmp_path, dataset="", theme="baking", themes=THEMES).train == [("The Cake was big.", "")]
    assert len(read_stories(tmp_path, dataset="", theme="pets", themes=THEMES, looked_at=5).train) == 2


def test_the_suite_from_its_layout(tmp_path: Path) -> None:
    write(tmp_path)
    [task] = load_suite("tinystories", data=tmp_path, order="pets").tasks
    assert (len(task.train), len(task.validation), len(task.test)) == (7, 1, 1)
    assert task.learns_text
    assert task.train[0].label == ""


def test_wrong_folders_say_what_is_expected(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"Expected layout: TinyStories-train\.txt and TinyStories-valid\.txt"):
        load_suite("tinystories", data=tmp_path)
    (tmp_path / "TinyStories-train.txt").write_text(STORIES[0])
    with pytest.raises(DataError, match=r"TinyStories-valid\.txt is missing"):
        load_suite("tinystories", data=tmp_path, order="pets")
    write(tmp_path)
    with pytest.raises(DataError, match="no story about vehicles"):
        load_suite("tinystories", data=tmp_path, order="vehicles")


def test_from_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    rows = {"train": STORIES, "validation": STORIES[:2]}
    monkeypatch.setattr(
        datasets, "load_dataset", lambda name, config, split: datasets.Dataset.from_dict({"text": rows[split]})
    )
    monkeypatch.delenv("PERDURE_TINYSTORIES", raising=False)
    [task] = load_suite("tinystories", order="pets").tasks
    assert (len(task.train), len(task.validation), len(task.test)) == (5, 1, 2)


def test_texts_to_learn_have_no_labels() -> None:
    with pytest.raises(DataError, match="the metric inverse-perplexity learns the texts themselves"):
        Task("t", [("a", "x")], test=[("a", "x")], labels={"x": "x"}, metric="inverse-perplexity")
