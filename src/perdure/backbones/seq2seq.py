"""An encoder-decoder language model as a learner: the encoder reads the prompt, the decoder writes the answer.

Ranking runs the encoder once and the decoder once: all label texts stand in one decoder row, each after its own start
token, and none sees another. T5's positions are relative, so every text is scored as if it stood alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import AutoModelForSeq2SeqLM, PreTrainedModel, PreTrainedTokenizerBase

from perdure.backbones.base import Batch
from perdure.backbones.device import model_device
from perdure.backbones.generation import decoder_start
from perdure.backbones.language import LanguageModel
from perdure.backbones.language_settings import LanguageSettings
from perdure.backbones.mixing import attention_window, counts_places, reads_neighbours
from perdure.backbones.prefix import Prefix
from perdure.backbones.pretrained import check_positions, check_vocabulary, load_model, load_tokenizer
from perdure.backbones.ranking import additive_mask, label_chains, logits_at, tree_scores
from perdure.backbones.tokens import EncoderDecoderFormat, padded
from perdure.errors import ConfigError
from perdure.tasks.task import Example


class Seq2SeqSettings(LanguageSettings):
    """How an encoder-decoder reads and answers; see `LanguageSettings` and `ModelSettings` for the rest."""

    kind: Literal["seq2seq"] = "seq2seq"
    attention: Literal["eager", "sdpa"] = "eager"


class Seq2SeqLM(LanguageModel):
    """A T5-like model of transformers behind the `Backbone` protocol. Use `Seq2SeqLM.load`."""

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, settings: Seq2SeqSettings) -> None:
        super().__init__(model, tokenizer, settings)
        self.format = EncoderDecoderFormat(tokenizer)
        start = decoder_start(model.config, model.generation_config)
        if start is None:
            raise ConfigError(
                f"'{settings.model}' names no start token for its decoder; set `decoder_start_token_id` in its config.json."
            )
        self.start = start
        decoder = model.get_decoder()  # the encoder reads prompts alone: it may mix them as it likes
        self._refuse_packing(reads_neighbours(decoder) or counts_places(decoder))
        if (window := attention_window(decoder)) is not None and window < settings.max_new_tokens:
            limit = settings.max_new_tokens
            self._refuse_packing(f"its decoder sees a window of {window} tokens (backbone.max_new_tokens = {limit})")

    @classmethod
    def load(cls, settings: Seq2SeqSettings) -> Seq2SeqLM:
        """The pretrained model and its tokenizer; for errors see `perdure.backbones.pretrained`.

        Raises:
            ConfigError: also if the model's configuration names no start token for the decoder.
        """
        model = load_model(AutoModelForSeq2SeqLM, settings, "encoder-decoder language model")
        check_positions(model.get_encoder(), settings.model, settings.max_length, "backbone.max_length")
        check_positions(model.get_decoder(), settings.model, settings.max_new_tokens, "backbone.max_new_tokens")
        tokenizer = load_tokenizer(settings)
        check_vocabulary(model, tokenizer, settings.model)
        return cls(model, tokenizer, settings)

    def _batch(
        self, prompts: Sequence[list[int]], completions: Sequence[list[int]], examples: Sequence[Example] = ()
    ) -> Batch:
        """See `LanguageModel`. In a training batch encoder and decoder differ in length: it tells whose input a module has."""
        ids, mask = self._padded(prompts)
        targets, wanted = self._padded(completions)
        if examples and mask.shape[1] == wanted.shape[1]:
            ids = functional.pad(ids, (0, 1), value=self.tokenizer.pad_token_id)  # pyright: ignore[reportArgumentType]
            mask = functional.pad(mask, (0, 1), value=False)
        fed = targets.roll(1, dims=1)
        fed[:, 0] = self.start
        inputs = {"input_ids": ids, "attention_mask": mask.long(), "decoder_input_ids": fed}
        extra = {"predicting": wanted, "answers": targets[wanted]}
        return Batch(examples, inputs, int(wanted.sum()), mask, wanted, extra)

    @property
    def _may_mix(self) -> bool:
        """Encoders read padding in more ways than a causal model, and two short passes cost little."""
        return True

    @property
    def _reader(self) -> nn.Module:
        return self.model.get_encoder()  # pyright: ignore[reportCallIssue]

    def _packed(
        self, prompts: Sequence[list[int]], completions: Sequence[list[int]], prefix: Prefix | None = None
    ) -> Tensor:
        chains = label_chains(completions, self.start)
        n, s = len(prompts), len(chains.tokens)
        ids, mask = self._padded(prompts)
        logits = logits_at(
            self.model,
            torch.ones(n, s, dtype=torch.bool),
            input_ids=ids,
            attention_mask=mask.long(),
            decoder_input_ids=chains.tokens.to(model_device(self.model)).expand(n, s),
            decoder_attention_mask=additive_mask(self.model, chains.sees).expand(n, 1, s, s),
        )
        return tree_scores(logits.view(n, s, -1), chains, self.settings.label_score)

    def _padded(self, rows: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
        """Ids and the mask of real positions, on the model's device."""
        ids, mask = padded(rows, self.tokenizer.pad_token_id)  # pyright: ignore[reportArgumentType]
        device = model_device(self.model)
        return ids.to(device), mask.to(device)
