"""Several adapter folders to merge or compare: checked to be of one base, their modules listed, each with a name."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from filecmp import cmp
from itertools import combinations, permutations
from pathlib import Path
from typing import Any

from perdure.adapters.folder import Adapter, free_name, open_adapter
from perdure.adapters.format import natural
from perdure.errors import AdapterError, ConfigError
from perdure.ops.lowrank import Delta, LowRank, Update


@dataclass(frozen=True)
class ModuleInfo:
    """A module that some adapter changes: shape (O, I) of the update, 'linear' or 'embedding', stored as [I, O] or not."""

    shape: tuple[int, int]
    kind: str
    transposed: bool


def modules_of(adapter: Adapter) -> dict[str, ModuleInfo]:
    """The modules of an adapter."""
    return {
        module: ModuleInfo(entry.shape, entry.kind, entry.kind == "embedding" or adapter.config.fan_in_fan_out)
        for module, entry in adapter.modules.items()
    }


@dataclass(frozen=True, eq=False)
class Sources:
    """Adapters of one base by display name, in the order given; all their modules, in natural order; and notes for the user."""

    adapters: Mapping[str, Adapter]
    modules: Mapping[str, ModuleInfo]
    notes: tuple[str, ...]

    @property
    def updates(self) -> list[Adapter]:
        """The adapters, in order."""
        return list(self.adapters.values())

    def deltas(self, module: str) -> list[Delta | None]:
        """Each adapter's update of `module`, read on each call."""
        return [adapter.get(module) for adapter in self.updates]


def open_sources(places: Sequence[str | Path], at_least: int = 1) -> Sources:
    """Open adapter folders (or hub ids) of one base; only headers are read.

    Raises:
        ConfigError: fewer than `at_least`.
        AdapterError: one cannot be read, or they are of different bases; the first differing module is named.
    """
    if len(places) < at_least:
        raise ConfigError(f"Give at least {at_least} adapters, not {len(places)}.")
    opened = [open_adapter(place, beside=True) for place in places]
    adapters = dict(zip(_names(places), opened, strict=True))
    modules: dict[str, tuple[str, ModuleInfo]] = {}
    for name, adapter in adapters.items():
        for module, info in modules_of(adapter).items():
            first_name, first_info = modules.setdefault(module, (name, info))
            if first_info != info:
                raise differs(module, f"'{first_name}'", first_info, f"'{name}'", info)
    (first, known), *others = adapters.items()
    for name, adapter in others:
        check_related(f"'{first}'", known.config.base, known, name, adapter)
    check_one_class({f"'{name}'": modules_of(adapter) for name, adapter in adapters.items()})
    ordered = {module: modules[module][1] for module in sorted(modules, key=natural)}
    notes = [*base_notes({name: (each.config.base, each.config.revision) for name, each in adapters.items()})]
    for (one, first), (two, second) in combinations(adapters.items(), 2):
        if cmp(first.file, second.file, shallow=False):  # stops at the first byte that differs
            notes.append(f"'{one}' and '{two}' are the same adapter, byte for byte, and count as two.")
    return Sources(adapters, ordered, tuple(notes))


def largest_rank(places: Sequence[str | Path]) -> int:
    """The largest rank of any module of these adapters; raises as `open_sources` does."""
    return max(module.rank for adapter in open_sources(places).updates for module in adapter.modules.values())


def agreed(stated: Iterable[Any]) -> Any:
    """The value that all who state one agree on; None if nobody does, or two differ."""
    known = [one for one in stated if one is not None]
    return known[0] if known and all(one == known[0] for one in known) else None


class Only(Mapping[str, Delta]):
    """An update restricted to some modules; read on access."""

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

    def scaling(self, module: str) -> float:
        """What the adapter multiplies B A by, which is inside the B given here; 1 for an update without factors of its own."""
        return self._update.config.scaling(module) if isinstance(self._update, Adapter) else 1.0


def transposed(delta: Delta) -> Delta:
    """The transpose [I, O], for weights stored so."""
    return LowRank(delta.B.mT, delta.A.mT) if isinstance(delta, LowRank) else delta.mT


def _names(places: Sequence[str | Path]) -> list[str]:
    """The shortest path endings that tell the places apart; a place given twice gets a number."""
    paths = [Path(place).parts or (str(place),) for place in places]
    names: list[str] = []
    for own in paths:
        depth = next((n for n in range(1, len(own)) if sum(p[-n:] == own[-n:] for p in paths) == 1), len(own))
        if sum(p == own for p in paths) > 1:
            depth = 1
        names.append(free_name("/".join(own[-depth:]), names))
    return names


def differs(module: str, first: str, left: ModuleInfo, second: str, right: ModuleInfo) -> AdapterError:
    """The error for a module that is not the same in two adapters, or in a merge state and an adapter."""
    hint = ""
    if left.shape != right.shape:
        ways = [f"{info.shape[0]} x {info.shape[1]}" for info in (left, right)]
    elif left.kind != right.kind:
        ways = [left.kind, right.kind]
    else:
        ways = [f"stored with fan_in_fan_out {str(info.transposed).lower()}" for info in (left, right)]
        hint = " If they share one base, correct the flag in adapter_config.json (true for GPT-2's Conv1D)."
    return AdapterError(
        f"{first} and {second} are of different bases: module '{module}' is {ways[0]} in the first and {ways[1]} in the "
        f"second.{hint}"
    )


def check_related(first: str, base: str | None, modules: Iterable[str], name: str, adapter: Adapter) -> None:
    """Raise an AdapterError for an adapter that names another base than `first` and has no module in common with it."""
    own = adapter.config.base
    if base and own and base != own and not set(adapter) & set(modules):
        raise AdapterError(
            f"{first} and '{name}' are of different bases: they name '{base}' and '{own}', and module "
            f"'{next(iter(adapter))}' of the latter, like all its others, is not in the former. If it is one base under two "
            f"names, write '{base}' as base_model_name_or_path into the adapter_config.json of the latter."
        )


def check_one_class(holders: Mapping[str, Mapping[str, ModuleInfo]]) -> None:
    """Raise an AdapterError for a module under two names, one with further leading parts ('model.', '_orig_mod.').

    No model has both, unless one adapter holds both names (its base has both) or two share a module (they are of one class).

    Args:
        holders: an adapter or a merge state, as a message names it -> its modules.
    """
    for (one, held), (two, others) in permutations(holders.items(), 2):
        if held.keys() & others.keys():
            continue
        for module, info in others.items():
            for short in _endings(module):
                same = short in held and held[short].shape == info.shape
                if same and not any({short, module} <= every.keys() for every in holders.values()):
                    raise AdapterError(
                        f"Module '{short}' of {one} and '{module}' of {two} are the same by ending and shape: the adapters were "
                        "saved under different model classes (a whole model and its body, or a compiled one), so no model "
                        "would load all of the result. Save them under one."
                    )


def _endings(module: str) -> Iterator[str]:
    """The name without its first part, without its first two, ..."""
    while module := module.partition(".")[2]:
        yield module


def base_notes(named: Mapping[str, tuple[str | None, str | None]]) -> Iterator[str]:
    """A note if adapters or states, by name, differ in the (base, revision) they name; None: not named."""
    bases = {
        name: f"{base} at revision {revision}" if revision else base for name, (base, revision) in named.items() if base
    }
    if len(set(bases.values())) > 1:
        listed = "; ".join(f"{name}: {base}" for name, base in bases.items())
        yield f"The adapters name different bases although their shapes agree ({listed}). Make sure it is one model."
