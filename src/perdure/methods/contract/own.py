"""Custom parts, `module:Class`: imports them, and says early what a class lacks."""

from __future__ import annotations

import importlib
import sys
import traceback
from collections.abc import Mapping
from pathlib import Path

from perdure.errors import ConfigError, PerdureError
from perdure.files.durable import sha256
from perdure.methods.contract.context import Need
from perdure.methods.contract.parts import BatchPenalty, Consolidate, Init, Method, Part, Penalty, WeightPenalty

REQUIRED: Mapping[type[Part], tuple[str, ...]] = {
    Init: ("start",),
    WeightPenalty: ("value_and_grad", "values_and_grads"),
    BatchPenalty: ("loss",),
    Consolidate: ("fold",),
}
"""Role -> methods of which a part must define one."""


def imported(place: str, what: str) -> object:
    """The object at `module:Class`; `what` names its kind in errors.

    Raises:
        ConfigError: no such module or class, or the module cannot be imported; says where Python looked.
    """
    module, _, name = place.partition(":")
    unknown = f"'{place}' is neither a known {what} nor an importable module:Class"
    if not module or not name:
        raise ConfigError(f"{unknown}: name a custom part like my_parts:MyPenalty, for a class in my_parts.py.")
    try:
        found = importlib.import_module(module)
    except PerdureError:
        raise
    except Exception as error:
        if isinstance(error, ModuleNotFoundError) and error.name and f"{module}.".startswith(f"{error.name}."):
            raise ConfigError(
                f"{unknown}: Python finds no module '{error.name}'. Start perdure in the folder that holds "
                f"{module.partition('.')[0]}{'' if '.' in module else '.py'}, or add that folder to PYTHONPATH."
            ) from error
        frames = traceback.extract_tb(error.__traceback__)
        own = [frame for frame in frames if Path(frame.filename).stem == module.rpartition(".")[2]]
        where = f" ({own[-1].filename}, line {own[-1].lineno})" if own else ""
        reason = f"{type(error).__name__}: {error}".partition("\n")[0]
        raise ConfigError(f"{unknown}: importing {module} failed{where}: {reason}") from error
    if not hasattr(found, name):
        file = getattr(found, "__file__", None) or f"the built-in module {module}"
        raise ConfigError(f"{unknown}: {file} has no '{name}'.{_hidden(module, file)}")
    return getattr(found, name)


def _hidden(module: str, file: str) -> str:
    """A hint that the user's own file is hidden by another module of its name."""
    own = Path(*module.split(".")).with_suffix(".py")
    if not own.is_file() or own.resolve() == Path(file).resolve():
        return ""
    other = "a module of Python's own" if module.partition(".")[0] in sys.stdlib_module_names else "that module"
    return f" Your {own} is hidden by {other}: rename it."


def sources(method: Method) -> dict[str, str]:
    """Module -> sha256 of its file, for every custom class that a part of the method is made of."""
    classes = {base for part in method.parts().values() for base in type(part).__mro__ if issubclass(base, Part)}
    modules = {base.__module__ for base in classes if not base.__module__.startswith("perdure.")}
    files = {name: getattr(sys.modules.get(name), "__file__", None) for name in sorted(modules)}
    return {name: sha256(Path(file)) for name, file in files.items() if file}


def check_written(part: type[Part]) -> None:
    """The class has what its role requires, as far as the class alone tells.

    Raises:
        ConfigError: says what to write.
    """
    name = f"{part.__module__}:{part.__qualname__}"
    if issubclass(part, Penalty) and not issubclass(part, WeightPenalty | BatchPenalty):
        raise ConfigError(f"{name} would add nothing: make it a subclass of WeightPenalty or of BatchPenalty.")
    for role, hooks in REQUIRED.items():
        if issubclass(part, role) and all(getattr(part, hook) is getattr(role, hook) for hook in hooks):
            raise ConfigError(f"{name} is a {role.__name__} and must define `{hooks[0]}` (see perdure.parts).")
    if (part.state is Part.state) != (part.load is Part.load):
        has, lacks = ("load", "state") if part.state is Part.state else ("state", "load")
        raise ConfigError(
            f"{name} defines `{has}` but not `{lacks}`: without both, a resumed run loses what the part remembers. "
            "Return it from `state(self)` and restore it in `load(self, state)`."
        )
    if not isinstance(part.needs, set | frozenset) or not all(isinstance(need, Need) for need in part.needs):
        known = ", ".join(f"Need.{need.name}" for need in Need)
        raise ConfigError(f"{name}.needs is {part.needs!r:.80}; give a frozenset of {known}.")
