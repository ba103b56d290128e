"""What an exported model needs to answer as the run did, in one small file beside it: `perdure.json`.

tasks     name -> its labels with their texts, the template around a text, its metric, whether it is chats
reads     every setting by which the model reads and answers: lengths, temperature, separator, template arguments ...
base      the base's public name; null where it was a folder, which has none
"""

from __future__ import annotations

import os
from importlib.metadata import version
from typing import Any

from perdure.backbones import backbone_kind
from perdure.backbones.models import public_name
from perdure.commands.licences import base_licence, data_licences
from perdure.state.reopen import learner_config
from perdure.state.store import Store

FILE = "perdure.json"
OF_THIS_MACHINE = ("model", "revision", "device", "kind")
"""Settings of the backbone that say where it was, not how it reads; `kind` and `base` are said beside them."""


def answering(store: Store) -> dict[str, Any]:
    """The content of the file for what a run deploys; it names no folder."""
    about, backbone = store.about, learner_config(store).backbone
    learnt = [name for name in store.stages() if name in about["asked"]] or list(about["asked"])
    return {
        "perdure": version("perdure"),
        "method": about["config"]["method"]["name"],
        "kind": backbone_kind(backbone),
        "base": public_base(str(backbone["model"])),
        "base_fingerprint": about.get("base"),
        "precision": about["precision"],
        "pooling": about.get("pooling"),
        "reads": {key: value for key, value in backbone.items() if key not in OF_THIS_MACHINE},
        "tasks": {name: about["asked"][name] for name in learnt},
    }


def public_base(name: str) -> str | None:
    """The hub id of a base; None for a folder."""
    name = public_name(name)
    return name if name.count("/") == 1 and not os.path.isabs(name) and not os.path.isdir(name) else None


def card_facts(about: dict[str, Any]) -> dict[str, Any]:
    """What a card says of a run besides its scores: metrics, data, licences, settings."""
    config = about["config"]
    sets = [task["dataset"] for task in config["tasks"] if task.get("dataset")]
    training, lora = config["training"], config["lora"]
    adapted = (about.get("adapted") or {}).get("targets") or lora.get("targets") or "the default"
    return {
        "metrics": {name: asked["metric"] for name, asked in about["asked"].items()},
        "datasets": sets,
        "suite": config.get("suite"),
        "split": config["evaluation"]["split"],
        "base_licence": base_licence(str(config["backbone"]["model"])),
        "data_licences": data_licences(config, list(about["asked"])),
        "settings_of_run": {
            "learning rate": training["learning_rate"],
            "later learning rate": training["learning_rate"] * training["later_learning_rate_factor"],
            "epochs": training["epochs"],
            "batch size": training["batch_size"],
            "LoRA rank": lora["rank"],
            "LoRA alpha": lora["alpha"],
            "adapted": adapted if isinstance(adapted, str) else ", ".join(adapted),
            "seed": config["seed"],
        },
    }
