"""A shared stage is only a help: damaged or gone, the stage is trained again, and the file is written anew."""

from __future__ import annotations

import shutil
from types import SimpleNamespace

import pytest
import torch

from perdure.state.shared import SECONDS, Shared
from perdure.training.train import Step


class Training:
    """Three steps; the state is how many are done."""

    total = 3

    def __init__(self):
        self.done = 0

    def state(self):
        return {"done": torch.tensor(self.done)}

    def load(self, state):
        self.done = int(state["done"])

    @property
    def finished(self):
        return self.done == self.total


@pytest.fixture
def share(tmp_path):
    """Train through a shared file; returns how many steps it took and the notes."""

    def trained(before_last=lambda: None):
        notes, steps = {}, []
        inner = SimpleNamespace(restore=lambda _: None, stepped=lambda _: None)
        ctx = SimpleNamespace(note=notes.__setitem__)
        shared = Shared(tmp_path / "shared" / "stage.safetensors", inner, SimpleNamespace(penalties={}), ctx, steps)
        training, made = Training(), 0
        shared.restore(training)
        while training.done < training.total:
            training.done, made = training.done + 1, made + 1
            steps.append(Step(training.done, 0.5, 0.1))
            if training.done == training.total:
                before_last()
            shared.stepped(training)
        assert [step.step for step in steps] == [1, 2, 3]
        return made, notes

    return trained


def test_what_one_trained_another_reads(share):
    assert share() == (3, {})
    made, notes = share()
    assert (made, [*notes]) == (0, [SECONDS])


@pytest.mark.parametrize("content", [b"", b"half", b"\x02\0\0\0\0\0\0\0{}"], ids=["empty", "half", "without-contents"])
def test_a_file_that_cannot_be_read_is_none_and_is_replaced(share, tmp_path, content):
    share()
    (tmp_path / "shared" / "stage.safetensors").write_bytes(content)
    assert share() == (3, {})
    assert share()[0] == 0


def test_a_folder_that_vanishes_stops_nothing(share, tmp_path, monkeypatch):
    import perdure.state.shared

    real = perdure.state.shared.save_groups
    shared = tmp_path / "shared"

    def vanishes(path, *rest):
        shutil.rmtree(shared)
        real(path, *rest)

    monkeypatch.setattr(perdure.state.shared, "save_groups", vanishes)
    assert share() == (3, {})
    assert not shared.exists()
