"""`adapter_config.json` of a PEFT adapter: what it says about the update. Anything but a plain LoRA is refused with the reason.

    r, lora_alpha, use_rslora, rank_pattern, alpha_pattern    the scaling of each module's B A
    fan_in_fan_out                                            how the base stores the weights
    base_model_name_or_path, revision, task_type, auto_mapping

The tensors beside it: perdure.adapters.weights.
"""

from __future__ import annotations

import math
import os
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import regex

from perdure.errors import AdapterError
from perdure.files.parsing import parse_json, read_limited
from perdure.settings.patterns import LONGEST, SECONDS

CONFIG_FILE = "adapter_config.json"
REFUSED: Mapping[str, str] = {
    "use_dora": "DoRA rescales the columns of the whole weight, which is not a low-rank update",
    "lora_bias": "it trained biases, which are not part of a weight's update",
    "modules_to_save": "it carries whole trained modules beside the LoRA factors",
    "trainable_token_indices": "it trained single token embeddings",
    "layer_replication": "it changes the number of layers",
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
_WHOLE = r"(.*\.)?({})$"
"""A pattern as PEFT matches it: with a module's name or its end after a dot."""
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
        target_parameters: names or ends of the parameters with experts that it adapts, see perdure.adapters.experts.
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
    target_parameters: tuple[str, ...] = field(default=(), repr=False)

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
    return next((value for key, value in patterns.items() if _matches(key, module)), default)


def _matches(pattern: str, module: str) -> bool:
    """Whether PEFT would take the module for one of the pattern's; an AdapterError where the answer takes too long."""
    try:
        # not re, which cannot stop: some patterns take longer than the age of the universe
        return regex.match(_WHOLE.format(pattern), module, timeout=SECONDS) is not None
    except (TimeoutError, regex.error) as error:
        raise AdapterError(
            f"The pattern {_short(pattern)} in {CONFIG_FILE} cannot be matched with '{module:.80}' ({error or 'too slow'}). "
            "Write the module's name instead."
        ) from error


def _pattern(key: str) -> str:
    """A key of rank_pattern or alpha_pattern; a ValueError for what is not a pattern in the place where PEFT puts it."""
    if len(key) > LONGEST:
        raise ValueError(f"{_short(key)} is too long for a pattern")
    re.compile(_WHOLE.format(key))
    return key


def natural(name: str) -> list[Any]:
    """A sort key that puts 'layers.2' before 'layers.10'."""
    return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", name)]


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file; an AdapterError if it is unreadable, or something else."""
    try:
        raw = parse_json(read_limited(path))
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
    if os.path.isfile(folder):
        raise AdapterError(f"'{folder}' is a file; give the folder that holds it and {CONFIG_FILE}: '{folder.parent}'.")
    if not os.path.isfile(path):
        raise AdapterError(f"'{folder}' is not an adapter folder: it has no {CONFIG_FILE}. {_instead(folder)}")
    raw = read_object(path)
    _refuse(path, raw)
    try:
        return AdapterConfig(
            rank=_positive(raw["r"]),
            alpha=_number(raw["lora_alpha"]),
            rslora=bool(raw.get("use_rslora")),
            rank_pattern={_pattern(key): _positive(value) for key, value in (raw.get("rank_pattern") or {}).items()},
            alpha_pattern={_pattern(key): _number(value) for key, value in (raw.get("alpha_pattern") or {}).items()},
            fan_in_fan_out=bool(raw.get("fan_in_fan_out")),
            base=_name(raw, "base_model_name_or_path"),
            task_type=_name(raw, "task_type"),
            revision=_name(raw, "revision"),
            auto_mapping=dict(raw.get("auto_mapping") or {}) or None,
            heads=_heads(raw),
            target_parameters=_names(raw.get("target_parameters")),
        )
    except KeyError as error:
        raise AdapterError(f"{path}: the entry {error} is missing.") from error
    except (TypeError, ValueError, OverflowError, AttributeError, re.error) as error:
        raise AdapterError(f"{path}: a rank, alpha, pattern or name is not what PEFT writes ({error}).") from error


def _instead(folder: Path) -> str:
    """What to give in place of a folder that is not an adapter."""
    run = folder if os.path.isfile(folder / "run.json") else folder.parent
    adapters = [str(each.parent) for each in sorted(run.glob(f"stages/*/adapter/{CONFIG_FILE}"))]
    what = "It is a whole model. " if os.path.isfile(folder / "config.json") else ""
    if adapters and os.path.isfile(run / "run.json"):
        return f"{what}The adapters of the run in '{run}' are {', '.join(adapters)}."
    if what:
        return f"{what}Give the adapters that were trained on it; the model itself goes to --base."
    inside = folder.glob(f"*/{CONFIG_FILE}") if os.path.isdir(folder) else ()
    if inner := sorted((str(each.parent) for each in inside), key=natural):
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


def _name(raw: Mapping[str, Any], key: str) -> str | None:
    value = raw.get(key)
    if not isinstance(value, str | None):
        raise ValueError(f"{key} is {_short(value)}, not a name")  # noqa: TRY004  (as in `_number`)
    return value


def _names(value: Any) -> tuple[str, ...]:
    """A list of names, perhaps missing; a ValueError for anything else."""
    names = tuple(value or ())
    if isinstance(value, str) or not all(isinstance(name, str) for name in names):
        raise ValueError(f"{_short(value)} is not a list of names")
    return names


def _positive(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 < value <= LARGEST_RANK:
        raise ValueError(f"{_short(value)} is not a rank")
    return value


def _number(value: Any) -> float:
    """An alpha; a ValueError for NaN, Inf and anything but a number."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ValueError(f"{_short(value)} is not an alpha")  # noqa: TRY004  (one kind of error for whatever is in the file)
    if (isinstance(value, int) and value.bit_length() > sys.float_info.max_exp) or not math.isfinite(value):
        raise ValueError(f"{_short(value)} is not a finite alpha")
    return float(value)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:20]}... ({len(text)} characters)"
