"""Answering with the beginning that all prompts share computed once, where a trial shows that it changes no score."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Literal

from perdure.backbones.device import autocast, model_device
from perdure.backbones.generation import first_scores
from perdure.backbones.modes import without_dropout
from perdure.backbones.prefix import PASS_COST, Prefix, common_ids, computed_prefix
from perdure.backbones.ranking import agree
from perdure.backbones.trials import Trials

Way = Literal["ranked", "written"]


class Sharing(Trials):
    """The shared beginning of the prompts being answered, in `_prefix`, and the verdicts on it."""

    _prefix: Prefix | None = None
    _plain = False
    """Whether all layers are plain attention without a window, by configuration and modules."""

    @contextmanager
    def _sharing(self, prompts: Sequence[list[int]], way: Way) -> Iterator[int]:
        """Share what the prompts begin with within; gives what a forward pass costs, for `in_batches`."""
        if not self._may_share(way):
            yield 0
            return
        ids = common_ids(prompts)
        if ids and self._shares(ids, prompts, way):
            with autocast(self.model, self.precision):
                self._prefix = computed_prefix(self.model, ids)
        try:
            yield PASS_COST if way == "ranked" and model_device(self.model).type == "cpu" else 0
        finally:
            self._prefix = None

    def _may_share(self, way: Way) -> bool:
        return (
            self.settings.share_prefix and self._plain and not self._mixes and (way == "written" or bool(self._packs))
        )

    def _shares(self, ids: list[int], prompts: Sequence[list[int]], way: Way) -> bool:
        """Whether sharing changes no answer of this kind, tried once on the shortest and the longest prompt."""
        if way not in self._shared:
            two = [min(prompts, key=len), max(prompts, key=len)]
            with without_dropout(self.model):
                try:
                    prefix = computed_prefix(self.model, ids)
                    self._shared[way] = self._ranks_alike(prefix, two) if way == "ranked" else self._same(prefix, two)
                except (TypeError, ValueError, RuntimeError, IndexError, KeyError, AttributeError):
                    self._shared[way] = False  # it takes no such cache; every prompt is computed whole
        return self._shared[way]

    def _ranks_alike(self, prefix: Prefix, prompts: Sequence[list[int]]) -> bool:
        answers = [[*prompts[-1][-3:], *self.format.completion("")[-1:]]]
        return agree(self.model, self._packed(prompts, answers, prefix), self._exhaustive(prompts, answers))

    def _same(self, prefix: Prefix, prompts: Sequence[list[int]]) -> bool:
        """Whether the first tokens written have the same scores."""
        steps = min(4, self.settings.max_new_tokens)
        whole, shared = (first_scores(self.model, self.tokenizer, prompts, steps, known) for known in (None, prefix))
        return self._begins_alike(whole, shared)
