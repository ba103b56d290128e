"""Whose terms go with a run's model: the licences of its base and of its data, as far as this machine knows them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from perdure.backbones.models import MODELS, public_name
from perdure.errors import PerdureError
from perdure.settings.yaml_text import YAMLError, parse_yaml
from perdure.tasks.sources.assets import ASSETS
from perdure.tasks.suites import describe

CARD = "README.md"


def base_licence(name: str) -> str | None:
    """The licence of a base: of a known model its asset's, else what its model card on disk says; nothing is fetched."""
    if name in MODELS:
        return ASSETS[name].licence
    if os.path.isdir(Path(name).expanduser()):
        return _of_card(Path(name).expanduser() / CARD)
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        found = try_to_load_from_cache(public_name(name), CARD)
    except HFValidationError:
        return None
    return _of_card(Path(found)) if isinstance(found, str) else None


def data_licences(config: Mapping[str, Any], tasks: list[str]) -> dict[str, str]:
    """Task -> licence, of those that are known: a suite's tasks by its file, own tasks from a package by the asset."""
    found = {}
    if config.get("suite"):
        try:
            described = describe(config["suite"])["tasks"]
        except PerdureError:  # a suite file that is gone
            described = {}
        found = {name: str(described[name]["licence"]) for name in tasks if described.get(name, {}).get("licence")}
    for task in config.get("tasks") or ():
        asset = (task.get("package") or {}).get("asset")
        if asset in ASSETS:
            found[task["name"]] = ASSETS[asset].licence
    return {name: licence for name, licence in found.items() if licence != "unknown"}


def _of_card(card: Path) -> str | None:
    """`license` (or `license_name`) in the front matter of a model card."""
    try:
        head, begin, rest = card.read_text(encoding="utf-8").partition("---\n")
        front, end, _ = rest.partition("\n---")
        about = parse_yaml(front) if begin and end and not head.strip() else None
    except (OSError, ValueError, YAMLError):
        return None
    about = about if isinstance(about, Mapping) else {}
    named = about.get("license_name") or about.get("license")
    return str(named) if isinstance(named, str) else None
