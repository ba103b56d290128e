"""The model card of something merged or exported: a README.md that says what it is made of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

OF_CLASSES = ("accuracy", "macro-f1", "balanced-accuracy")
"""Metrics that a card files under text classification."""
TEMPLATE = """---
{{ card_data }}
---

# {{ title }}
{% if adapters %}
Merged with perdure {{ perdure }} from:

{% for name in adapters %}- {{ name }}
{% endfor %}
Rule: {{ rule }}{{ settings }}
{% endif %}{% if tasks %}
Tasks, in the order they were learnt: {{ tasks }}.
{% endif %}
{{ form }}
{% if scores %}
| task | metric | score |
|---|---|---|
{% for task, metric, score in scores %}| {{ task }} | {{ metric }} | {{ score }} |
{% endfor %}
Scored on the {{ split }} split, after all tasks were learnt.
{% endif %}{% if learnt %}
Learnt with: {{ learnt }}.
{% endif %}{% if licences %}
Licences, which are yours to follow: {{ licences }}.
{% endif %}{% for title, language, text in programs %}
## {{ title }}

```{{ language }}
{{ text }}```
{% endfor %}"""


def card(record: Mapping[str, Any], base: str | None, programs: Sequence[tuple[str, str, str]] = ()) -> str:
    """The card's text.

    Args:
        record: form, rank, energy, rule and settings, adapters; optionally `method`, `tasks` and `scores` of a run.
            `metrics`, `datasets`, `split`, `base_licence`, `data_licences` and `settings_of_run` say more of a run.
        base: the base model.
        programs: (title, language, text) of ways to use it.
    """
    from huggingface_hub import EvalResult, ModelCard, ModelCardData

    adapter, rule = record["form"] == "adapter", _line(record.get("rule", "sum"))
    how = f"learnt with {_line(record['method'])}" if record.get("method") else f"merged by {rule}"
    settings = ", ".join(f"{key} {value}" for key, value in record.get("settings", {}).items() if value is not None)
    scores = (record.get("scores") or {}).items()
    metrics: Mapping[str, str] = record.get("metrics") or {}
    results = [
        EvalResult("text-classification" if metric in OF_CLASSES else "text-generation", task, task, metric, score)
        for task, score in scores
        if score is not None and (metric := metrics.get(task))
    ]
    data = ModelCardData(
        base_model=base,
        datasets=record.get("datasets") or None,
        **({"model_name": f"{record['run']}", "eval_results": results} if results else {}),
        library_name="peft" if adapter else "transformers",
        tags=["perdure", "merge", *(["lora"] if adapter else [])],
    )
    text = ModelCard.from_template(
        data,
        template_str=TEMPLATE,
        title=f"{'LoRA adapter' if adapter else 'Model'} {how}",
        perdure=record.get("perdure", ""),
        adapters=[_line(name) for name in record.get("adapters") or ()],
        rule=rule,
        settings=settings and f" ({settings})",
        tasks=", ".join(map(_line, record.get("tasks") or ())),
        form=_form(record),
        scores=[
            (_line(task), metrics.get(task, "score"), "" if score is None else f"{score:.3f}") for task, score in scores
        ],
        split=record.get("split", "test"),
        learnt=", ".join(f"{key} {_line(value)}" for key, value in (record.get("settings_of_run") or {}).items()),
        licences=_licences(record),
        programs=programs,
    )
    return str(text).rstrip() + "\n"


def _licences(record: Mapping[str, Any]) -> str:
    """'base Apache-2.0; data: amazon MIT (package vaderSentiment), mail unknown'; empty of what is not a run."""
    if "data_licences" not in record:
        return ""
    data = record["data_licences"]
    named = [f"{_line(task)} {_line(data.get(task, 'unknown'))}" for task in record.get("tasks") or ()]
    base = f"base {_line(record['base_licence'] or 'unknown')}"
    return f"{base}; data: {', '.join(named)}" if named else base


def _form(record: Mapping[str, Any]) -> str:
    if record["form"] == "model":
        return "The merged update is inside the weights: load it like any model of its kind."
    rank, energy = record["rank"], record["energy"]
    kept = f"\nIt keeps {100 * energy:.2f} % of the energy of the merged update." if energy < 1 else ""
    lost = f"\nWhat that costs: {_line(record['deploy.rank'])}." if "deploy.rank" in record else ""
    return f"Rank {rank}, alpha {rank}: the scaling is inside B. It belongs on the untouched base model.{kept}{lost}"


def _line(text: Any) -> str:
    """Text that cannot break out of its line or table cell."""
    return str(text).replace("\n", " ").replace("|", "\\|").replace("<", "&lt;")
