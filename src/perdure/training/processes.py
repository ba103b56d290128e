"""The processes that share one run (docs/decisions/0005-processes.md).

Every process holds the same adapter and runs the same loop. They differ only in which micro-batches of an optimiser step they
compute (`share`, `reduce`), which tasks they score (`spread`), and in that only the main one writes (`once`). `Processes` is
the single process, for which all of this does nothing. `Group` is torch.distributed: gloo on CPUs, NCCL on GPUs.

    accelerate launch --multi_gpu --num_processes 2 -m perdure run ...        or: torchrun --nproc-per-node 2 -m perdure run ...
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from perdure.errors import ConfigError, PerdureError

Item = TypeVar("Item")
Result = TypeVar("Result")

TIMEOUT = timedelta(days=1)
"""How long a process waits for another: scoring a large task takes long, and a dead process is noticed by its lost connection."""

ENGINES: Mapping[str, str] = {
    "DEEPSPEED": "DeepSpeed keeps gradients in its own buffers, out of reach between backward and clipping",
    "FSDP": "accelerate's FSDP splits the adapter too, so that no process holds the gradient of a penalty; perdure's own loop "
    "shards only the base (shard=true, launched without --use_fsdp)",
    "MEGATRON_LM": "Megatron-LM replaces the model's layers by its own",
    "PARALLELISM_CONFIG": "tensor, context and sequence parallelism leave each process a part of the gradient",
    "XLA": "XLA compiles the whole step",
}
"""Engine, as accelerate calls it -> why no penalty can be added there."""


class Processes:
    """A single process. The methods' summaries hold for several processes too."""

    rank = 0
    count = 1
    sharded = False

    @property
    def main(self) -> bool:
        """Whether this process writes and reports."""
        return self.rank == 0

    def share(self, items: Sequence[Item]) -> list[tuple[Item, int]]:
        """This process's items, each with 1; with 0 an item computed only to keep step with the others' sharded base."""
        return [(item, 1) for item in items]

    def total(self, *numbers: float) -> list[float]:
        """The sums of numbers over the processes."""
        return list(numbers)

    def reduce(self, parameters: Sequence[nn.Parameter]) -> None:
        """Replace every `.grad` by its sum over the processes, the same bits on each; None where no process has one."""

    def broadcast(self, tensors: Sequence[Tensor]) -> None:
        """Set the tensors on every process to the main process's numbers, in place."""

    def spread(self, work: Callable[[Item], Result], items: Sequence[Item]) -> list[Result]:
        """`work` of every item in order, on every process; each is computed by one process (by all while the base is sharded)."""
        return [work(item) for item in items]

    def once(self, work: Callable[..., Result], *args: Any) -> Result:
        """Run `work` on the main process only; the others wait for its result (or its error)."""
        return work(*args)

    def main_first(self, work: Callable[[], Result]) -> Result:
        """Run `work` on every process, on the main one first: it downloads what the others then find in the cache."""
        return work()

    def shard(self, model: nn.Module, whole: set[nn.Parameter]) -> None:
        """Split all weights of `model` except those in `whole` over the processes; ConfigError if there is only one."""
        raise ConfigError(
            "shard=true splits the base's weights over processes, but there is only one. Start it with `accelerate launch "
            "--num_processes 2 -m perdure run ...` (or torchrun), or leave it out."
        )


ALONE = Processes()


class Group(Processes):
    """Several processes, over torch.distributed."""

    def __init__(self) -> None:
        import torch.distributed as dist

        if torch.cuda.is_available():
            # first: whatever names no device (FSDP2's streams) goes to the current one
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
        if not dist.is_initialized():
            engines = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
            dist.init_process_group(engines, timeout=TIMEOUT)
        self._dist = dist
        self.rank, self.count = dist.get_rank(), dist.get_world_size()

    def share(self, items: Sequence[Item]) -> list[tuple[Item, int]]:
        own: list[tuple[Item, int]] = [(item, 1) for item in items[self.rank :: self.count]]
        most = -(-len(items) // self.count)
        if self.sharded and len(own) < most:
            own.append((items[0], 0))
        return own

    def total(self, *numbers: float) -> list[float]:
        sums = torch.tensor(numbers, dtype=torch.float64)
        self._dist.all_reduce(sums)
        return sums.tolist()

    def reduce(self, parameters: Sequence[nn.Parameter]) -> None:
        for dtype in sorted({p.dtype for p in parameters}, key=str):  # in the same order everywhere
            group = [p for p in parameters if p.dtype == dtype]
            # one message: all gradients, followed by which parameters have one
            present = group[0].new_tensor([p.grad is not None for p in group])
            grads = [(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in group]
            message = torch.cat([*grads, present]).detach()
            self._dist.all_reduce(message)
            *sums, present = message.split([*(p.numel() for p in group), len(group)])
            for parameter, total, has_grad in zip(group, sums, present.tolist(), strict=True):
                parameter.grad = total.view_as(parameter).clone() if has_grad else None

    def broadcast(self, tensors: Sequence[Tensor]) -> None:
        for tensor in tensors:
            numbers = tensor.detach().cpu().contiguous()
            self._dist.broadcast(numbers, src=0)
            tensor.data.copy_(numbers)

    def spread(self, work: Callable[[Item], Result], items: Sequence[Item]) -> list[Result]:
        if self.sharded:
            return [work(item) for item in items]
        own = _result_or_error(lambda: [work(item) for item in items[self.rank :: self.count]])
        gathered: list[Any] = [None] * self.count
        self._dist.all_gather_object(gathered, own)
        results = [_result(each) for each in gathered]
        return [results[i % self.count][i // self.count] for i in range(len(items))]

    def once(self, work: Callable[..., Result], *args: Any) -> Result:
        return _result(self._from_main(_result_or_error(lambda: work(*args)) if self.main else None))

    def main_first(self, work: Callable[[], Result]) -> Result:
        own = _result_or_error(work) if self.main else None
        _result(self._from_main((None, own[1]) if own else None))
        return own[0] if own else work()

    def _from_main(self, value: Any) -> Any:
        box = [value]
        self._dist.broadcast_object_list(box, src=0)
        return box[0]

    def shard(self, model: nn.Module, whole: set[nn.Parameter]) -> None:
        from perdure.training.sharding import shard

        shard(model, whole)
        self.sharded = True


def join() -> Processes:
    """The processes that accelerate's launcher or torchrun started, or this one alone; ConfigError for an unsupported engine."""
    for name, reason in ENGINES.items():
        if os.environ.get(f"ACCELERATE_USE_{name}", "false").lower() not in ("", "0", "false"):
            raise ConfigError(f"The launcher set ACCELERATE_USE_{name}, which perdure does not support: {reason}.")
    if (wanted := os.environ.get("ACCELERATE_MIXED_PRECISION", "no")) != "no":
        raise ConfigError(
            f"The precision is a setting of the run: give precision={wanted} instead of --mixed_precision."
        )
    return Group() if started() > 1 else ALONE


def started() -> int:
    """How many processes the launcher started, including this one."""
    return int(os.environ.get("WORLD_SIZE", "1"))


ResultOrError = tuple[Any, tuple[type[PerdureError], str] | None]


def _result_or_error(work: Callable[[], Any]) -> ResultOrError:
    """The result, or the error if a user can cause it; any other error ends this process, and the launcher ends the others."""
    try:
        return work(), None
    except PerdureError as error:
        return None, (type(error), str(error))


def _result(result: ResultOrError) -> Any:
    value, failure = result
    if failure is None:
        return value
    kind, message = failure
    error = kind.__new__(kind)  # bypasses __init__, whose arguments may not be the message
    error.args = (message,)
    raise error
