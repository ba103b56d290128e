"""Out of memory: recognise it, and name the settings that help."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from perdure.errors import TrainingError

SIGNS = ("out of memory", "can't allocate memory", "cannot allocate memory", "not enough memory")

ADVICE = (
    "Any of these helps, the first ones without changing the result: training.accumulation=4 (smaller micro-batches), "
    "backbone.gradient_checkpointing=true, a smaller backbone.predict_batch_size, backbone.dtype=bfloat16, a smaller "
    "backbone.max_length, training.batch_size or lora.rank, backbone.quantization=4-bit."
)


def out_of_memory(error: BaseException, doing: str = "") -> TrainingError | None:
    """The error to raise instead of `error` if it says that memory ran out, else None.

    Args:
        doing: what was going on, such as "training task 'bbc'".
    """
    told = isinstance(error, (MemoryError, torch.OutOfMemoryError)) or (
        isinstance(error, (RuntimeError, OSError)) and any(sign in str(error).lower() for sign in SIGNS)
    )
    if not told:
        return None
    while_doing = f" while {doing}" if doing else ""
    return TrainingError(f"Memory ran out{while_doing}. Finished tasks are kept. {ADVICE}")


@contextmanager
def memory_explained(doing: str) -> Iterator[None]:
    """Within: running out of memory becomes a TrainingError that says what helps.

    Raises:
        TrainingError: memory ran out.
    """
    try:
        yield
    except (MemoryError, RuntimeError, OSError) as error:
        if told := out_of_memory(error, doing):
            raise told from error
        raise
