"""What the files of a run hold, as far as anything reads it: checked when they are read, since anybody may have changed them."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Annotated, Any, Literal, NotRequired

from pydantic import Field, TypeAdapter
from typing_extensions import TypedDict  # pydantic does not take Python's own before 3.12

from perdure.files.durable import RESTORE, read_json, read_lines
from perdure.files.parsing import checked_shape

Number = Annotated[float, Field(allow_inf_nan=False)]
Count = Annotated[int, Field(ge=0)]


class Part(TypedDict):
    """A part of a method."""

    kind: str


class MethodShape(TypedDict):
    """The method in a run's configuration."""

    name: str
    stream: str
    init: Part
    penalties: dict[str, Part]
    consolidate: Part
    replay: NotRequired[Part | None]


class BackboneShape(TypedDict):
    """The model in a run's configuration."""

    model: str


class LoraShape(TypedDict):
    """The adapter in a run's configuration."""

    rank: Annotated[int, Field(ge=1)]
    alpha: Number


class EvaluationShape(TypedDict):
    """The evaluation in a run's configuration."""

    split: str


class ConfigShape(TypedDict):
    """A run's configuration, as far as it is read without the model."""

    method: MethodShape
    backbone: BackboneShape
    lora: LoraShape
    evaluation: EvaluationShape
    seed: int
    suite: NotRequired[str | None]
    tasks: NotRequired[list[Any]]


class AskedShape(TypedDict):
    """How a task's inputs are presented."""

    labels: NotRequired[dict[str, str]]
    template: NotRequired[str | None]
    metric: NotRequired[str]
    choices: NotRequired[bool]
    chats: NotRequired[bool]


class RunShape(TypedDict):
    """run.json."""

    format: NotRequired[int]
    config: ConfigShape
    tasks: dict[str, str]
    sizes: dict[str, dict[str, Count]]
    asked: NotRequired[dict[str, AskedShape]]
    history: NotRequired[dict[str, Any]]
    backbone: NotRequired[dict[str, Any] | None]
    warnings: NotRequired[list[str]]
    versions: NotRequired[dict[str, Any]]
    precision: Literal["fp32", "bf16"]
    threads: Annotated[int, Field(ge=1, le=1024)]


class AddedShape(TypedDict):
    """The task of a stage that was added later."""

    tasks: dict[str, str]
    sizes: dict[str, dict[str, Count]]
    asked: dict[str, AskedShape]
    warnings: list[str]
    task: Any
    untrained: NotRequired[dict[str, CellShape]]


class StageShape(TypedDict):
    """A finished stage."""

    name: str
    folder: str
    files: dict[str, str]
    added: NotRequired[AddedShape]


class ManifestShape(TypedDict):
    """manifest.json."""

    stages: list[StageShape]
    deployed: NotRequired[dict[str, str]]
    begun: NotRequired[list[str]]
    warnings: NotRequired[list[str]]
    aside: NotRequired[dict[str, str]]


class CellShape(TypedDict):
    """One score."""

    score: Number | None
    examples: Count
    adapter: NotRequired[Number | None]


class StepShape(TypedDict):
    """A line of a training log."""

    step: int
    loss: float | None
    learning_rate: float | None
    penalties: NotRequired[dict[str, float | None]]
    shares: NotRequired[dict[str, float | None]]
    validation: NotRequired[float | None]


class AnswerShape(TypedDict):
    """A line of a task's predictions."""

    label: str
    predicted: str
    text: NotRequired[str]
    predicted_task: NotRequired[str | None]
    value: NotRequired[float | None]


class WhyShape(TypedDict):
    """why.json of a stage that was set aside."""

    why: str


SCORES = dict[str, CellShape]
NOTES = dict[str, float | None]


@functools.cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)


def read_rows(path: Path, kind: Any) -> list[Any]:
    """The lines of such a file, each of that kind; errors as in `read_shaped`."""
    return shaped(list[kind], read_lines(path), path)


def read_shaped(path: Path, kind: Any) -> Any:
    """The content of a JSON file of a run, as written there; CorruptFile if it is missing, not JSON, or not of that kind."""
    return shaped(kind, read_json(path), path)


def shaped(kind: Any, value: Any, path: Path) -> Any:
    """The value, which was read from `path`, if it is of that kind; else CorruptFile."""
    return checked_shape(_adapter(kind), value, path, RESTORE)
