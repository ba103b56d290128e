"""The step: accumulation and ragged batches change nothing; penalties are added once; divergence is an error."""

from __future__ import annotations

import math

import pytest
import torch

from perdure.backbones.base import Batch, Outputs
from perdure.config.run_config import TrainingSettings
from perdure.errors import Diverged, UnmetNeed
from perdure.files.durable import read_lines
from perdure.methods.contract.build import check_needs
from perdure.methods.contract.context import Need
from perdure.methods.contract.parts import BatchPenalty, Method
from perdure.methods.l2 import SquaredNorm
from perdure.methods.output_drift import OutputDrift
from perdure.methods.plain import Kaiming, Sum
from perdure.ops.lowrank import dense
from perdure.state.store import Store
from perdure.tasks.task import Example
from perdure.training.processes import ALONE
from perdure.training.state import Average, Training
from perdure.training.train import _backward, add_weight_penalties, cut_batches
from tests.contract.runs import short_run
from tests.methods.two_layers import context


def _adapter(out):
    from perdure.adapters.folder import open_adapter

    return open_adapter(Store(out).stage_folder(1) / "adapter")


@pytest.mark.parametrize("accumulation", [2, 3, 8])
def test_accumulation_is_memory_not_mathematics(accumulation, tmp_path, small_tasks, encoder_folder):
    """Three steps, the last ragged, end in the same update; a penalty counted once a micro-batch would end in another.

    At the first step B = 0 and the penalty has no gradient: it takes further ones to see it. Its gradient
    is then about as long as the loss's, and nothing is clipped, so that neither hides a factor.
    """

    def learnt(name, weight, count):
        method = {"preset": "l2", "penalties": {"l2": {"weight": weight}}}
        training = {"epochs": 1, "batch_size": 7, "accumulation": count, "learning_rate": 1e-2, "max_grad_norm": None}
        short_run(tmp_path / name, small_tasks[:1], encoder_folder, method, training=training)  # 20 examples
        adapter = _adapter(tmp_path / name)
        return torch.cat([dense(adapter[module]).flatten() for module in adapter])

    one, many = learnt("one", 0.2, 1), learnt("many", 0.2, accumulation)
    multiplied = learnt("multiplied", 0.2 * accumulation, 1)
    assert (many - one).norm() < 1e-3 * (multiplied - one).norm()
    logs = [read_lines(Store(tmp_path / n).stage_folder(1) / "log.jsonl") for n in ("one", "many")]
    assert [row["step"] for row in logs[0]] == [1, 2, 3]
    for ours, theirs in zip(*logs, strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-5)
        assert ours["penalties"]["l2"] == pytest.approx(theirs["penalties"]["l2"], rel=1e-3)


class Slope(BatchPenalty):
    """The factor p times the mean of the batch's numbers."""

    def loss(self, ctx, batch, outputs):
        return outputs.features * torch.tensor([float(one.text) for one in batch.examples]).mean()


class Line:
    """Loss p times the mean number, of which there are `terms` terms an example."""

    def __init__(self, terms):
        self.p, self._terms = torch.tensor(2.0, requires_grad=True), terms

    def collate(self, examples):
        return Batch(examples, {}, count=sum(self._terms[one.text] for one in examples))

    def forward(self, batch):
        numbers = [(float(one.text), self._terms[one.text]) for one in batch.examples]
        return Outputs(self.p * sum(n * t for n, t in numbers) / batch.count, self.p)


@pytest.mark.parametrize("accumulation", [1, 2, 3, 5])
def test_a_batch_penalty_counts_by_examples_the_loss_by_terms(accumulation):
    """Numbers 1, 2, 3, 4, 10 with 1, 1, 1, 1, 6 terms: mean 4 over examples, 7 over terms; at p = 2 with weight 3.

    The loss is 2 * 7 = 14, the penalty 3 * 2 * 4 = 24, the gradient of p 7 + 3 * 4 = 19; ragged micro-batches change nothing.
    """
    examples = [Example(text, "a", "t") for text in ("1", "2", "3", "4", "10")]
    line = Line({"1": 1, "2": 1, "3": 1, "4": 1, "10": 6})
    method = Method("m", Kaiming(), Sum(), penalties={"slope": Slope(weight=3)})
    loss, penalties = _backward(line, method, context(), examples, accumulation, ALONE)
    assert loss == pytest.approx(14)
    assert penalties == {"slope": pytest.approx(24)}
    assert line.p.grad == pytest.approx(19)


def test_a_share_of_the_task_gradient(tmp_path, small_tasks, encoder_folder):
    method = {"preset": "l2", "penalties": {"l2": {"gradient_share": 0.25}}}
    short_run(tmp_path / "run", small_tasks[:1], encoder_folder, method)
    rows = read_lines(Store(tmp_path / "run").stage_folder(1) / "log.jsonl")
    assert rows[0]["shares"]["l2"] == 0  # at the start B = 0 and the penalty has no gradient to share
    assert [row["shares"]["l2"] for row in rows[1:]] == pytest.approx([0.25] * (len(rows) - 1))


def test_under_an_offset_the_first_step_has_nothing_to_share(tmp_path, small_tasks, encoder_folder):
    """LoRA-GA starts with large A and B, but with an update of exactly 0: no rounding is blown up to the share."""
    method = {"preset": "lora-ga", "penalties": {"l2": {"gradient_share": 0.5}}}
    short_run(tmp_path / "run", small_tasks[:1], encoder_folder, method)
    rows = read_lines(Store(tmp_path / "run").stage_folder(1) / "log.jsonl")
    assert (rows[0]["shares"]["l2"], rows[0]["penalties"]["l2"]) == (0, 0)
    assert [row["shares"]["l2"] for row in rows[1:]] == pytest.approx([0.5] * (len(rows) - 1))


def test_shares_by_hand():
    """The loss's gradient is 3 at one entry of A; under B = 1 the penalty's is on both factors. Without either: 0, or none."""
    ctx = context()
    ctx.model.start(Kaiming().start(ctx))
    shares = {}
    for name, loss_has, penalty_has in (
        ("both", True, True),
        ("loss", True, False),
        ("penalty", False, True),
        ("", False, False),
    ):
        for module in ctx.model.modules.values():
            module.B.data.fill_(float(penalty_has))  # at B = 0 the penalty has no gradient
            module.A.grad = torch.zeros_like(module.A)
            module.B.grad = None
            module.A.grad[0, 0] = 3.0 * loss_has
        method = Method("m", Kaiming(), Sum(), {"l2": SquaredNorm(weight=0.5)})
        values: dict[str, float] = {}
        shares[name] = add_weight_penalties(ctx.model, method, ctx, values)["l2"]
    assert shares["both"] > 0
    assert (shares["loss"], shares["penalty"], shares[""]) == (0.0, None, 0.0)


def test_divergence_names_task_and_step_and_keeps_finished_tasks(tmp_path, small_tasks, encoder_folder, monkeypatch):
    from perdure.backbones.encoder import Encoder

    real, calls = Encoder.forward, []

    def explodes(self, batch):
        calls.append(batch)
        outputs = real(self, batch)
        return outputs if len(calls) < 5 else type(outputs)(outputs.loss * math.nan, outputs.features)

    monkeypatch.setattr(Encoder, "forward", explodes)
    with pytest.raises(Diverged, match=r"Task 'sky', step 2 of 3.*Lower training\.learning_rate"):
        short_run(tmp_path / "run", small_tasks[:2], encoder_folder, "inc-lora")
    assert Store(tmp_path / "run").stages() == ["fruit"]


def test_batches_hold_every_example_once_and_similar_lengths_together():
    examples = [Example("x" * (i % 13), str(i)) for i in range(50)]
    batches = cut_batches(examples, 8, torch.Generator().manual_seed(0), lambda e: len(e.text))
    assert sorted(int(e.label) for batch in batches for e in batch) == list(range(50))
    assert sorted(map(len, batches)) == [2, 8, 8, 8, 8, 8, 8]
    spread = [max(len(e.text) for e in b) - min(len(e.text) for e in b) for b in batches]
    assert sum(spread) / len(spread) < 4


def test_averaging_the_last_half_changes_the_adapter(tmp_path, small_tasks, encoder_folder):
    for average in ("none", "last-half"):
        training = {"epochs": 2, "batch_size": 8, "learning_rate": 0.01, "average": average}
        short_run(tmp_path / average, small_tasks[:1], encoder_folder, "inc-lora", training=training)
    kept, averaged = _adapter(tmp_path / "none"), _adapter(tmp_path / "last-half")
    assert any(not torch.equal(kept[name].B, averaged[name].B) for name in kept)


def averaged(*values: float, first: int) -> float:
    """One parameter takes the values after steps 0, 1, ...; its mean from step `first` on."""
    parameter = torch.zeros(1)
    average = Average([parameter], first)
    for step, value in enumerate(values):
        parameter.fill_(value)
        average.take(step)
    average.give()
    return parameter.item()


def test_the_last_half_by_hand():
    """5 steps: the last 3 count; 4 steps: the last 2; 1 step: itself."""
    assert averaged(1, 2, 3, 4, 5, first=5 // 2) == 4
    assert averaged(1, 2, 3, 4, first=4 // 2) == 3.5
    assert averaged(7, first=1 // 2) == 7


@pytest.mark.parametrize("done", range(5))
def test_the_last_half_goes_on_from_what_was_written_down(done):
    parameter = torch.zeros(1)
    before, after = Average([parameter], 2), Average([parameter], 2)
    for step, value in enumerate([1.0, 2.0, 3.0, 4.0, 5.0]):
        if step == done:
            after.load([total.clone() for total in before.sums], done)
        parameter.fill_(value)
        (before if step < done else after).take(step)
    after.give()
    assert parameter.item() == 4


def test_a_training_averages_the_last_half_of_its_steps():
    """48 examples in batches of 10, twice: steps 0 to 9, of which 5 to 9 count."""
    ctx = context()
    ctx.model.start(Kaiming().start(ctx))
    training = Training(ctx.model, ctx, TrainingSettings(epochs=2, batch_size=10, average="last-half"))
    assert training.total == 10
    while training.done < training.total:
        for parameter in training.parameters:
            parameter.data.fill_(training.done)
        training.end_step()
    assert training.averaged is not None
    training.averaged.give()
    assert all(torch.equal(parameter, torch.full_like(parameter, 7.0)) for parameter in training.parameters)


@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_weight_decay_shrinks_what_has_no_gradient(decay):
    """AdamW's step without a gradient: p becomes p (1 - rate * decay)."""
    ctx = context()
    ctx.model.start(Kaiming().start(ctx))
    training = Training(ctx.model, ctx, TrainingSettings(learning_rate=0.5, weight_decay=decay))
    before = [parameter.detach().clone() for parameter in training.parameters]
    training.begin_step()
    for parameter in training.parameters:
        parameter.grad = torch.zeros_like(parameter)
    training.optimiser.step()
    assert any(parameter.any() for parameter in before)
    for parameter, old in zip(training.parameters, before, strict=True):
        torch.testing.assert_close(parameter.detach(), old * (1 - 0.5 * decay))


def test_a_smaller_rate_after_the_first_task(tmp_path, small_tasks, encoder_folder):
    training = {"epochs": 1, "batch_size": 8, "learning_rate": 0.01, "later_learning_rate_factor": 0.1}
    short_run(tmp_path / "run", small_tasks[:2], encoder_folder, "inc-lora", training=training)
    rates = [read_lines(Store(tmp_path / "run").stage_folder(i) / "log.jsonl")[0]["learning_rate"] for i in (1, 2)]
    assert rates == pytest.approx([0.01, 0.001])


def test_needs_are_checked_before_training():
    class Wants(Kaiming):
        needs = frozenset({Need.OLD_EXAMPLES})

    method = Method("m", Wants(), Sum(), {"l2": SquaredNorm(weight=1.0)})
    with pytest.raises(UnmetNeed, match=r"init: .*Wants requires examples of earlier tasks: choose a replay part"):
        check_needs(method, [Need.DENSE_BASE])


def test_a_setting_may_need_what_the_part_does_not():
    """Output drift takes the weights themselves only where it is a share of their outputs' energy."""
    given = [Need.TRAINING_DATA, Need.PAST_DATA, Need.MODULE_INPUTS]
    plain, share = (
        Method("m", Kaiming(), Sum(), {"drift": OutputDrift(weight=1.0, normalised=on)}) for on in (False, True)
    )
    check_needs(plain, given)
    with pytest.raises(UnmetNeed, match="output-drift requires a base whose weights are stored dense"):
        check_needs(share, given)


@pytest.mark.parametrize("method", ["slice", "slice-free", "loram"])
def test_rank_1_is_refused_before_anything_is_learnt(method, tmp_path, small_tasks, encoder_folder):
    with pytest.raises(UnmetNeed, match=r"requires lora\.rank 2 or more"):
        short_run(tmp_path / "run", small_tasks[:2], encoder_folder, method, lora={"rank": 1})
    assert not Store(tmp_path / "run").exists
