"""Generates the parts of docs/ that come from the code: configuration keys, known models, what presets deploy, every file.

They are the blocks between `<!-- from the code: NAME -->` and `<!-- end -->`, and the JSON schema of a configuration.

    python docs/reference.py            write the pages (make docs)
    python docs/reference.py --check    fail if a page is stale (make check)
"""

from __future__ import annotations

import ast
import json
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from pydantic import BaseModel

from perdure.backbones.causal import CausalSettings
from perdure.backbones.encoder import EncoderSettings
from perdure.backbones.models import MODELS
from perdure.backbones.seq2seq import Seq2SeqSettings
from perdure.backbones.vision import VisionSettings
from perdure.config.lora_settings import LoraSettings
from perdure.config.run_config import (
    BudgetSettings,
    EvaluationSettings,
    ProtectSettings,
    RunConfig,
    TrainingSettings,
)
from perdure.config.training_settings import EarlyStopping
from perdure.methods.contract.build import part_class
from perdure.methods.contract.context import Need
from perdure.methods.table import PRESETS
from perdure.settings.words import Key, keys
from perdure.tasks.sources.assets import ASSETS
from perdure.tasks.spec import TaskSpec

DOCS = Path(__file__).parent
SOURCE = DOCS.parent / "src" / "perdure"
MARK = re.compile(r"(<!-- from the code: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)
SECTIONS: dict[str, tuple[str, type[BaseModel]]] = {
    "": ("A configuration", RunConfig),
    "budget": ("budget", BudgetSettings),
    "lora": ("lora", LoraSettings),
    "training": ("training", TrainingSettings),
    "training.early_stopping": ("training.early_stopping", EarlyStopping),
    "protect": ("protect", ProtectSettings),
    "evaluation": ("evaluation", EvaluationSettings),
    "tasks[]": ("One of tasks, and a task's file", TaskSpec),
    "backbone, kind: encoder": ("backbone, kind: encoder", EncoderSettings),
    "backbone, kind: causal": ("backbone, kind: causal", CausalSettings),
    "backbone, kind: seq2seq": ("backbone, kind: seq2seq", Seq2SeqSettings),
    "backbone, kind: vision": ("backbone, kind: vision", VisionSettings),
}
NAMED = ("method", "backbone", "protect")
"""Configuration keys that take a name or a mapping."""
ONE_ADAPTER = ("latest", "slao")
"""Consolidations whose deployed adapter does not grow; tests/docs/test_reference.py checks them in real runs."""
TWICE = ("slice", "slice-free", "lora-ga", "loram")
"""Inits that offset the base: their updates have up to twice the rank."""


def configuration() -> str:
    """Tables of all configuration keys: values, default, meaning."""
    return "\n\n".join(f"## {title}\n\n{section(model)}" for title, model in SECTIONS.values())


def section(model: type[BaseModel]) -> str:
    """One settings class as a table."""
    rows = []
    for key in keys(model):
        if not key.meaning:
            raise SystemExit(f"{model.__name__}.{key.name} has no docstring below it.")
        rows.append(f"| `{key.name}` | {values(model, key)} | {default(model, key)} | {cell(key.meaning)} |")
    return "\n".join(["| key | value | default | meaning |", "|---|---|---|---|", *rows])


def values(model: type[BaseModel], key: Key) -> str:
    """The allowed values."""
    return "a name or a mapping" if model is RunConfig and key.name in NAMED else cell(key.values)


def default(model: type[BaseModel], key: Key) -> str:
    """The default, as shown in the table."""
    if isinstance(model.model_fields[key.name].default, BaseModel):
        return "see below"
    return "must be given" if key.default is None else f"`{key.default}`"


def cell(text: str) -> str:
    """Text escaped for a Markdown table."""
    return text.replace("|", "\\|").replace("None =", "`null` =")


def schema() -> str:
    """The JSON schema of a configuration, for editors. It also allows names in place of parts, models and task files."""
    whole = RunConfig.model_json_schema()
    known, name = whole["properties"], {"type": "string"}
    part = {"anyOf": [name, {"type": "object"}, {"type": "null"}]}
    keys_of_method = {key: {} if key == "stream" else part for key in PRESETS["inc-lora"].composition()}
    preset = {"enum": list(PRESETS)}
    method = {"type": "object", "properties": {"preset": preset, **keys_of_method}, "additionalProperties": False}
    settings = {}
    for kind in (EncoderSettings, CausalSettings, Seq2SeqSettings, VisionSettings):
        settings |= kind.model_json_schema()["properties"]
    described = {key: value.get("description", "") for key, value in known.items()}
    known["method"] = {"description": described["method"], "anyOf": [preset, method]}
    known["backbone"] = {
        "description": described["backbone"],
        "anyOf": [name, {"type": "object", "properties": {key: {} for key in settings}, "additionalProperties": False}],
    }
    known["protect"] = {"anyOf": [name, known["protect"]]}
    known["tasks"]["items"] = {"anyOf": [name, known["tasks"]["items"]]}
    known["order"]["anyOf"].append({"type": "integer"})
    return json.dumps({"$schema": "https://json-schema.org/draft/2020-12/schema", **whole}, indent=1) + "\n"


def models() -> str:
    """Table of the known models and the package files they come from."""
    rows = (
        f"| `{name}` | {model.kind} | {cell(model.about)} | {ASSETS[name].project} {ASSETS[name].version}, "
        f"{ASSETS[name].size / 1e6:.0f} MB ({ASSETS[name].licence}) | {model.hub} |"
        for name, model in MODELS.items()
    )
    head = "| `backbone` | kind | what it is | out of this package | on the hub |"
    return "\n".join([head, "|---|---|---|---|---|", *rows])


def deployed() -> str:
    """Table of what each preset deploys, by its consolidation."""
    forms: dict[tuple[str, str], list[str]] = {}
    for name, preset in PRESETS.items():
        form, rank = form_and_rank(preset.consolidate["kind"])
        if preset.stream == "joint":
            rank = "rank"
        elif preset.init["kind"] in TWICE and rank != "-":
            rank = f"up to 2 x {rank}"
        forms.setdefault((form, rank), []).append(f"`{name}`")
    rows = (f"| {form} | {rank} | {', '.join(names)} |" for (form, rank), names in sorted(forms.items()))
    return "\n".join(["| `deployed/` holds | its rank | presets |", "|---|---|---|", *rows])


def form_and_rank(kind: str) -> tuple[str, str]:
    """The content of `deployed/` after a consolidation, and the adapter's rank."""
    rule = part_class("consolidate", kind)
    if Need.DENSE_BASE in rule.needs:
        return "the whole model", "-"
    if kind == "per-task":
        return "an adapter for each task", "rank"
    return "a plain adapter", "rank" if kind in ONE_ADAPTER else "tasks x rank"


def files() -> str:
    """Tables of all source files, by folder, with the first sentence of each module docstring."""
    folders = sorted({path.parent for path in SOURCE.rglob("*.py")})
    parts = []
    for folder in folders:
        rows = [
            f"| [{path.name}](../{path.relative_to(SOURCE.parents[1]).as_posix()}) | {cell(first_sentence(path))} |"
            for path in sorted(folder.glob("*.py"))
            if first_sentence(path)
        ]
        if rows:
            name = folder.relative_to(SOURCE.parent).as_posix()
            parts.append("\n".join([f"## {name}/", "", "| file | what it is for |", "|---|---|", *rows]))
    return "\n\n".join(parts)


def first_sentence(path: Path) -> str:
    """The first sentence of a module docstring, without a parenthesis after it."""
    head = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    paragraph = " ".join(head.partition("\n\n")[0].split())
    return re.split(r"(?<=[.:;]) (?=[A-Z(])", paragraph)[0].rstrip(".:;")


def pages() -> Iterator[tuple[Path, str, str]]:
    """(path, current text, generated text) of every page, and of the JSON schema."""
    makers = {"configuration": configuration, "models": models, "deployed": deployed, "files": files}
    for path in sorted(DOCS.glob("*.md")):
        old = path.read_text(encoding="utf-8")
        yield path, old, MARK.sub(lambda found: f"{found[1]}{makers[found[2]]()}\n{found[3]}", old)
    path = SOURCE / "config" / "perdure.schema.json"
    yield path, path.read_text(encoding="utf-8") if path.is_file() else "", schema()


def main(argv: Sequence[str]) -> None:
    """Write the pages, or with --check report the stale ones."""
    stale = [(path, new) for path, old, new in pages() if old != new]
    for path, new in stale:
        if "--check" not in argv:
            path.write_text(new, encoding="utf-8")
        print(f"{'stale, run make docs' if '--check' in argv else 'written'}: {path.name}")
    if stale and "--check" in argv:
        sys.exit(1)


if __name__ == "__main__":
    main(sys.argv[1:])
