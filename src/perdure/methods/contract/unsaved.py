"""Finds memory that a part does not save: a resumed run would not have it.

A part without state may hold private attributes that never change while a stage is learnt (what `before_task` computes), and
those it names in `caches`. Any other that changed is memory, and a resumed run would end differently.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from perdure.errors import PartError
from perdure.methods.contract.calls import state_of
from perdure.methods.contract.parts import Method, Part
from perdure.methods.table import kind_of

DEPTH = 4
"""How deep containers and objects of the part's module are searched; other objects (a context, a model) count by identity."""

Marks = Mapping[str, Mapping[str, Any]]
"""Part without state -> private attribute -> a mark that differs once the attribute has changed."""


def marks(method: Method) -> Marks:
    """The parts of a method that have no state, as they are when a stage begins."""
    return {name: _marks(part) for name, part in method.parts().items() if not state_of(part)}


def check_saved(method: Method, before: Marks, stage: str) -> None:
    """No part without state has changed since `before`.

    Raises:
        PartError: one has; names the attribute, and the fix.
    """
    for name, part in method.parts().items():
        if name not in before or state_of(part):
            continue
        changed = [key for key, mark in _marks(part).items() if before[name].get(key) != mark]
        if changed:
            raise PartError(
                f"{kind_of(part)} changed its attribute '{changed[0]}' while task '{stage}' was learnt, but its `state` is "
                "empty: a resumed run would lose it and end differently. Return it from `state(self)` (a dict: name -> tensor) "
                "and restore it in `load(self, state)`; or, if it only saves work and is recomputed when missing, name it in "
                f"the class: caches: ClassVar[frozenset[str]] = frozenset({{'{changed[0]}'}})."
            )


def _marks(part: Part) -> dict[str, Any]:
    private = {**vars(part), **(part.__pydantic_private__ or {})}
    home = type(part).__module__
    return {key: _mark(value, home) for key, value in private.items() if key.startswith("_") and key not in part.caches}


def _mark(value: Any, home: str, depth: int = DEPTH) -> Any:
    """Tensors by identity and version counter: no number is read. Objects of module `home` by their attributes."""
    same = (id(value), value)  # equal for the same object only; holding it keeps its id from being reused
    if isinstance(value, Tensor):
        return same, 0 if value.is_inference() else value._version
    if isinstance(value, int | float | complex | str | bytes | None):
        return repr(value)  # nan equals itself
    if depth == 0:
        return same
    if isinstance(value, Mapping):
        return [(_mark(key, home, depth - 1), _mark(one, home, depth - 1)) for key, one in value.items()]
    if isinstance(value, list | tuple):
        return [_mark(one, home, depth - 1) for one in value]
    if isinstance(value, set | frozenset):
        return set(value)
    inside = getattr(value, "__dict__", {}) if type(value).__module__ == home else {}
    return same, [(key, _mark(one, home, depth - 1)) for key, one in inside.items()]
