"""From a text's token vectors to its embedding, as the files of a sentence-transformers folder say.

modules.json lists the steps: the transformer, `1_Pooling` (how token vectors become one), then any of `2_Dense` (a linear
layer and an activation) and `3_Normalize`. A folder without modules.json is a plain model, read by its mean.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import _CACHED_NO_EXIST, hf_hub_download, try_to_load_from_cache
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError, OfflineModeIsEnabled
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional

from perdure.backbones.models import MODELS, model_folder
from perdure.errors import ConfigError, FetchError
from perdure.files.parsing import parse_json, read_limited

MODES = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
"""Key of the older format -> name in the newer one; several are concatenated in this order."""
NAMES = {"last": "lasttoken"}
"""Our name -> theirs, where they differ."""
ACTIVATIONS = ("Identity", "Tanh", "ReLU", "GELU", "SiLU", "Sigmoid", "ELU", "LeakyReLU", "Mish", "Softplus")
"""Activations of torch.nn that a dense layer may have."""


@dataclass(frozen=True, eq=False)
class Dense:
    """A linear layer [out, in] and its activation, with the input added where `residual` says how."""

    weight: Tensor
    bias: Tensor | None
    activation: str
    residual: Tensor | bool = False

    def __call__(self, given_ND: Tensor) -> Tensor:
        """The layer's output, [N, out]."""
        device = given_ND.device
        bias = None if self.bias is None else self.bias.to(device)
        found = getattr(nn, self.activation)()(functional.linear(given_ND, self.weight.to(device), bias))
        if isinstance(self.residual, Tensor):
            return found + functional.linear(given_ND, self.residual.to(device))
        return found + given_ND if self.residual else found

    def described(self) -> str:
        """Activation and sha256 of the numbers."""
        digest = hashlib.sha256(f"{self.activation} {self.residual is not False}".encode())
        for tensor in (self.weight, self.bias, self.residual):
            digest.update(tensor.contiguous().numpy().tobytes() if isinstance(tensor, Tensor) else b"-")
        return f"Dense {self.activation} {digest.hexdigest()[:12]}"

    def save(self, folder: Path) -> None:
        """Write the layer as sentence-transformers does."""
        folder.mkdir(parents=True, exist_ok=True)
        size = {"in_features": self.weight.shape[1], "out_features": self.weight.shape[0]}
        place = "linear.Identity" if self.activation == "Identity" else f"activation.{self.activation}"
        about = {**size, "bias": self.bias is not None, "activation_function": f"torch.nn.modules.{place}"}
        _write(folder / "config.json", about | ({"use_residual": True} if self.residual is not False else {}))
        tensors = {"linear.weight": self.weight}
        if self.bias is not None:
            tensors["linear.bias"] = self.bias
        if isinstance(self.residual, Tensor):
            tensors["residual.weight"] = self.residual
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "model.safetensors")


@dataclass(frozen=True, eq=False)
class Pooling:
    """How token vectors become one embedding: `modes` side by side, then the layers in order (None: normalise)."""

    modes: tuple[str, ...] = ("mean",)
    layers: tuple[Dense | None, ...] = ()

    def __call__(self, hidden_NLD: Tensor, mask_NL: Tensor) -> Tensor:
        """The normalised embedding [N, D] of token vectors in fp32, padded on the right."""
        found_ND = torch.cat([_pooled(mode, hidden_NLD, mask_NL) for mode in self.modes], dim=-1)
        for layer in self.layers:
            found_ND = functional.normalize(found_ND, dim=-1) if layer is None else layer(found_ND)
        return functional.normalize(found_ND, dim=-1)

    def described(self) -> str:
        """The same text for the same pooling: the modes, and each layer with the sha256 of its numbers."""
        layers = ("Normalize" if layer is None else layer.described() for layer in self.layers)
        return ", ".join((" + ".join(self.modes), *layers))

    def check(self, width: int | None, name: str) -> None:
        """Raise ConfigError unless the layers take what comes before them; `width`: of the token vectors, None: not known."""
        size = width and width * len(self.modes)
        for layer in self.layers:
            if layer is None:
                continue
            if size and layer.weight.shape[1] != size:
                raise ConfigError(
                    f"'{name}': a dense layer after its pooling takes {layer.weight.shape[1]} numbers, and gets {size}. Its "
                    "files do not belong together; restore them, or set backbone.pooling."
                )
            size = layer.weight.shape[0]

    def save(self, folder: Path, width: int) -> None:
        """Write modules.json and what it names into a model's folder; nothing for a plain mean, which needs no words."""
        if self.modes == ("mean",) and not any(self.layers):
            return
        steps: list[tuple[str, str]] = [("", "Transformer"), ("1_Pooling", "Pooling")]
        on = {key: mode in self.modes for key, mode in MODES.items()}
        ordered = tuple(mode for key, mode in MODES.items() if on[key]) == self.modes
        asked = on if ordered else {"pooling_mode": list(self.modes)}  # only the newer format has another order
        (folder / "1_Pooling").mkdir(parents=True, exist_ok=True)
        _write(folder / "1_Pooling" / "config.json", {"word_embedding_dimension": width, **asked})
        for layer in self.layers:
            kind = "Normalize" if layer is None else "Dense"
            place = f"{len(steps)}_{kind}"
            steps.append((place, kind))
            if layer is not None:
                layer.save(folder / place)
        listed = [
            {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
            for i, (path, kind) in enumerate(steps)
        ]
        _write(folder / "modules.json", listed)


def read_pooling(name: str, setting: str) -> Pooling:
    """The pooling of the model `name`: `setting` if it names one (then without the folder's dense layers), else its files'.

    Raises:
        ConfigError: the files name something that is not known here, or are missing or damaged.
    """
    if setting != "auto":
        return Pooling((NAMES.get(setting, setting),))
    if name in MODELS:
        return Pooling()  # the known encoders are all read by their mean; what they come in lacks 1_Pooling
    folder = model_folder(name)
    listed = _json(folder, "modules.json", name, needed=False)
    if listed is None:
        return Pooling()
    try:
        steps = [(str(each["type"]), str(each.get("path", ""))) for each in listed]
    except (TypeError, KeyError, AttributeError) as error:
        raise ConfigError(f"'{name}': modules.json is not a list of modules with a type. {_otherwise()}") from error
    modes: tuple[str, ...] | None = None
    layers: list[Dense | None] = []
    for position, (kind, path) in enumerate(steps):
        match _known(kind):
            case "Transformer" if position == 0 and path in ("", "."):
                continue
            case "Transformer" if position == 0:
                raise ConfigError(
                    f"'{name}': its modules.json has the transformer in '{path}'. Move the files of that folder up, beside "
                    'modules.json, and set its "path" there to "".'
                )
            case "Pooling" if modes is None and not layers:
                modes = _modes(_json(folder, f"{path}/config.json", name), name, path)
            case "Normalize" if modes is not None:
                layers.append(None)
            case "Dense" if modes is not None:
                layers.append(_dense(folder, path, name))
            case "Dropout":
                continue  # acts in training only, where pretrained models stay in eval mode
            case _:
                raise ConfigError(
                    f"'{name}': module {position} of its modules.json, {kind}, is not known here, or not at that place: an "
                    f"encoder can have a Transformer, then a Pooling, then Dense and Normalize. {_otherwise()}"
                )
    if modes is None:
        raise ConfigError(f"'{name}': its modules.json names no Pooling. {_otherwise()}")
    return Pooling(modes, tuple(layers))


def _pooled(mode: str, hidden_NLD: Tensor, mask_NL: Tensor) -> Tensor:
    weight_NL1 = mask_NL.unsqueeze(-1)
    match mode:
        case "cls":
            return hidden_NLD[:, 0]
        case "max":
            return hidden_NLD.masked_fill(weight_NL1 == 0, -torch.inf).amax(dim=1)
        case "lasttoken":
            return hidden_NLD[torch.arange(len(hidden_NLD), device=hidden_NLD.device), mask_NL.sum(dim=1) - 1]
        case "weightedmean":  # a token counts as often as its place says
            weight_NL1 = weight_NL1 * torch.arange(1, mask_NL.shape[1] + 1, device=mask_NL.device)[:, None]
    count_N1 = weight_NL1.sum(dim=1)
    return (hidden_NLD * weight_NL1).sum(dim=1) / (count_N1.sqrt() if mode == "mean_sqrt_len_tokens" else count_N1)


def _modes(about: Any, name: str, path: str) -> tuple[str, ...]:
    """The modes of a Pooling's config.json: `pooling_mode`, a name or several, or the older booleans."""
    about = about if isinstance(about, Mapping) else {}
    given = about.get("pooling_mode")
    if given is None:
        modes = [mode for key, mode in MODES.items() if about.get(key, False)]
        unknown = [key for key, on in about.items() if key.startswith("pooling_mode_") and key not in MODES and on]
    else:
        modes = [str(mode).lower() for mode in ([given] if isinstance(given, str) else given)]
        unknown = [mode for mode in modes if mode not in MODES.values()]
    if unknown:
        raise ConfigError(
            f"'{name}': {path}/config.json asks for the pooling {unknown[0]}; known are {', '.join(MODES.values())}. "
            f"{_otherwise()}"
        )
    return tuple(modes) or ("mean",)  # theirs, where none is named


def _dense(folder: str, path: str, name: str) -> Dense:
    about = _json(folder, f"{path}/config.json", name)
    about = about if isinstance(about, Mapping) else {}
    asked = about.get("activation_function", "torch.nn.modules.activation.Tanh") or "torch.nn.Identity"
    activation = str(asked).rpartition(".")[2]
    if activation not in ACTIVATIONS or not str(asked).startswith("torch.nn."):
        raise ConfigError(
            f"'{name}': {path}/config.json has the activation {asked}; known are {', '.join(ACTIVATIONS)} of torch.nn. "
            f"{_otherwise()}"
        )
    ends = {about.get(key) or "sentence_embedding" for key in ("module_input_name", "module_output_name")}
    if ends != {"sentence_embedding"}:
        raise ConfigError(
            f"'{name}': the dense layer in {path} does not work on the text's embedding but on "
            f"{', '.join(sorted(ends - {'sentence_embedding'}))}, which is not known here. {_otherwise()}"
        )
    if (file := _file(folder, f"{path}/model.safetensors")) is not None:
        tensors = load_file(file)
    elif (file := _file(folder, f"{path}/pytorch_model.bin")) is not None:
        tensors = torch.load(file, map_location="cpu", weights_only=True)
    else:
        raise _missing(name, f"{path}/model.safetensors")
    tensors = {key: tensor.float() for key, tensor in tensors.items()}
    residual: Tensor | bool = bool(about.get("use_residual"))
    wanted = {"linear.weight", *(["linear.bias"] if about.get("bias", True) else [])}
    if residual and "residual.weight" in tensors:
        wanted, residual = wanted | {"residual.weight"}, tensors["residual.weight"]
    if tensors.keys() != wanted:
        raise ConfigError(
            f"'{name}': the weights in {path} are {', '.join(sorted(tensors))}; its config.json asks for "
            f"{', '.join(sorted(wanted))}. Restore the folder's files. {_otherwise()}"
        )
    return Dense(tensors["linear.weight"], tensors.get("linear.bias"), activation, residual)


def _known(kind: str) -> str:
    """The class's name, if sentence-transformers has it; a class of the same name from elsewhere is another one."""
    return kind.rpartition(".")[2] if kind.startswith("sentence_transformers.") else kind


def _otherwise() -> str:
    return "Set backbone.pooling (mean, cls, max or last) to use the transformer alone, or choose another model."


def _missing(name: str, file: str) -> ConfigError:
    return ConfigError(f"'{name}': its modules.json names {file}, which is missing. Restore it. {_otherwise()}")


def _file(folder: str, file: str) -> Path | None:
    """A file of a folder, or of the hub's model of that name; None if it has no such file.

    Raises:
        FetchError: the hub cannot be reached, and the cache does not know whether it has the file.
    """
    if Path(folder).is_dir():
        path = Path(folder) / file
        return path if path.is_file() else None
    try:
        return Path(hf_hub_download(folder, file))
    except (LocalEntryNotFoundError, OfflineModeIsEnabled) as error:
        if try_to_load_from_cache(folder, file) is _CACHED_NO_EXIST:
            return None
        raise FetchError(
            f"How '{folder}' pools is not known: the hub cannot be reached, and its {file} is not in the cache. Load it once "
            "with a network, or set backbone.pooling (mean, cls, max or last)."
        ) from error
    except EntryNotFoundError:
        return None


def _json(folder: str, file: str, name: str, needed: bool = True) -> Any:
    path = _file(folder, file)
    if path is None:
        if needed:
            raise _missing(name, file)
        return None
    try:
        return parse_json(read_limited(path))
    except ValueError as error:
        raise ConfigError(f"'{name}': {file} is not JSON ({error}). Restore it. {_otherwise()}") from error


def _write(path: Path, value: Mapping[str, Any] | Sequence[Any]) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
