"""A second device that is the CPU in disguise: its tensors are CPU tensors, and mixing the two is an error, as on a GPU.

    torch.ones(3, device="elsewhere")        after `install()`, once a process

It shows that code puts every tensor where the model is; not that a GPU's kernels are right. transformers' `generate` uses
operations that cannot be sent here.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.utils import _pytree as pytree
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

NAME = "elsewhere"
MOVES = {"aten::_to_copy", "aten::to", "aten::copy_", "aten::_copy_from"}
TAKES_CPU_INDICES = {"aten::index", "aten::index_put", "aten::index_put_", "aten::_index_put_impl_"}  # a GPU does too


class OnSecond(torch.Tensor):
    """A tensor on the second device: the CPU tensor `raw` behind metadata that names the device."""

    raw: torch.Tensor

    @staticmethod
    def __new__(cls, raw: torch.Tensor) -> OnSecond:
        return torch.Tensor._make_wrapper_subclass(
            cls,
            raw.size(),
            strides=raw.stride(),
            storage_offset=raw.storage_offset(),
            dtype=raw.dtype,
            device=torch.device(NAME, 0),
        )

    def __init__(self, raw: torch.Tensor) -> None:
        self.raw = raw

    def tolist(self) -> Any:
        return self.raw.tolist()

    def __repr__(self) -> str:
        return f"{NAME}({self.raw})"

    @classmethod
    def __torch_dispatch__(cls, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return run(op, *args, **(kwargs or {}))


def run(op: Any, *args: Any, **kwargs: Any) -> Any:
    """An operation with tensors on the second device, or that makes some."""
    leaves = pytree.tree_leaves((args, kwargs))
    tensors = [x for x in leaves if isinstance(x, torch.Tensor)]
    ours = [x for x in tensors if isinstance(x, OnSecond)]
    wanted = [x for x in leaves if isinstance(x, torch.device)]
    stays = wanted[0].type == NAME if wanted else bool(ours)
    _check(op, bool(ours), tensors, kwargs.get("generator") if stays else None)
    given = pytree.tree_map_only(OnSecond, lambda x: x.raw, (args, kwargs))
    plain_args, plain_kwargs = pytree.tree_map_only(torch.device, lambda _: torch.device("cpu"), given)
    with torch.no_grad():
        found = op(*plain_args, **plain_kwargs)
    if op._schema.is_mutable and "out" not in kwargs:
        return args[0]
    known = {id(x.raw): x for x in ours}
    wrap = lambda x: known.get(id(x)) if id(x) in known else OnSecond(x) if stays else x  # noqa: E731
    with torch.inference_mode(False):  # a view of a parameter is no inference tensor
        return pytree.tree_map_only(torch.Tensor, wrap, found)


def _check(op: Any, ours: bool, tensors: list[torch.Tensor], generator: torch.Generator | None) -> None:
    strangers = [x for x in tensors if not isinstance(x, OnSecond) and x.ndim > 0]
    if ours and strangers and op._schema.name not in MOVES and op._schema.name not in TAKES_CPU_INDICES:
        raise RuntimeError(f"Expected all tensors to be on the same device, but found {NAME}:0 and cpu in {op}.")
    if generator is not None:
        raise RuntimeError(f"Expected a '{NAME}' device type for generator but found '{generator.device}' in {op}.")


class _Module:
    """What torch asks a device's module: torch.elsewhere."""

    def is_available(self) -> bool:
        return True

    is_initialized = is_available

    def _is_in_bad_fork(self) -> bool:
        return False

    def device_count(self) -> int:
        return 1

    def current_device(self) -> int:
        return 0

    def manual_seed_all(self, seed: int) -> None:
        """Random numbers are the CPU's."""

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16]


_libraries: list[torch.library.Library] = []


def install() -> None:
    """Make the device known to torch, for good: at most once a process."""
    if not _libraries:
        _setup_privateuseone_for_python_backend(NAME, backend_module=_Module())
        _libraries.append(torch.library.Library("_", "IMPL"))
        _libraries[0].fallback(run, "PrivateUse1")
