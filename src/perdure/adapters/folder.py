"""LoRA adapter folders as PEFT writes them, read straight from safetensors module by module; and written.

An `Adapter` is an `Update`: a mapping from module names to effective updates scaling * B A, read from the file on access.
peft is not imported. What a folder may contain: perdure.adapters.format and perdure.adapters.weights.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from copy import copy
from itertools import chain, count
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn.functional import pad

from perdure.adapters.experts import columns_of, grouped, joined, rows_of, stored_names
from perdure.adapters.format import CONFIG_FILE, read_config
from perdure.adapters.weights import (
    PICKLE_FILE,
    PREFIX,
    WEIGHTS_FILE,
    FrozenTensor,
    checked_finite,
    opened,
    read_header,
    stored_tensor,
    weights_file,
)
from perdure.errors import AdapterError
from perdure.ops.factors import Factors
from perdure.ops.finite import all_finite, finite
from perdure.ops.lowrank import LowRank


class Adapter(Mapping[str, LowRank]):
    """An adapter folder as an `Update`; only the file's header is in memory.

    Iterates over modules in natural order (layer 2 before layer 10). Reading a module checks that it is finite.

    Args:
        place: what the user calls it, where that is not the folder (a hub id).
        beside: accept tensors beside the update, see `perdure.adapters.weights.read_header`; the caller deals with them.

    Raises:
        AdapterError: the folder or a file is missing, damaged or not a plain LoRA; names the file and the tensor.
    """

    def __init__(self, folder: str | Path, place: str | None = None, *, beside: bool = False) -> None:
        self.folder = Path(folder)
        self.place = place or str(folder)
        self.config = read_config(self.folder)
        self.file = weights_file(self.folder)
        self.modules, self.beside = read_header(self.file, self.config)
        self._own_names: Mapping[str, str] = {}
        if self.beside and not beside:
            raise AdapterError(
                f"{self.file}: tensor '{self.beside[0]}' is not a factor of a linear or embedding LoRA but a whole weight. "
                "Leaving it out would change the adapter, so it is refused."
            )

    def __len__(self) -> int:
        return len(self.modules)

    def __iter__(self) -> Iterator[str]:
        return iter(self.modules)

    def __contains__(self, module: object) -> bool:
        return module in self.modules

    def __getitem__(self, module: str) -> LowRank:
        """The effective update [O, I] with the scaling inside B, in fp32 (float64 if stored so)."""
        return self.factors(module).update()

    def factors(self, module: str) -> Factors:
        """A [R, I], B [O, R] as stored, in fp32 (float64 if stored so), and the scaling.

        Raises:
            AdapterError: NaN or Inf inside, or in the update that they make; names the tensor or the module.
        """
        entry = self.modules[module]
        with opened(self.file) as file:
            A, B = (
                checked_finite(stored_tensor(file, name, self.file), name, self.file) for name in (entry.A, entry.B)
            )
        if entry.expert:
            A, B = rows_of(A, *entry.expert).contiguous(), columns_of(B, *entry.expert).contiguous()
        own = self._own_names.get(module, module)
        factors = Factors(A, B, self.config.scaling(own.rpartition(".")[0] if entry.expert else own))
        if not finite(factors.update()):
            raise AdapterError(
                f"{self.file}: the update of '{module}' overflows: its factors, each finite, give NaN or Inf when they are "
                f"multiplied (scaling {factors.scaling:g}). The training that wrote it has failed, or alpha is wrong."
            )
        return factors

    def called(self, names: Mapping[str, str]) -> Adapter:
        """The same adapter, with modules under the names that a model has for them: its own -> the model's."""
        other = copy(self)
        other.modules = {names.get(module, module): entry for module, entry in self.modules.items()}
        other._own_names = {names[module]: module for module in self.modules if module in names}
        return other

    @property
    def name(self) -> str:
        """The last part of its place, for tables."""
        return Path(self.place).name or self.place


def open_adapter(place: str | Path, *, beside: bool = False) -> Adapter:
    """The adapter in a folder, or on a model hub (`owner/name`, downloaded into its cache); `beside`: see `Adapter`.

    Raises:
        AdapterError: no such folder and not on the hub, or refused.
    """
    if os.path.exists(place) or not re.fullmatch(r"[\w.-]+/[\w.-]+", str(place)):
        return Adapter(place, beside=beside)
    folder = Path(fetch_from_hub(str(place), [CONFIG_FILE, WEIGHTS_FILE]))
    if not (folder / WEIGHTS_FILE).is_file():
        raise AdapterError(
            f"'{place}' has no {WEIGHTS_FILE} on the hub. If it has only a pickle ({PICKLE_FILE}), which can run any code "
            "when it is read, ask its owner for safetensors, or convert it yourself if you trust it."
        )
    return Adapter(folder, str(place), beside=beside)


def fetch_from_hub(place: str, patterns: Sequence[str], revision: str | None = None) -> str:
    """The folder of a hub id's files that match `patterns`, downloaded into the cache; an AdapterError if that fails."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return snapshot_download(place, revision=revision, allow_patterns=list(patterns))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise AdapterError(
            f"'{place}' is not a folder here and could not be fetched from the hub ({type(error).__name__}). "
            "Check the spelling, or download it and give its folder."
        ) from error


def free_name(name: str, taken: Collection[str], numbered: str = "{} ({})") -> str:
    """`name`, or with the first number from 2 on that makes it different from all in `taken`."""
    return next(n for n in chain((name,), (numbered.format(name, i) for i in count(2))) if n not in taken)


def adapter_names(places: Sequence[str | Path]) -> list[str]:
    """A distinct task name for each adapter, after its folder and fit for a file name.

    `RUN/stages/01-mail/adapter` and `RUN/deployed` are named after the folder above.
    """
    names: list[str] = []
    for path in map(Path, places):
        plain = path.parent.name if path.name in ("adapter", "deployed") else path.name
        name = "" if plain == ".." else re.sub(r"[^A-Za-z0-9._-]", "-", plain)
        names.append(free_name(name or "adapter", names, "{}.{}"))
    return names


def own_update(adapter: Adapter, dtype: torch.dtype | None = None) -> dict[str, LowRank]:
    """The adapter's effective update, copied into fresh memory; as `dtype` if given.

    Memory mapped from a file is aligned differently from torch's own, and BLAS then rounds differently.
    """
    return {n: LowRank(*(t.to(dtype=dtype, copy=True) for t in (delta.A, delta.B))) for n, delta in adapter.items()}


def write_adapter(
    folder: Path,
    update: Mapping[str, LowRank],
    *,
    rank: int,
    dtype: torch.dtype = torch.float32,
    base: str | None = None,
    revision: str | None = None,
    task_type: str | None = None,
    auto_mapping: Mapping[str, Any] | None = None,
    fan_in_fan_out: bool = False,
    embeddings: Collection[str] = (),
    experts: Collection[str] = (),
    frozen: Mapping[str, FrozenTensor] | None = None,
    heads: Sequence[str] = (),
) -> None:
    """Write `update` as a plain LoRA adapter: one rank, alpha = rank (so scaling 1), everything inside A and B.

    Loads in PEFT, and in servers that ignore alpha patterns or expect one rank. Lower ranks are padded with zeros.

    Args:
        folder: an existing folder (see `perdure.files.output.new_folder`).
        update: module name -> factors of at most `rank` directions.
        base, revision, task_type, auto_mapping: entries of the adapter's configuration.
        embeddings: which modules are embeddings (`shape` [width, vocabulary]).
        experts: names of the parameters of which modules NAME.0, NAME.1, ... are the experts.
        frozen: whole tensors to write beside them; see `frozen_beside`, `heads_beside`.
        heads: the modules among them that were trained whole.

    Raises:
        AdapterError: a factor is not finite, or not in `dtype`; names the module.
    """
    tensors: dict[str, Tensor] = {}
    written: dict[str, tuple[Tensor, Tensor]] = {}
    for module, delta in update.items():
        written[module] = _padded(delta, rank, dtype)
        for factor, exact in zip(written[module], (delta.A, delta.B), strict=True):
            check_written(module, factor, exact)
    stacks = grouped(update, experts)
    names = stored_names(stacks)
    for parameter, own in stacks.items():
        written[names[parameter]] = joined([written.pop(module) for module in own])
    for module, factors in written.items():
        suffix = "embedding_{}" if module in embeddings else "{}.weight"
        tensors |= {f"{PREFIX}{module}.lora_{suffix.format(side)}": factors[side == "B"] for side in "AB"}
    tensors |= {f"{PREFIX}{name}": tensor.read().contiguous() for name, tensor in (frozen or {}).items()}
    save_file(tensors, folder / WEIGHTS_FILE, metadata={"format": "pt"})
    config = {
        "peft_type": "LORA",
        "task_type": task_type,
        "auto_mapping": auto_mapping,
        "base_model_name_or_path": base,
        "revision": revision,
        "r": rank,
        "lora_alpha": rank,
        "lora_dropout": 0.0,
        "use_rslora": False,
        "use_dora": False,
        "bias": "none",
        "fan_in_fan_out": fan_in_fan_out,
        "target_modules": [module for module in update if module in written],
        **({"target_parameters": list(stacks)} if stacks else {}),
        "modules_to_save": list(heads) or None,
        "rank_pattern": {},
        "alpha_pattern": {},
        "init_lora_weights": True,
        "inference_mode": True,
    }
    (folder / CONFIG_FILE).write_text(json.dumps(config, indent=2) + "\n")


def check_written(module: str, written: Tensor, exact: Tensor) -> None:
    """Raise an AdapterError for NaN or Inf among numbers about to be written; `exact` are the same before rounding."""
    if all_finite(written):
        return
    if all_finite(exact):
        name = str(written.dtype).removeprefix("torch.")
        raise AdapterError(
            f"'{module}' overflows {name}, whose largest number is {torch.finfo(written.dtype).max:.6g}. Nothing was written; "
            f"choose another dtype ({'bf16 or fp32' if written.dtype == torch.float16 else 'fp32'})."
        )
    raise AdapterError(
        f"'{module}' would be written with NaN or Inf, and nothing was written. The alpha or the factors of an adapter, a weight "
        "or the scale of the merge, or the base's own weights are too large or not finite."
    )


def _padded(delta: LowRank, rank: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    missing = rank - delta.rank
    if missing < 0:
        raise ValueError(f"an update of {delta.rank} directions does not fit rank {rank}; truncate it first")
    A = pad(delta.A.to("cpu", dtype), (0, 0, 0, missing))
    return A.contiguous(), pad(delta.B.to("cpu", dtype), (0, missing)).contiguous()
