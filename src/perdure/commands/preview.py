"""What a run is about to do, before it does: what was read, what has to be beaten, how long it may take, what it writes."""

from __future__ import annotations

import math
import random
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from perdure.backbones.base import Backbone, Prediction
from perdure.commands.serve import VLLM_RANKS
from perdure.config.for_stage import for_stage
from perdure.config.run_config import RunConfig
from perdure.loop.progress import duration
from perdure.state.words import points
from perdure.tasks.task import Example, Stage, Task
from perdure.training.evaluation import answer, score, scored_examples
from perdure.training.lora import AdaptedModel
from perdure.training.metrics import noun
from perdure.training.schedules import steps_of

SHOWN = 8  # classes of a task
UNEVEN, MANY_CUT, FEW_SCORED = 0.6, 0.05, 100
"""From these shares, and below this number, a person is asked to decide something."""
BACKWARD = 1.0
"""What a step's backward pass takes of its forward pass: the base has no gradients (MiniLM, batches of 16: .8 to 1.1)."""
MANY, SAMPLE = 5_000, 1_000
"""Of more training texts than that, so many are measured."""
SUMMED, OFFSET = ("sum", "covariance-gain", "average"), ("slice", "slice-free", "lora-ga", "loram")
"""Consolidations whose adapter has the ranks of all updates together, and inits that start away from zero."""
TRIED_SECONDS = 1.5
"""For so long a dry run answers examples of each task with the untouched model."""


@dataclass(frozen=True)
class Tried:
    """A few answers of the untouched model: its score, of how many examples, and the seconds each of them took."""

    score: float | None
    examples: int
    seconds: float


def majority(task: Task, config: RunConfig) -> tuple[str, float] | None:
    """The label that scores most when it is always answered: the most frequent one, and its score. None for free text."""
    examples = scored_examples(task, config.evaluation)
    if not task.labels or not examples:
        return None
    label = Counter(example.label for example in examples).most_common(1)[0][0]
    always = score(task, examples, [Prediction(label)] * len(examples))
    return None if always is None else (label, always)


def preview_lines(
    stages: Sequence[Stage],
    model: AdaptedModel,
    backbone: Backbone,
    config: RunConfig,
    out: str | Path,
    earlier: int = 0,
) -> list[str]:
    """What is about to be learnt, a line a task, then cost and folder, and at the end what asks for a decision.

    Args:
        earlier: number of stages that were learnt before.
    """
    tasks = [task for stage in stages for task in stage.tasks]
    lines = [_task_line(task, backbone, config) for task in tasks]
    seconds = sum(steps(stage, config) * step_seconds(stage, backbone, config) for stage in stages)
    cost = f"{_cost_line(stages, model, config, out)}; training about {duration(seconds)}, estimated from one batch"
    return [*lines, cost, *decisions(tasks, backbone, config), *_rank_line(stages, earlier, model, config)]


def dry_lines(
    stages: Sequence[Stage],
    earlier: Sequence[Task],
    model: AdaptedModel,
    backbone: Backbone,
    config: RunConfig,
    out: str | Path,
) -> list[str]:
    """`preview_lines` with what the untouched model scores on a few examples, and the time that all will take, as estimates.

    Args:
        stages: still to be learnt. earlier: tasks learnt before, which are scored too.
    """
    tasks = [task for stage in stages for task in stage.tasks]
    tried = {task.name: untouched(task, model, backbone, config) for task in tasks}
    lines = [
        f"{_task_line(task, backbone, config)}; the untouched model: about {points(tried[task.name].score)} "
        f"({tried[task.name].examples} example{'s' * (tried[task.name].examples != 1)} tried)"
        for task in tasks
    ]
    training = sum(steps(stage, config) * step_seconds(stage, backbone, config) for stage in stages)
    scoring = _scoring_seconds(stages, earlier, tried, config)
    cost = (
        f"{_cost_line(stages, model, config, out)}; about {duration(training + scoring)}, estimated from "
        f"one batch: training {duration(training)}, scoring {duration(scoring)}"
    )
    return [*lines, cost, *decisions(tasks, backbone, config), *_rank_line(stages, len(earlier), model, config)]


def deployed_rank(stages: int, model: AdaptedModel, config: RunConfig) -> int | None:
    """The rank of the adapter that is deployed after so many stages whose updates are summed; None: not an adapter, or not
    a sum. Inits that offset the base give an update of twice the rank."""
    if config.method["consolidate"]["kind"] not in SUMMED:
        return None
    ranks = [
        stages * len(module.A) * (2 if config.method["init"]["kind"] in OFFSET else 1)
        for module in model.modules.values()
    ]
    sizes = [(module.B.shape[0], module.A.shape[1]) for module in model.modules.values()]
    if any(rank * (o + i) > o * i for rank, (o, i) in zip(ranks, sizes, strict=True)):
        return None
    return max(ranks)


def _rank_line(stages: Sequence[Stage], earlier: int, model: AdaptedModel, config: RunConfig) -> Iterator[str]:
    """Says before training that the deployed rank will pass what vLLM takes."""
    count, most = earlier + len(config.history) + len(stages), VLLM_RANKS[-1]
    rank = deployed_rank(count, model, config)
    if rank and rank > most and (config.deploy.rank or rank) > most:
        yield (
            f"Decide: after {count} stages the deployed adapter has rank {rank}, and vLLM takes {most} at most: set deploy.rank, "
            "which says what it costs, or export the whole model (perdure export RUN --as model)"
        )


def untouched(task: Task, model: AdaptedModel, backbone: Backbone, config: RunConfig) -> Tried:
    """The untouched model on as many scored examples as it answers in about `TRIED_SECONDS`, at least four."""
    every = list(scored_examples(task, config.evaluation))
    order = torch.randperm(len(every), generator=torch.Generator().manual_seed(0)).tolist()
    examples = [every[place] for place in order]
    answered: list[Prediction] = []
    began, last, size = time.monotonic(), 0.0, 4
    while len(answered) < len(examples) and time.monotonic() - began < TRIED_SECONDS:
        some, at = examples[len(answered) : len(answered) + size], time.monotonic()
        answered += answer(model, backbone, {}, some, [task.name])
        last, size = (time.monotonic() - at) / len(some), size * 2
    done = examples[: len(answered)]
    return Tried(score(task, done, answered), len(done), last)


def step_seconds(stage: Stage, backbone: Backbone, config: RunConfig) -> float:
    """Seconds of one optimiser step, from the forward pass of one batch; penalties and replay of the method are not in it."""
    examples: Sequence[Example] = stage.train[: for_stage(config, stage.name).training.batch_size]
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        backbone.forward(batch := backbone.collate(examples))  # the first pass of a process is slower
        began = time.monotonic()
        float(backbone.forward(batch).loss)
    return (1 + BACKWARD) * (time.monotonic() - began)


def steps(stage: Stage, config: RunConfig) -> int:
    """Number of optimiser steps of a stage."""
    return steps_of(stage, for_stage(config, stage.name).training)


def decisions(tasks: Sequence[Task], backbone: Backbone, config: RunConfig) -> list[str]:
    """What asks for a decision before it is learnt: at most a line of each kind, naming the tasks."""
    found: dict[str, list[str]] = {}
    for task in tasks:
        for advice, detail in _doubts(task, backbone, config):
            found.setdefault(advice, []).append(f"{task.name}{f' ({detail})' if detail else ''}")
    return [f"Decide: {', '.join(names)}: {advice}" for advice, names in found.items()]


def _doubts(task: Task, backbone: Backbone, config: RunConfig) -> Iterator[tuple[str, str]]:
    examples, baseline = scored_examples(task, config.evaluation), majority(task, config)
    measured = _measured(task)
    cut = sum(map(_fills(backbone), measured)) / len(measured)
    if cut >= MANY_CUT:
        yield "many texts lose a part; raise backbone.max_length to read more", f"{100 * cut:.0f} % of them"
    if baseline and task.metric == "accuracy" and baseline[1] >= UNEVEN:
        yield (
            "one class is so frequent that accuracy says little; metric: balanced-accuracy counts all classes alike",
            f"{100 * baseline[1]:.0f} % {baseline[0]}",
        )
    if missing := [label for label in task.labels if label not in {e.label for e in task.train}]:
        yield "classes without a training example; add some, or remove them from `labels`", ", ".join(missing)
    if task.labels and all(text.strip().isdecimal() for text in task.labels.values()):
        yield "classes are numbers, and a model reads their texts; say what they mean: labels: {0: bad, 1: good}", ""
    if len(examples) < FEW_SCORED:
        yield (
            "so few examples are scored that a change has to be large to be told from chance; add test examples",
            f"{len(examples)}: 95 % within {98 / math.sqrt(len(examples)):.0f} points",
        )


def _task_line(task: Task, backbone: Backbone, config: RunConfig) -> str:
    counts = [f"{len(task.train):,} to learn from"]
    counts += [f"{len(task.validation):,} for validation"] if task.validation else []
    scored, whole = len(scored_examples(task, config.evaluation)), getattr(task, config.evaluation.split)
    counts.append(f"{scored:,} to score" + (f" of {len(whole):,}" if scored < len(whole) else ""))
    rows = f"{task.rows:,} rows read: " if task.rows else ""
    parts = [f"{task.name}: {rows}{', '.join(counts)}", *_classes(task), *_lengths(task, backbone)]
    if baseline := majority(task, config):
        parts.append(f"always answering '{baseline[0]}' scores {points(baseline[1])} ({noun(task.metric)})")
    return "; ".join(parts)


def _classes(task: Task) -> Iterator[str]:
    if task.labels:
        counts = Counter(example.label for example in task.train).most_common()
        named = [f"{label} {100 * count / len(task.train):.0f} %" for label, count in counts[:SHOWN]]
        more = [f"{len(counts) - SHOWN} more down to {counts[-1][1]} examples"] if len(counts) > SHOWN else []
        yield f"{len(task.labels)} classes: {', '.join([*named, *more])}"


def _lengths(task: Task, backbone: Backbone) -> Iterator[str]:
    measured = _measured(task)
    sizes = sorted(map(backbone.length, measured))
    if sizes[-1] == 1:  # a model that does not count tokens
        return
    some = f" ({len(sizes):,} texts measured)" if len(sizes) < len(task.train) else ""
    yield f"{sizes[0]} to {sizes[-1]} tokens, half of them up to {sizes[len(sizes) // 2]}{some}"
    if full := sum(map(_fills(backbone), measured)):
        longest = next(iter(task.places.items()), None)
        cut = longest and _fills(backbone)(Example(longest[0], task.train[0].label, task.name))
        place = f", such as {Path(longest[1]).name}" if longest and cut else ""
        of = f"about {100 * full / len(sizes):.0f} %" if some else f"{full:,}"
        yield f"{of} of {len(task.train):,} texts fill the model's length and may be cut{place}"


def _measured(task: Task) -> Sequence[Example]:
    """The training examples whose length is looked at: of many a sample, the same every time."""
    if len(task.train) <= MANY:
        return task.train
    return [task.train[i] for i in sorted(random.Random(0).sample(range(len(task.train)), SAMPLE))]


def _fills(backbone: Backbone) -> Callable[[Example], bool]:
    """Whether an example fills what the model reads; of a model that does not say, none does."""
    return getattr(backbone, "full", lambda _: False)


def _cost_line(stages: Sequence[Stage], model: AdaptedModel, config: RunConfig, out: str | Path) -> str:
    each = [steps(stage, config) for stage in stages]
    adapter = 4 * sum(module.A.numel() + module.B.numel() for module in model.modules.values()) / 1e6
    what = f"{len(stages)} stage{'s' if len(stages) != 1 else ''}"
    return (
        f"writes to {out}: {what} of {sum(each):,} steps, each with its adapter ({adapter:.1f} MB), state and answers"
    )


def _scoring_seconds(
    stages: Sequence[Stage], earlier: Sequence[Task], tried: dict[str, Tried], config: RunConfig
) -> float:
    """Seconds of all scorings that are due; earlier tasks are taken to answer as fast as the new ones on average."""
    mean = sum(one.seconds for one in tried.values()) / len(tried)
    tasks = [*earlier, *(task for stage in stages for task in stage.tasks)]
    row = sum(
        tried.get(t.name, Tried(None, 0, mean)).seconds * len(scored_examples(t, config.evaluation)) for t in tasks
    )
    new = sum(tried[t.name].seconds * len(scored_examples(t, config.evaluation)) for s in stages for t in s.tasks)
    due = {True: len(stages) * row, "own": new + row, False: row}[config.evaluation.every_stage]
    return new + due
