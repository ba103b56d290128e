"""Small tasks as files, as a practitioner has them, and a configuration of a run on them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

from tests.contract.runs import SETTINGS

WORDS = {"fruit": ("apples", "pears"), "sky": ("sun", "moon"), "sea": ("waves", "sand")}


def write_task(folder: Path, file: str, words: tuple[str, str] | None = None, start: int = 0, **settings: Any) -> Path:
    """FILE.yaml and FILE.jsonl: 40 texts of two classes, told apart by one word; `start` makes other texts."""
    first, second = words or WORDS[file]
    rows = [
        {"text": f"{word} and number {i} of {file}", "label": label}
        for i in range(start, start + 20)
        for word, label in ((first, "a"), (second, "b"))
    ]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{file}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    spec = {
        "name": file,
        "train": f"{file}.jsonl",
        "labels": {"a": f"about {first}", "b": f"about {second}"},
        **settings,
    }
    (folder / f"{file}.yaml").write_text(yaml.safe_dump(spec))
    return folder / f"{file}.yaml"


def write_config(folder: Path, encoder: Path, names: list[str], method: str = "inc-lora", **settings: Any) -> Path:
    """CONFIG.yaml over tasks in files of their own, on the tiny encoder."""
    backbone = {"kind": "encoder", "model": str(encoder), "max_length": 32}
    config = {
        "tasks": [write_task(folder, name).name for name in names],
        "method": method,
        "backbone": backbone,
        **SETTINGS,
        **settings,
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    return folder / "config.yaml"
