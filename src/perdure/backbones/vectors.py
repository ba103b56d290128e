"""One vector for a prompt: the mean over its tokens of what a layer in the middle of a language model holds."""

from __future__ import annotations

import inspect
from abc import abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from perdure.backbones.device import autocast, model_device
from perdure.backbones.pretrained import answering
from perdure.backbones.tokens import in_batches, padded
from perdure.backbones.trials import Trials
from perdure.tasks.task import Example, Task

READ_AT = 0.6
"""Share of the layers that a vector is read after: the first hold words, the last turn towards the next token (measured in
benchmarks/head)."""


def prompt_vectors(trunk: nn.Module, ids: Tensor, mask: Tensor) -> Tensor:
    """Mean hidden state [N, D] fp32 over the real positions of `ids` [N, length], read in the middle of the layers.

    Args:
        trunk: the model without its vocabulary head; of an encoder-decoder the encoder.
        mask: True at real positions.
    """
    no_cache = {"use_cache": False} if "use_cache" in inspect.signature(trunk.forward).parameters else {}
    found = trunk(input_ids=ids, attention_mask=mask.long(), output_hidden_states=True, **no_cache)
    layers = getattr(found, "hidden_states", None) or (found.last_hidden_state,)
    hidden_NLD = layers[round(READ_AT * (len(layers) - 1))]
    if hidden_NLD.ndim != 3:  # Gemma 3n keeps several streams until the end
        hidden_NLD = found.last_hidden_state
    hidden_NLD = hidden_NLD.float()
    return torch.where(mask[..., None], hidden_NLD, 0).sum(dim=1) / mask.sum(dim=1, keepdim=True)


class GivesVectors(Trials):
    """The part of a language model that reads a prompt as one vector."""

    @property
    @abstractmethod
    def _reader(self) -> nn.Module:
        """What reads prompts, without a vocabulary head."""

    @abstractmethod
    def _asked(self, example: Example, tasks: Sequence[Task] = ()) -> list[int]:
        """Ids of the example's prompt."""

    def vectors(self, examples: Sequence[Example]) -> Tensor:
        """See `prompt_vectors`, [N, D]."""
        prompts = [self._asked(example) for example in examples]

        def work(chosen: list[int]) -> Tensor:
            ids, mask = padded([prompts[i] for i in chosen], self.tokenizer.pad_token_id)  # pyright: ignore[reportArgumentType]
            device = model_device(self.model)
            with autocast(self.model, self.precision):
                return prompt_vectors(self._reader, ids.to(device), mask.to(device))

        lengths = [len(ids) for ids in prompts]
        with answering(self.model):
            rows = in_batches(lengths, self.settings.predict_batch_size, work, lengths if self._mixes else None)
        return torch.stack(rows)
