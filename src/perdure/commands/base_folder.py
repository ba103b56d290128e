"""Where a base model is: a folder, a known name, or a hub id."""

from __future__ import annotations

import os

from perdure.adapters.folder import fetch_from_hub
from perdure.merging.base_files import BELONGING, FOLDERS, INDEX_FILE


def base_folder(name: str, revision: str | None = None) -> str:
    """The folder of a base model: a folder, a model perdure knows by name, or one on a hub, downloaded into its cache.

    Args:
        revision: branch, tag or commit on the hub; None: the main branch.

    Raises:
        UnknownName, ConfigError, FetchError: see `perdure.backbones.models.model_folder`.
        AdapterError: the hub does not have it, or cannot be reached.
    """
    from perdure.backbones.models import model_folder

    place = model_folder(name)
    if os.path.isdir(place):
        return place
    folders = ("[0-9]_*", *FOLDERS)  # of sentence-transformers, such as 2_Dense/pytorch_model.bin, and of transformers
    files = ["*.safetensors", INDEX_FILE, *BELONGING, *(f"{name}/*" for name in folders)]
    return fetch_from_hub(place, files, revision)
