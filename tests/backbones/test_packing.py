"""A step's examples in few rows: the same loss and gradients as in a padded row each, with less to compute."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn import functional
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from perdure.backbones.causal import CausalLM
from perdure.backbones.losses import with_objective
from perdure.backbones.packing import PADDING, TRUNK, Packed, Trunk, packed, rows_of
from perdure.errors import ConfigError
from perdure.tasks.task import Example, Task
from tests.backbones.test_mixing import NOT_PLAIN, PLAIN
from tests.backbones.test_sharing import backbone_of
from tests.backbones.tiny import tiny_causal

WORDS = "Which feeling? Options: bad, good.\n"
TEXTS = ["hi", "a much longer text than the first", "mid size", "x" * 40, "fine weather", "no"]
FEELING = Task(
    "feelings",
    [Example(text, "pos" if i % 2 else "neg") for i, text in enumerate(TEXTS)],
    test=[Example("b", "pos")],
    labels={"neg": "bad", "pos": "good"},
    template=WORDS + "{text}\n",
)
PLAIN_TEXTS = Task("texts", [Example(text, "") for text in TEXTS], test=[Example("b", "")], metric="inverse-perplexity")


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(tiny_causal(tmp_path_factory.mktemp("llama")))


def test_rows_by_hand() -> None:
    """Two examples that begin with 7 8: one row, the second behind the first, each at the positions it has alone."""
    rows = [[7, 8, 1, 2], [7, 8, 3, 4, 5]]
    targets = torch.tensor([[0, 0, 0, 1, 0], [0, 0, 0, 0, 1]], dtype=torch.bool)
    found = packed(rows, targets, width=100, trunk="row")
    assert found.ids.tolist() == [[7, 8, 3, 4, 5, 1, 2]]
    assert found.positions.tolist() == [[0, 1, 2, 3, 4, 2, 3]]
    assert found.owners.tolist() == [[TRUNK, TRUNK, 1, 1, 1, 0, 0]]
    assert found.predicting.tolist() == [[False, False, False, True, False, True, False]]
    assert found.answers.tolist() == [5, 2]
    sees = found.allowed()[0].int().tolist()
    assert sees[4] == [1, 1, 1, 1, 1, 0, 0]  # 5 sees the trunk and its own
    assert sees[6] == [1, 1, 0, 0, 0, 1, 1]  # 2 sees the trunk and its own, nothing of the other


def test_rows_behind_a_trunk_by_hand() -> None:
    """The same, with 7 8 computed once before all rows: a row holds rests alone, which see it in front."""
    rows = [[7, 8, 1, 2], [7, 8, 3, 4, 5]]
    targets = torch.tensor([[0, 0, 0, 1, 0], [0, 0, 0, 0, 1]], dtype=torch.bool)
    found = packed(rows, targets, width=100, pass_cost=2)
    assert found.trunk.tolist() == [7, 8]
    assert found.ids.tolist() == [[3, 4, 5, 1, 2]]
    assert found.positions.tolist() == [[2, 3, 4, 2, 3]]
    assert found.predicting.tolist() == [[False, True, False, True, False]]
    assert found.answers.tolist() == [5, 2]
    assert found.allowed()[0].int().tolist()[4] == [1, 1, 0, 0, 0, 1, 1]
    assert packed(rows, targets, width=100, pass_cost=3).trunk.tolist() == []  # saves 2 tokens, costs a pass


def test_a_target_right_behind_what_is_shared_keeps_its_own_predicting_token() -> None:
    """All of 7 8 is common, but 8 predicts 1 in one and 3 in the other: it belongs to each."""
    found = packed([[7, 8, 1], [7, 8, 3]], torch.tensor([[0, 0, 1], [0, 0, 1]], dtype=torch.bool), 100, "row")
    assert found.ids.tolist() == [[7, 8, 1, 8, 3]]
    assert found.answers.tolist() == [1, 3]
    assert found.positions.tolist() == [[0, 1, 2, 1, 2]]


def test_nothing_shared_where_every_token_is_learnt_and_padding_belongs_to_nobody() -> None:
    targets = torch.tensor([[0, 1, 1], [0, 1, 0], [0, 1, 1]], dtype=torch.bool)
    found = packed([[7, 8, 1], [7, 8], [7, 8, 2]], targets, width=1)  # attention is dear: a row each
    assert found.ids.shape == (3, 3)
    assert (found.owners == TRUNK).sum() == 0
    assert (found.owners == PADDING).sum() == 1
    assert sorted(found.answers.tolist()) == [1, 2, 8, 8, 8]


@pytest.mark.parametrize(
    ("lengths", "balance", "expected"),
    [
        ([3, 3, 3], 10**6, [[0, 1, 2]]),  # one row: the trunk once, 9 + 5
        ([9, 5, 4], 1, [[0], [1, 2]]),  # attention dear: 2 x 14 x 15 beats 23 x 24 and 3 x 14 x 15
    ],
)
def test_the_cheapest_number_of_rows(lengths: list[int], balance: int, expected: list[list[int]]) -> None:
    assert rows_of(lengths, 5, balance) == expected


@pytest.mark.parametrize(
    ("learnt", "trunk"), [("answers", "step"), ("answers", "row"), ("all", "step"), ("texts", "step")]
)
@pytest.mark.parametrize("name", PLAIN)
def test_the_loss_and_every_gradient_are_those_of_padded_rows(
    name: str, learnt: str, trunk: Trunk, tokenizer: PreTrainedTokenizerBase
) -> None:
    task = PLAIN_TEXTS if learnt == "texts" else FEELING
    loss_on = "all" if learnt == "all" else "completion"
    plain = backbone_of(name, tokenizer, loss_on=loss_on)
    rows = backbone_of(name, tokenizer, loss_on=loss_on, packing=True)
    losses, gradients = [], []
    rows._trunk = trunk
    for backbone in (plain, rows):
        backbone.prepare([task])
        batch = backbone.collate(task.train)
        assert ("packed" in batch.extra) == (backbone is rows)
        assert backbone is plain or (len(batch.extra["packed"].trunk) > 0) == (learnt == "answers" and trunk == "step")
        loss = backbone.forward(batch).loss
        losses.append(loss.item())
        parameters = [p for p in backbone.model.parameters() if p.is_floating_point()]
        gradients.append(torch.autograd.grad(loss, parameters, allow_unused=True))
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)
    for one, other in zip(*gradients, strict=True):
        assert (one is None) == (other is None)
        if one is not None and other is not None:
            torch.testing.assert_close(other.float(), one.float(), rtol=1e-4, atol=1e-5 * (1 + float(one.abs().max())))


def positions_computed(backbone: CausalLM, task: Task) -> int:
    seen: list[int] = []
    table: Any = backbone.model.get_input_embeddings()  # type: ignore[operator]
    hook = table.register_forward_hook(lambda _module, args, _out: seen.append(args[0].numel()))
    backbone.forward(backbone.collate(task.train))
    hook.remove()
    return sum(seen)


def test_how_much_is_computed(tokenizer: PreTrainedTokenizerBase) -> None:
    """Bytes are tokens. 35 are shared and computed once; at this width the rests (8 + 40, 47, 9 + 14 + 18) take three rows."""
    plain, rows = backbone_of("llama", tokenizer), backbone_of("llama", tokenizer, packing=True)
    plain.prepare([FEELING])
    rows.prepare([FEELING])
    rests = [rows.length(example) - 35 for example in FEELING.train]
    assert rests == [8, 40, 14, 47, 18, 9]
    assert positions_computed(rows, FEELING) == 35 + 3 * (8 + 40)
    assert positions_computed(plain, FEELING) == 6 * (35 + max(rests))


@pytest.mark.parametrize("name", NOT_PLAIN)
def test_models_that_read_neighbours_are_refused(name: str, tokenizer: PreTrainedTokenizerBase) -> None:
    with pytest.raises(ConfigError, match="packing=true would train"):
        backbone_of(name, tokenizer, packing=True)


def test_a_model_whose_loss_differs_in_packed_rows_is_refused(
    tokenizer: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A mask that lets examples see each other is found by the trial."""
    backbone = backbone_of("llama", tokenizer, packing=True)
    blind = "perdure.backbones.packing.Packed.allowed"

    def seen(self: Packed) -> torch.Tensor:
        sees = torch.ones(*self.ids.shape, self.ids.shape[1], dtype=torch.bool).tril()
        return functional.pad(sees, (len(self.trunk), 0), value=True)

    monkeypatch.setattr(blind, seen)
    backbone._rows_agree = False
    with pytest.raises(ConfigError, match="it was tried, and the loss is"):
        backbone.prepare([FEELING])


def test_weights_and_smoothing_are_those_of_padded_rows(tokenizer: PreTrainedTokenizerBase) -> None:
    """Packed rows hold the examples in another order: each target keeps its own example's weight."""
    found = []
    for backbone in (backbone_of("llama", tokenizer), backbone_of("llama", tokenizer, packing=True)):
        backbone.prepare([FEELING])
        weights = {example: 1.0 + place for place, example in enumerate(FEELING.train)}
        plain = backbone.collate(FEELING.train)
        batch = with_objective(plain, 0.1, weights.__getitem__)
        found.append((backbone.forward(batch).loss.item(), batch.count, backbone.forward(plain).loss.item()))
    (padded_loss, padded_count, unweighed), (loss, count, _) = found
    assert count == padded_count
    assert loss == pytest.approx(padded_loss, rel=1e-5)
    assert abs(loss - unweighed) > 1e-3


def test_a_model_whose_cache_passes_cannot_share_repeats_the_trunk_in_every_row(
    tokenizer: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pass that does not read what stands before it is found by the trial, in equal examples too."""
    backbone = backbone_of("llama", tokenizer, packing=True)
    assert backbone._trunk == "step"
    monkeypatch.setattr(
        "perdure.backbones.prefix._Lent.update", lambda self, keys, values, *args, **more: (keys, values)
    )
    backbone._rows_agree = False
    backbone.prepare([FEELING])
    assert backbone._trunk == "row"
    assert len(backbone.collate(FEELING.train).extra["packed"].trunk) == 0


def test_with_gradient_checkpointing_the_trunk_stands_in_every_row(tokenizer: PreTrainedTokenizerBase) -> None:
    """A pass that is computed again keeps no keys and values for the next: the gradient would lack the trunk's part."""
    assert backbone_of("llama", tokenizer, packing=True, gradient_checkpointing=True)._trunk == "row"
