"""Texts as a language model reads them: prompts, answers, and texts that are learnt as they are, each read once."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from perdure.backbones.language_settings import LanguageSettings
from perdure.backbones.token_rows import Row, TokenRows
from perdure.backbones.tokens import shortened
from perdure.backbones.trials import Trials
from perdure.errors import DataError


class ReadsTexts(Trials):
    """The part of a language model that turns texts into ids, by the format of its kind."""

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, settings: LanguageSettings) -> None:
        super().__init__(model, tokenizer, settings)
        self._completions = TokenRows("answers", self._read_answers, self._reading)
        self._texts = TokenRows("texts", self._read_texts, self._reading)

    def _fitting(self, text: str, what: str) -> list[int]:
        """Ids of a label's text, which `max_new_tokens` must allow."""
        ids = self.format.completion(text)
        self._check_fits(ids, what)
        return ids

    def _check_fits(self, ids: Sequence[int], what: str) -> None:
        if len(ids) > (limit := self.settings.max_new_tokens):
            raise DataError(
                f"{what} has {len(ids)} tokens including its end; the limit is backbone.max_new_tokens = {limit}. "
                "Raise that, shorten the text, or (for free text) set backbone.long_targets=cut."
            )

    def _add_answers(self, task: str, texts: Iterable[str]) -> None:
        """Read the free-text answers of a task; DataError if one is too long."""
        try:
            self._completions.add(texts)
        except DataError as error:
            raise DataError(f"Task '{task}': {error}") from error

    def _read_answers(self, texts: list[str]) -> tuple[list[Row], int]:
        """Ids of answers that `max_new_tokens` allows; a cut one has no end, so that no false end is learnt."""
        rows = self.format.completions(texts)
        for ids, text in zip(rows, texts, strict=True) if self.settings.long_targets == "error" else ():
            self._check_fits(ids, f"the target {text[:40]!r}")
        return [ids[: self.settings.max_new_tokens] for ids in rows], 0

    def _read_prompts(self, texts: list[str]) -> tuple[list[Row], int]:
        limit, rows = self.settings.max_length, self.format.prompts(texts)
        return [shortened(ids, limit, self.settings.cut) for ids in rows], sum(len(ids) > limit for ids in rows)

    def _read_texts(self, texts: list[str]) -> tuple[list[Row], int]:
        """Ids of texts that are learnt as they are."""
        limit, rows = self.settings.max_length, self.format.plains(texts)
        return [ids[:limit] for ids in rows], sum(len(ids) > limit for ids in rows)

    @property
    def truncated(self) -> int:
        """How many texts were longer than `max_length`, and were cut."""
        return self._prompts.cut + self._texts.cut
