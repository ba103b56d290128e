"""`module:Class` of your own: found, or told where Python looked; what the class lacks is said before anything is loaded."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from perdure.config.composition import resolve_method
from perdure.errors import ConfigError
from perdure.methods.contract.build import build_method

HEAD = "from perdure.methods.contract.parts import *\nfrom typing import ClassVar\n"
GIVES = "    def value_and_grad(self, module, factors, past): return factors.B.sum(), factors.A * 0, factors.B * 0\n"


@pytest.fixture
def written(tmp_path, monkeypatch):
    """Write a module where Python finds it; forgotten afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    before = set(sys.modules)

    def write(text: str, name: str = "mine") -> None:
        path = tmp_path / Path(*name.split(".")).with_suffix(".py")
        path.parent.mkdir(exist_ok=True)
        path.write_text(HEAD + text)

    yield write
    for name in set(sys.modules) - before:
        if name.partition(".")[0] in ("mine", "lab"):
            del sys.modules[name]


def built(kind: str, key: str = "penalties"):
    parts: dict[str, Any] = {"penalties": {kind: {"weight": 1.0}}} if key == "penalties" else {key: kind}
    return build_method(resolve_method({"preset": "inc-lora", **parts}))


@pytest.mark.parametrize(
    ("text", "key", "message"),
    [
        ("class P(WeightPenalty): pass", "penalties", r"mine:P is a WeightPenalty and must define `value_and_grad`"),
        ("class P(BatchPenalty): pass", "penalties", r"mine:P is a BatchPenalty and must define `loss`"),
        ("class P(Penalty): pass", "penalties", r"mine:P would add nothing: make it a subclass of WeightPenalty or"),
        ("class P(Init): pass", "init", r"must define `start`"),
        ("class P(Consolidate): pass", "consolidate", r"must define `fold`"),
        ("class P(StepRule):\n    needs: ClassVar = {'old examples'}", "step_rule", r"mine:P\.needs is .*Need\.OLD_EXAMPLES"),
        ("class P(StepRule):\n    def state(self): return {}", "step_rule", r"mine:P defines `state` but not `load`"),
        ("class P(StepRule):\n    def load(self, state): pass", "step_rule", r"mine:P defines `load` but not `state`"),
        ("class P(Consolidate):\n    keeps: ClassVar = 'sum'\n    def fold(self, ctx, past, update): pass", "consolidate",
         r"mine:P\.keeps is 'sum'; known: carried, merged"),
        ("class P(StepRule): x = unknown", "step_rule", r"importing mine failed \(.*mine\.py, line 3\): NameError: name"),
        ("class P(StepRule):\n    def gradient(self): pass", "step_rule", r"importing mine failed.*did you mean 'gradients'"),
        ("class P(StepRule): k = 2", "step_rule", r"importing mine failed \(.*mine\.py, line 3\): Pyd.*annotated"),
        ("import no_such_package", "step_rule", r"importing mine failed .*No module named 'no_such_package'"),
        ("class Q(StepRule): pass", "step_rule", r"mine\.py has no 'P'"),
    ],
)  # fmt: skip
def test_what_a_class_lacks_is_said_before_anything_is_loaded(text, key, message, written):
    written(text)
    with pytest.raises(ConfigError, match=message):
        built("mine:P", key)


def test_a_module_that_is_not_there(written):
    with pytest.raises(ConfigError, match=r"Python finds no module 'mine'.*folder that holds mine\.py,.*PYTHONPATH"):
        built("mine:P")
    written("", "lab.other")
    with pytest.raises(ConfigError, match=r"Python finds no module 'lab\.parts'.*folder that holds lab,"):
        built("lab.parts:P")
    with pytest.raises(ConfigError, match=r"name a custom part like my_parts:MyPenalty"):
        built(":P")


def test_a_file_of_a_modules_name_is_told(written):
    written("class P(WeightPenalty):\n" + GIVES, "statistics")
    with pytest.raises(
        ConfigError, match=r"python.*statistics\.py has no 'P'\. Your statistics\.py is hidden by a module of Py"
    ):
        built("statistics:P")


class Class:
    pass


@pytest.mark.parametrize(
    ("method", "message"),
    [
        ({}, r"like \{penalties: \{\"my_parts:MyPenalty\": \{weight: 0\.1\}\}\}; got an empty one"),
        (Class, r"like \{penalties:"),
        ("my_parts:Overlap", r"'my_parts:Overlap' is a custom part, not a method"),
        ({"penalties": {"my_parts.Overlap": {"weight": 1}}}, r"Did you mean 'my_parts:Overlap'\?"),
        ({"init": "my_parts.Start"}, r"Did you mean 'my_parts:Start'\? Known: .*module:Class \(custom\)"),
        ({"init": Class}, r"module:Class \(custom\)"),
        ({"penalties": {Class: {"weight": 1}}}, r"is not a penalty's name.*test_own_modules:Class"),
        (
            {"penalties": {"mine": {"kind": Class, "weight": 1}}},
            r"Did you mean 'tests\.methods\.contract\.test_own_modules:Class'",
        ),
        (
            {"penalties": {"a/b": {"kind": "l2", "weight": 1}}},
            r"'a/b' is not a penalty's name. Give a string without '/'",
        ),
    ],
)
def test_how_a_part_of_your_own_is_named_is_said(method, message):
    with pytest.raises(ConfigError, match=message):
        resolve_method(method)


def test_a_part_that_needs_the_past_is_refused_where_there_is_none(written):
    written("class P(WeightPenalty):\n    needs_past: ClassVar[bool] = True\n" + GIVES)
    built("mine:P")
    for key, value in (("stream", "joint"), ("consolidate", "per-task"), ("consolidate", "latest")):
        method = {"preset": "inc-lora", "penalties": {"mine:P": {"weight": 1.0}}, key: value}
        with pytest.raises(
            ConfigError, match=r"mine:P cannot be used here: it does nothing without a past to protect, but"
        ):
            build_method(resolve_method(method))
