"""perdure: teach a transformer one task after another with LoRA, without forgetting.

    import perdure
    scores = perdure.learn(tasks=[perdure.Task(...), ...], method="ps-lora", backbone="minilm", out="runs/first")

Names are imported when first used, so that `import perdure` and the command line's help stay instant.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from perdure.commands.grow import add, rollback
    from perdure.commands.learn import learn, resume
    from perdure.commands.predict import predict
    from perdure.errors import PerdureError
    from perdure.state.scores import read_scores
    from perdure.tasks.suites import load_suite
    from perdure.tasks.task import Example, Task
    from perdure.training.metrics import Scores

__all__ = [
    "Example", "PerdureError", "Scores", "Task", "add", "learn", "load_suite", "predict", "read_scores", "resume", "rollback",
]  # fmt: skip

_HOME = {
    "Example": "perdure.tasks.task",
    "PerdureError": "perdure.errors",
    "Scores": "perdure.state.scores",
    "Task": "perdure.tasks.task",
    "add": "perdure.commands.grow",
    "learn": "perdure.commands.learn",
    "load_suite": "perdure.tasks.suites",
    "predict": "perdure.commands.predict",
    "read_scores": "perdure.state.scores",
    "resume": "perdure.commands.learn",
    "rollback": "perdure.commands.grow",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'perdure' has no attribute '{name}'")
    return getattr(importlib.import_module(_HOME[name]), name)
