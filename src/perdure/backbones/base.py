"""What the loop needs of a model: examples -> batch -> loss, and examples -> predictions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from perdure.errors import DataError
from perdure.tasks.task import Example, Task, same_task


@dataclass(frozen=True, eq=False)
class Batch:
    """Examples ready for one forward pass.

    Args:
        examples: in the order of the tensors' rows.
        inputs: the model's keyword arguments.
        count: number of terms in the mean loss (examples, or target tokens), or the sum of their weights: the weight of a
            micro-batch.
        mask: [n, length] bool, True at real positions (input statistics skip padding); None: no padding.
        decoder_mask: the same for the answers of an encoder-decoder. Its length differs from `mask`'s: that tells them apart.
        extra: whatever else the backbone needs for its loss.
        weights: [terms] what each term counts in the mean loss; None: all the same. See `perdure.backbones.losses`.
        smoothing: share of each target that is spread evenly over all answers.
    """

    examples: Sequence[Example]
    inputs: dict[str, Tensor]
    count: float
    mask: Tensor | None = None
    decoder_mask: Tensor | None = None
    extra: dict[str, Any] = field(default_factory=dict)
    weights: Tensor | None = None
    smoothing: float = 0.0

    def to(self, device: torch.device) -> Batch:
        """The batch on `device`."""
        return Batch(**tree_map_only(Tensor, lambda tensor: tensor.to(device), vars(self)))

    def real(self, inputs: Tensor) -> Tensor:
        """A module's inputs [n, length, I] at real positions, [positions, I]; all of them if no mask has that length."""
        for mask in (self.mask, self.decoder_mask):
            if mask is not None and mask.shape == inputs.shape[:-1]:
                return inputs[mask]
        return inputs.reshape(-1, inputs.shape[-1])


@dataclass(frozen=True, eq=False)
class Outputs:
    """One forward pass: `loss`, the mean over the batch's terms, and `features` the backbone may reuse."""

    loss: Tensor
    features: Any = None


@dataclass(frozen=True, eq=False)
class NextTokens:
    """What a language model thinks of the next tokens of answers.

    Args:
        logits: [T, V], fp32 or float64, at the positions before the target tokens, example by example.
        targets: [N], how many of these rows each example has.
    """

    logits: Tensor
    targets: Tensor


@dataclass(frozen=True)
class Prediction:
    """An answer: the label (or generated text); for a choice also the probability of each option in order, and the label's task.

    `options` are the (task, label) of the probabilities, one for labels that read the same; empty: all those asked for.
    `wanted` is the correct answer of a chat as the model would write it (with its reasoning or tool calls); empty: the label.
    For a text learnt as it is: only its negative log-likelihood in `nats` and its number of `tokens`.
    """

    label: str
    probabilities: tuple[float, ...] = ()
    task: str = ""
    nats: float | None = None
    tokens: int = 0
    options: tuple[tuple[str, str], ...] = ()
    wanted: str = ""


def best_of_tasks(
    score_NC: Tensor,
    classes: Sequence[tuple[str, str]],
    texts: Sequence[Sequence[str]],
    read: Callable[[str], Hashable],
    tasks: Sequence[str],
) -> list[Prediction]:
    """For each row the best of the `classes` (task, label) of several tasks; those whose texts say the same are one.

    Texts that are read as the same tokens have one score, that of the first; the shares of texts that differ in case or spacing
    only are added up. A class is called by the label of the row's own task (`tasks`, in any version) where that is among the
    equal ones, else by the first.

    Args:
        texts: for each row the texts [C] behind the classes. read: a text as the model reads it.
    """
    owners = [task for task, _ in classes]
    known: dict[tuple[str, ...], tuple[list[int], list[int]]] = {}
    for own in dict.fromkeys(map(tuple, texts)):
        ids = [read(text) for text in own]
        known[own] = _firsts(ids), _firsts(_meanings(owners, own, ids))
    scored_NC, class_NC = (torch.tensor([known[tuple(own)][i] for own in texts]) for i in (0, 1))
    first_NC = scored_NC == torch.arange(len(classes))
    share_NC = score_NC.masked_fill(~first_NC.to(score_NC.device), -torch.inf).softmax(dim=1).cpu()
    share_NC = torch.zeros_like(share_NC).scatter_add_(1, class_NC, share_NC)
    answers = []
    for shares, best, same, task in zip(
        share_NC.tolist(), share_NC.argmax(dim=1).tolist(), class_NC.tolist(), tasks, strict=True
    ):
        named = {first: classes[first] for first in dict.fromkeys(same)}
        for column in reversed(range(len(same))):
            if same_task(owners[column], task):
                named[same[column]] = classes[column]
        owner, label = named[best]
        answers.append(Prediction(label, tuple(shares[c] for c in named), owner, options=tuple(named.values())))
    return answers


def _firsts(values: Sequence[Hashable]) -> list[int]:
    """For each value the place of the first that equals it."""
    places: dict[Hashable, int] = {}
    return [places.setdefault(value, i) for i, value in enumerate(values)]


def _meanings(owners: Sequence[str], texts: Sequence[str], ids: Sequence[Hashable]) -> list[Hashable]:
    """What each text says: its words whatever their case and spacing, or its tokens if they tell two labels of a task apart."""
    words = dict[Hashable, str]()
    said = [words.setdefault(own, " ".join(text.casefold().split())) for text, own in zip(texts, ids, strict=True)]
    told = {(owner, word, own) for owner, word, own in zip(owners, said, ids, strict=True)}
    both = Counter((owner, word) for owner, word, _ in told)
    apart = {word for (_, word), count in both.items() if count > 1}
    return [own if word in apart else word for word, own in zip(said, ids, strict=True)]


def most_probable(probability_NC: Tensor, classes: Sequence[tuple[str, str]]) -> list[Prediction]:
    """For each row the most probable of the `classes` (task, label); the first of equals."""
    chosen = [classes[best] for best in probability_NC.argmax(dim=1).tolist()]
    return [
        Prediction(label, tuple(row), task) for (task, label), row in zip(chosen, probability_NC.tolist(), strict=True)
    ]


def class_targets(examples: Sequence[Example], classes: Sequence[tuple[str, str]]) -> dict[str, Tensor]:
    """`targets` [N], each example's place among the `classes` (task, label), and `allowed` [N, C], those of its task."""
    index = {each: i for i, each in enumerate(classes)}
    return {
        "targets": torch.tensor([index[example.task, example.label] for example in examples]),
        "allowed": torch.tensor([[task == example.task for task, _ in classes] for example in examples]),
    }


def refuse_chats(task: Task, kind: str) -> None:
    """Raise DataError for a task of chats, which `kind` of model does not read."""
    if task.chats:
        raise DataError(
            f"Task '{task.name}': chats need a language model with a chat template (backbone.kind=causal, a model tuned for "
            f"chat); {kind} reads texts and labels."
        )


class Backbone(Protocol):
    """A model that can learn from examples and answer.

    `precision` is set by the loop before anything runs: 'bf16' computes under autocast, the weights stay fp32.
    `truncated` counts the texts longer than `max_length`, which were cut.
    `default_targets` are the layers LoRA adapts if none are named; ConfigError if the model's layers are not known.
    `answers_from_examples`: whether answers (and what is saved) depend on the tasks' training examples.
    """

    model: nn.Module
    precision: Literal["fp32", "bf16"]

    @property
    def truncated(self) -> int: ...

    @property
    def default_targets(self) -> tuple[str, ...]: ...

    @property
    def answers_from_examples(self) -> bool: ...

    def prepare(self, tasks: Iterable[Task]) -> None:
        """Register tasks (label sets, cached tokens); called before anything else, and again for new tasks."""

    def collate(self, examples: Sequence[Example]) -> Batch:
        """Examples, possibly of several tasks, as one batch."""
        ...

    def forward(self, batch: Batch) -> Outputs:
        """One differentiable forward pass."""
        ...

    def features(self, batch: Batch) -> Any:
        """The forward pass over the inputs alone; input statistics are measured while it runs."""

    def vectors(self, examples: Sequence[Example]) -> Tensor:
        """One vector for each example's input, [N, D] in fp32, of the model as it stands; the answer is not read."""
        ...

    def scores(self, batch: Batch, outputs: Outputs | None, task: str) -> Tensor:
        """Scores [N, labels] of the batch's inputs under the labels of `task`; reuses `outputs` if given."""
        ...

    def length(self, example: Example) -> int:
        """Size of an example, for batches of similar ones."""
        ...

    def predict(self, examples: Sequence[Example], labels: Sequence[str]) -> list[Prediction]:
        """An answer for each example, chosen among the label sets of the tasks named in `labels`."""
        ...

    def save(self, folder: Path, state_dict: dict[str, Tensor]) -> None:
        """Write the bare model with these weights (and its tokenizer) in transformers' format."""


class Writer(Backbone, Protocol):
    """A backbone whose tasks may have no labels: free text."""

    def next_tokens(self, batch: Batch) -> NextTokens:
        """Differentiable scores of all next tokens at the batch's targets."""
        ...
