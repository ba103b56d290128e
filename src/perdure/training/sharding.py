"""A frozen base split over the processes, with torch's FSDP2 (`fully_shard`).

The base's weights are stored in shards; each block's are gathered while it computes. The adapter's factors are
left out of it: every process holds them whole, so that penalties, step rules and clipping see them as ever.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn


def shard(model: nn.Module, whole: set[nn.Parameter]) -> None:
    """Shard every parameter of `model` but those in `whole`, block by block; in place."""
    import torch.distributed as dist
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(next(model.parameters()).device.type, (dist.get_world_size(),))
    for block in (*blocks(model), model):
        made = fully_shard(block, mesh=mesh, reshard_after_forward=True, ignored_params=whole)
        made.unshard()  # once now: memory first gathered while answering, in inference mode, could not be trained with
        made.reshard()


def blocks(model: nn.Module) -> Iterator[nn.Module]:
    """The outermost repeated modules (a transformer's layers): members of a ModuleList that is in no other one."""
    for child in model.children():
        if isinstance(child, nn.ModuleList):
            yield from child
        else:
            yield from blocks(child)


def gathered(tensor: Tensor) -> Tensor:
    """The whole tensor: a sharded one is gathered (every process must ask for it), another is returned as it is."""
    return tensor.full_tensor() if _is_sharded(tensor) else tensor  # pyright: ignore[reportAttributeAccessIssue]


@torch.no_grad()
def write(target: Tensor, whole: Tensor) -> None:
    """Copy `whole` into `target`; into a sharded one every process copies its own part."""
    if _is_sharded(target):
        from torch.distributed.tensor import distribute_tensor

        mesh, placements = target.device_mesh, target.placements  # pyright: ignore[reportAttributeAccessIssue]
        whole = distribute_tensor(whole.to(target.dtype), mesh, placements, src_data_rank=None)
    target.copy_(whole)


def _is_sharded(tensor: Tensor) -> bool:
    return hasattr(tensor, "full_tensor")
