"""What a part can read while a stage is learnt: the loop's implementation of `methods.contract.context.Context`."""

from __future__ import annotations

import hashlib
import math
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import cast

import torch
from torch import Tensor, nn

from perdure.backbones.base import Backbone, Batch, NextTokens, Outputs, Writer
from perdure.backbones.modes import without_dropout
from perdure.errors import ConfigError, UnmetNeed
from perdure.methods.contract.context import Gradients, ScoreSink, Sink, Streamed
from perdure.methods.contract.past import Past, PerTask
from perdure.ops.combinations import drawn_tokens, signed_scores
from perdure.ops.factors import Factors
from perdure.ops.lowrank import Update
from perdure.tasks.task import Example, Stage, Task
from perdure.training.evaluation import answer, score
from perdure.training.heads import base_vectors
from perdure.training.lora import AdaptedModel
from perdure.training.targets import check_reached
from perdure.training.train import cut_batches


def derived_seed(seed: int, stage: int, purpose: str) -> int:
    """A seed that depends on these three only, so that a resumed run draws the same numbers."""
    digest = hashlib.sha256(f"{seed}/{stage}/{purpose}".encode()).digest()
    return int.from_bytes(digest[:7], "big")


@torch.no_grad()
def stream_inputs(model: AdaptedModel, backbone: Backbone, batches: Iterable[Sequence[Example]], sink: Sink) -> None:
    """Give `sink` every target module's inputs at real (not padded) positions, [N, I] fp32, batch by batch."""
    current: list[Batch] = []

    def hook(name: str, _module: nn.Module, args: tuple[Tensor, ...]) -> None:
        if current:  # otherwise the backbone writes what is read next
            sink(name, current[0].real(args[0]).float())

    with ExitStack() as hooks:
        for name, module in model.modules.items():
            hooks.enter_context(module.layer.register_forward_pre_hook(partial(hook, name)))
        for examples in batches:
            current.clear()
            current.append(backbone.collate(examples))
            backbone.features(current[0])


@dataclass
class StageContext:
    """See `Context` for its members; `tasks` are all tasks of the sequence by name.

    Measurements are made without dropout. Only `scores` keeps it, because it is part of a training step.
    """

    stage: Stage
    index: int
    past: Past
    buffer: Mapping[str, Sequence[Example]]
    model: AdaptedModel
    backbone: Backbone
    tasks: Mapping[str, Task]
    seed: int
    notes: dict[str, float] = field(default_factory=dict)
    started: Mapping[str, Factors] = field(default_factory=dict)

    @property
    def factors(self) -> Mapping[str, Factors]:
        return self.model.factors()

    def generator(self, purpose: str) -> torch.Generator:
        return torch.Generator().manual_seed(derived_seed(self.seed, self.index, purpose))

    def weight(self, module: str) -> Tensor:
        return self.model.weight(module)

    def batches(self, examples: Sequence[Example], size: int, purpose: str) -> Iterable[Sequence[Example]]:
        return cut_batches(examples, size, self.generator(purpose), self.backbone.length)

    def _measuring(self) -> AbstractContextManager[None]:
        return without_dropout(self.backbone.model)

    def stream(self, batches: Iterable[Sequence[Example]], what: Streamed, sink: Sink) -> None:
        with self._measuring():
            if what == "gradients":
                self._stream_gradients(batches, sink)
            else:
                stream_inputs(self.model, self.backbone, batches, sink)

    def _stream_gradients(self, batches: Iterable[Sequence[Example]], sink: Sink) -> None:
        """Hand each weight's gradient to the sink as soon as backward has it, then drop it."""
        if not self.model.dense_base:
            raise UnmetNeed("Gradients of full weights need a dense base. Load it in bf16 or fp32.")

        def hook(name: str, transposed: bool, parameter: nn.Parameter) -> None:
            grad, parameter.grad = parameter.grad, None
            if grad is not None:
                sink(name, (grad.mT if transposed else grad).float())

        trained = self.model.parameters()
        for parameter in trained:
            parameter.requires_grad_(False)
        try:
            with ExitStack() as hooks:
                for name, module in self.model.modules.items():
                    module.base.requires_grad_(True)
                    take = partial(hook, name, module.transposed)
                    hooks.enter_context(module.base.register_post_accumulate_grad_hook(take))
                for examples in batches:
                    loss = self.backbone.forward(self.backbone.collate(examples)).loss
                    check_reached(loss)
                    loss.backward()
        finally:
            for module in self.model.modules.values():
                module.base.requires_grad_(False)
                module.base.grad = None
            for parameter in trained:
                parameter.requires_grad_(True)

    def stream_scores(self, batches: Iterable[Sequence[Example]], sink: ScoreSink) -> None:
        uses = Counter[str]()

        def hook(name: str, _module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
            if not output.requires_grad:
                return  # no score depends on this forward pass: the backbone is trying something out
            use = uses[name]
            uses[name] += 1

            def pass_on(grad: Tensor) -> None:
                reached = (grad != 0).any(dim=-1)
                sink(name, use, args[0].detach()[reached].float(), grad[reached].float())

            output.register_hook(pass_on)

        with ExitStack() as hooks, self._measuring():
            for name, module in self.model.modules.items():
                hooks.enter_context(module.layer.register_forward_hook(partial(hook, name)))
            for combined in self._combined(batches):
                torch.autograd.grad(combined, self.model.parameters(), allow_unused=True)
                uses.clear()

    def _combined(self, batches: Iterable[Sequence[Example]]) -> Iterator[Tensor]:
        """For each forward pass the random combination of its scores (see perdure.ops.combinations)."""
        signs, tokens = self.generator("signs of scores"), self.generator("drawn tokens")
        for scored in self._scored(batches):
            if isinstance(scored, NextTokens):
                yield drawn_tokens(scored.logits, scored.targets, tokens)
            else:
                yield signed_scores(scored, signs)

    def _scored(self, batches: Iterable[Sequence[Example]]) -> Iterator[Tensor | NextTokens]:
        """Differentiable scores of examples, one forward pass per task: [n, labels], or of free text the next tokens'."""
        known = {task.name: task for task in (*self.tasks.values(), *self.stage.tasks)}
        for examples in batches:
            for task in dict.fromkeys(example.task for example in examples):
                batch = self.backbone.collate([example for example in examples if example.task == task])
                if known[task].labels:
                    yield self.backbone.scores(batch, None, task)
                else:
                    yield cast(Writer, self.backbone).next_tokens(batch)

    def vectors(self, examples: Sequence[Example]) -> Tensor:
        return base_vectors(self.model, self.backbone, examples)

    def chances(self, examples: Sequence[Example], task: str) -> Tensor:
        return torch.tensor([p.probabilities for p in self.backbone.predict(examples, [task])])

    def task_gradients(self, examples: Sequence[Example]) -> Gradients:
        parameters = self.model.parameters()
        with self._measuring():
            loss = self.backbone.forward(self.backbone.collate(examples)).loss
            grads = torch.autograd.grad(loss, parameters, allow_unused=True)
        by_id: dict[int, Tensor | None] = {id(p): g for p, g in zip(parameters, grads, strict=True)}
        return {name: (by_id.get(id(m.A)), by_id.get(id(m.B))) for name, m in self.model.modules.items()}

    def scores(self, batch: Batch, outputs: Outputs, task: str) -> Tensor:
        return self.backbone.scores(batch, outputs, task)

    def teacher(self, examples: Sequence[Example], tasks: Sequence[str]) -> list[Tensor]:
        with torch.no_grad(), self._measuring(), self.model.holding(self.started):
            batch = self.backbone.collate(examples)
            outputs = self.backbone.forward(batch)
            return [self.backbone.scores(batch, outputs, task) for task in tasks]

    def note(self, name: str, value: float) -> None:
        number = float(value)
        if math.isfinite(number):
            self.notes[name] = number
            return
        self.notes.pop(name, None)  # JSON has no such number, and a finished stage is worth more than one note
        warnings.warn(f"Task '{self.stage.name}': '{name}' is {number}; not noted.", RuntimeWarning, stacklevel=2)

    def evaluate(self, deployed: Update | PerTask, task: str) -> float:
        learnt = {*self.past.stages, *(t.name for t in self.stage.tasks)}
        examples = self.tasks[task].validation if task in self.tasks else ()
        if task not in learnt or not examples:
            raise ConfigError(f"Task '{task}' cannot be evaluated: it is not learnt yet or has no validation examples.")
        predictions = answer(self.model, self.backbone, deployed, examples, [task])
        return score(self.tasks[task], examples, predictions) or 0.0
