"""Continual learning with LoRA: teach a transformer one task after another without forgetting.

    import perdure
    scores = perdure.learn(tasks=[perdure.Task(...), ...], method="ps-lora", backbone="minilm", out="runs/first")

The public API is `__all__`, perdure.parts, perdure.integrations and perdure.testing; everything else may change.
Names are imported on first use, which keeps `import perdure` and `perdure --help` fast.
"""

from __future__ import annotations

import importlib
import sys
from typing import TYPE_CHECKING, Any

from perdure.moved import MovedFinder

if TYPE_CHECKING:
    from perdure import integrations, parts, testing
    from perdure.adapters.folder import Adapter, open_adapter, write_adapter
    from perdure.backbones.models import model_folder
    from perdure.commands.export import export
    from perdure.commands.grow import add, rollback
    from perdure.commands.learn import learn, resume
    from perdure.commands.merge import merge
    from perdure.commands.predict import predict
    from perdure.diagnostics.folders import diagnose_folders as diagnose
    from perdure.errors import ConfigError, DataError, PerdureError, QualityGate, StoreError
    from perdure.loop.progress import reporter
    from perdure.loop.trackers import Trackers
    from perdure.report.page import write_report
    from perdure.state.scores import read_scores
    from perdure.tasks.sources.files import load_task
    from perdure.tasks.suites import load_suite
    from perdure.tasks.task import Example, Task
    from perdure.training.metrics import Scores

    __version__: str

__all__ = [
    "Adapter", "ConfigError", "DataError", "Example", "PerdureError", "QualityGate", "Scores", "StoreError", "Task", "Trackers",
    "__version__", "add", "diagnose", "export", "integrations", "learn", "load_suite", "load_task", "merge", "model_folder",
    "open_adapter", "parts", "predict", "read_scores", "reporter", "resume", "rollback", "testing", "write_adapter",
    "write_report",
]  # fmt: skip

_SOURCES = {
    "perdure.adapters.folder": "Adapter open_adapter write_adapter",
    "perdure.backbones.models": "model_folder",
    "perdure.commands.export": "export",
    "perdure.commands.grow": "add rollback",
    "perdure.commands.learn": "learn resume",
    "perdure.commands.merge": "merge",
    "perdure.commands.predict": "predict",
    "perdure.diagnostics.folders": "diagnose_folders",
    "perdure.errors": "ConfigError DataError PerdureError QualityGate StoreError",
    "perdure.loop.progress": "reporter",
    "perdure.loop.trackers": "Trackers",
    "perdure.report.page": "write_report",
    "perdure.state.scores": "read_scores",
    "perdure.tasks.sources.files": "load_task",
    "perdure.tasks.suites": "load_suite",
    "perdure.tasks.task": "Example Task",
    "perdure.training.metrics": "Scores",
}
_HOME = {name: module for module, names in _SOURCES.items() for name in names.split()}

sys.meta_path.append(MovedFinder())  # last, so it is asked only about modules that Python cannot find


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return importlib.import_module("importlib.metadata").version("perdure")
    if name in ("integrations", "parts", "testing"):
        return importlib.import_module(f"perdure.{name}")
    inner = "diagnose_folders" if name == "diagnose" else name
    if inner not in _HOME:
        raise AttributeError(f"module 'perdure' has no attribute '{name}'")
    return getattr(importlib.import_module(_HOME[inner]), inner)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
