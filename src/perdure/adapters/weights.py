"""`adapter_model.safetensors` of a PEFT adapter: which tensors it may hold, checked before any of them is used.

Legend: R rank, O output features, I input features.

    base_model.model.<module>.lora_A.weight [R, I], ...lora_B.weight [O, R]           a linear layer
    base_model.model.<module>.lora_embedding_A [R, I], ...lora_embedding_B [O, R]     an embedding
    base_model.model.<module>.base_layer.weight, ...base_layer.bias                   the base's own, see `StoredModule`
    base_model.model.<module>.weight (and a head's other tensors)                     beside the update, see `read_header`
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from perdure.adapters.experts import is_of_parameter, parameter_at
from perdure.adapters.format import CONFIG_FILE, AdapterConfig, natural
from perdure.errors import AdapterError
from perdure.ops.finite import all_finite

WEIGHTS_FILE = "adapter_model.safetensors"
PICKLE_FILE = "adapter_model.bin"
PICKLED = "only pickled weights, which are refused: save it with safe_serialization"
"""What a model folder has that perdure does not read, and what to do about it."""
INDEX_FILE = f"{WEIGHTS_FILE}.index.json"
PREFIX = "base_model.model."
VELORA = ".lora_velora_embed"
"""Suffix of tensors by which VeLoRA approximates gradients in training; its update is B A, as for any LoRA."""
FROZEN = ".base_layer."
"""Stands between a module's name and 'weight' or 'bias' in the names of the base's own tensors."""
WITHIN_LORA = r"lora_|base_layer"
"""In the names of tensors that are part of a LoRA layer."""
KINDS = {
    "lora_A.weight": ("A", "linear"),
    "lora_B.weight": ("B", "linear"),
    "lora_embedding_A": ("A", "embedding"),
    "lora_embedding_B": ("B", "embedding"),
}
LARGEST_UPDATE = 1 << 34
"""Entries of one module's update: 17 thousand million. The largest vocabularies times the widest layers are a quarter of it."""
FACTOR = re.compile(rf"(?:{re.escape(PREFIX)})?([\w.-]+)\.({'|'.join(map(re.escape, KINDS))})")


@dataclass(frozen=True)
class StoredModule:
    """One module's tensors in the file.

    Args:
        A, B: names of the factors; of an expert, those of all experts of its parameter.
        shape: (O, I) of the update.
        kind: 'linear', 'embedding' or 'expert' (one matrix of a parameter that holds many).
        frozen: names of the base's own weight (and bias), which PEFT saves beside the LoRA of an embedding or output head. Not
            part of the update, but where the vocabulary was resized the only copy of the new rows.
        expert: its number, and how many there are.
    """

    A: str
    B: str
    shape: tuple[int, int]
    rank: int
    kind: str
    frozen: tuple[str, ...] = ()
    expert: tuple[int, int] | None = None


def weights_file(folder: Path) -> Path:
    """The safetensors file of the folder; an AdapterError if there is none, or only a pickle."""
    path = folder / WEIGHTS_FILE
    if path.is_file():
        return path
    if (folder / PICKLE_FILE).exists():
        raise AdapterError(
            f"{folder / PICKLE_FILE} is a pickle, which can run any code when it is read, and is refused. "
            "Save the adapter again with save_pretrained(..., safe_serialization=True)."
        )
    if (folder / INDEX_FILE).exists():
        raise AdapterError(
            f"The adapter in '{folder}' is sharded ({INDEX_FILE}); save it as one file, with a larger max_shard_size."
        )
    raise AdapterError(f"'{folder}' has no {WEIGHTS_FILE}; the download or the copy is incomplete.")


def opened(path: Path) -> Any:
    """The safetensors file, its header read, as a context manager; an AdapterError if it is damaged or cut off."""
    try:
        return safe_open(str(path), framework="pt")
    except (SafetensorError, OSError) as error:
        raise AdapterError(f"{path} is damaged or cut off ({error}); copy or download it again.") from error


def _parameter(stored: str, config: AdapterConfig, path: Path) -> str | None:
    """The parameter whose experts a file adapts under this module name; None for a module."""
    targets = config.target_parameters
    return parameter_at(stored, targets, str(path)) if is_of_parameter(stored, targets) else None


def read_header(path: Path, config: AdapterConfig) -> tuple[dict[str, StoredModule], tuple[str, ...]]:
    """Module name -> its tensors, in natural order; and tensors beside the update. Only names and shapes are read.

    Beside it lie the head of a classifier (`AdapterConfig.heads`), and embeddings that PEFT saves whole (save_embedding_layers).

    Raises:
        AdapterError: a tensor that is not a LoRA factor, a factor without its counterpart, a shape that does not fit.
    """
    pairs: dict[str, dict[str, str]] = {}
    kinds: dict[str, str] = {}
    shapes: dict[str, tuple[int, ...]] = {}
    others: dict[str, tuple[int, ...]] = {}
    with opened(path) as file:
        for name in file.keys():  # noqa: SIM118  (safe_open is not a mapping)
            if match := FACTOR.fullmatch(name):
                module, (side, kind) = match[1], KINDS[match[2]]
                pairs.setdefault(module, {})[side] = name
                kinds[module] = kind
                shapes[name] = tuple(file.get_slice(name).get_shape())
            elif not name.endswith(VELORA):
                others[name] = tuple(file.get_slice(name).get_shape())
    frozen: dict[str, list[str]] = {}
    beside: list[str] = []
    for name, shape in others.items():
        if is_head(name, config) or (name.endswith(".weight") and len(shape) == 2 and not re.search(WITHIN_LORA, name)):
            beside.append(name)
            continue
        owner, _, rest = name.removeprefix(PREFIX).rpartition(FROZEN)
        if owner not in kinds or rest not in ("weight", "bias"):
            raise AdapterError(
                f"{path}: tensor '{name}' is not a factor of a linear or embedding LoRA (a trained bias, a DoRA magnitude, "
                "a whole module?). Leaving it out would change the adapter, so it is refused."
            )
        frozen.setdefault(owner, []).append(name)
    if not pairs:
        raise AdapterError(f"{path}: no LoRA tensor inside.")
    modules = {}
    for module in sorted(pairs, key=natural):
        pair = pairs[module]
        parameter = _parameter(module, config, path)
        rank = config.rank_of(parameter or module)
        if len(pair) < 2:
            (present,) = pair.values()
            raise AdapterError(f"{path}: '{present}' has no counterpart; the file is incomplete.")
        A, B = shapes[pair["A"]], shapes[pair["B"]]
        if len(A) != 2 or len(B) != 2:
            raise AdapterError(f"{path}: '{pair['A']}' has shape {A}; LoRA on convolutions is not supported.")
        experts = A[0] // rank if parameter else 1
        if A[0] != rank * experts or B[1] != rank * experts:
            raise AdapterError(
                f"{path}: '{pair['A']}' {A} and '{pair['B']}' {B} do not have the rank {rank} that {CONFIG_FILE} states."
            )
        if not abs(scaling := config.scaling(parameter or module)) <= torch.finfo(torch.float32).max:
            raise AdapterError(
                f"{path.with_name(CONFIG_FILE)}: alpha and rank give '{module}' the scaling {scaling:g}, which no weight can hold"
                ". Correct lora_alpha or alpha_pattern."
            )
        own, shape = tuple(frozen.get(module, ())), (B[0], A[1])
        if shape[0] * shape[1] > LARGEST_UPDATE:
            raise AdapterError(
                f"{path}: the update of '{module}' would be {shape[0]:,} x {shape[1]:,}, which is larger than any model's weight."
            )
        if parameter:
            if experts < 2:
                raise AdapterError(
                    f"{path}: '{parameter}' is adapted as a bare parameter of one matrix; only stacks of experts are supported."
                )
            modules |= {
                f"{parameter}.{e}": StoredModule(pair["A"], pair["B"], shape, rank, "expert", own, (e, experts))
                for e in range(experts)
            }
            continue
        modules[module] = StoredModule(pair["A"], pair["B"], shape, rank, kinds[module], own)
    return modules, tuple(beside)


def is_head(name: str, config: AdapterConfig) -> bool:
    """Whether a tensor belongs to one of the adapter's heads."""
    return any(part in config.heads for part in name.removeprefix(PREFIX).split("."))


def stored_tensor(file: Any, name: str, path: Path) -> Tensor:
    """A tensor of an open file; an AdapterError if it is stored in a format that PyTorch does not have."""
    try:
        return file.get_tensor(name)
    except (SafetensorError, RuntimeError, AttributeError) as error:
        raise AdapterError(f"{path}: '{name}' cannot be read ({error}). Save it in fp32, bf16 or fp16.") from error


@dataclass(frozen=True)
class FrozenTensor:
    """A whole tensor in an adapter's file: the base's own, which PEFT saves beside the LoRA of an embedding, or a head's.

    Args:
        place: what the adapter is called in messages.
    """

    file: Path
    place: str
    name: str

    def read(self) -> Tensor:
        """The tensor, as stored."""
        with opened(self.file) as file:
            return stored_tensor(file, self.name, self.file)


def checked_finite(tensor: Tensor, name: str, path: Path) -> Tensor:
    """The tensor in fp32 (float64 if stored so); an AdapterError if it has NaN or Inf, or is not floating point."""
    if not tensor.dtype.is_floating_point:
        raise AdapterError(f"{path}: '{name}' is stored as {tensor.dtype}; factors must be floating point.")
    try:
        wide = tensor if tensor.dtype == torch.float64 else tensor.float()
    except RuntimeError as error:  # 4-bit floats
        raise AdapterError(f"{path}: '{name}' is stored as {tensor.dtype}, which PyTorch cannot convert.") from error
    if not all_finite(wide):
        raise AdapterError(f"{path}: '{name}' contains NaN or Inf; the training that wrote it has failed.")
    return wide
