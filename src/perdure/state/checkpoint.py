"""What the next stage needs, as one safetensors file: the past, and the memory of every part.

Key layout: `<group>/<module>/<tensor>`, where group is one of total, carry, deployed, deployed:<i> (one per task), factors,
part:<name>. What is the same object in memory (deployed = carry in most methods) is written once.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from perdure.errors import CorruptFile, StoreError
from perdure.files.durable import RESTORE
from perdure.files.names import stored_name
from perdure.files.parsing import parse_json
from perdure.methods.contract.calls import calling, state_of
from perdure.methods.contract.parts import Head, Method
from perdure.methods.contract.past import Past, PerTask
from perdure.ops.factors import Factors
from perdure.ops.lowrank import Delta, LowRank, Update

CPU = torch.device("cpu")


def save_checkpoint(path: Path, past: Past, method: Method, more: Mapping[str, Any] | None = None) -> None:
    """Write the past and the parts' memory; `more` is JSON, read back with `read_metadata`."""
    tensors: dict[str, Tensor] = {}
    about: dict[str, Any] = {"stages": past.stages, "scaling": {n: pair.scaling for n, pair in past.factors.items()}}
    tensors |= packed("total", past.total)
    tensors |= packed("carry", past.carry)
    if isinstance(past.deployed, PerTask):
        about["deployed"] = list(past.deployed.updates)
        for i, update in enumerate(past.deployed.updates.values()):
            tensors |= packed(f"deployed:{i}", update)
    elif past.deployed is past.carry:
        about["deployed"] = "carry"
    else:
        about["deployed"] = "update"
        tensors |= packed("deployed", past.deployed)
    tensors |= packed("factors", past.factors)
    save_groups(path, tensors | memory(method), {**about, **(more or {})})


def read_metadata(path: Path) -> dict[str, Any]:
    """The JSON in a file, without reading its tensors."""
    with damaged_as_error(path), safe_open(path, framework="pt") as file:
        about = parse_json((file.metadata() or {})["perdure"])
        if not isinstance(about, dict):
            raise TypeError(f"a {type(about).__name__} instead of an object")
        return about


@contextmanager
def damaged_as_error(path: Path) -> Iterator[None]:
    """Turn what reading a damaged file of tensors raises into an error that names it.

    Raises:
        CorruptFile: the file is cut off, or is not what perdure writes there.
    """
    try:
        yield
    except (SafetensorError, OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        what = f"no {error}" if isinstance(error, KeyError) else error
        raise CorruptFile(f"'{path}' is not what a run writes there: {what}. {RESTORE}") from error


def load_checkpoint(
    path: Path, method: Method, load_update: Callable[[int], Update], device: torch.device = CPU
) -> Past:
    """The past, on a device; every part loads its memory (see `remember`)."""
    about, groups = load_groups(path, device)
    remember(method, groups, path)
    with damaged_as_error(path):
        carry = _update(groups.get("carry", {}))
        return Past(
            stages=tuple(about["stages"]),
            total=_update(groups.get("total", {})),
            carry=carry,
            deployed=_deployed(about["deployed"], groups, carry, path),
            factors=unpack_factors(groups.get("factors", {}), about["scaling"]),
            load_update=load_update,
        )


def checkpoint_deployed(path: Path) -> Update | PerTask:
    """Only the update that answers queries."""
    about, groups = load_groups(path)
    with damaged_as_error(path):
        return _deployed(about["deployed"], groups, _update(groups.get("carry", {})), path)


def checkpoint_head(path: Path, head: Head) -> Head:
    """The head with its memory of the checkpoint."""
    _, groups = load_groups(path, only="part:head")
    with damaged_as_error(path), calling(head, "load"):
        head.load(groups.get("part:head", {}))
    return head


def save_groups(path: Path, tensors: Mapping[str, Tensor], about: Mapping[str, Any]) -> None:
    """Write tensors called `<group>/<rest>`, and `about` as JSON."""
    # copies, because safetensors refuses tensors that share memory
    own = {key: tensor.detach().to("cpu", copy=True).contiguous() for key, tensor in tensors.items()}
    save_file(own, path, {"perdure": json.dumps(about)})


def load_groups(
    path: Path, device: torch.device = CPU, only: str | None = None
) -> tuple[dict[str, Any], dict[str, dict[str, Tensor]]]:
    """What `save_groups` wrote: `about`, and group -> rest -> tensor; `only`: of one group."""
    groups: dict[str, dict[str, Tensor]] = {}
    with damaged_as_error(path), safe_open(path, framework="pt") as file:
        for key in file.keys():  # noqa: SIM118  (a safetensors handle is not a mapping)
            group, _, rest = key.partition("/")
            if only not in (None, group):
                continue
            # a copy, because safetensors' memory is not aligned like torch's, and BLAS then rounds differently
            groups.setdefault(group, {})[rest] = file.get_tensor(key).clone().to(device)
    return read_metadata(path), groups


def memory(method: Method) -> dict[str, Tensor]:
    """Every part's memory, as tensors for `save_groups`."""
    return {f"part:{name}/{key}": t for name, part in method.parts().items() for key, t in state_of(part).items()}


def remember(method: Method, groups: Mapping[str, Mapping[str, Tensor]], path: Path) -> None:
    """Load every part's memory; StoreError if there is memory of a part that the method does not have."""
    parts = method.parts()
    if unknown := [name for group in groups if (name := group.removeprefix("part:")) != group and name not in parts]:
        raise StoreError(f"'{path}' holds the memory of parts this method does not have: {', '.join(unknown)}.")
    for name, part in parts.items():
        with calling(part, "load"):
            part.load(groups.get(f"part:{name}", {}))


def packed(group: str, modules: Mapping[str, Delta | Factors]) -> dict[str, Tensor]:
    """An update's or factors' tensors under the names of a group; the scaling of factors belongs in `about`."""
    tensors: dict[str, Tensor | None] = {}
    for name, value in modules.items():
        own = {"dense": value} if isinstance(value, Tensor) else vars(value)
        tensors |= {f"{group}/{name}/{key}": own.get(key) for key in ("dense", "A", "B", "A0", "B0")}
    return {key: tensor for key, tensor in tensors.items() if tensor is not None}


def unpack_factors(tensors: Mapping[str, Tensor], scaling: Mapping[str, float]) -> dict[str, Factors]:
    """The factors of a group."""
    return {n: Factors(m["A"], m["B"], scaling[n], m.get("A0"), m.get("B0")) for n, m in _modules(tensors).items()}


def _deployed(
    kind: str | list[str], groups: Mapping[str, dict[str, Tensor]], carry: Update, path: Path
) -> Update | PerTask:
    if isinstance(kind, list):  # each is deployed in a folder of its name
        names = [stored_name(task, path, "deployed") for task in kind]
        return PerTask({task: _update(groups.get(f"deployed:{i}", {})) for i, task in enumerate(names)})
    return carry if kind == "carry" else _update(groups.get("deployed", {}))


def _modules(tensors: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    modules: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        name, _, kind = key.rpartition("/")
        modules.setdefault(name, {})[kind] = tensor
    return modules


def _update(tensors: Mapping[str, Tensor]) -> dict[str, Delta]:
    return {n: m["dense"] if "dense" in m else LowRank(m["A"], m["B"]) for n, m in _modules(tensors).items()}
