"""What a part remembers beside its `state`: found after a stage, because a resumed run would not have it.

A part without state may hold private attributes that never change while a stage is learnt (what `before_task` computes), and
those it names in `caches`. Any other that changed is memory, and a run that was stopped would end otherwise than another.
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
"""How far containers and objects of the part's module are looked into; of others (a context, a model), which they are, counts."""

Marks = Mapping[str, Mapping[str, Any]]
"""Part without state -> private attribute -> a mark that differs once the attribute has changed."""


def marks(method: Method) -> Marks:
    """The parts of a method that gave no state, as they are when a stage begins."""
    return {name: _marks(part) for name, part in method.parts().items() if not state_of(part)}


def check_saved(method: Method, begun: Marks, stage: str) -> None:
    """No part has changed since `begun` without giving a state.

    Raises:
        PartError: one has; names the attribute, and says what to write.
    """
    for name, part in method.parts().items():
        if name not in begun or state_of(part):
            continue
        changed = [key for key, mark in _marks(part).items() if begun[name].get(key) != mark]
        if changed:
            raise PartError(
                f"{kind_of(part)} changed its attribute '{changed[0]}' while task '{stage}' was learnt, but its `state` gives "
                "nothing: a resumed run would not have it, and end otherwise. Give it in `state(self)` (a dict: name -> tensor) "
                "and take it back in `load(self, state)`; or, if it only saves work and is computed again where it is missing, "
                f"name it in the class: caches: ClassVar[frozenset[str]] = frozenset({{'{changed[0]}'}})."
            )


def _marks(part: Part) -> dict[str, Any]:
    own = {**vars(part), **(part.__pydantic_private__ or {})}
    home = type(part).__module__
    return {key: _mark(value, home) for key, value in own.items() if key.startswith("_") and key not in part.caches}


class _Same:
    """Equal to a mark of the same object only; holds it, so that no other object gets its place in memory."""

    def __init__(self, value: object) -> None:
        self._value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and self._value is other._value

    __hash__ = None  # pyright: ignore[reportAssignmentType]


def _mark(value: Any, home: str, depth: int = DEPTH) -> Any:
    """Tensors by identity and how often they were written to: no number is read. Objects of module `home` by what is in them."""
    if isinstance(value, Tensor):
        return _Same(value), 0 if value.is_inference() else value._version
    if isinstance(value, int | float | complex | str | bytes | None):
        return repr(value)  # nan is itself
    if depth == 0:
        return _Same(value)
    if isinstance(value, Mapping):
        return [(_mark(key, home, depth - 1), _mark(one, home, depth - 1)) for key, one in value.items()]
    if isinstance(value, list | tuple):
        return [_mark(one, home, depth - 1) for one in value]
    if isinstance(value, set | frozenset):
        return set(value)
    inside = getattr(value, "__dict__", {}) if type(value).__module__ == home else {}
    return _Same(value), [(key, _mark(one, home, depth - 1)) for key, one in inside.items()]
