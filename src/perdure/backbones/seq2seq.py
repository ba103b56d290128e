"""An encoder-decoder language model as a learner: the encoder reads the prompt, the decoder writes the answer.

Ranking runs the encoder once and the decoder once: all label texts stand in one decoder row, each after a start token of
its own, and none sees another. T5's positions are relative, so every text is scored as if it stood alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional
from transformers import AutoModelForSeq2SeqLM, PreTrainedModel, PreTrainedTokenizerBase

from perdure.backbones.base import Batch, Outputs
from perdure.backbones.device import autocast, model_device
from perdure.backbones.generation import greedy_from_encoder
from perdure.backbones.language import LanguageModel, LanguageSettings
from perdure.backbones.pretrained import check_positions, load_model, load_tokenizer
from perdure.backbones.ranking import (
    BLOCKED,
    LabelTree,
    at_least_fp32,
    exhaustive_scores,
    label_chains,
    logits_at,
    model_dtype,
    tree_scores,
)
from perdure.backbones.tokens import cut_middle, padded
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
        self.start = _start_token(model, settings.model)

    @classmethod
    def load(cls, settings: Seq2SeqSettings) -> Seq2SeqLM:
        """The pretrained model and its tokenizer; for errors see `perdure.backbones.pretrained`."""
        model = load_model(AutoModelForSeq2SeqLM, settings, "encoder-decoder language model")
        check_positions(model.get_encoder(), settings.model, settings.max_length, "backbone.max_length")
        check_positions(model.get_decoder(), settings.model, settings.max_new_tokens, "backbone.max_new_tokens")
        return cls(model, load_tokenizer(settings), settings)

    def collate(self, examples: Sequence[Example]) -> Batch:
        """Prompts for the encoder and shifted answers for the decoder, both padded on the right.

        The two have different lengths: by its length, a module's input is told to be the encoder's or the decoder's.
        """
        decoder, targets, wanted = self._decoder_inputs([self._completion(example) for example in examples])
        encoder, mask = self._encoder_inputs([self._asked(example) for example in examples], unlike=wanted.shape[1])
        inputs = encoder | {"decoder_input_ids": decoder}
        return Batch(examples, inputs, int(wanted.sum()), mask, wanted, {"targets": targets})

    def forward(self, batch: Batch) -> Outputs:
        """Mean cross-entropy over the batch's target tokens, in fp32."""
        wanted = batch.decoder_mask
        assert wanted is not None  # collate gives every batch one
        with autocast(self.model, self.precision):
            logits = logits_at(self.model, wanted, **batch.inputs)
        return Outputs(functional.cross_entropy(at_least_fp32(logits), batch.extra["targets"][wanted]))

    def features(self, batch: Batch) -> Any:
        """A forward pass over prompts and answers; the vocabulary projection is left out but for one position a row."""
        first = torch.zeros_like(batch.inputs["decoder_input_ids"], dtype=torch.bool)
        first[:, 0] = True
        with autocast(self.model, self.precision):
            return logits_at(self.model, first, **batch.inputs)

    def _prompt_ids(self, text: str) -> list[int]:
        ids: list[int] = self.tokenizer(text, verbose=False)["input_ids"]  # pyright: ignore[reportAssignmentType]
        self.truncated += len(ids) > self.settings.max_length
        return cut_middle(ids, self.settings.max_length)

    def _completion_ids(self, text: str) -> list[int]:
        ids: list[int] = self.tokenizer(text_target=text, verbose=False)["input_ids"]  # pyright: ignore[reportAssignmentType]
        end = self.tokenizer.eos_token_id
        return ids if ids and ids[-1] == end else [*ids, end]  # pyright: ignore[reportReturnType]

    def _packed(self, prompts: Sequence[list[int]], completions: Sequence[list[int]]) -> Tensor:
        chains = label_chains(completions, self.start)
        encoder, _ = self._encoder_inputs(prompts)
        n, s = len(prompts), len(chains.tokens)
        ids = chains.tokens.to(model_device(self.model)).expand(n, s)
        logits = logits_at(
            self.model,
            torch.ones(n, s, dtype=torch.bool),
            decoder_input_ids=ids,
            decoder_attention_mask=self._chain_mask(chains, n),
            **encoder,
        )
        return tree_scores(logits.view(n, s, -1), chains, self.settings.label_score)

    def _exhaustive(self, prompts: Sequence[list[int]], completions: Sequence[list[int]]) -> Tensor:
        return exhaustive_scores(self._log_likelihood, prompts, completions, self.settings.label_score)

    def _log_likelihood(self, prompts: Sequence[Sequence[int]], completions: Sequence[Sequence[int]]) -> Tensor:
        encoder, _ = self._encoder_inputs(prompts)
        decoder, targets, wanted = self._decoder_inputs(completions)
        logits = logits_at(self.model, wanted, decoder_input_ids=decoder, **encoder)
        loss = functional.cross_entropy(at_least_fp32(logits), targets[wanted], reduction="none")
        return -loss.new_zeros(len(prompts)).index_add(0, wanted.nonzero()[:, 0], loss)

    def _generate(self, prompts: Sequence[list[int]]) -> list[str]:
        return greedy_from_encoder(self.model, self.tokenizer, prompts, self.settings.max_new_tokens)

    def _encoder_inputs(
        self, prompts: Sequence[Sequence[int]], unlike: int | None = None
    ) -> tuple[dict[str, Tensor], Tensor]:
        """Padded ids and their mask, by one more position where they would be `unlike` long."""
        ids, mask = self._padded(prompts)
        if ids.shape[1] == unlike:
            ids = functional.pad(ids, (0, 1), value=self.tokenizer.pad_token_id)  # pyright: ignore[reportArgumentType]
            mask = functional.pad(mask, (0, 1), value=False)
        return {"input_ids": ids, "attention_mask": mask.long()}, mask

    def _padded(self, rows: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
        """Ids and the mask of real positions, on the model's device."""
        ids, mask = padded(rows, self.tokenizer.pad_token_id)  # pyright: ignore[reportArgumentType]
        device = model_device(self.model)
        return ids.to(device), mask.to(device)

    def _decoder_inputs(self, completions: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor, Tensor]:
        """What the decoder is fed [N, length], what it should predict there, and where that counts."""
        targets, wanted = self._padded(completions)
        fed = targets.roll(1, dims=1)
        fed[:, 0] = self.start
        return fed, targets, wanted

    def _chain_mask(self, chains: LabelTree, n: int) -> Tensor:
        """Additive mask [n, 1, S, S]: every label text sees itself only."""
        mask = torch.zeros(chains.sees.shape, dtype=model_dtype(self.model)).masked_fill_(~chains.sees, BLOCKED)
        return mask.to(model_device(self.model)).expand(n, 1, *mask.shape)


def _start_token(model: PreTrainedModel, name: str) -> int:
    """The token the decoder begins with.

    Raises:
        ConfigError: the model's configuration does not say.
    """
    start = getattr(model.config, "decoder_start_token_id", None)
    if start is None:
        raise ConfigError(
            f"'{name}' does not say which token its decoder begins with; set `decoder_start_token_id` in its config.json."
        )
    return int(start)
