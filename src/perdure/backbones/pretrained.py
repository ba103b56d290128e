"""Pretrained models with their tokenizers or image processors: loading, checks, and what all backbones on them share."""

from __future__ import annotations

import importlib.util
import json
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field, ValidationInfo, field_validator
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.modeling_layers import GradientCheckpointingLayer

from perdure.adapters.weights import PICKLED
from perdure.backbones.device import chosen_device
from perdure.backbones.load_errors import check_sizes, explained
from perdure.backbones.models import model_folder, model_names
from perdure.backbones.modes import not_training
from perdure.backbones.rounded import recomputation
from perdure.backbones.targets import default_targets
from perdure.errors import ConfigError
from perdure.settings.read import Settings
from perdure.tasks.task import Task

OWN_CODE: dict[str, Any] = {"trust_remote_code": False}
"""A model folder's own code never runs. Without this, transformers asks whether it may."""

POSITION_TABLES = ("position_embeddings", "wpe", "embed_positions", "positions_embed")
"""What learnt absolute positions are called: BERT and RoBERTa; GPT-2; OPT and BART; GPT."""


class ModelSettings(Settings):
    """Which pretrained model, and how it is held in memory."""

    model: str
    """a known model's name, a folder, or a hub id (hub:NAME where it has no owner)."""
    revision: str | None = None
    """branch, tag or commit of a hub model; None = the main branch."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """of the stored base weights (computing in bf16 is the run's `precision`)."""
    quantization: Literal["none", "8-bit", "4-bit"] = "none"
    """'8-bit' or '4-bit' (NF4) store the base through bitsandbytes; updates then run beside it, and methods that need
    its dense weights, or merge entry by entry, are refused."""
    gradient_checkpointing: bool = False
    """recompute activations in the backward pass: less memory, about a third more time."""
    attention: Literal["eager", "sdpa"] = "sdpa"
    """transformers' attention implementation. Where a model has no sdpa, the default becomes eager; asked for, it is refused."""
    predict_batch_size: int = Field(default=16, ge=1)
    """examples per forward pass when answering."""
    device: str = "auto"
    """where the model computes; 'auto' is a CUDA GPU if there is one, a different one for each process of a launcher."""

    @field_validator("revision")
    @classmethod
    def _only_of_the_hub(cls, value: str | None, info: ValidationInfo) -> str | None:
        model = info.data.get("model", "hub:")
        if value is not None and (model in model_names() or os.path.isdir(Path(model).expanduser())):
            raise ValueError(f"'{model}' has no revisions; only hub models do. Leave it out")
        return value


class PretrainedBackbone:
    """What all backbones on pretrained models share."""

    answers_from_examples = False
    settings: Any

    def __init__(self, model: PreTrainedModel, processor: Any) -> None:
        self.model: nn.Module = model
        self.processor = processor
        self.precision: Literal["fp32", "bf16"] = "fp32"
        self._tasks: dict[str, Task] = {}

    @property
    def truncated(self) -> int:
        """How many texts were longer than `max_length`, and were cut."""
        return 0

    @property
    def default_targets(self) -> tuple[str, ...]:
        """The query and value projections, or what stands for them; ConfigError if their names are not known."""
        return default_targets(self.model)

    @property
    def attention(self) -> str:
        """The attention implementation that the model computes with."""
        own: Any = self.model.config
        asked: str = self.settings.attention
        return "eager" if asked == "sdpa" and own._attn_implementation == "eager" else asked

    def attention_note(self) -> str | None:
        """The line for a run whose model has no sdpa though it is the default; None if it has."""
        if self.attention == self.settings.attention:
            return None
        return f"{type(self.model).__name__} has no sdpa attention: it computes with attention=eager"

    def _classes(self, names: Iterable[str]) -> tuple[tuple[str, str], ...]:
        """(task, label) for all labels of these tasks."""
        return tuple((name, label) for name in names for label in self._tasks[name].labels)

    def save(self, folder: Path, state_dict: dict[str, Tensor]) -> None:
        """Write the bare model with these weights, and its tokenizer or image processor, in transformers' format."""
        self.model.save_pretrained(folder, state_dict=state_dict)  # pyright: ignore[reportCallIssue]
        self.processor.save_pretrained(folder)


def load_model(auto: Any, settings: ModelSettings, kind: str) -> PreTrainedModel:
    """The model that `settings` name, in eval mode (a pretrained model's dropout stays off; LoRA has its own).

    `auto` is transformers' auto class, such as AutoModelForCausalLM; `kind` is what messages call such a model.

    Raises:
        ConfigError: another kind of model, missing or pickled weights, code of its own, broken files, or quantisation that does
            not run here.
        FetchError: gated, missing or unreachable on the hub.
        TrainingError: it does not fit in memory.
    """
    by_default = settings.attention == "sdpa" and "attention" not in settings.model_fields_set
    options: dict[str, Any] = {
        "attn_implementation": None if by_default else settings.attention,  # None: sdpa, or eager where it is missing
        "use_safetensors": True,
        **_revision(settings),
    }
    device = chosen_device(settings.device)
    if settings.quantization != "none":
        options |= {"quantization_config": _quantization(settings), "device_map": {"": device}}
    with explained(settings.model, kind):
        folder = model_folder(settings.model)
        _check_not_pickled(Path(folder))
        check_sizes(Path(folder))
        dtype = getattr(torch, settings.dtype)
        model, info = auto.from_pretrained(folder, dtype=dtype, output_loading_info=True, **OWN_CODE, **options)
    missing = sorted(key for key in info["missing_keys"] if "pooler" not in key)  # no backbone uses a pooler
    if missing:
        raise ConfigError(
            f"'{settings.model}' is not a {kind}: it lacks {len(missing)} weights such as {missing[0]}, which would be random."
        )
    if settings.quantization == "none":
        model = model.to(device)
    # On a CPU with AVX512-BF16, bitsandbytes packs a 4-bit weight at the first answer into a form whose product has no
    # gradient (0.50; PyTorch warns "no autograd kernel"), so layers below would then learn from wrong gradients.
    for module in model.modules() if settings.quantization == "4-bit" else ():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            vars(module)["support_avx512bf16_for_cpu"] = False
    if settings.gradient_checkpointing:
        enable_checkpointing(model, settings.model)
    return model


def _check_not_pickled(folder: Path) -> None:
    """Raise ConfigError for a folder with pickled weights and no others."""
    if any(folder.glob("*.bin")) and not any(folder.glob("*.safetensors")):
        raise ConfigError(f"'{folder}' has {PICKLED}.")


def check_positions(model: nn.Module, name: str, needed: int, settings: str) -> None:
    """Check that the model has `needed` positions. Computed ones (rotary, relative) never end; learnt ones are a table.

    `settings` names the keys of the configuration that need them.

    Raises:
        ConfigError: the table of positions is shorter.
    """
    for path, module in model.named_modules():
        if not isinstance(module, nn.Embedding) or path.rpartition(".")[2] not in POSITION_TABLES:
            continue
        # rows before the first position: RoBERTa's padding and what precedes it, two of OPT and BART
        unused = getattr(module, "offset", 0) if module.padding_idx is None else module.padding_idx + 1
        if needed > (positions := module.num_embeddings - unused):
            raise ConfigError(
                f"{settings} = {needed} is more than the {positions} positions '{name}' has ({path}). Lower it, "
                "or choose another model."
            )


def check_vocabulary(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, name: str) -> None:
    """Check that every token has a row in the embedding table.

    Raises:
        ConfigError: tokens were added without rows for them. A token for images or sounds may lack one in a text-only model.
    """
    table = model.get_input_embeddings()
    if not isinstance(table, nn.Embedding):
        return  # hashed characters have no table of tokens
    rows, known = table.num_embeddings, tokenizer.get_vocab()
    beyond = [token for token, index in known.items() if index >= rows and not re.search("image|audio|video", token)]
    if beyond:
        shown = ", ".join(map(repr, sorted(beyond, key=known.__getitem__)[:3]))
        raise ConfigError(
            f"The tokenizer of '{name}' has {max(known.values()) + 1} tokens, and its embedding table {rows} rows: there is none "
            f"for {shown}. Add rows (model.resize_token_embeddings(len(tokenizer))) and save both, or take the model's own "
            "tokenizer."
        )


def load_tokenizer(settings: ModelSettings) -> PreTrainedTokenizerBase:
    """The model's tokenizer, with a padding token.

    Padding is masked by position, never by token, so a tokenizer without a padding token can pad with its
    end-of-sequence token, which is still learnt as the end of an answer.

    Raises:
        ConfigError: no tokenizer, or one with neither padding nor end-of-sequence token.
        FetchError: as in `load_model`.
    """
    from transformers import AutoTokenizer

    with explained(settings.model, "model with a tokenizer"):
        tokenizer = tried(
            AutoTokenizer.from_pretrained(model_folder(settings.model), **OWN_CODE, **_revision(settings))
        )
    if tokenizer.eos_token_id is None:
        raise ConfigError(
            f"The tokenizer of '{settings.model}' has no end-of-sequence token, so answers cannot end. Set `eos_token` in "
            "its tokenizer_config.json, or choose another model."
        )
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def tried(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """The tokenizer, once it has read a word and its settings can be written: some are looked at only then, whatever they are."""
    tokenizer("a")
    json.dumps(tokenizer.init_kwargs, default=str, ensure_ascii=False).encode()
    return tokenizer


def load_image_processor(settings: ModelSettings, **options: Any) -> Any:
    """The model's image processor, PIL backend (torchvision is not needed); `options` override its settings."""
    from transformers import AutoImageProcessor

    with explained(settings.model, "model with an image processor"):
        return AutoImageProcessor.from_pretrained(
            model_folder(settings.model), backend="pil", **OWN_CODE, **_revision(settings), **options
        )


def enable_checkpointing(model: PreTrainedModel, name: str) -> None:
    """Recompute activations in backward, with every module in eval mode (transformers does it in training mode only).

    Raises:
        ConfigError: the architecture does not support it.
    """
    try:
        # renamed in transformers 5.2x; the older name warns if both exist
        newer = getattr(model, "activation_checkpointing_enable", None)
        (newer or model.gradient_checkpointing_enable)({"use_reentrant": False, "context_fn": recomputation})
    except ValueError as error:
        raise ConfigError(
            f"'{name}' has no gradient checkpointing; set backbone.gradient_checkpointing=false."
        ) from error
    for module in model.modules():
        if isinstance(module, GradientCheckpointingLayer):
            module.training = True  # the flag alone: children stay in eval mode, so no dropout is switched on


@contextmanager
def answering(model: nn.Module) -> Iterator[None]:
    """No gradients and no recomputation within (checkpointing would disable the key-value cache)."""
    layers = (module for module in model.modules() if isinstance(module, GradientCheckpointingLayer))
    with not_training(layers), torch.inference_mode():
        yield


def _revision(settings: ModelSettings) -> dict[str, Any]:
    return {"revision": settings.revision} if settings.revision else {}


def _quantization(settings: ModelSettings) -> Any:
    from transformers import BitsAndBytesConfig

    if importlib.util.find_spec("bitsandbytes") is None:
        raise ConfigError(
            f"backbone.quantization={settings.quantization} needs bitsandbytes: pip install bitsandbytes. Or save "
            "memory with backbone.dtype=bfloat16 and backbone.gradient_checkpointing=true."
        )
    if settings.quantization == "8-bit":
        return BitsAndBytesConfig(load_in_8bit=True)
    compute = torch.float32 if settings.dtype == "float32" else torch.bfloat16
    return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=compute)
