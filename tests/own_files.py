"""A folder with a configuration, two small tasks in files, and the command line called in this process."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from perdure.cli import main
from tests.contract.runs import SETTINGS


def write_own_files(folder: Path, encoder: Path, **changed: Any) -> Path:
    """`config.yaml` with one task in JSONL and one, in a file of its own, in CSV; returns the configuration's path."""
    rows = [(f"{word} and {i}", label) for i in range(20) for word, label in (("apples", "a"), ("pears", "b"))]
    (folder / "data").mkdir(parents=True, exist_ok=True)
    write_jsonl(folder / "data/fruit.jsonl", [{"text": text, "label": label} for text, label in rows])
    with (folder / "data/sky.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("text", "label"), *[(t.replace("apples", "sun"), y) for t, y in rows]])
    (folder / "data/sky.yaml").write_text("name: sky\ntrain: sky.csv\n")
    fruit = {"name": "fruit", "train": "data/fruit.jsonl", "labels": {"a": "apples", "b": "pears"}}
    config = {
        "tasks": [fruit, "data/sky.yaml"],
        "method": "ps-lora",
        "backbone": {"kind": "encoder", "model": str(encoder), "max_length": 32},
        **SETTINGS,
        **changed,
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    return folder / "config.yaml"


def write_jsonl(path: Path, rows: list[Mapping[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


@dataclass(frozen=True)
class Ended:
    """How a command ended: its exit code, what it wrote."""

    code: int
    out: str
    err: str


def perdure(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *argv: object) -> Ended:
    """`perdure argv...` through its real entry, in this process."""
    monkeypatch.setattr(sys, "argv", ["perdure", *map(str, argv)])
    capsys.readouterr()
    code: Any = 0
    try:
        main()
    except SystemExit as ended:
        code = ended.code or 0
    found = capsys.readouterr()
    return Ended(int(code), found.out, found.err)
