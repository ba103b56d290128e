"""Tiny run folders written through the real Store: no model, no training, numbers one can check in the head."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from perdure.config.run_config import load_config
from perdure.files.durable import write_json, write_lines
from perdure.state.answers import write_answers
from perdure.state.store import Store

Answers = Sequence[str]
"""What was predicted for each example of a task; the labels are LABELS[task]."""

LABELS: dict[str, Answers] = {
    "mood": ("good", "good", "bad", "bad"),
    "topic": ("sport", "money", "sport", "money"),
    "spam": ("spam", "ham"),
}

ROWS: list[dict[str, Answers]] = [
    {"mood": ("good",) * 4, "topic": ("sport",) * 4, "spam": ("ham", "ham")},
    {"mood": ("good", "good", "bad", "bad"), "topic": ("sport",) * 4, "spam": ("ham", "ham")},
    {"mood": ("good", "bad", "bad", "bad"), "topic": ("sport", "money", "sport", "sport"), "spam": ("ham", "ham")},
    {"mood": ("good", "bad", "good", "bad"), "topic": ("sport", "money", "money", "money"), "spam": ("spam", "ham")},
]
"""Row 0 is untrained. mood: 50, 100, 75, 50; topic: 50, 50, 75, 75; spam: 50, 50, 50, 100 points.

mood was 4 right when learnt, 2 of them wrong at the end (good -> bad, bad -> good); topic was 3 right, of which 1
became wrong (sport -> money), and 1 became right.
"""


def write_run(
    folder: Path,
    *,
    method: str = "ps-lora",
    seed: int = 0,
    labels: Mapping[str, Answers] = LABELS,
    rows: Sequence[Mapping[str, Answers]] = ROWS,
    stages: Sequence[str] | None = None,
    notes: Mapping[str, float] | None = None,
    steps: int = 3,
    config: Mapping[str, Any] | None = None,
    warnings: Sequence[str] = ("topic: 2 duplicate training texts removed",),
) -> Path:
    """A run, unfinished where `rows` end early; scores are the shares of right answers, as the real loop writes them."""
    store = Store(folder)
    settings = load_config({"method": method, "seed": seed, "suite": "quickstart", **(config or {})})
    tasks = list(labels)
    with store.writing():
        store.create(
            {
                "config": settings.model_dump(mode="json"),
                "tasks": {task: f"fingerprint of {task}" for task in tasks},
                "sizes": {t: {"train": 8, "validation": 0, "test": len(answers)} for t, answers in labels.items()},
                "warnings": list(warnings),
                "precision": "fp32",
                "threads": 1,
                "machine": "x86_64",
                "versions": {"perdure": "0.1.0", "torch": "2.0"},
            }
        )
        for position, (name, row) in enumerate(zip(["untrained", *(stages or tasks)], rows, strict=False)):
            with store.stage(name) as stage:
                _write_answers(stage, labels, row)
                if position:
                    write_lines(stage / "log.jsonl", (_step(position, s) for s in range(1, steps + 1)))
                    write_json(stage / "notes.json", dict(notes or {}))
        if {*tasks} <= {*store.stages()} or store.stages() == ["joint"]:
            with store.deploying() as deployed:
                write_json(deployed / "config.json", {})
    return folder


def write_joint_run(folder: Path) -> Path:
    """The same tasks in one mixed stage, everything right."""
    return write_run(folder, method="joint", rows=[ROWS[0], LABELS], stages=["joint"])


def _write_answers(stage: Path, labels: Mapping[str, Answers], row: Mapping[str, Answers]) -> None:
    cells, answers = {}, {}
    for task, wanted in labels.items():
        if task not in row:  # not scored, as with evaluation.future = false
            continue
        pairs = list(zip(wanted, row[task], strict=True))
        cells[task] = {"score": sum(w == p for w, p in pairs) / len(pairs), "examples": len(pairs)}
        texts = {True: {"text": f"{task} text"}, False: {}}[task == stage.name.rpartition("-")[2]]
        answers[task] = [{**texts, "label": w, "predicted": p, "probability": 0.75} for w, p in pairs]
    write_json(stage / "scores.json", cells)
    write_answers(stage, answers.items())


def _step(position: int, step: int) -> dict[str, Any]:
    penalty = 0.01 * step * (position - 1)
    return {
        "step": step,
        "loss": 1.0 / (step + position),
        "learning_rate": 0.002,
        "penalties": {"sign-magnitude": penalty},
        "shares": {"sign-magnitude": penalty / 2},
    }


HOSTILE = "</script><script>owned=1</script><img src=x onerror=owned=1>&lt;%{y} $x$ <a href='javascript:owned=1'>b</a>"
HOSTILE_TASK = "<img src=x onerror=owned=1><b>x&lt;%{y}"
"""Folders are named after tasks, so this one has no slash; the real loop lets nothing like it in at all."""


def write_hostile_run(folder: Path) -> Path:
    """Markup in the names of task, label and method."""
    labels = {HOSTILE_TASK: (HOSTILE, "no"), "other": ("yes", "no")}
    rows = [labels, labels, {HOSTILE_TASK: ("no", "no"), "other": ("yes", "no")}]
    return write_run(folder, labels=labels, rows=rows, config={"method": {"preset": "l2", "name": HOSTILE}})
