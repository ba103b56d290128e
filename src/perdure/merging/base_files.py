"""The files of a base model beside its weights: which belong to it and go with a merged model, and how they are copied.

A list of what belongs, not of what does not: a folder may also hold an adapter, another format's index, a trainer's records,
which would make the output another thing than it is. Links are followed only where they stay in the folder or lead to the
hub cache's own blobs: a folder from elsewhere must not bring a file of this machine into what is written and passed on.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase
from pathlib import Path

from perdure.errors import AdapterError
from perdure.files.durable import sha256
from perdure.files.parsing import parse_json, read_limited

CONFIG = "config.json"
INDEX_FILE = "model.safetensors.index.json"
SINGLE_FILE = "model.safetensors"
TOKENIZER_CONFIG = "tokenizer_config.json"
"""A folder with this file holds a whole tokenizer."""
TOKENIZER = (
    # by all names under which transformers' tokenizers read them
    "*tokenizer*.json",
    "*vocab*.json",
    "*vocab*.txt",
    "merges.txt",
    "dict.txt",
    "added_tokens.json",
    "special_tokens_map.json",
    *("normalizer.json", "emoji.json", "byte_maps.json", "word_shape.json", "word_pronunciation.json", "tekken.json"),
    *("*.model", "*.tiktoken", "*.codes", "*.spm", "chat_template.json", "*.jinja"),
)
"""Patterns of the names of a tokenizer's files and of chat templates; capitals do not count."""
BELONGING = (
    # the model, its code and how it generates
    *(CONFIG, "configuration.json", "generation_config.json", "*.py"),
    *TOKENIZER,
    # processors of images, sound and video
    "*processor_config.json",
    # sentence-transformers
    *("modules.json", "sentence_*_config.json", "config_sentence_transformers.json"),
    # what a licence asks to go with it
    *("*.md", "LICENSE*", "LICENCE*", "COPYING*", "NOTICE*"),
)
"""Patterns of the names of files that go with the weights; capitals do not count."""
FOLDERS = ("additional_chat_templates", "custom_generate")
"""Subfolders that transformers reads; those of sentence-transformers are named in its `modules.json`."""
MODULES_FILE = "modules.json"
WEIGHTS = {".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".h5", ".msgpack", ".gguf", ".onnx"}


def copy_beside(folder: Path, out: Path) -> None:
    """Copy to `out` what belongs to the model in `folder`, apart from its weights and their index."""
    for path in sorted(folder.iterdir()):
        if _belongs(path) and not path.is_dir():
            check_link(folder, path)
            shutil.copyfile(path, out / path.name)
    for name in _subfolders(folder):
        for path in (folder / name, *(folder / name).rglob("*")):
            check_link(folder, path)
        # whole: a sentence-transformers layer has weights of its own, to which nothing is added
        shutil.copytree(folder / name, out / name, copy_function=shutil.copyfile)


def check_link(folder: Path, path: Path) -> None:
    """Raise an AdapterError for a link in a base's `folder` that leads out of it, to another folder, or nowhere."""
    if not path.is_symlink():
        return
    link, target = f"'{path}' is a link to '{path.readlink()}'", Path(os.path.realpath(path))
    if not path.exists():
        raise AdapterError(f"{link}, which does not exist; copy or download it again.")
    allowed = [snapshot := folder.resolve()]
    if snapshot.parent.name == "snapshots":  # models--owner--name/snapshots/<commit>, beside its blobs
        allowed.append((snapshot.parent.parent / "blobs").resolve())
    if target.is_dir() or not any(target.is_relative_to(place) for place in allowed):
        raise AdapterError(
            f"{link}. Of a model's links only those to files of its own folder (or of the hub's cache it is in) are followed, so "
            "that nothing else is copied into the output. Put the file itself there."
        )


def copy_tokenizer(adapters: Sequence[Path], out: Path) -> tuple[str, ...]:
    """Copy to `out` the tokenizer and chat template that adapters in these folders bring, and say what was taken or left behind.

    A whole tokenizer takes the place of the base's, a chat template alone is added to it. Nothing is taken where two differ.
    """
    brought = {folder: _tokenizer_files(folder) for folder in adapters}
    bringing = [folder for folder, files in brought.items() if files]
    notes = [*_left_behind(adapters)]
    if not bringing:
        return tuple(notes)
    first = bringing[0]
    if any(brought[folder] != brought[first] for folder in bringing):
        named = ", ".join(f"'{folder}'" for folder in bringing)
        kept = "the base's are kept" if (out / CONFIG).exists() else "none were written"
        return (
            *notes,
            f"WARNING: the tokenizers or chat templates of {named} differ: {kept}. Check which the result needs.",
        )
    if TOKENIZER_CONFIG in brought[first]:
        for path in [*out.iterdir()]:
            if path.is_file() and _matches(path.name, TOKENIZER):
                path.unlink()
    for name in brought[first]:
        shutil.copyfile(first / name, out / name)
    return (*notes, f"Tokenizer files are those of '{first}': {', '.join(brought[first])}.")


def _tokenizer_files(folder: Path) -> dict[str, str]:
    files = {path.name: path for path in sorted(folder.iterdir()) if path.is_file() and _matches(path.name, TOKENIZER)}
    for path in files.values():
        check_link(folder, path)
    return {name: sha256(path) for name, path in files.items()}


def _left_behind(adapters: Sequence[Path]) -> Iterator[str]:
    """Which files of the adapters belong to a model and are not taken, but for cards."""
    for folder in adapters:
        names = [path.name for path in sorted(folder.iterdir()) if path.is_file() and _belongs(path)]
        if left := [name for name in names if not _matches(name, (*TOKENIZER, "*.md"))]:
            yield f"Left behind in '{folder}': {', '.join(left)}."


def _matches(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(name.lower(), pattern.lower()) for pattern in patterns)


def _belongs(path: Path) -> bool:
    return path.suffix not in WEIGHTS and _matches(path.name, BELONGING)


def _subfolders(folder: Path) -> list[str]:
    """The subfolders that a model needs to stay the same model."""
    path = folder / MODULES_FILE
    try:
        named = [layer["path"] for layer in parse_json(read_limited(path))] if path.is_file() else []
    except (ValueError, KeyError, TypeError):
        named = []  # not written by sentence-transformers
    inside = (name for name in map(str, named) if re.fullmatch(r"\w[\w.-]*", name))
    return [name for name in dict.fromkeys((*FOLDERS, *inside)) if (folder / name).is_dir()]
