"""What many tests share: a tiny model on disk and small tasks with invented texts."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"  # as the command line sets it, before transformers is imported

import pytest
import torch

from perdure.tasks.task import Task
from tests.backbones.tiny import tiny_encoder


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    """Tests are small: more threads only wait for each other."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def encoder_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_encoder(tmp_path_factory.mktemp("models") / "tiny-encoder")


def small_task(name: str, first: str, second: str, count: int = 10) -> Task:
    """Two classes told apart by one word; 2 x count training, 8 validation, 8 test examples."""
    rows = [
        (f"{word} and number {i} of {name}", label)
        for i in range(count + 8)
        for word, label in ((first, "a"), (second, "b"))
    ]
    return Task(
        name,
        train=rows[: 2 * count],
        validation=rows[2 * count : 2 * count + 8],
        test=rows[2 * count + 8 :],
        labels={"a": f"about {first}", "b": f"about {second}"},
    )


@pytest.fixture(scope="session")
def small_tasks() -> list[Task]:
    return [
        small_task("fruit", "apples", "pears"),
        small_task("sky", "sun", "moon"),
        small_task("sea", "waves", "sand"),
    ]


@pytest.fixture
def heeds_ctrl_c() -> Iterator[None]:
    """As at a terminal: what a shell started in the background ignores Ctrl-C, and so would the run."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)
