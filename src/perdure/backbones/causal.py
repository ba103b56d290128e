"""A causal language model as a learner: a prompt is continued by the answer's text.

The loss is over the answer's tokens, its end included; answers are ranked among the label texts, or written.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from perdure.backbones.base import Batch, Outputs
from perdure.backbones.device import autocast, model_device
from perdure.backbones.generation import greedy
from perdure.backbones.language import LanguageModel, LanguageSettings
from perdure.backbones.pretrained import check_positions, load_model, load_tokenizer
from perdure.backbones.ranking import (
    at_least_fp32,
    attention_window,
    causal_log_likelihood,
    exhaustive_scores,
    label_tree,
    logits_at,
    packed_scores,
)
from perdure.backbones.tokens import PromptFormat, cut_middle, padded
from perdure.errors import ConfigError
from perdure.tasks.task import Example

LONGEST = "backbone.max_length + max_new_tokens"


class CausalSettings(LanguageSettings):
    """How a causal language model reads and answers; see `LanguageSettings` and `ModelSettings` for the rest."""

    kind: Literal["causal"] = "causal"
    model: str = "smollm2-135m"
    chat: bool | None = None
    """use the tokenizer's chat template; None = if it has one."""
    system: str | None = None
    """system message of the chat; None = what the template does by itself."""
    separator: str = " "
    """between a plain prompt and its answer."""
    loss_on: Literal["completion", "all"] = "completion"
    """'completion', or 'all' for the prompt's tokens too."""


class CausalLM(LanguageModel):
    """Any causal language model of transformers behind the `Backbone` protocol. Use `CausalLM.load`."""

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, settings: CausalSettings) -> None:
        super().__init__(model, tokenizer, settings)
        chat = bool(tokenizer.chat_template) if settings.chat is None else settings.chat
        self._loss_on = settings.loss_on
        self.format = PromptFormat(tokenizer, chat, settings.system, settings.separator)
        if (window := attention_window(model)) is not None and window < _longest(settings):
            if settings.ranking == "packed":
                raise ConfigError(
                    f"backbone.ranking=packed would let the layers of '{settings.model}' see more than their window of {window} "
                    f"tokens ({LONGEST} = {_longest(settings)}). Set ranking to auto, or lower max_length."
                )
            self._packs = False

    @classmethod
    def load(cls, settings: CausalSettings) -> CausalLM:
        """The pretrained model and its tokenizer; for errors see `perdure.backbones.pretrained`."""
        model = load_model(AutoModelForCausalLM, settings, "causal language model")
        check_positions(model, settings.model, _longest(settings), LONGEST)
        return cls(model, load_tokenizer(settings), settings)

    def collate(self, examples: Sequence[Example]) -> Batch:
        """Prompt and answer ids, padded on the right; `count` is the number of target tokens."""
        prompts = [self._asked(example) for example in examples]
        rows = [[*prompt, *self._completion(e)] for prompt, e in zip(prompts, examples, strict=True)]
        ids, mask = padded(rows, self.tokenizer.pad_token_id)  # pyright: ignore[reportArgumentType]
        starts = torch.tensor([len(p) if self._loss_on == "completion" else 1 for p in prompts])
        targets = mask & (torch.arange(ids.shape[1]) >= starts[:, None])
        inputs = {"input_ids": ids, "attention_mask": mask.long()}
        batch = Batch(examples, inputs, int(targets.sum()), mask, extra={"targets": targets})
        return batch.to(model_device(self.model))

    def forward(self, batch: Batch) -> Outputs:
        """Mean cross-entropy over the batch's target tokens, in fp32."""
        targets = batch.extra["targets"]
        predicting = targets.roll(-1, dims=1)  # the position before each target; the first column is never a target
        with autocast(self.model, self.precision):
            logits = logits_at(self.model, predicting, **batch.inputs)
        return Outputs(functional.cross_entropy(at_least_fp32(logits), batch.inputs["input_ids"][targets]))

    def features(self, batch: Batch) -> Any:
        """A forward pass over prompts and answers; the vocabulary projection is left out but for one position a row."""
        first = torch.zeros_like(batch.extra["targets"])
        first[:, 0] = True
        with autocast(self.model, self.precision):
            return logits_at(self.model, first, **batch.inputs)

    def _prompt_ids(self, text: str) -> list[int]:
        ids = self.format.prompt(text)
        self.truncated += len(ids) > self.settings.max_length
        return cut_middle(ids, self.settings.max_length)

    def _completion_ids(self, text: str) -> list[int]:
        return self.format.completion(text)

    def _start_ids(self) -> list[int]:
        return self.format.start()

    def _text_ids(self, text: str) -> list[int]:
        return self.format.plain(text)

    def _packed(self, prompts: Sequence[list[int]], completions: Sequence[list[int]]) -> Tensor:
        return packed_scores(self.model, prompts, label_tree(completions), self.settings.label_score)

    def _exhaustive(self, prompts: Sequence[list[int]], completions: Sequence[list[int]]) -> Tensor:
        return exhaustive_scores(self._log_likelihood, prompts, completions, self.settings.label_score)

    def _log_likelihood(self, prompts: Sequence[Sequence[int]], completions: Sequence[Sequence[int]]) -> Tensor:
        return causal_log_likelihood(self.model, prompts, completions)

    def _generate(self, prompts: Sequence[list[int]]) -> list[str]:
        return greedy(self.model, self.tokenizer, prompts, self.settings.max_new_tokens)


def _longest(settings: CausalSettings) -> int:
    """Tokens of a prompt and its answer at most."""
    return settings.max_length + settings.max_new_tokens
