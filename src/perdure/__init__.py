"""Continual learning with LoRA: teach a transformer one task after another without forgetting.

    import perdure
    scores = perdure.learn(tasks=[perdure.Task(...), ...], method="ps-lora", backbone="minilm", out="runs/first")

The public API is `__all__`, perdure.parts, perdure.integrations and perdure.testing; everything else may change.
Names are imported on first use, which keeps `import perdure` and `perdure --help` fast. They come from the stub
__init__.pyi, as in scientific-python.org/specs/spec-0001.
"""

from __future__ import annotations

import ast
import importlib
import sys
from pathlib import Path
from typing import Any

from perdure.moved import MovedFinder

_STUB = ast.parse(Path(__file__).with_suffix(".pyi").read_text(encoding="utf-8"))
_IMPORTS = [statement for statement in _STUB.body if isinstance(statement, ast.ImportFrom)]
_HOME = {one.asname or one.name: (str(statement.module), one.name) for statement in _IMPORTS for one in statement.names}
__all__ = sorted([*_HOME, "__version__"])  # pyright: ignore[reportUnsupportedDunderAll]

sys.meta_path.append(MovedFinder())  # last, so it is asked only about modules that Python cannot find


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return importlib.import_module("importlib.metadata").version("perdure")
    if name not in _HOME:
        raise AttributeError(f"module 'perdure' has no attribute '{name}'")
    module, attribute = _HOME[name]
    if module == "perdure":
        return importlib.import_module(f"perdure.{attribute}")
    return getattr(importlib.import_module(module), attribute)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
