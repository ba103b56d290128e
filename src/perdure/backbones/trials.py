"""What is tried once on a language model: whether padding changes its answers, and whether labels may be packed."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from perdure.backbones.generation import first_scores
from perdure.backbones.language_settings import LanguageSettings
from perdure.backbones.load_errors import writing_explained
from perdure.backbones.mixing import attention_window, reads_neighbours
from perdure.backbones.modes import without_dropout
from perdure.backbones.prefix import Prefix
from perdure.backbones.pretrained import PretrainedBackbone, answering
from perdure.backbones.ranking import agree
from perdure.backbones.token_rows import Row, TokenRows, tokenizer_key
from perdure.backbones.tokens import EncoderDecoderFormat, PromptFormat
from perdure.backbones.verdicts import Failed, kept
from perdure.errors import ConfigError


class Trials(PretrainedBackbone):
    """The verdicts on a language model, reached when they are first needed; `LanguageModel` answers by them."""

    format: PromptFormat | EncoderDecoderFormat

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, settings: LanguageSettings) -> None:
        super().__init__(model if settings.gradient_checkpointing else model.eval(), tokenizer)
        self.tokenizer = tokenizer
        self.settings = settings
        self._packs: bool | None = False if settings.ranking == "exhaustive" else None  # None: not tried yet
        self._why = "backbone.ranking=exhaustive" if settings.ranking == "exhaustive" else ""
        # where padding changes answers: "read" or "written", or other rows do: "alone"; "": nowhere; None: not tried yet
        self._mixes: str | None = None
        self._writes = False  # whether it has written
        self._shared: dict[str, bool] = {}  # whether prompts may share their beginning, by the kind of answer
        self._prompts = TokenRows("prompts", self._read_prompts, self._reading)

    @abstractmethod
    def _read_prompts(self, texts: list[str]) -> tuple[list[Row], int]:
        """Ids of prompts, cut to `max_length`, and how many were longer."""

    def _reading(self) -> str | None:
        """What besides a text decides about its ids, as a checksum."""
        return tokenizer_key(self.tokenizer, {**self.settings.model_dump(), "model": "", "kind": type(self).__name__})

    def _known_prompts(self) -> list[list[int]]:
        """The shortest and the longest prompt; none before any is known."""
        return [list(row) for row in self._prompts.extremes()]

    @abstractmethod
    def _packed(
        self, prompts: Sequence[list[int]], completions: Sequence[list[int]], prefix: Prefix | None = None
    ) -> Tensor:
        """Scores [N, L] with every prompt computed once, behind `prefix` where all begin with it."""

    @abstractmethod
    def _exhaustive(self, prompts: Sequence[list[int]], completions: Sequence[list[int]]) -> Tensor:
        """The same scores, with one full forward pass for each label."""

    @abstractmethod
    def _log_likelihood(self, prompts: Sequence[list[int]], completions: Sequence[list[int]]) -> Tensor:
        """Summed log-probability [N] of each completion after its prompt."""

    def padding_note(self) -> str | None:
        """The warning for a run where padding changes what the model learns; None if it does not."""
        if self._mixes != "read":
            return None
        return (
            "padding changes what this model reads, so texts of one length answer together; in training, texts of one "
            "micro-batch still influence each other: to train on one text at a time, set training.accumulation to "
            "training.batch_size"
        )

    @property
    def _may_mix(self) -> bool:
        """Whether trying is worth its time: plain attention gives padding a weight of exactly 0."""
        return bool(reads_neighbours(self.model)) or attention_window(self.model) is not None

    def _try_writing(self) -> None:
        """Write two tokens, once, where a task is answered in writing: with some models transformers reads only."""
        by_hand = self.settings.answer_by == "generation"
        writes = any((by_hand or not task.labels) and not task.learns_text for task in self._tasks.values())
        known = self._known_prompts()
        if self._writes or not (writes and known and self._may_mix):
            return
        with writing_explained(self.settings.model, self.model), answering(self.model):
            first_scores(self.model, self.tokenizer, [known[0]], min(2, self.settings.max_new_tokens))
        self._writes = True

    def _try_padding(self) -> None:
        """Compare, once, what a prompt alone and the same prompt padded next to a longer one are answered."""
        known = self._known_prompts()
        if self._mixes is not None or not known:
            return
        short, long = known[0], (known[-1] * 2)[: self.settings.max_length]
        if len(long) <= len(short):
            return
        if not self._may_mix:
            self._mixes = ""
            return
        answer = [*long[-3:], *self.format.completion("")[-1:]]
        found = self._proven("padding", [short, long, answer], lambda: self._padded_apart(short, long, answer))
        self._mixes = found or ""

    def _padded_apart(self, short: list[int], long: list[int], answer: list[int]) -> str | None:
        """Where padding changes answers (see `_mixes`); None: nowhere."""
        with answering(self.model), without_dropout(self.model):
            alone, beside = (self._log_likelihood(rows, [answer] * len(rows))[:1] for rows in ([short], [short, long]))
            if not agree(self.model, beside, alone):
                return "read"
            if self._writes_alike(short, long):
                return None
            # RWKV's state mixes rows even without padding
            return "written" if self._writes_alike(short, short) else "alone"

    def _proven(self, what: str, ids: Any, trial: Callable[[], str | None]) -> str | None:
        """What a trial on these token ids finds, or found before (perdure.backbones.verdicts)."""
        settings = self.settings.model_dump(mode="json", exclude={"model", "revision"})
        special = [str(self.tokenizer.special_tokens_map), self.tokenizer.pad_token_id]
        inputs = {"kind": str(type(self)), "ids": ids, "settings": settings, "special": special}
        return kept(what, self.model, inputs, trial)

    @property
    def _at_once(self) -> int:
        """How many texts answer in one batch."""
        return 1 if self._mixes == "alone" else self.settings.predict_batch_size

    def _writes_alike(self, short: list[int], other: list[int]) -> bool:
        """Whether the first tokens written after `short` have the same scores alone and next to `other`, padded if longer."""
        config: Any = self.model.config
        if config.is_encoder_decoder:  # no padding beside what it writes, and what it reads was compared
            return True
        steps = min(8, self.settings.max_new_tokens)
        try:
            alone, beside = (
                first_scores(self.model, self.tokenizer, rows, steps) for rows in ([short], [short, other])
            )
        except (TypeError, ValueError, RuntimeError, IndexError, AttributeError):
            return False  # it may still rank; where texts are written, the same error says what is wrong
        return self._begins_alike(alone, beside)

    def _begins_alike(self, one: tuple[Tensor, Tensor], other: tuple[Tensor, Tensor]) -> bool:
        """Whether two `first_scores` have the same scores, as far as both follow the same text."""
        same = int((one[0] == other[0]).int().cumprod(dim=0).sum()) + 1
        return agree(self.model, other[1][:same], one[1][:same])

    def how_ranked(self, tried: bool = True) -> str | None:
        """How labels are ranked and why, for a run's record; None if none are. `tried`: try packing now if not done yet."""
        task = next((task for task in self._tasks.values() if task.labels), None)
        if task is None or self.settings.answer_by == "generation" or not self._known_prompts():
            return None
        if tried:
            self._try_packing([], [self.format.completion(text) for text in task.labels.values()], at_load=True)
        if self._packs is None:
            return "packed, if both ways agree at the first answer"
        return f"{'packed' if self._packs else 'exhaustive'}: {self._why}"

    def rank_as(self, how: str) -> None:
        """Rank labels as a run's record says (`how_ranked`), without trying again; what was not decided then is tried."""
        way, _, why = how.partition(": ")
        if self._packs is None and why:
            self._packs, self._why = way == "packed", why

    def _refuse_packing(self, reason: str | None, fix: str = "") -> None:
        """Rank exhaustively from now on, for this reason (None: no reason).

        Raises:
            ConfigError: the settings ask for packing.
        """
        if reason is None or self._packs is False:
            return
        if self.settings.ranking == "packed":
            raise ConfigError(
                f"backbone.ranking=packed would give other scores than one label at a time on '{self.settings.model}': {reason}. "
                f"Set ranking to auto or exhaustive{fix}."
            )
        self._packs, self._why = False, reason

    def _try_packing(
        self, prompts: Sequence[list[int]], completions: Sequence[list[int]], at_load: bool = False
    ) -> None:
        """Decide, once, whether packing changes no score: by both ways on short prompts and on the longest known.

        `at_load`: before anything is learnt, so the same proof may have been run before.
        """
        if self._packs is not None:
            return
        known = sorted([*prompts, *self._known_prompts()], key=len)
        lengths = sorted(completions, key=len)
        pairs = [([known[-1][:9], known[0][:5]], completions[:4]), ([known[-1]], [lengths[0], lengths[-1]])]

        def trial() -> str | None:
            return next((reason for pair in pairs if (reason := self._tried(*pair))), None)

        self._refuse_packing(self._proven("packing", pairs, trial) if at_load else trial())
        if self._packs is None:
            self._packs, self._why = True, "both ways agree"

    def _tried(self, prompts: Sequence[list[int]], completions: Sequence[list[int]]) -> str | None:
        """Why packing is not right for these prompts and answers; None if both ways give the same scores."""
        with torch.no_grad(), without_dropout(self.model):  # with dropout the two ways would differ
            try:
                packed, alone = self._packed(prompts, completions), self._exhaustive(prompts, completions)
            except (TypeError, ValueError, RuntimeError, IndexError) as error:
                said = str(error).partition("\n")[0][:100]
                return Failed(f"it was tried, and the model does not accept it ({said})")
        if agree(self.model, packed, alone):
            return None
        return f"both ways were tried, and scores differ by {(packed - alone).abs().max().item():.2g}"
