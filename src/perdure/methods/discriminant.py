"""A closed-form head: class means and one covariance of what the untouched base reads. Nothing is trained or forgotten.

    frozen-head = discriminant (Discriminant), no adapter          perdure+head = perdure, and discriminant beside its adapter

Linear discriminant analysis (Fisher 1936; Hastie, Tibshirani and Friedman, The Elements of Statistical Learning, section 4.3),
learnt from sums that no later task changes: streaming LDA (Hayes and Kanan, arXiv 1909.01520), on a frozen pretrained model as
in RanPAC (McDonnell et al., arXiv 2307.02251).

Symbols
    x      the vector of an input under the pretrained weights (Backbone.vectors), the same before and after any task
    m_y    mean of x over the training examples of class y of a task
    S      covariance of x within classes, over all classes of all tasks learnt, shrunk         ops.nearest_mean
    p_a    the adapted model's probability of a label among the labels asked for

Equation
    log p(y | x) = a log p_a(y | x) - w / 2 (x - m_y)^T S^-1 (x - m_y) + const

A product of two experts: the adapter's answer with the power a <= 1, and the class densities N(m_y, S) with the power w: by
default those under which the task's training examples are most likely, each left out of means and covariance. An adapter that
has learnt them by heart is so left alone, and one that has had few steps is helped. All versions of a task share its classes. A
label without examples is as likely as the least likely one with some. Tasks without labels, and texts with their own choices,
are answered by the adapter alone.

Settings: see `Discriminant`. Deviations: none of the sources adds it to a trained model's answer; the covariance is shrunk by
OAS.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Hashable, Mapping, Sequence
from typing import Any, ClassVar, cast

import torch
from pydantic import Field, PrivateAttr
from torch import Tensor

from perdure.methods.contract.context import Context, Need
from perdure.methods.contract.parts import Head
from perdure.ops.lowrank import Update
from perdure.ops.nearest_mean import Sums, left_out, oas_shrinkage, shrunk, squared_distances
from perdure.ops.powers import fitted_powers
from perdure.tasks.task import Example, Task, version

Class = tuple[str, str]
"""A task's name without its version, and a label."""
ALONE = (1.0, 0.0)
"""Powers with which the adapter answers alone."""


class Discriminant(Head):
    """Class densities of the untouched base's vectors, beside the adapter's probabilities.

    Memory, float64: `sums` [G, D], `counts` [G], `products` [D, D]; names of the classes and powers of the tasks as JSON.
    """

    needs: ClassVar[frozenset[Need]] = frozenset({Need.TRAINING_DATA})
    caches: ClassVar[frozenset[str]] = frozenset({"_fitted"})
    read_by: ClassVar[Mapping[str, Mapping[str, tuple[Any, ...]]]] = {"weight": {"fitted_on": (None,)}}

    weight: float | None = Field(default=None, ge=0)
    """w, the power of the class densities beside an adapter's of 1. None = both are fitted for each task when it is learnt."""
    fitted_on: int = Field(default=128, ge=1)
    """at most so many of a task's training examples the powers are fitted on."""

    _sums: Sums | None = PrivateAttr(default=None)
    _powers: dict[str, tuple[float, float]] = PrivateAttr(default_factory=dict)
    _fitted: tuple[Tensor, Tensor, float] | None = PrivateAttr(default=None)

    def after_task(self, ctx: Context, update: Update) -> None:
        """Add the stage's training examples to their classes' sums, and fit the powers for each of its tasks."""
        for task in filter(has_classes, ctx.stage.tasks):
            examples = [example for example in ctx.stage.train if example.task == task.name]
            x_ND = ctx.vectors(examples)
            groups: dict[Class, list[int]] = {}
            for row, example in enumerate(examples):
                groups.setdefault(_class(task.name, example.label), []).append(row)
            sums = self._sums or Sums.empty(x_ND.shape[1])
            for group, rows in groups.items():
                sums = sums.with_vectors(group, x_ND[rows])
            self._sums, self._fitted = sums, None
            if self.weight is None:
                self._powers[version(task.name)[0]] = powers = self._fit(ctx, task, examples, x_ND)
                for name, power in zip(("adapter", "densities"), powers, strict=True):
                    ctx.note(f"head/power of {name} {task.name}", power)

    def _fit(self, ctx: Context, task: Task, examples: Sequence[Example], x_ND: Tensor) -> tuple[float, float]:
        """The powers of adapter and densities under which the task's training examples, each left out, are most likely."""
        assert self._sums is not None
        mean_GD, cov_DD, scale = self._densities(self._sums)
        place = {group: i for i, group in enumerate(self._sums.counts)}
        known = [label for label in task.labels if _class(task.name, label) in place]
        rows = torch.randperm(len(examples), generator=ctx.generator("head")).tolist()
        rows = [i for i in rows if self._sums.counts[_class(task.name, examples[i].label)] > 1][: self.fitted_on]
        if len(known) < 2 or not rows:
            return ALONE
        p_NL = ctx.chances([examples[i] for i in rows], task.name)
        if not p_NL.shape[1]:
            return ALONE  # answers are written: no probability stands beside them
        log_p_NL = logs(p_NL[:, [[*task.labels].index(label) for label in known]])
        own_G = [place[_class(task.name, label)] for label in known]
        right_N = torch.tensor([known.index(examples[i].label) for i in rows])
        count_G = torch.tensor([self._sums.counts[_class(task.name, label)] for label in known])
        d_NG, between_GG = (squared_distances(v, mean_GD[own_G], cov_DD) for v in (x_ND[rows], mean_GD[own_G]))
        return fitted_powers(log_p_NL, -left_out(d_NG, between_GG, right_N, count_G, scale) / 2, right_N)

    def has_say(self, labels: Sequence[tuple[str, str]]) -> bool:
        """Whether one of the labels has examples, and the densities have a power."""
        return max(self._places(labels), default=-1) >= 0 and self._mean_powers(labels)[1] > 0

    def combined(self, vectors: Tensor, probabilities: Tensor, labels: Sequence[tuple[str, str]]) -> Tensor:
        """a log p - w/2 of the squared distances to the labels' means, [n, labels].

        Labels of several tasks are compared with the mean of their powers."""
        assert self._sums is not None
        a, w = self._mean_powers(labels)
        places = self._places(labels)
        known = [column for column, place in enumerate(places) if place >= 0]
        mean_GD, cov_DD, _ = self._densities(self._sums)
        odds = -w / 2 * squared_distances(vectors, mean_GD[[places[column] for column in known]], cov_DD)
        odds_NL = odds.min(dim=1, keepdim=True).values.expand(-1, len(labels)).clone()
        odds_NL[:, known] = odds
        return a * logs(probabilities) + odds_NL

    def _places(self, labels: Sequence[tuple[str, str]]) -> list[int]:
        """Where each label stands among the classes; -1 for one without examples."""
        place = {group: i for i, group in enumerate(self._classes())}
        return [place.get(_class(task, label), -1) for task, label in labels]

    def _mean_powers(self, labels: Sequence[tuple[str, str]]) -> tuple[float, float]:
        fixed = None if self.weight is None else (1.0, self.weight)
        tasks = {version(task)[0] for task, _ in labels}
        powers = [found for task in tasks if (found := self._powers.get(task, fixed))]
        a, w = (statistics.fmean(power) for power in zip(*(powers or [ALONE]), strict=True))
        return a, w

    def _densities(self, sums: Sums) -> tuple[Tensor, Tensor, float]:
        """Means [G, D], the shrunk covariance [D, D], and what it weighs one vector's outer product by."""
        if self._fitted is None:
            within, count = sums.within(), sum(sums.counts.values())
            share = oas_shrinkage(within, count)
            self._fitted = sums.means(), shrunk(within, share), (1 - share) / count
        return self._fitted

    def state(self) -> dict[str, Tensor]:
        if self._sums is None:
            return {}
        names = {"classes": [[task, label] for task, label in self._classes()], "powers": self._powers}
        return {
            "names": torch.frombuffer(bytearray(json.dumps(names).encode()), dtype=torch.uint8),
            "counts": torch.tensor([*self._sums.counts.values()]),
            "sums": torch.stack([*self._sums.sums.values()]),
            "products": self._sums.products_DD,
        }

    def _classes(self) -> list[Class]:
        return cast("list[Class]", [*self._sums.counts]) if self._sums else []

    def load(self, state: Mapping[str, Tensor]) -> None:
        self._fitted, self._sums, self._powers = None, None, {}
        if not state:
            return
        kept = {name: tensor.cpu() for name, tensor in state.items()}
        names: dict[str, Any] = json.loads(bytes(kept["names"].tolist()))
        groups: list[Hashable] = [(task, label) for task, label in names["classes"]]
        counts = dict(zip(groups, kept["counts"].tolist(), strict=True))
        self._sums = Sums(counts, dict(zip(groups, kept["sums"], strict=True)), kept["products"])
        self._powers = {task: (a, w) for task, (a, w) in names["powers"].items()}


def _class(task: str, label: str) -> Class:
    return version(task)[0], label


def has_classes(task: Task) -> bool:
    """Whether all texts of the task have the same labels to choose from."""
    return bool(task.labels) and not task.choices


def logs(probabilities: Tensor) -> Tensor:
    """Logarithms in float64, of 0 a very small one: a probability may vanish in fp32."""
    return probabilities.double().log().clamp(min=-1e3)
