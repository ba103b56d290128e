"""Several adapter folders as one thing to merge or compare: the same base, one list of modules, names to call them by."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from filecmp import cmp
from itertools import combinations, permutations
from pathlib import Path
from typing import Any, Protocol, TypeVar

from perdure.adapters.folder import Adapter, free_name, open_adapter
from perdure.adapters.format import natural
from perdure.errors import AdapterError, ConfigError
from perdure.ops.lowrank import Delta, LowRank, Update

T = TypeVar("T")


@dataclass(frozen=True)
class ModuleInfo:
    """A module that some adapter changes: shape (O, I) of the update, linear or embedding, stored as [I, O] or not."""

    shape: tuple[int, int]
    kind: str
    transposed: bool


@dataclass(frozen=True, eq=False)
class Sources:
    """Adapters of one base, in the order given.

    Args:
        adapters: display name -> adapter.
        modules: every module of any of them, in natural order.
        notes: what a user should know, e.g. that they name different bases.
    """

    adapters: Mapping[str, Adapter]
    modules: Mapping[str, ModuleInfo]
    notes: tuple[str, ...]

    @property
    def updates(self) -> list[Adapter]:
        """The adapters, in order."""
        return list(self.adapters.values())

    @property
    def base(self) -> str | None:
        """The base the first adapter names."""
        return next((adapter.config.base for adapter in self.updates if adapter.config.base), None)

    @property
    def revision(self) -> str | None:
        """The revision of the base, if all adapters that name a base agree; None = as it is now."""
        return agreed(adapter.config.revision or "" for adapter in self.updates if adapter.config.base) or None

    @property
    def task_type(self) -> str | None:
        """The task type, if all adapters that state one agree."""
        return agreed(adapter.config.task_type for adapter in self.updates)

    @property
    def auto_mapping(self) -> dict[str, Any] | None:
        """The class of the base, if all adapters that state one agree."""
        return agreed(adapter.config.auto_mapping for adapter in self.updates)

    @property
    def fan_in_fan_out(self) -> bool:
        """Whether the base stores any of the linear weights as [I, O]."""
        return any(info.transposed for info in self.modules.values() if info.kind == "linear")

    def deltas(self, module: str) -> list[Delta | None]:
        """What each adapter has at `module`, read now."""
        return [adapter.get(module) for adapter in self.updates]


def open_sources(places: Sequence[str | Path], at_least: int = 1) -> Sources:
    """Open adapter folders (or hub ids) that belong together; only headers are read.

    Raises:
        ConfigError: too few of them.
        AdapterError: one cannot be read, or they are of different bases; the first differing module is named.
    """
    if len(places) < at_least:
        raise ConfigError(f"Give at least {at_least} adapters, not {len(places)}.")
    adapters = dict(zip(_names(places), map(open_adapter, places), strict=True))
    modules: dict[str, tuple[str, ModuleInfo]] = {}
    for name, adapter in adapters.items():
        for module, entry in adapter.modules.items():
            transposed = entry.kind == "embedding" or adapter.config.fan_in_fan_out
            info = ModuleInfo(entry.shape, entry.kind, transposed)
            known_of, known = modules.setdefault(module, (name, info))
            if known != info:
                raise AdapterError(_differs(module, known_of, known, name, info))
    (first, known), *others = adapters.items()
    for name, adapter in others:
        check_related(f"'{first}'", known.config.base, known, name, adapter)
    check_one_class({f"'{name}'": shapes_of(adapter) for name, adapter in adapters.items()})
    ordered = {module: modules[module][1] for module in sorted(modules, key=natural)}
    notes = (*base_notes({name: each.config for name, each in adapters.items()}), *_same_notes(adapters))
    return Sources(adapters, ordered, notes)


def _same_notes(adapters: Mapping[str, Adapter]) -> Iterator[str]:
    """That one of these was given twice, by its name or as a copy; two that differ are told apart by their first bytes."""
    for (one, first), (two, second) in combinations(adapters.items(), 2):
        if cmp(first.file, second.file, shallow=False):
            yield f"'{one}' and '{two}' are the same adapter, byte for byte, and count as two."


def agreed(stated: Iterable[T | None]) -> T | None:
    """What all agree on who state something; None where nobody does, or two differ."""
    known = [one for one in stated if one is not None]
    return known[0] if known and all(one == known[0] for one in known) else None


class Only(Mapping[str, Delta]):
    """An update restricted to some modules; read when asked for."""

    def __init__(self, update: Update, modules: Sequence[str]) -> None:
        self._update, self._modules = update, [module for module in modules if module in update]

    def __iter__(self) -> Iterator[str]:
        return iter(self._modules)

    def __len__(self) -> int:
        return len(self._modules)

    def __getitem__(self, module: str) -> Delta:
        if module not in self._modules:
            raise KeyError(module)
        return self._update[module]


def turned(delta: LowRank) -> LowRank:
    """The transpose: for weights stored as [I, O]."""
    return LowRank(delta.B.mT, delta.A.mT)


def _names(places: Sequence[str | Path]) -> list[str]:
    """The shortest endings of the paths that tell them apart; a place given twice gets a number."""
    paths = [Path(place).parts or (str(place),) for place in places]
    names: list[str] = []
    for own in paths:
        depth = next((n for n in range(1, len(own)) if sum(p[-n:] == own[-n:] for p in paths) == 1), len(own))
        if sum(p == own for p in paths) > 1:
            depth = 1
        name = "/".join(own[-depth:])
        names.append(free_name(name, names))
    return names


def _differs(module: str, one: str, left: ModuleInfo, two: str, right: ModuleInfo) -> str:
    if left.shape != right.shape:
        return (
            f"'{one}' and '{two}' are adapters of different bases: module '{module}' is {left.shape[0]} x {left.shape[1]} in "
            f"the one and {right.shape[0]} x {right.shape[1]} in the other."
        )
    if left.kind == right.kind:
        return (
            f"'{one}' and '{two}' disagree on how the base stores module '{module}': by adapter_config.json fan_in_fan_out is "
            f"{str(left.transposed).lower()} in the one and {str(right.transposed).lower()} in the other. "
            "If it is one base, correct the flag (true for GPT-2's Conv1D); else they are adapters of different bases."
        )
    return (
        f"'{one}' and '{two}' treat module '{module}' differently ({left.kind}; {right.kind}): "
        "they are adapters of different bases."
    )


def check_related(first: str, base: str | None, modules: Iterable[str], name: str, adapter: Adapter) -> None:
    """An adapter that names another base than what is `first` has at least one module in common with it.

    Raises:
        AdapterError: it has none; names its first module.
    """
    own = adapter.config.base
    if base and own and base != own and not set(adapter) & set(modules):
        raise AdapterError(
            f"{first} and '{name}' are of different bases: they name '{base}' and '{own}', and module "
            f"'{next(iter(adapter))}' of the latter, like all its others, is not in the former. If it is one base under two "
            f"names, write '{base}' as base_model_name_or_path into the adapter_config.json of the latter."
        )


def shapes_of(adapter: Adapter) -> dict[str, tuple[int, int]]:
    """Module -> the shape (O, I) of its update."""
    return {module: entry.shape for module, entry in adapter.modules.items()}


def check_one_class(holders: Mapping[str, Mapping[str, tuple[int, int]]]) -> None:
    """No module stands under two names, the one with further leading parts ('model.', '_orig_mod.'): no model has both.

    Where one adapter holds both names, its base does have both; where two share a module, they are of one class.

    Args:
        holders: an adapter, or a merge state, as a message calls it -> module -> shape.

    Raises:
        AdapterError: one does; names both, and who holds them.
    """
    for (one, held), (two, others) in permutations(holders.items(), 2):
        same = (
            (short, module)
            for module, shape in others.items()
            for short in _endings(module)
            if held.get(short) == shape and not any({short, module} <= every.keys() for every in holders.values())
        )
        if not held.keys() & others.keys() and (found := next(same, None)):
            raise AdapterError(
                f"Module '{found[0]}' of {one} and '{found[1]}' of {two} are one by their ending and shape: the adapters were "
                "saved under different model classes (a whole model and its body, or a compiled one), so that no model would "
                "load all of what is merged. Save them under one."
            )


def _endings(module: str) -> Iterator[str]:
    """The name without its first part, without its first two, ..."""
    while module := module.partition(".")[2]:
        yield module


class NamesBase(Protocol):
    """Whatever says which base it is of: an adapter's configuration, a merge state."""

    @property
    def base(self) -> str | None:
        """As a folder or a hub id; None where it is not said."""
        ...

    @property
    def revision(self) -> str | None:
        """Of a hub's."""
        ...


def base_notes(named: Mapping[str, NamesBase]) -> Iterator[str]:
    """That those of these which name a base name different ones, or different revisions of it."""
    bases = {
        name: f"{one.base} at revision {one.revision}" if one.revision else one.base
        for name, one in named.items()
        if one.base
    }
    if len(set(bases.values())) > 1:
        listed = "; ".join(f"{name}: {base}" for name, base in bases.items())
        yield f"The adapters name different bases although their shapes agree ({listed}). Make sure that it is one model."
