"""Runs with parts of your own: an edited file is noticed, and only learning needs the file."""

from __future__ import annotations

import importlib
import sys

import pytest

import perdure
from perdure.config.run_config import load_config
from perdure.errors import ConfigError
from perdure.files.durable import sha256
from perdure.report.methods import method_lines
from perdure.state.store import Store
from tests.contract.runs import short_run
from tests.contract.test_every_preset import Watch

PART = '''
from perdure.methods.contract.parts import WeightPenalty

class Shrinks(WeightPenalty):
    """B is kept small.

    Args:
        weight, gradient_share: see `Penalty`.
        power: of what is summed.
    """

    power: float = 2.0

    def value_and_grad(self, module, factors, past):
        return factors.B.square().sum() / 2, factors.A * 0, factors.B
'''
METHOD = {"penalties": {"mine_in_a_file:Shrinks": {"weight": 0.1}}}


@pytest.fixture
def own_file(tmp_path, monkeypatch):
    path = tmp_path / "mine_in_a_file.py"
    path.write_text(PART)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield path
    sys.modules.pop(path.stem, None)


def as_another_process():
    """What was imported is imported again."""
    sys.modules.pop("mine_in_a_file", None)
    importlib.invalidate_caches()


def test_an_edited_file_is_noticed(own_file, tmp_path, small_tasks, encoder_folder):
    with pytest.raises(KeyboardInterrupt):
        short_run(tmp_path / "run", small_tasks[:2], encoder_folder, METHOD, report=Watch(stop=True))
    store = Store(tmp_path / "run")
    assert store.initial["own_parts"] == {"mine_in_a_file": sha256(own_file)}
    own_file.write_text(PART.replace("factors.B\n", "-factors.B\n"))
    as_another_process()
    short_run(tmp_path / "run", small_tasks[:2], encoder_folder, METHOD)
    said = "the file of the custom part's module 'mine_in_a_file' changed since the run began"
    assert [said in line for line in store.about["warnings"]] == [True]
    perdure.add(tmp_path / "run", small_tasks[2], tasks=small_tasks[:2])
    assert store.about["warnings"][-1].startswith(f"sea: {said}")


def test_what_is_as_it_was_is_not_told(own_file, tmp_path, small_tasks, encoder_folder):
    short_run(tmp_path / "run", small_tasks[:1], encoder_folder, METHOD)
    short_run(tmp_path / "plain", small_tasks[:1], encoder_folder, "l2")
    perdure.add(tmp_path / "run", small_tasks[1], tasks=small_tasks[:1])
    assert Store(tmp_path / "run").about["warnings"] == []
    assert "own_parts" not in Store(tmp_path / "plain").initial


def test_only_learning_needs_the_file(own_file, tmp_path, small_tasks, encoder_folder):
    short_run(tmp_path / "run", small_tasks[:2], encoder_folder, METHOD)
    before = perdure.predict(tmp_path / "run", ["apples"], task="fruit")
    own_file.unlink()
    as_another_process()
    assert perdure.predict(tmp_path / "run", ["apples"], task="fruit") == before
    perdure.rollback(tmp_path / "run", "fruit")
    with pytest.raises(ConfigError, match=r"Python finds no module 'mine_in_a_file'.*PYTHONPATH"):
        perdure.add(tmp_path / "run", small_tasks[2], tasks=small_tasks[:1])


def test_it_is_shown_like_perdures_own(own_file):
    lines = list(method_lines("mine_in_a_file:Shrinks"))
    key = "method.penalties.mine_in_a_file:Shrinks"
    assert lines[1:3] == [f"{key}.kind=mine_in_a_file:Shrinks", "    B is kept small."]
    assert any(line.startswith(f"  {key}.power=2.0") for line in lines)


@pytest.mark.parametrize("module", ["mine", "lab.parts", "lab.deep.parts"])
def test_a_modules_dots_are_no_dots_of_a_key(module):
    base = "method.penalties"
    config = load_config({"method": "inc-lora"}, {f"{base}.{module}:Overlap.weight": 0.2, f"{base}.l2.weight": 0.1})
    assert config.method["penalties"] == {
        f"{module}:Overlap": {"kind": f"{module}:Overlap", "weight": 0.2},
        "l2": {"kind": "l2", "weight": 0.1},
    }
    gone = load_config({"method": config.method}, {f"{base}.{module}:Overlap": None})
    assert gone.method["penalties"].keys() == {"l2"}
