"""The record of a run of a sweep: one JSON file with everything a table needs after the run's folder is removed."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, NotRequired

import numpy as np
from pydantic import Field
from typing_extensions import TypedDict

from perdure.diagnostics.report import diagnose
from perdure.files.durable import read_json
from perdure.methods.contract.build import build_method
from perdure.state.answers import StageAnswers
from perdure.state.record import load_stage_update
from perdure.state.shapes import Number
from perdure.state.store import Store
from perdure.sweeps.comparison import Values
from perdure.training.metrics import Scores, is_right


def run_record(store: Store, scores: Scores) -> dict[str, Any]:
    """Scores, final answers, diagnostics, bytes kept, notes, and how the run was made."""
    stages = list(enumerate(store.stages(), start=1))
    about = ("config", "tasks", "sizes", "precision", "threads", "machine", "versions")
    return {
        "code": code_hash(),
        "scores": {key: value for key, value in scores.as_dict().items() if key != "folder"},
        **final_answers(store, scores),
        "diagnostics": interference(store),
        "bytes": {
            "state": sum(path.stat().st_size for path in store.stage_folder(len(stages)).glob("state*")),
            "deployed": sum(path.stat().st_size for path in (store.folder / "deployed").rglob("*") if path.is_file()),
        },
        "notes": {name: read_json(store.stage_folder(i) / "notes.json") for i, name in stages},
        **{key: store.about[key] for key in about},
    }


def code_hash() -> str:
    """sha256 over every source file of perdure: the code that made a record."""
    root = Path(__file__).parents[1]
    digest = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        digest.update(f"{path.relative_to(root).as_posix()}\0".encode() + path.read_bytes())
    return digest.hexdigest()


def final_answers(store: Store, scores: Scores) -> dict[str, dict[str, Any]]:
    """The value of each test example's final answer; its mean over a task's examples is the task's score.

    `right`: task -> packed bits (see `unpacked`); `values`: task -> numbers, for a task with another metric than accuracy.
    """
    answers = StageAnswers(store.stage_folder(len(store.stages())))
    packed: dict[str, Any] = {}
    values: dict[str, Any] = {}
    for task in scores.tasks:
        rows = answers.rows(task)
        if rows and "value" in rows[0]:
            values[task] = [row["value"] for row in rows]
        elif rows:
            right = [is_right(row) for row in rows]
            packed[task] = f"{len(right)}:{base64.b64encode(np.packbits(right).tobytes()).decode()}"
    return {"right": packed, "values": values}


class SequenceShape(TypedDict):
    """Of a run's configuration what tells the cells of a sweep apart."""

    seed: int
    suite: NotRequired[str | None]
    order: NotRequired[str | None]


class ScoresShape(TypedDict):
    """The scores in a record."""

    tasks: list[str]
    score_matrix: Annotated[list[list[Number | None]], Field(min_length=1)]
    learning_accuracy: Number | None
    forgetting: Number | None
    backward_transfer: Number | None
    metrics: NotRequired[list[str]]


class RecordShape(TypedDict):
    """A record, as far as tables are made from it."""

    method: str
    varied: dict[str, Any]
    config: SequenceShape
    scores: ScoresShape
    sequence: NotRequired[dict[str, Any]]
    right: NotRequired[dict[str, Annotated[str, Field(pattern=r"^\d{1,9}:[A-Za-z0-9+/]*=*$")]]]
    values: NotRequired[dict[str, list[Number]]]
    bytes: NotRequired[dict[str, Number]]
    diagnostics: NotRequired[dict[str, Number | None]]
    processor_seconds: NotRequired[Number]


class FailureShape(TypedDict):
    """Why a run of a sweep has no record."""

    id: str
    error: str


def unpacked(bits: str) -> Values:
    """[E], 1.0 where the final model was right."""
    count, _, coded = bits.partition(":")
    raw = np.frombuffer(base64.b64decode(coded), dtype=np.uint8)
    return np.unpackbits(raw)[: int(count)].astype(np.float64)


def outcome_values(record: Mapping[str, Any]) -> dict[str, Values]:
    """Task -> the values of the final model's answers [E], or the task's score alone [1] if answers were not kept."""
    scores = record["scores"]
    final = dict(zip(scores["tasks"], scores["score_matrix"][-1], strict=True))
    kept = {task: unpacked(bits) for task, bits in record.get("right", {}).items()}
    kept |= {task: np.array(values) for task, values in record.get("values", {}).items()}
    return {task: kept.get(task, np.array([score])) for task, score in final.items() if score is not None}


def interference(store: Store) -> dict[str, float | None]:
    """How much the stages' updates conflict, by the definitions of `perdure diagnose`; means over stages or pairs of stages.

    Against the sum of the past: `opposite_signs` plain, among the largest, weighted by |product|, and sign `flips` of the
    sum. Between two updates: `collision_rate` (N-LoRA's ACR), O-LoRA's `overlap` of A, N-LoRA's `awom`. Of one update: its
    sparsity and size. Empty for a single stage, and for one adapter that is trained on and on: each of its updates contains
    the one before.
    """
    count = len(store.stages())
    if count < 2 or build_method(store.about["config"]["method"]).init.continues:
        return {}
    updates = {f"{i}": load_stage_update(store, i) for i in range(count)}
    past, pairs = diagnose(updates, history=True), diagnose(updates)
    against, between = [pair.overall for pair in past.pairs], [pair.overall for pair in pairs.pairs]
    each = [update.overall for update in pairs.updates]
    return {
        "opposite_signs": _mean(both.opposite.value for both in against),
        "opposite_signs_top": _mean(both.opposite_top.value for both in against),
        "opposite_signs_weighted": _mean(both.opposite_weighted.value for both in against),
        "flips": _mean(both.flip.value for both in against),
        "collision_rate": pairs.average_collision_rate,
        "overlap": _mean(both.oo for both in between),
        "awom": _mean(both.awom for both in between),
        "awom_normalised": _mean(both.awom_normalised for both in between),
        "generalised_sparsity": _mean(one.generalised_sparsity for one in each),
        "root_mean_square": _mean(one.root_mean_square for one in each),
    }


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None
