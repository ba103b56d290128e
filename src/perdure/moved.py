"""Modules that moved since perdure 0.1: importing an old path fails with an error that names the new one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib.abc import MetaPathFinder
from importlib.util import find_spec
from typing import NoReturn

_ROOMS = {
    "commands": "export grow show",
    "config": "composition",
    "files": "durable output",
    "loop": "adapter_history progress sequence trackers",
    "methods.contract": "methods.build methods.calls methods.own methods.unsaved",
    "methods.measured": "methods.full_gradients methods.history_update methods.input_moments",
    "state": "checkpoint gate mismatch record reopen scores shared store unfinished",
    "tasks.sources": "tasks.archives tasks.assets tasks.benchmarks tasks.cl_benchmark_hub tasks.download tasks.files "
    "tasks.folders tasks.formats tasks.hub tasks.image_sets tasks.instructions tasks.packages tasks.prompts tasks.readers "
    "tasks.rows tasks.stories",
    "training": "context evaluation lora metrics processes sharding workbench",
}
MOVED = {
    f"perdure.{old}": f"perdure.{room}.{old.rpartition('.')[2]}"
    for room, every in _ROOMS.items()
    for old in every.split()
} | {
    "perdure.adapter_format": "perdure.adapters.format",
    "perdure.guarded_folders": "perdure.commands.guarded_merge",
    "perdure.history": "perdure.parts",
    "perdure.merge_command": "perdure.commands.merge",
    "perdure.methods.parts": "perdure.parts",
    "perdure.prediction": "perdure.commands.predict",
    "perdure.run": "perdure.commands.learn",
    "perdure.settings_words": "perdure.settings.words",
    "perdure.training_state": "perdure.training.state",
}
"""Old module -> new module."""


class MovedFinder(MetaPathFinder):
    """The last finder Python asks; raises ImportError for a module that moved."""

    def find_spec(self, fullname: str, path: Sequence[str] | None, target: object = None) -> None:
        if fullname in MOVED:
            raise ImportError(f"{fullname} moved: import from {MOVED[fullname]} (perdure 0.2).", name=fullname)


def moved_names(package: str, module: str) -> Callable[[str], NoReturn]:
    """A `__getattr__` for a package that was a module in 0.1: it raises an ImportError that names `module`."""

    def missing(name: str) -> NoReturn:
        if name.startswith("_") or find_spec(f"{package}.{name}"):  # called before a submodule is imported
            raise AttributeError(f"module '{package}' has no attribute '{name}'")
        raise ImportError(f"'{name}' is not in {package} any more: import from {module} (perdure 0.2).", name=package)

    return missing
