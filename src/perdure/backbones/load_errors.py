"""Why a pretrained model cannot be loaded, and what to do about it."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from huggingface_hub import errors as hub

from perdure.adapters.weights import PICKLED
from perdure.backbones.memory import out_of_memory
from perdure.errors import ConfigError, FetchError, PerdureError
from perdure.files.parsing import parse_json, read_limited

HUB_ERRORS: tuple[tuple[tuple[type[Exception], ...], str], ...] = (
    (
        (hub.GatedRepoError,),
        "'{name}' is gated: accept its licence on its hub page, log in with `hf auth login` (or set HF_TOKEN), and run "
        "again; or give a local folder.",
    ),
    (
        (hub.RepositoryNotFoundError, hub.RevisionNotFoundError),
        "The hub has no model or revision '{name}', or it is private. Check the spelling, or log in.",
    ),
    (
        (hub.LocalEntryNotFoundError, hub.OfflineModeIsEnabled, ConnectionError),
        "'{name}' is not in the cache and the hub cannot be reached. Download it on a machine with a network "
        "(`hf download {name}`) and give the folder, or choose a model that comes from the package index.",
    ),
)

REFUSED = (
    (
        "contains custom code",
        "brings code of its own, which perdure never runs (docs/trust.md). Choose a model of an architecture that transformers "
        "has itself",
    ),
    ("cannot be loaded with `safetensors`", f"has {PICKLED}"),
    (
        "scaled_dot_product_attention",
        "has no sdpa attention. Set backbone.attention=eager, or leave it out: eager is then taken where sdpa is missing",
    ),
)
"""A part of what transformers says -> why the model is refused, in short."""


SIZES = (
    (re.compile(r"(.*_)?(n_layers?|layers|depth|heads?|experts)"), 10_000),
    (re.compile(r".*(size|dim|embd|embeddings|positions|ctx|features)"), 1 << 27),
)
"""Names of sizes in a model's configuration -> the largest believed; a model is built before its weights are compared."""


def check_sizes(folder: Path) -> None:
    """Raise a ConfigError for a local model's configuration with a size that no model has: building it would not end."""
    path = folder / "config.json"
    value = parse_json(read_limited(path)) if os.path.isfile(path) else {}
    inner = [value, *value.values()] if isinstance(value, dict) else []  # text_config, vision_config, ...
    for key, size in (pair for one in inner if isinstance(one, dict) for pair in one.items()):
        if isinstance(size, int | float) and any(name.fullmatch(key) and size > most for name, most in SIZES):
            raise ConfigError(f"{path}: {key} is {size!s:.20}, more than any model has. Restore the model's own file.")


@contextmanager
def explained(name: str, kind: str) -> Iterator[None]:
    """Turn errors of loading `name` into perdure's, which say what to do."""
    try:
        yield
    except PerdureError:
        raise
    except Exception as error:  # whatever the libraries raise that read a folder's files: it cannot be loaded
        raise out_of_memory(error) or _load_error(name, kind, error) from error


def _load_error(name: str, kind: str, error: BaseException) -> PerdureError:
    """The error to raise for the chain of causes under `error`."""
    chain: list[BaseException] = []
    cause: BaseException | None = error
    while cause is not None and cause not in chain:
        chain.append(cause)
        cause = cause.__cause__ or cause.__context__
    for kinds, message in HUB_ERRORS:
        if any(isinstance(e, kinds) for e in chain):
            return FetchError(message.format(name=name))
    if any(isinstance(e, ImportError) for e in chain):
        return ConfigError(f"'{name}' needs a package that is not installed: {error}")
    for said, why in REFUSED:
        if any(said in str(e) for e in chain):
            return ConfigError(f"'{name}' {why}.")
    first = str(error).strip().partition("\n")[0] or type(error).__name__
    return ConfigError(f"'{name}' cannot be loaded as a {kind}: {first:.300}")


@contextmanager
def reading_explained(name: str, model: object) -> Iterator[None]:
    """Turn what a model raises at its first inputs into an error that says so: it cannot read them, whatever is trained."""
    with _refused_as(f"'{name}' ({type(model).__name__}) cannot read such inputs", "Choose another model"):
        yield


@contextmanager
def writing_explained(name: str, model: object) -> Iterator[None]:
    """The same of what it raises at the first answer that it writes."""
    fix = "Give tasks with labels and set backbone.answer_by=ranking, or choose another model"
    with _refused_as(f"'{name}' ({type(model).__name__}) reads, but transformers cannot write with it", fix):
        yield


@contextmanager
def _refused_as(what: str, fix: str) -> Iterator[None]:
    try:
        yield
    except PerdureError:
        raise
    except Exception as error:  # a configuration may say what no layer can do, and libraries raise anything then
        first = str(error).strip().partition("\n")[0] or type(error).__name__
        raise out_of_memory(error) or ConfigError(f"{what}: {first:.300}. {fix}.") from error
