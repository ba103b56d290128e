"""The base as task 0: what it can do is measured before the first task, as if it had been learnt, and held by the same parts.

A part that keeps statistics of finished tasks (`Part.holds_base`) sees the base as one more finished task, at position -1,
whose update is empty. Its examples are texts that show what the base can do (`protect.base`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from perdure.backbones.base import Backbone
from perdure.config.run_config import SUITE_FILES, RunConfig
from perdure.errors import ConfigError, DataError
from perdure.methods.contract.calls import after_task, state_of
from perdure.methods.contract.parts import Method, Part, Penalty, Start
from perdure.methods.contract.past import Past
from perdure.ops.factors import Factors
from perdure.ops.lowrank import Update
from perdure.tasks.sources.rows import read_rows
from perdure.tasks.suites import load_suite
from perdure.tasks.task import INVERSE_PERPLEXITY, Stage, Task
from perdure.training.context import StageContext, derived_seed
from perdure.training.lora import AdaptedModel
from perdure.training.processes import Processes

SELF = "self"
NAME = "base"
INDEX = -1
"""The position of the base in the sequence."""


def check_protect(config: RunConfig, method: Method) -> None:
    """Raise ConfigError if the base, or the adapters of `history`, should be protected and no part of the method can."""
    default = type(config.protect)()
    if config.protect.base is None and config.protect != default:
        raise ConfigError("protect.texts and protect.tokens need protect.base: 'self', a suite, or a file of texts.")
    if config.protect.base is not None and not holding(method):
        raise ConfigError(
            f"protect.base: method '{method.name}' keeps no statistics of finished tasks, so it cannot protect the base. Choose "
            "perdure, ewc or output-drift, or add one of their penalties (docs/protect.md)."
        )


def holding(method: Method) -> list[Part]:
    """The parts that can hold the base."""
    return [p for p in method.parts().values() if p.holds_base and not (isinstance(p, Penalty) and p.weight == 0)]


def base_stage(config: RunConfig, model: AdaptedModel, backbone: Backbone) -> Stage:
    """The base as a finished stage, known to the backbone.

    Raises:
        ConfigError, DataError: there are no texts, or none that the model can learn from; says what to give.
    """
    chosen = config.protect.base or ""
    if chosen == SELF:
        with model.deployed({}):
            return own_stage(NAME, config, backbone, INDEX)
    if chosen.endswith(SUITE_FILES) or not Path(chosen).suffix:
        suite = load_suite(chosen, data=config.data, train=config.protect.texts, validation=0, test=1)
        tasks = tuple(dataclasses.replace(task, name=f"{NAME}.{task.name}") for task in suite.tasks)
    else:
        tasks = (_of_texts(NAME, texts_of(Path(chosen))[: config.protect.texts]),)
    backbone.prepare(tasks)
    return Stage(NAME, tasks)


def own_stage(name: str, config: RunConfig, backbone: Backbone, index: int) -> Stage:
    """A finished stage of texts that the model, as it is now, writes itself."""
    from perdure.backbones.own_texts import own_texts

    seed = derived_seed(config.seed, index, "own texts")
    task = _of_texts(name, own_texts(backbone, config.protect.texts, config.protect.tokens, seed))
    backbone.prepare([task])
    return Stage(name, (task,))


def protect_base(
    stage: Stage, method: Method, model: AdaptedModel, backbone: Backbone, seed: int, processes: Processes
) -> None:
    """Every part that can hold the base measures it; afterwards all processes hold the same numbers."""
    ctx = StageContext(stage, INDEX, Past(), {}, model, backbone, {}, seed)
    parts = holding(method)
    with measuring_on(model, {}):
        after_task(parts, ctx, {})
    for part in parts:
        processes.broadcast([tensor for _, tensor in sorted(state_of(part).items())])


@contextmanager
def measuring_on(model: AdaptedModel, update: Update) -> Iterator[None]:
    """Within: base + `update` answers, under an adapter that changes nothing, so that parts can measure on it."""
    model.fold(update)
    zero = {n: Factors(torch.zeros_like(f.A), torch.zeros_like(f.B), f.scaling) for n, f in model.factors().items()}
    own = {name: (pair.A.clone(), pair.B.clone()) for name, pair in model.factors().items()}
    model.start(Start(zero))
    try:
        yield
    finally:
        model.start(Start({n: Factors(*own[n], f.scaling) for n, f in zero.items()}))
        model.fold({})


def texts_of(file: Path) -> list[str]:
    """The texts in a file: its lines (.txt), or the field `text` of its records; DataError if there are none."""
    if file.suffix.lower() == ".txt":
        if not file.is_file():
            raise DataError(f"protect.base: {file} does not exist. Give a file of texts, a suite's name, or 'self'.")
        texts = [line.strip() for line in file.read_text(encoding="utf-8", errors="replace").splitlines()]
    else:
        rows = read_rows(file, relative_to="the configuration")
        if wrong := next((row for row in rows if not isinstance(row.fields.get("text"), str)), None):
            raise DataError(f"protect.base: {wrong.where} has no string `text`; its fields are {wrong.names}.")
        texts = [row.fields["text"].strip() for row in rows]
    if not (found := [*dict.fromkeys(filter(None, texts))]):
        raise DataError(f"protect.base: {file} holds no text. Give other texts, a suite's name, or 'self'.")
    return found


def _of_texts(name: str, texts: list[str]) -> Task:
    return Task(name, [(text, "") for text in texts], test=[(texts[0], "")], metric=INVERSE_PERPLEXITY)  # pyright: ignore[reportArgumentType]
