"""`adapter_config.json` of a PEFT adapter: what it says about the update. Anything but a plain LoRA is refused with the reason.

    r, lora_alpha, use_rslora, rank_pattern, alpha_pattern    the scaling of each module's B A
    fan_in_fan_out                                            how the base stores the weights
    base_model_name_or_path, revision, task_type, auto_mapping

The tensors beside it: perdure.adapters.weights.
"""

from __future__ import annotations

import json
import math
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from perdure.errors import AdapterError

CONFIG_FILE = "adapter_config.json"
REFUSED: Mapping[str, str] = {
    "use_dora": "DoRA rescales the columns of the whole weight, which is not a low-rank update",
    "lora_bias": "it trained biases, which are not part of a weight's update",
    "modules_to_save": "it carries whole trained modules beside the LoRA factors",
    "trainable_token_indices": "it trained single token embeddings",
    "layer_replication": "it changes the number of layers",
    "target_parameters": "it adapts bare parameters (experts), not modules",
    "use_qalora": "its factors act on pooled inputs of a quantised base",
    "alora_invocation_tokens": "it is only active after certain tokens, so it does not change the weight itself",
    "use_bdlora": "its factors are block-diagonal",
    "arrow_config": "it routes between adapters",
    "kasa_config": "it changes the base's singular values",
    "monteclora_config": "its factors are sampled from a distribution",
    "megatron_config": "its layout is that of a tensor-parallel model",
}
"""Setting of PEFT's LoraConfig -> why an adapter that uses it cannot be merged or compared."""
HEADS: Mapping[str, tuple[str, ...]] = {
    "SEQ_CLS": ("classifier", "score"),
    "TOKEN_CLS": ("classifier", "score"),
    "QUESTION_ANS": ("qa_outputs",),
}
"""Task type -> modules that PEFT trains and saves whole beside the LoRA: the head that the task needs."""
LARGEST_RANK = 1 << 31
OFFSETTING = ("pissa", "olora", "corda", "loftq", "lora_ga")
"""Prefixes of `init_lora_weights` values that change the base; PEFT converts all but LoftQ."""


@dataclass(frozen=True)
class AdapterConfig:
    """What `adapter_config.json` says about the update.

    Args:
        rank, alpha, rslora, rank_pattern, alpha_pattern: scaling = alpha / R, or alpha / sqrt(R) for rsLoRA.
        fan_in_fan_out: the base stores these weights as [I, O] (Conv1D of GPT-2).
        base, revision, task_type: as recorded; may be missing.
        auto_mapping: the class of the base, which PEFT needs where no task type is given.
        heads: modules that were trained whole, see `HEADS`; not part of the update.
    """

    rank: int
    alpha: float
    rslora: bool = False
    rank_pattern: Mapping[str, int] = field(default_factory=dict)
    alpha_pattern: Mapping[str, float] = field(default_factory=dict)
    fan_in_fan_out: bool = False
    base: str | None = None
    task_type: str | None = None
    # not in the repr, by which runs that started from adapters recognise them
    revision: str | None = field(default=None, repr=False)
    auto_mapping: dict[str, Any] | None = field(default=None, repr=False)
    heads: tuple[str, ...] = field(default=(), repr=False)

    def rank_of(self, module: str) -> int:
        """R of a module: the pattern that matches it, else the common one."""
        return int(_by_pattern(self.rank_pattern, module, self.rank))

    def scaling(self, module: str) -> float:
        """alpha / R, or alpha / sqrt(R) for rsLoRA, with the patterns applied."""
        rank = self.rank_of(module)
        alpha = float(_by_pattern(self.alpha_pattern, module, self.alpha))
        return alpha / math.sqrt(rank) if self.rslora else alpha / rank


def _by_pattern(patterns: Mapping[str, Any], module: str, default: Any) -> Any:
    """The value of the first pattern that matches the module or the end of its name at a dot, as in PEFT."""
    return next((value for key, value in patterns.items() if re.match(rf"(.*\.)?({key})$", module)), default)


def natural(name: str) -> list[Any]:
    """A sort key that puts 'layers.2' before 'layers.10'."""
    return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", name)]


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file; an AdapterError if it is unreadable, or something else."""
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise AdapterError(f"{path}: not readable as JSON ({error}).") from error
    if not isinstance(raw, dict):
        raise AdapterError(f"{path}: expected a JSON object, found {type(raw).__name__}.")
    return raw


def read_config(folder: Path) -> AdapterConfig:
    """`adapter_config.json`, if it describes a plain LoRA.

    Raises:
        AdapterError: missing, unreadable, or something other than an update of weights.
    """
    path = folder / CONFIG_FILE
    if folder.is_file():
        raise AdapterError(f"'{folder}' is a file; give the folder that holds it and {CONFIG_FILE}: '{folder.parent}'.")
    if not path.is_file():
        raise AdapterError(f"'{folder}' is not an adapter folder: it has no {CONFIG_FILE}. {_instead(folder)}")
    raw = read_object(path)
    _refuse(path, raw)
    try:
        return AdapterConfig(
            rank=_positive(raw["r"]),
            alpha=_number(raw["lora_alpha"]),
            rslora=bool(raw.get("use_rslora")),
            rank_pattern={
                re.compile(key).pattern: _positive(value) for key, value in (raw.get("rank_pattern") or {}).items()
            },
            alpha_pattern={
                re.compile(key).pattern: _number(value) for key, value in (raw.get("alpha_pattern") or {}).items()
            },
            fan_in_fan_out=bool(raw.get("fan_in_fan_out")),
            base=raw.get("base_model_name_or_path"),
            task_type=raw.get("task_type"),
            revision=raw.get("revision"),
            auto_mapping=dict(raw.get("auto_mapping") or {}) or None,
            heads=_heads(raw),
        )
    except KeyError as error:
        raise AdapterError(f"{path}: the entry {error} is missing.") from error
    except (TypeError, ValueError, OverflowError, AttributeError, re.error) as error:
        raise AdapterError(f"{path}: a rank, alpha or pattern is not what PEFT writes ({error}).") from error


def _instead(folder: Path) -> str:
    """What to give in place of a folder that is not an adapter."""
    run = folder if (folder / "run.json").is_file() else folder.parent
    adapters = [str(each.parent) for each in sorted(run.glob(f"stages/*/adapter/{CONFIG_FILE}"))]
    what = "It is a whole model. " if (folder / "config.json").is_file() else ""
    if adapters and (run / "run.json").is_file():
        return f"{what}The adapters of the run in '{run}' are {', '.join(adapters)}."
    if what:
        return f"{what}Give the adapters that were trained on it; the model itself goes to --base."
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
        if raw.get(setting) and not (setting == "modules_to_save" and _heads(raw)):
            raise AdapterError(f"{path}: '{setting}' is set; {reason}. Such an adapter cannot be merged or compared.")
    if raw.get("bias", "none") != "none":
        raise AdapterError(f"{path}: bias is '{raw['bias']}'; trained biases are not part of a weight's update.")
    init = raw.get("init_lora_weights")
    if isinstance(init, str) and init.lower().startswith(OFFSETTING):
        remedy = "Save it again with PEFT's path_initial_model_for_weight_conversion"
        if init.lower().startswith("loftq"):
            remedy = "PEFT cannot convert it: train again with another init, on the quantised base or the full one"
        raise AdapterError(
            f"{path}: init_lora_weights is '{init}', which changed the base when training began, so B A is not the update of "
            f"the original base. {remedy}."
        )


def _heads(raw: Mapping[str, Any]) -> tuple[str, ...]:
    """The modules saved whole, if all of them are heads of its task; else none."""
    saved, known = raw.get("modules_to_save"), HEADS.get(str(raw.get("task_type")), ())
    return tuple(saved) if isinstance(saved, list) and saved and all(name in known for name in saved) else ()


def _positive(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 < value <= LARGEST_RANK:
        raise ValueError(f"{_short(value)} is not a rank")
    return value


def _number(value: Any) -> float:
    """An alpha; a ValueError for NaN, Inf and what is no number."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ValueError(f"{_short(value)} is not an alpha")  # noqa: TRY004  (one kind of error for whatever is in the file)
    if (isinstance(value, int) and value.bit_length() > sys.float_info.max_exp) or not math.isfinite(value):
        raise ValueError(f"{_short(value)} is not a finite alpha")
    return float(value)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:20]}... ({len(text)} characters)"
