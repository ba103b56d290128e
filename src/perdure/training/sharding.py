"""A frozen base split over the processes, with torch's FSDP2 (`fully_shard`).

The base's weights are stored in shards; each block's are gathered while it computes. The adapter is not sharded: every process
holds its factors whole, so penalties, step rules and clipping work as they do without sharding.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn


def shard(model: nn.Module, whole: set[nn.Parameter]) -> None:
    """Shard every parameter of `model` except those in `whole`, block by block; in place."""
    import torch.distributed as dist
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(next(model.parameters()).device.type, (dist.get_world_size(),))
    for block in (*blocks(model), model):
        sharded = fully_shard(block, mesh=mesh, reshard_after_forward=True, ignored_params=whole)
        sharded.unshard()  # once now: memory first gathered in inference mode (while answering) could not be trained with
        sharded.reshard()


def blocks(model: nn.Module) -> Iterator[nn.Module]:
    """The outermost repeated modules (a transformer's layers): members of a ModuleList that is not inside another one."""
    for child in model.children():
        if isinstance(child, nn.ModuleList):
            yield from child
        else:
            yield from blocks(child)


def gathered(tensor: Tensor) -> Tensor:
    """The whole tensor. A sharded one is gathered, which every process must take part in; any other is returned as is."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor  # pyright: ignore[reportAttributeAccessIssue]


@torch.no_grad()
def write(target: Tensor, whole: Tensor) -> None:
    """Copy `whole` into `target`; if that is sharded, every process copies its own shard."""
    if hasattr(target, "full_tensor"):
        from torch.distributed.tensor import distribute_tensor

        mesh, placements = target.device_mesh, target.placements  # pyright: ignore[reportAttributeAccessIssue]
        whole = distribute_tensor(whole.to(target.dtype), mesh, placements, src_data_rank=None)
    target.copy_(whole)
