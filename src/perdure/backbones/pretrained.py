"""Load a pretrained model with its tokenizer or image processor, and say plainly why it cannot be loaded.

`query_value_targets` knows by which names an architecture's query and value projections go.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
from huggingface_hub import errors as hub
from pydantic import Field, ValidationInfo, field_validator
from safetensors import SafetensorError
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from perdure.backbones.device import chosen_device
from perdure.backbones.memory import out_of_memory
from perdure.backbones.models import model_folder, model_names
from perdure.backbones.modes import not_training
from perdure.backbones.rounded import recomputation
from perdure.errors import ConfigError, FetchError, PerdureError
from perdure.settings.read import Settings

QUERY_VALUE_NAMES: tuple[tuple[str, ...], ...] = (
    ("q_proj", "v_proj"),  # Llama, Mistral, Qwen, Gemma, OPT, BART, ViT, DINOv2 ...
    ("query", "value"),  # BERT, RoBERTa
    ("q", "v"),  # T5, MPNet
    ("q_lin", "v_lin"),  # DistilBERT
    ("query_proj", "value_proj"),  # DeBERTa-v2
    ("qkv_proj",),  # Phi-3: query, key and value in one matrix from here on
    ("query_key_value",),  # GPT-NeoX, BLOOM, Falcon
    ("Wqkv",),  # ModernBERT, MPT
    ("c_attn",),  # GPT-2
    ("qkv",),
)

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
    """transformers' attention implementation."""
    predict_batch_size: int = Field(default=16, ge=1)
    """examples per forward pass when answering."""
    device: str = "auto"
    """where the model computes; 'auto' is a CUDA GPU where there is one, each process of a launcher its own."""

    @field_validator("revision")
    @classmethod
    def _only_of_the_hub(cls, value: str | None, info: ValidationInfo) -> str | None:
        model = info.data.get("model", "hub:")
        if value is not None and (model in model_names() or Path(model).expanduser().is_dir()):
            raise ValueError(f"'{model}' has no revisions, which models of the hub have; leave it out")
        return value


def load_model(auto: Any, settings: ModelSettings, kind: str) -> PreTrainedModel:
    """The model `settings` name, in eval mode (a pretrained model's dropout stays off; LoRA has its own).

    Args:
        auto: transformers' auto class, such as AutoModelForCausalLM.
        kind: what the model should be, for messages ("causal language model").

    Raises:
        ConfigError: not that kind of model, broken files, or quantisation that does not run here.
        FetchError: gated, missing or unreachable on the hub.
        TrainingError: it does not fit in memory.
    """
    options: dict[str, Any] = {"attn_implementation": settings.attention, **_revision(settings)}
    device = chosen_device(settings.device)
    if settings.quantization != "none":
        options |= {"quantization_config": _quantization(settings), "device_map": {"": device}}
    with explained(settings.model, kind):
        folder = model_folder(settings.model)
        dtype = getattr(torch, settings.dtype)
        model, info = auto.from_pretrained(folder, dtype=dtype, output_loading_info=True, **options)
    check_whole(info, settings.model, kind)
    if settings.quantization == "none":
        model = model.to(device)
    if settings.quantization == "4-bit":
        keep_trainable(model)
    if settings.gradient_checkpointing:
        enable_checkpointing(model, settings.model)
    return model


def check_whole(info: Mapping[str, Any], name: str, kind: str) -> None:
    """Every weight came from the files; `info` is what transformers tells of the loading.

    Raises:
        ConfigError: some did not, and would be random.
    """
    missing = sorted(key for key in info["missing_keys"] if "pooler" not in key)  # no backbone uses a pooler
    if missing:
        raise ConfigError(
            f"'{name}' is no {kind}: it lacks {len(missing)} weights such as {missing[0]}, which would be random."
        )


def check_positions(model: nn.Module, name: str, needed: int, settings: str) -> None:
    """The model has `needed` positions. Those that are computed (rotary, relative) have no end; learnt ones are a table.

    Args:
        settings: what they are needed for, as it is set.

    Raises:
        ConfigError: its table of positions is shorter.
    """
    for path, module in model.named_modules():
        if not isinstance(module, nn.Embedding) or path.rpartition(".")[2] not in POSITION_TABLES:
            continue
        # rows in front of the first position: RoBERTa's padding and those before it, two of OPT and BART
        unused = getattr(module, "offset", 0) if module.padding_idx is None else module.padding_idx + 1
        if needed > (positions := module.num_embeddings - unused):
            raise ConfigError(
                f"{settings} = {needed} is more than the {positions} positions '{name}' has ({path}). Lower it, "
                "or choose another model."
            )


def keep_trainable(model: nn.Module) -> None:
    """Answering must not change how a 4-bit model is trained afterwards.

    On a CPU with AVX512-BF16, bitsandbytes packs a layer's weight at the first answer into a form whose product has no
    gradient (0.50; PyTorch warns "no autograd kernel", and layers below learn from wrong gradients). Switched off.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            vars(module)["support_avx512bf16_for_cpu"] = False


def load_tokenizer(settings: ModelSettings) -> PreTrainedTokenizerBase:
    """The model's tokenizer, with a padding token.

    Padding is masked by position, never by token, so a tokenizer without a padding token pads with its
    end-of-sequence token and that token is still learnt as the end of an answer.

    Raises:
        ConfigError: no tokenizer, or one with neither padding nor end-of-sequence token.
        FetchError: as in `load_model`.
    """
    from transformers import AutoTokenizer

    with explained(settings.model, "model with a tokenizer"):
        tokenizer = AutoTokenizer.from_pretrained(model_folder(settings.model), **_revision(settings))
    if tokenizer.eos_token_id is None:
        raise ConfigError(
            f"The tokenizer of '{settings.model}' has no end-of-sequence token, so answers could not end. Set `eos_token` in "
            "its tokenizer_config.json, or choose another model."
        )
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_image_processor(settings: ModelSettings, **options: Any) -> Any:
    """The model's image processor, PIL backend (torchvision is not needed); `options` override its settings."""
    from transformers import AutoImageProcessor

    with explained(settings.model, "model with an image processor"):
        return AutoImageProcessor.from_pretrained(
            model_folder(settings.model), backend="pil", **_revision(settings), **options
        )


def query_value_targets(model: nn.Module) -> tuple[str, ...]:
    """Names of the model's query and value projections, the usual place of LoRA; fused ones where there are no others.

    Raises:
        ConfigError: none of the known names; lists the model's layers.
    """
    names = {name.rsplit(".", 1)[-1] for name, module in model.named_modules() if _is_linear(module)}
    for candidates in QUERY_VALUE_NAMES:
        if names.issuperset(candidates):
            return candidates
    raise ConfigError(
        "The query and value layers of this model are not known; name some with lora.targets. "
        f"Its layers: {', '.join(sorted(names))}."
    )


def enable_checkpointing(model: PreTrainedModel, name: str) -> None:
    """Recompute activations in backward, while every module stays in eval mode (transformers does it in training mode only).

    Raises:
        ConfigError: the architecture does not support it.
    """
    from transformers.modeling_layers import GradientCheckpointingLayer

    try:
        # renamed in transformers 5.2x; the older name warns where both are there
        newer = getattr(model, "activation_checkpointing_enable", None)
        (newer or model.gradient_checkpointing_enable)({"use_reentrant": False, "context_fn": recomputation})
    except ValueError as error:
        raise ConfigError(
            f"'{name}' has no gradient checkpointing; set backbone.gradient_checkpointing=false."
        ) from error
    for module in model.modules():
        if isinstance(module, GradientCheckpointingLayer):
            module.training = True  # this flag alone: children keep eval mode, so no dropout is switched on


@contextmanager
def answering(model: nn.Module) -> Iterator[None]:
    """Within: no gradients, and nothing is recomputed (checkpointing would switch the key-value cache off)."""
    from transformers.modeling_layers import GradientCheckpointingLayer

    layers = (module for module in model.modules() if isinstance(module, GradientCheckpointingLayer))
    with not_training(layers), torch.inference_mode():
        yield


@contextmanager
def explained(name: str, kind: str) -> Iterator[None]:
    """Within: errors of loading `name` become perdure's, saying what to do."""
    try:
        yield
    except PerdureError:
        raise
    except (OSError, ValueError, ImportError, RuntimeError, KeyError, SafetensorError) as error:
        raise out_of_memory(error) or _load_error(name, kind, error) from error


def _load_error(name: str, kind: str, error: BaseException) -> PerdureError:
    """What the chain of causes under `error` means for someone who asked for the model `name`."""
    chain: list[BaseException] = []
    cause: BaseException | None = error
    while cause is not None and cause not in chain:
        chain.append(cause)
        cause = cause.__cause__ or cause.__context__
    if any(isinstance(e, hub.GatedRepoError) for e in chain):
        return FetchError(
            f"'{name}' is gated: accept its licence on its page of the hub, log in with `hf auth login` (or set HF_TOKEN), "
            "and run again; or give a local folder."
        )
    if any(isinstance(e, (hub.RepositoryNotFoundError, hub.RevisionNotFoundError)) for e in chain):
        return FetchError(
            f"The hub has no model or revision '{name}', or it is private. Check the spelling, or log in."
        )
    if any(isinstance(e, (hub.LocalEntryNotFoundError, hub.OfflineModeIsEnabled, ConnectionError)) for e in chain):
        return FetchError(
            f"'{name}' is not in the cache and the hub cannot be reached. Fetch it where there is a network "
            f"(`hf download {name}`) and give the folder, or choose a model that comes from the package index."
        )
    if any(isinstance(e, ImportError) for e in chain):
        return ConfigError(f"'{name}' needs a package that is not installed: {error}")
    first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return ConfigError(f"'{name}' cannot be loaded as a {kind}: {first:.300}")


def _revision(settings: ModelSettings) -> dict[str, Any]:
    return {"revision": settings.revision} if settings.revision else {}


def _quantization(settings: ModelSettings) -> Any:
    from transformers import BitsAndBytesConfig

    if importlib.util.find_spec("bitsandbytes") is None:
        raise ConfigError(
            f"backbone.quantization={settings.quantization} needs bitsandbytes (`pip install bitsandbytes`), which is not "
            "installed. Or save memory with backbone.dtype=bfloat16 and backbone.gradient_checkpointing=true."
        )
    if settings.quantization == "8-bit":
        return BitsAndBytesConfig(load_in_8bit=True)
    compute = torch.float32 if settings.dtype == "float32" else torch.bfloat16
    return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=compute)


def _is_linear(module: nn.Module) -> bool:
    """Whether PEFT's LoRA takes it: nn.Linear, its quantised forms, GPT-2's Conv1D."""
    return isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D"
