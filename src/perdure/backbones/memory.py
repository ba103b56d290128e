"""Out-of-memory errors: recognise them, and name the settings that help."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from perdure.errors import TrainingError

SIGNS = ("out of memory", "can't allocate memory", "cannot allocate memory", "not enough memory")

ADVICE = (
    "Any of these helps; the first ones do not change the result: training.accumulation=4 (smaller micro-batches), "
    "backbone.gradient_checkpointing=true, a smaller backbone.predict_batch_size, backbone.dtype=bfloat16, a smaller "
    "backbone.max_length, training.batch_size or lora.rank, backbone.quantization=4-bit."
)


def out_of_memory(error: BaseException, doing: str = "") -> TrainingError | None:
    """The error to raise instead of `error` if memory ran out while `doing` something, else None."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)) or (
        isinstance(error, (RuntimeError, OSError)) and any(sign in str(error).lower() for sign in SIGNS)
    ):
        return TrainingError(f"Memory ran out{f' while {doing}' if doing else ''}. Finished tasks are kept. {ADVICE}")
    return None


@contextmanager
def memory_explained(doing: str) -> Iterator[None]:
    """Turn running out of memory into a TrainingError that says what helps.

    Raises:
        TrainingError: memory ran out.
    """
    try:
        yield
    except (MemoryError, RuntimeError, OSError) as error:
        if out := out_of_memory(error, doing):
            raise out from error
        raise
