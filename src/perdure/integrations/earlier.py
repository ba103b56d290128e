"""What earlier adapter folders left behind: the past a method compares with, and the memory of its parts.

The folders are consolidated one after another, exactly as in the loop. Parts with memory (Fisher matrices, input moments) keep
it in `perdure.safetensors` beside the adapter they were trained with.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from perdure.adapters.folder import Adapter, own_update
from perdure.errors import CorruptFile, UnmetNeed
from perdure.files.durable import sha256
from perdure.loop.adapter_history import own_factors, remembers, with_stage
from perdure.methods.contract.context import Context, Need
from perdure.methods.contract.parts import Method, Part
from perdure.methods.contract.past import Past
from perdure.ops.lowrank import LowRank
from perdure.state.checkpoint import load_checkpoint, read_metadata, save_checkpoint
from perdure.training.lora import AdaptedModel

MEMORY_FILE = "perdure.safetensors"


def earlier_past(
    history: Sequence[Adapter],
    names: Sequence[str],
    method: Method,
    model: AdaptedModel,
    context: Callable[[str, int, Past], Context],
) -> Past:
    """The past after `history`; every part of `method` has loaded its memory.

    Args:
        names: of the tasks of the history.
        context: name, index and past of a stage -> the context of its parts.

    Raises:
        UnmetNeed: a part needs a memory that is not in the last folder.
    """
    updates = [{n: delta.to(model.device) for n, delta in own_update(adapter).items()} for adapter in history]
    remembered = _remembered(history, method, lambda index: updates[index], model.device)
    if remembered is not None and measures(method.consolidate):
        return dataclasses.replace(remembered, stages=tuple(names))  # the stored names are those of each training
    rebuilt = [] if remembered else [p for p in method.parts().values() if remembers(p) and not p.needs]
    past = Past(load_update=lambda index: updates[index])
    for index, (adapter, name, update) in enumerate(zip(history, names, updates, strict=True)):
        ctx = context(name, index, past)
        past = with_stage(past, ctx, method, rebuilt, update, own_factors(adapter, model))
    return past


def digests(history: Sequence[Adapter]) -> list[str]:
    """The sha256 of each adapter's weights, which tie a memory to its history."""
    return [sha256(adapter.file) for adapter in history]


def save_memory(folder: Path, past: Past, method: Method, earlier: Sequence[str]) -> None:
    """Write what the parts have measured beside the adapter in `folder`; nothing if the method measures nothing.

    What can be recomputed from the adapters is left out.

    Args:
        earlier: the digests of the adapters before it.
    """
    if any(map(measures, method.parts().values())):
        kept = past if measures(method.consolidate) else Past(stages=past.stages)
        save_checkpoint(folder / MEMORY_FILE, kept, method, {"adapters": [*earlier, *digests([Adapter(folder)])]})


def _remembered(
    history: Sequence[Adapter], method: Method, load_update: Callable[[int], dict[str, LowRank]], device: torch.device
) -> Past | None:
    """The past in the last folder's memory; None if it has none of this history, and none is needed."""
    owners = {name: part for name, part in method.parts().items() if measures(part)}
    if not history or not owners:
        return None
    path = history[-1].folder / MEMORY_FILE
    if (mismatch := _mismatch(path, history)) is None:
        return load_checkpoint(path, method, load_update, device)
    # SLICE remembers only GradVac's moving average, which may start anew; its old examples are given
    needing = [name for name, part in owners.items() if Need.OLD_EXAMPLES not in part.needs]
    if needing:
        raise UnmetNeed(
            f"Method '{method.name}', {needing[0]}: it measures statistics on every task and keeps them in '{path}', which "
            f"{mismatch}. Continual.save writes them if every earlier task was trained with this method."
        )
    return None


def _mismatch(path: Path, history: Sequence[Adapter]) -> str | None:
    """Why the memory in `path` is not of this history; None if it is."""
    if not path.is_file():
        return "does not exist"
    try:
        about = read_metadata(path)
        count = len(about["stages"])
    except CorruptFile as error:
        return "was not written by perdure" if isinstance(error.__cause__, KeyError) else "is damaged"
    except KeyError:
        return "was not written by perdure"
    if count != len(history):
        return f"is of {count} tasks, not {len(history)}"
    known = digests(history)
    changed = about.get("adapters", known) != known  # the first versions did not write it
    return "is of other adapters, or they changed since" if changed else None


def measures(part: Part) -> bool:
    """Whether the part's memory is measured on training examples, so that it cannot be recomputed from adapters."""
    return remembers(part) and Need.TRAINING_DATA in part.needs
