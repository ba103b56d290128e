"""The model card of something merged or exported: README.md with what it is made of, for people and for a hub."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import yaml


def card(record: Mapping[str, Any], base: str | None) -> str:
    """The card's text.

    Args:
        record: form, rank, energy, rule and settings, adapters; optionally `method`, `tasks` and `scores` of a run.
        base: the model it stands on.
    """
    adapter = record["form"] == "adapter"
    front: dict[str, Any] = {"tags": ["perdure", "merge", *(["lora"] if adapter else [])]}
    if base:
        front["base_model"] = base
    front["library_name"] = "peft" if adapter else "transformers"
    lines = ["---", yaml.safe_dump(front, sort_keys=False).strip(), "---", "", f"# {_title(record)}", ""]
    lines += [*_made_of(record), "", *_form(record), ""]
    lines += _scores(record)
    return "\n".join(lines).rstrip() + "\n"


def _title(record: Mapping[str, Any]) -> str:
    what = "LoRA adapter" if record["form"] == "adapter" else "Model"
    if record.get("method"):
        return f"{what} learnt with {_line(record['method'])}"
    return f"{what} merged by {_line(record.get('rule', 'sum'))}"


def _made_of(record: Mapping[str, Any]) -> list[str]:
    lines = []
    if record.get("adapters"):
        settings = ", ".join(f"{key} {value}" for key, value in record.get("settings", {}).items() if value is not None)
        lines.append(f"Merged with perdure {record.get('perdure', '')}".rstrip() + " from:")
        lines += [f"- {_line(name)}" for name in record["adapters"]]
        lines.append(f"\nRule: {_line(record.get('rule', ''))}" + (f" ({settings})" if settings else ""))
    if record.get("tasks"):
        lines.append("Tasks, in the order they were learnt: " + ", ".join(map(_line, record["tasks"])) + ".")
    return lines


def _form(record: Mapping[str, Any]) -> list[str]:
    if record["form"] == "model":
        return ["The merged update is inside the weights: load it like any model of its kind."]
    rank = record["rank"]
    lines = [f"Rank {rank}, alpha {rank}: the scaling is inside B. It stands on the untouched base model."]
    if record["energy"] < 1:
        lines.append(f"It keeps {100 * record['energy']:.2f} % of the energy of the merged update.")
    return lines


def _scores(record: Mapping[str, Any]) -> list[str]:
    if not record.get("scores"):
        return []
    rows = [
        f"| {_line(task)} | {'' if score is None else f'{score:.3f}'} |" for task, score in record["scores"].items()
    ]
    return ["| task | score |", "|---|---|", *rows]


def _line(text: Any) -> str:
    """Text that cannot break out of its line or cell."""
    return str(text).replace("\n", " ").replace("|", "\\|").replace("<", "&lt;")
