"""perdure: teach a transformer one task after another with LoRA, without forgetting.

    import perdure
    scores = perdure.learn(tasks=[perdure.Task(...), ...], method="ps-lora", backbone="minilm", out="runs/first")

Names are imported when first used, so that `import perdure` and the command line's help stay instant.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from perdure.errors import PerdureError
    from perdure.grow import add, rollback
    from perdure.prediction import predict
    from perdure.run import learn, resume
    from perdure.scores import Scores, read_scores
    from perdure.tasks.suites import load_suite
    from perdure.tasks.task import Example, Task

__all__ = [
    "Example", "PerdureError", "Scores", "Task", "add", "learn", "load_suite", "predict", "read_scores", "resume", "rollback",
]  # fmt: skip

_HOME = {
    "Example": "perdure.tasks.task",
    "PerdureError": "perdure.errors",
    "Scores": "perdure.scores",
    "Task": "perdure.tasks.task",
    "add": "perdure.grow",
    "learn": "perdure.run",
    "load_suite": "perdure.tasks.suites",
    "predict": "perdure.prediction",
    "read_scores": "perdure.scores",
    "resume": "perdure.run",
    "rollback": "perdure.grow",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'perdure' has no attribute '{name}'")
    return getattr(importlib.import_module(_HOME[name]), name)
