"""What a PEFT adapter folder may contain, checked before any of it is used; everything else is refused with the reason.

Legend: R rank, O output features, I input features.

    adapter_config.json           r, lora_alpha, use_rslora, rank_pattern, alpha_pattern, fan_in_fan_out ...
    adapter_model.safetensors     base_model.model.<module>.lora_A.weight [R, I], ...lora_B.weight [O, R]
                                  base_model.model.<module>.lora_embedding_A [R, I], ...lora_embedding_B [O, R]
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from perdure.errors import AdapterError

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
PICKLE_FILE = "adapter_model.bin"
INDEX_FILE = f"{WEIGHTS_FILE}.index.json"
PREFIX = "base_model.model."
NOT_OF_THE_UPDATE = ".lora_velora_embed"
"""Ending of tensors by which VeLoRA approximates gradients in training; what it has learnt is B A, like any other LoRA."""
FROZEN = ".base_layer."
"""Between a module's name and 'weight' or 'bias' where they are the base's."""
KINDS = {
    "lora_A.weight": ("A", "linear"),
    "lora_B.weight": ("B", "linear"),
    "lora_embedding_A": ("A", "embedding"),
    "lora_embedding_B": ("B", "embedding"),
}
REFUSED: Mapping[str, str] = {
    "use_dora": "DoRA rescales the columns of the whole weight, which is no update of low rank",
    "lora_bias": "it trained biases, which are no part of an update of the weight",
    "modules_to_save": "it carries whole trained modules beside the LoRA factors",
    "trainable_token_indices": "it trained single token embeddings",
    "layer_replication": "it changes the number of layers",
    "target_parameters": "it adapts bare parameters (experts), not modules",
    "use_qalora": "its factors act on pooled inputs of a quantised base",
    "alora_invocation_tokens": "it is only active after certain tokens, so it is no change of the weight",
    "use_bdlora": "its factors are block-diagonal",
    "arrow_config": "it routes between adapters",
    "kasa_config": "it changes the base's singular values",
    "monteclora_config": "its factors are drawn anew from a distribution",
    "megatron_config": "its layout is that of a tensor-parallel model",
}
OFFSETTING = ("pissa", "olora", "corda", "loftq", "lora_ga")
"""How values of `init_lora_weights` begin that change the base; PEFT converts all but LoftQ."""


@dataclass(frozen=True)
class AdapterConfig:
    """What `adapter_config.json` says about the update.

    Args:
        rank, alpha, rslora, rank_pattern, alpha_pattern: scaling = alpha / R, or alpha / sqrt(R) for rsLoRA.
        fan_in_fan_out: the base stores these weights as [I, O] (Conv1D of GPT-2).
        base, revision, task_type: as recorded; may be missing.
        auto_mapping: the class of the base, by which PEFT finds it where no task type is stated.
    """

    rank: int
    alpha: float
    rslora: bool = False
    rank_pattern: Mapping[str, int] = field(default_factory=dict)
    alpha_pattern: Mapping[str, float] = field(default_factory=dict)
    fan_in_fan_out: bool = False
    base: str | None = None
    task_type: str | None = None
    revision: str | None = field(default=None, repr=False)  # runs that began from adapters know them by what is shown
    auto_mapping: dict[str, Any] | None = field(default=None, repr=False)

    def rank_of(self, module: str) -> int:
        """R of a module: the pattern that matches it, else the common one."""
        return int(_by_pattern(self.rank_pattern, module, self.rank))

    def scaling(self, module: str) -> float:
        """alpha / R, or alpha / sqrt(R) for rsLoRA, under the patterns."""
        rank = self.rank_of(module)
        alpha = float(_by_pattern(self.alpha_pattern, module, self.alpha))
        return alpha / math.sqrt(rank) if self.rslora else alpha / rank


@dataclass(frozen=True)
class StoredModule:
    """One module's tensors in the file: their names, the shape (O, I) of the update, and what the module is.

    Args:
        frozen: the base's own weight (and bias) of an embedding or output head, which PEFT saves beside their LoRA: no part of
            the update, but where the vocabulary was resized nothing else holds the new rows.
    """

    A: str
    B: str
    shape: tuple[int, int]
    rank: int
    kind: str
    frozen: tuple[str, ...] = ()


def natural(name: str) -> list[Any]:
    """A sort key that counts: 'layers.2' before 'layers.10'."""
    return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", name)]


def read_config(folder: Path) -> AdapterConfig:
    """`adapter_config.json`, if it describes a plain LoRA.

    Raises:
        AdapterError: it is missing, unreadable, or sets something that is no update of a weight.
    """
    path = folder / CONFIG_FILE
    if folder.is_file():
        raise AdapterError(f"'{folder}' is a file; give the folder that holds it and {CONFIG_FILE}: '{folder.parent}'.")
    if not path.is_file():
        raise AdapterError(f"'{folder}' is no adapter folder: it has no {CONFIG_FILE}. {_instead(folder)}")
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise AdapterError(f"{path}: not readable as JSON ({error}).") from error
    if not isinstance(raw, dict):
        raise AdapterError(f"{path}: expected a JSON object, found {type(raw).__name__}.")
    _refuse(path, raw)
    try:
        return AdapterConfig(
            rank=_positive(raw["r"]),
            alpha=float(raw["lora_alpha"]),
            rslora=bool(raw.get("use_rslora")),
            rank_pattern={_regex(key): _positive(value) for key, value in (raw.get("rank_pattern") or {}).items()},
            alpha_pattern={_regex(key): float(value) for key, value in (raw.get("alpha_pattern") or {}).items()},
            fan_in_fan_out=bool(raw.get("fan_in_fan_out")),
            base=raw.get("base_model_name_or_path"),
            task_type=raw.get("task_type"),
            revision=raw.get("revision"),
            auto_mapping=dict(raw.get("auto_mapping") or {}) or None,
        )
    except KeyError as error:
        raise AdapterError(f"{path}: the entry {error} is missing.") from error
    except (TypeError, ValueError, AttributeError, re.error) as error:
        raise AdapterError(f"{path}: a rank, alpha or pattern is not what PEFT writes ({error}).") from error


def _instead(folder: Path) -> str:
    """What to give in place of a folder that is no adapter."""
    run = folder if (folder / "run.json").is_file() else folder.parent
    adapters = [str(each.parent) for each in sorted(run.glob(f"stages/*/adapter/{CONFIG_FILE}"))]
    what = "It is a whole model. " if (folder / "config.json").is_file() else ""
    if adapters and (run / "run.json").is_file():
        return f"{what}The adapters of the run in '{run}' are {', '.join(adapters)}."
    if what:
        return f"{what}Give the adapters that were trained on it; the model itself is what --base takes."
    if inner := sorted((str(each.parent) for each in folder.glob(f"*/{CONFIG_FILE}")), key=natural):
        return f"The adapters in it are {', '.join(inner)}; give one."
    return "Give a folder saved by PEFT."


def _refuse(path: Path, raw: Mapping[str, Any]) -> None:
    kind = raw.get("peft_type")
    if kind != "LORA":
        raise AdapterError(
            f"{path}: this is a {kind or 'nameless'} adapter; only LoRA adapters are updates of weights."
        )
    for setting, reason in REFUSED.items():
        if raw.get(setting):
            raise AdapterError(f"{path}: '{setting}' is set; {reason}. Such an adapter cannot be merged or compared.")
    if raw.get("bias", "none") != "none":
        raise AdapterError(f"{path}: bias is '{raw['bias']}'; trained biases are no part of an update of the weight.")
    init = raw.get("init_lora_weights")
    if isinstance(init, str) and init.lower().startswith(OFFSETTING):
        remedy = (
            "PEFT cannot convert it: train again with another init, on the quantised base or the full one"
            if init.lower().startswith("loftq")
            else "Save it again with PEFT's path_initial_model_for_weight_conversion"
        )
        raise AdapterError(
            f"{path}: init_lora_weights is '{init}', which changed the base when training began, so B A is not the update of "
            f"the original base. {remedy}."
        )


def _positive(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{value!r} is no rank")
    return value


def _regex(pattern: str) -> str:
    re.compile(pattern)
    return pattern


def _by_pattern(patterns: Mapping[str, Any], module: str, default: Any) -> Any:
    """The value of the first pattern that matches the module or the end of its name at a dot, as in PEFT."""
    for pattern, value in patterns.items():
        if re.match(rf"(.*\.)?({pattern})$", module):
            return value
    return default


def weights_file(folder: Path) -> Path:
    """The safetensors file of the folder.

    Raises:
        AdapterError: there is none, or only a pickle.
    """
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
    """The safetensors file, header read; a context manager.

    Raises:
        AdapterError: it is damaged or cut off.
    """
    try:
        return safe_open(str(path), framework="pt")
    except (SafetensorError, OSError) as error:
        raise AdapterError(f"{path} is damaged or cut off ({error}); copy or download it again.") from error


def read_header(path: Path, config: AdapterConfig) -> dict[str, StoredModule]:
    """Module name -> its tensors, in natural order; only names and shapes are read.

    Raises:
        AdapterError: a tensor that is no LoRA factor, a factor without its counterpart, a shape that does not fit.
    """
    pairs: dict[str, dict[str, str]] = {}
    kinds: dict[str, str] = {}
    extra: list[str] = []
    shapes: dict[str, tuple[int, ...]] = {}
    with opened(path) as file:
        for name in file.keys():  # noqa: SIM118  (safe_open is no mapping)
            match = re.fullmatch(rf"(?:{re.escape(PREFIX)})?([\w.-]+)\.({'|'.join(map(re.escape, KINDS))})", name)
            if match is None:
                extra += [] if name.endswith(NOT_OF_THE_UPDATE) else [name]
                continue
            module, (side, kind) = match[1], KINDS[match[2]]
            pairs.setdefault(module, {})[side] = name
            kinds[module] = kind
            shapes[name] = tuple(file.get_slice(name).get_shape())
    frozen: dict[str, list[str]] = {}
    for name in extra:
        frozen.setdefault(_owner(path, name, kinds), []).append(name)
    if not pairs:
        raise AdapterError(f"{path}: no LoRA tensor inside.")
    read = {
        module: _checked(path, config, module, pairs[module], kinds[module], shapes)
        for module in sorted(pairs, key=natural)
    }
    return {module: replace(entry, frozen=tuple(frozen.get(module, ()))) for module, entry in read.items()}


def _owner(path: Path, name: str, kinds: Mapping[str, str]) -> str:
    """The module whose frozen weight or bias a tensor is that is no LoRA factor.

    Raises:
        AdapterError: it is nothing of the kind.
    """
    owner, _, rest = name.removeprefix(PREFIX).rpartition(FROZEN)
    if owner in kinds and rest in ("weight", "bias"):
        return owner
    raise AdapterError(
        f"{path}: tensor '{name}' is no factor of a linear or embedding LoRA (a trained bias, a DoRA magnitude, "
        "a whole module?). Leaving it out would change the adapter, so it is refused."
    )


def _checked(
    path: Path,
    config: AdapterConfig,
    module: str,
    pair: Mapping[str, str],
    kind: str,
    shapes: Mapping[str, tuple[int, ...]],
) -> StoredModule:
    if len(pair) < 2:
        (present,) = pair.values()
        raise AdapterError(f"{path}: '{present}' has no counterpart; the file is incomplete.")
    A, B = shapes[pair["A"]], shapes[pair["B"]]
    if len(A) != 2 or len(B) != 2:
        raise AdapterError(f"{path}: '{pair['A']}' has shape {A}; LoRA on convolutions is not supported.")
    rank = config.rank_of(module)
    if A[0] != rank or B[1] != rank:
        raise AdapterError(
            f"{path}: '{pair['A']}' {A} and '{pair['B']}' {B} do not have the rank {rank} that {CONFIG_FILE} states for it."
        )
    return StoredModule(pair["A"], pair["B"], (B[0], A[1]), rank, kind)


def checked_finite(tensor: Tensor, name: str, path: Path) -> Tensor:
    """The tensor in fp32 (float64 if stored so).

    Raises:
        AdapterError: NaN or Inf inside, or not floating point.
    """
    if not tensor.dtype.is_floating_point:
        raise AdapterError(f"{path}: '{name}' is stored as {tensor.dtype}; factors must be floating point.")
    wide = tensor if tensor.dtype == torch.float64 else tensor.float()
    if not wide.isfinite().all():
        raise AdapterError(f"{path}: '{name}' contains NaN or Inf; the training that wrote it has failed.")
    return wide
