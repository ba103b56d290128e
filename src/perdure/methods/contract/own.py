"""Parts of your own, `module:Class`: found, and told early what is missing in them."""

from __future__ import annotations

import importlib
import sys
import traceback
import typing
from collections.abc import Mapping
from pathlib import Path

from perdure.errors import ConfigError, PerdureError
from perdure.files.durable import sha256
from perdure.methods.contract.context import Need
from perdure.methods.contract.parts import BatchPenalty, Consolidate, Init, Keeps, Method, Part, Penalty, WeightPenalty

MUST_WRITE: Mapping[type[Part], tuple[str, ...]] = {
    Init: ("start",),
    WeightPenalty: ("value_and_grad", "values_and_grads"),
    BatchPenalty: ("loss",),
    Consolidate: ("fold",),
}
"""Role -> methods of which a part must write one."""


def imported(place: str, what: str) -> object:
    """What stands at `module:Class`; `what` it is to be is said where nothing does.

    Raises:
        ConfigError: no such module or class, or the module cannot be imported; says where Python looked.
    """
    module, _, name = place.partition(":")
    unknown = f"'{place}' is neither a known {what} nor an importable module:Class"
    if not module or not name:
        raise ConfigError(
            f"{unknown}: a part of your own is named like my_parts:MyPenalty, for a class in my_parts.py."
        )
    try:
        found = importlib.import_module(module)
    except PerdureError:
        raise
    except Exception as error:
        if isinstance(error, ModuleNotFoundError) and error.name and f"{module}.".startswith(f"{error.name}."):
            raise ConfigError(
                f"{unknown}: there is no module '{error.name}' where Python looks. Start perdure in the folder that holds "
                f"{module.partition('.')[0]}{'' if '.' in module else '.py'}, or name that folder in PYTHONPATH."
            ) from error
        raise ConfigError(
            f"{unknown}: importing {module} failed{_place(module, error)}: {_first_line(error)}"
        ) from error
    if not hasattr(found, name):
        raise ConfigError(f"{unknown}: {_file(found)} has no '{name}'.{_hidden(module, found)}")
    return getattr(found, name)


def _place(module: str, error: Exception) -> str:
    """File and line of what failed: in the module, where it got so far."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if Path(frame.filename).stem == module.rpartition(".")[2]]
    return f" ({own[-1].filename}, line {own[-1].lineno})" if own else ""


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".partition("\n")[0]


def _file(module: object) -> str:
    return str(getattr(module, "__file__", None) or f"the built-in module {getattr(module, '__name__', '')}")


def _hidden(module: str, found: object) -> str:
    """That a file of your own is hidden by another module of its name."""
    own = Path(*module.split(".")).with_suffix(".py")
    if not own.is_file() or own.resolve() == Path(_file(found)).resolve():
        return ""
    whose = "a module of Python's own" if module.partition(".")[0] in sys.stdlib_module_names else "that module"
    return f" Your {own} is hidden by {whose}: give it another name."


def sources(method: Method) -> dict[str, str]:
    """Module -> sha256 of its file, of every class of your own that a part of the method is made of."""
    classes = {found for part in method.parts().values() for found in type(part).__mro__ if issubclass(found, Part)}
    modules = {found.__module__ for found in classes if not found.__module__.startswith("perdure.")}
    files = {name: getattr(sys.modules.get(name), "__file__", None) for name in sorted(modules)}
    return {name: sha256(Path(file)) for name, file in files.items() if file}


def check_written(part: type[Part]) -> None:
    """The class has what its role must have, as far as the class alone tells.

    Raises:
        ConfigError: says what to write.
    """
    name = f"{part.__module__}:{part.__qualname__}"
    if issubclass(part, Penalty) and not issubclass(part, WeightPenalty | BatchPenalty):
        raise ConfigError(f"{name} would add nothing: make it a subclass of WeightPenalty or of BatchPenalty.")
    for role, points in MUST_WRITE.items():
        if issubclass(part, role) and all(getattr(part, point) is getattr(role, point) for point in points):
            raise ConfigError(f"{name} is a {role.__name__} and must write `{points[0]}` (see perdure.parts).")
    if (part.state is Part.state) != (part.load is Part.load):
        has, lacks = ("load", "state") if part.state is Part.state else ("state", "load")
        raise ConfigError(
            f"{name} writes `{has}` but not `{lacks}`: what a part remembers is given by `state(self)` and taken back by "
            "`load(self, state)`, or a resumed run does not have it. Write both."
        )
    if not isinstance(part.needs, set | frozenset) or not all(isinstance(need, Need) for need in part.needs):
        known = ", ".join(f"Need.{need.name}" for need in Need)
        raise ConfigError(f"{name}.needs is {part.needs!r:.80}; give a frozenset of {known}.")


def check_keeps(rule: Consolidate) -> None:
    """A consolidation says what it keeps in a word that other parts know.

    Raises:
        ConfigError: it does not.
    """
    if (keeps := rule.keeps) not in (known := typing.get_args(Keeps)):
        raise ConfigError(
            f"{type(rule).__module__}:{type(rule).__qualname__}.keeps is {keeps!r}; known: {', '.join(known)}."
        )
