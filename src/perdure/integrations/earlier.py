"""What earlier adapter folders left behind: the past a method compares with, and the memory of its parts.

The consolidation is applied to the folders one after another, exactly as the loop would have. Parts with a memory of their own
(Fisher matrices, input moments) keep it in `perdure.safetensors` beside the adapter they were trained with.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError

from perdure.adapters.folder import Adapter, own_update
from perdure.errors import AdapterError, UnmetNeed
from perdure.files.durable import sha256
from perdure.loop.adapter_history import own_factors, remembers, with_stage
from perdure.methods.contract.context import Context, Need
from perdure.methods.contract.parts import Method, Part
from perdure.methods.contract.past import Past
from perdure.ops.lowrank import LowRank
from perdure.state.checkpoint import load_checkpoint, read_metadata, save_checkpoint
from perdure.training.lora import AdaptedModel

MEMORY_FILE = "perdure.safetensors"


def check_fits(adapter: Adapter, model: AdaptedModel) -> None:
    """Every module the adapter changes is one the model's LoRA targets, of the same shape.

    Raises:
        AdapterError: names the module.
    """
    for name, entry in adapter.modules.items():
        module = model.modules.get(name)
        if module is None or entry.kind != "linear":
            raise AdapterError(
                f"'{adapter.folder}' changes '{name}', which the model's LoRA does not target. Give LoraConfig the "
                "target_modules of the earlier adapters; it has: "
                f"{', '.join(sorted({n.rpartition('.')[2] for n in model.modules}))}."
            )
        shape = (module.B.shape[0], module.A.shape[1])
        if entry.shape != shape:
            raise AdapterError(
                f"'{adapter.folder}' changes '{name}' of shape {entry.shape}, but the model's has {shape}: another base."
            )


def earlier_past(
    history: Sequence[Adapter],
    names: Sequence[str],
    method: Method,
    model: AdaptedModel,
    context: Callable[[str, int, Past], Context],
) -> Past:
    """The past after `history`; every part of `method` has its memory.

    Args:
        names: what each task of the history is called.
        context: name, index and past of a stage -> what its parts may look at.

    Raises:
        UnmetNeed: a part needs a memory that the last folder does not hold.
    """
    updates = [{n: delta.to(model.device) for n, delta in own_update(adapter).items()} for adapter in history]
    remembered = _remembered(history, method, lambda index: updates[index], model.device)
    if remembered is not None and measures(method.consolidate):
        return dataclasses.replace(remembered, stages=tuple(names))  # its own are those each training was given
    rebuilt = [] if remembered else [p for p in method.parts().values() if remembers(p) and not p.needs]
    past = Past(load_update=lambda index: updates[index])
    for index, (adapter, name, update) in enumerate(zip(history, names, updates, strict=True)):
        ctx = context(name, index, past)
        past = with_stage(past, ctx, method, rebuilt, update, own_factors(adapter, model))
    return past


def digests(history: Sequence[Adapter]) -> list[str]:
    """The sha256 of each adapter's weights: by them a memory is known to belong to a history."""
    return [sha256(adapter.file) for adapter in history]


def save_memory(folder: Path, past: Past, method: Method, earlier: Sequence[str]) -> None:
    """Write what the parts have measured beside the adapter in `folder`; nothing for a method that measures nothing.

    What can be computed from the adapters again is not kept.

    Args:
        earlier: the digests of the adapters before it.
    """
    if any(map(measures, method.parts().values())):
        kept = past if measures(method.consolidate) else Past(stages=past.stages)
        save_checkpoint(folder / MEMORY_FILE, kept, method, {"adapters": [*earlier, *digests([Adapter(folder)])]})


def _remembered(
    history: Sequence[Adapter], method: Method, load_update: Callable[[int], dict[str, LowRank]], device: torch.device
) -> Past | None:
    """The past in the last folder's memory; None where there is none of this history, and none is needed."""
    owners = {name: part for name, part in method.parts().items() if measures(part)}
    if not history or not owners:
        return None
    path = history[-1].folder / MEMORY_FILE
    if (found := _another(path, history)) is None:
        return load_checkpoint(path, method, load_update, device)
    # all that SLICE remembers is GradVac's moving average, which may begin anew; its old examples are given
    needing = [name for name, part in owners.items() if Need.OLD_EXAMPLES not in part.needs]
    if needing:
        raise UnmetNeed(
            f"Method '{method.name}', {needing[0]}: it measures statistics on every task and keeps them in '{path}', which "
            f"{found}. Continual.save writes them when every earlier task was trained with this method."
        )
    return None


def _another(path: Path, history: Sequence[Adapter]) -> str | None:
    """Why the memory in `path` is not of this history; None where it is."""
    if not path.is_file():
        return "is not there"
    try:
        about = read_metadata(path)
        count = len(about["stages"])
    except SafetensorError:
        return "is damaged"
    except KeyError:
        return "was not written by perdure"
    if count != len(history):
        return f"is of {count} tasks, not {len(history)}"
    known = digests(history)
    if about.get("adapters", known) != known:  # not written by the first versions
        return "is of other adapters, or they changed since"
    return None


def measures(part: Part) -> bool:
    """Whether the part keeps a memory measured on training examples, which no adapter folder can give back."""
    return remembers(part) and Need.TRAINING_DATA in part.needs
