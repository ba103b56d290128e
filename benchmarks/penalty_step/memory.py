"""What a weight penalty holds and what it needs for a moment, at tasks 2, 3 and 100: counted, so that it repeats to the byte.

    python benchmarks/penalty_step/memory.py [--out memory.json]

The cases are run.py's, in fp32 (bf16 is autocast: adapters and penalties stay fp32).

    held        every tensor reachable from the penalty
    past        the sum of the updates, where the penalty holds on to it; the loop keeps that sum whatever the method
    temporary   the most allocated beyond these during `training.add_weight_penalties`, from torch's own record of allocations,
                from a task's second step on: the first computes what is held for the whole task

Task 3 gives the slope per task.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from run import TARGETS, about, adapted, make_case, penalties_for, sum_of
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from perdure.methods.contract.past import Past
from perdure.ops.lowrank import Update
from perdure.training.lora import AdaptedModel
from perdure.training.train import add_weight_penalties

TASKS = (2, 3, 100)


def measure(targets: str) -> dict[str, dict[str, dict[str, int]]]:
    """Penalty -> task -> bytes held, of the past, temporary."""
    _, model = adapted(targets)
    totals = {task: sum_of(model, task - 1) for task in TASKS}
    return {
        name: {f"task {task}": bytes_of(model, penalties, task, totals[task]) for task in TASKS}
        for name, penalties in penalties_for(targets).items()
    }


def bytes_of(model: AdaptedModel, penalties: dict[str, Any], task: int, total: Update) -> dict[str, int]:
    """One penalty at one task."""
    case = make_case(model, penalties, task, total)
    ctx: Any = SimpleNamespace(past=case.past)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    add_weight_penalties(model, case.method, ctx, {})
    parts = case.method.penalties.values()
    return {
        "held": held(parts),
        "past": held([case.past.total]) if any(isinstance(m, Past) for part in parts for m in _members(part)) else 0,
        "temporary": temporaries(lambda: add_weight_penalties(model, case.method, ctx, {})),
    }


def held(things: Any) -> int:
    """Bytes of every tensor reachable from things without going through a `Past`; storage that is shared counts once."""
    storages = [tensor.untyped_storage() for tensor in _tensors(list(things), set())]
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())


def temporaries(call: Callable[[], Any]) -> int:
    """The most bytes held at once during the call beyond those held before it."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        call()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(path))
        events = json.loads(path.read_text())["traceEvents"]
    now = peak = 0
    for event in sorted((e for e in events if e.get("name") == "[memory]"), key=lambda e: e["ts"]):
        now += event["args"]["Bytes"]
        peak = max(peak, now)
    return peak


def _tensors(thing: object, seen: set[int]) -> Iterator[Tensor]:
    if isinstance(thing, Tensor):
        yield thing
    elif id(thing) not in seen and not isinstance(thing, Past):
        seen.add(id(thing))
        for member in _members(thing):
            yield from _tensors(member, seen)


def _members(thing: object) -> Iterator[object]:
    if isinstance(thing, Mapping):
        yield from thing.values()
    elif isinstance(thing, (list, tuple, set, frozenset)):
        yield from thing
    else:
        yield from getattr(thing, "__dict__", {}).values()
        yield from (getattr(thing, "__pydantic_private__", None) or {}).values()


def main() -> None:
    """Parse, count, print, record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--targets", nargs="+", choices=TARGETS, default=list(TARGETS))
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(1)
    results = {targets: measure(targets) for targets in given.targets}
    for targets, penalties in results.items():
        for name, tasks in penalties.items():
            print(f"{targets:12} {name:24}", *(f"{task}: {counts}" for task, counts in tasks.items()))
    record = {"question": "bytes a weight penalty holds and needs", **about(), "results": results}
    if given.out:
        given.out.write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
