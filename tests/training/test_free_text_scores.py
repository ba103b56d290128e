"""Scores of free text: what `stream_scores` gives against slow references, on two layers and on a tiny causal model."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from perdure.backbones.base import Batch, NextTokens
from perdure.backbones.causal import CausalLM, CausalSettings
from perdure.backbones.ranking import logits_at
from perdure.backbones.seq2seq import Seq2SeqLM, Seq2SeqSettings
from perdure.backbones.toy import HIDDEN, INPUTS, Toy, toy_task
from perdure.config.lora_settings import LoraSettings
from perdure.methods.contract.past import Past
from perdure.methods.plain import Kaiming
from perdure.methods.score_drift import ScoreDrift
from perdure.ops.combinations import draw
from perdure.tasks.task import Stage, Task
from perdure.training.context import StageContext
from perdure.training.lora import AdaptedModel
from tests.backbones.tiny import tiny_causal, tiny_seq2seq

ROWS = [("a", "xyz"), ("bc", "q"), ("def", "no"), ("a b", "yes ")]


def started(backbone: Any, task: Task, targets: tuple[str, ...] = ()) -> StageContext:
    """A stage of one task whose adapter has started and changes the function, all in float64."""
    backbone.model.double()
    backbone.prepare([task])
    model = AdaptedModel(backbone.model, LoraSettings(rank=2), targets or backbone.default_targets)
    ctx = StageContext(Stage(task.name, (task,)), 0, Past(), {}, model, backbone, {}, seed=0)
    model.start(Kaiming().start(ctx))
    generator = torch.Generator().manual_seed(1)
    for module in model.modules.values():
        module.B.data.copy_(torch.randn(module.B.shape, generator=generator) / 10)
    return ctx


def streamed(ctx: StageContext, *batches: Any) -> dict[str, tuple[Tensor, Tensor]]:
    """Module -> its inputs and gradients, in the order they came."""
    found: dict[str, list[tuple[Tensor, Tensor]]] = defaultdict(list)
    ctx.stream_scores(batches, lambda module, use, x, g: found[module].append((x.double(), g.double())))
    return {n: (torch.cat([x for x, _ in pairs]), torch.cat([g for _, g in pairs])) for n, pairs in found.items()}


class Talker(Toy):
    """The toy as a language model of one-token answers: its eight units are the vocabulary."""

    def collate(self, examples: Any) -> Batch:
        x = torch.stack([torch.randn(INPUTS, generator=torch.Generator().manual_seed(int(e.text))) for e in examples])
        return Batch(examples, {"x": x.double()}, len(examples))

    def next_tokens(self, batch: Batch) -> NextTokens:
        return NextTokens(self.features(batch), torch.ones(len(batch.examples), dtype=torch.long))


def test_two_layers_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """g = e_y - p at `second`, (1 - h^2) W2^T (e_y - p) at `first`; C and F are means of their outer products. float64."""
    rows = [(example.text, "said") for example in toy_task(0).train]
    talker = Talker()
    ctx = started(talker, Task("said", rows, test=rows[:1]))
    monkeypatch.setattr(Tensor, "float", Tensor.double)  # what is handed on is fp32; here all digits count
    part = ScoreDrift(weight=1.0, batch_size=48)
    part.after_task(ctx, {})

    (examples,) = ctx.batches(ctx.stage.train, 48, "score-drift")
    weights = {n: m.weight(n, None).double() + m.scaling * (m.B @ m.A).detach() for n, m in ctx.model.modules.items()}
    x = talker.collate(examples).inputs["x"]
    h = torch.tanh(x @ weights["first"].mT + talker.model.first.bias)
    p = (h @ weights["second"].mT + talker.model.second.bias).softmax(dim=1)
    g2 = torch.nn.functional.one_hot(draw(p.log(), ctx.generator("drawn tokens")), 8) - p
    g1 = (g2 @ weights["second"]) * (1 - h * h)
    for module, inputs, outputs in (("first", x, g1), ("second", h, g2)):
        assert inputs.shape[1] in (INPUTS, HIDDEN)
        C, F = sum(v.outer(v) for v in inputs) / 48, sum(v.outer(v) for v in outputs) / 48
        torch.testing.assert_close(part.state()[f"inputs.0.{module}"], C, rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(part.state()[f"outputs.0.{module}"], F, rtol=1e-10, atol=1e-12)


def causal(folder: Path, **settings: Any) -> CausalLM:
    return CausalLM.load(CausalSettings(model=str(tiny_causal(folder)), max_length=64, attention="eager", **settings))


def exact_fisher(ctx: StageContext, module: str) -> Tensor:
    """F of one example, from its Jacobian row by row: sum over positions q of 1/T sum_i J_iq^T (diag p_i - p_i p_i^T) J_iq."""
    outputs: list[Tensor] = []
    handle = ctx.model.modules[module].layer.register_forward_hook(lambda _m, _i, output: outputs.append(output))
    batch = ctx.backbone.collate(ctx.stage.train[:1])
    logits = logits_at(ctx.backbone.model, batch.extra["predicting"], **batch.inputs)
    handle.remove()
    size = outputs[0].shape[-1]
    total = torch.zeros(size, size, dtype=torch.float64)
    for row in logits:
        jacobian_VQO = torch.stack(
            [torch.autograd.grad(row[v], outputs[0], retain_graph=True)[0][0] for v in range(len(row))]
        )
        p = row.detach().softmax(dim=0)
        for q in range(jacobian_VQO.shape[1]):
            J = jacobian_VQO[:, q]
            total += J.mT @ (p.diag() - p.outer(p)) @ J / len(logits)
    return total


def test_the_factors_are_the_gauss_newton_matrix_on_average(tmp_path: Path) -> None:
    """600 draws of one example: 20 random quadratic forms of F, each within 4.5 standard errors of autograd's exact one."""
    task = Task("t", [("ab", "xy")], test=[("a", "x")])
    ctx = started(causal(tmp_path), task)
    draws, forms = 600, 20
    for module in ("model.layers.0.self_attn.v_proj", "model.layers.1.self_attn.q_proj"):
        exact = exact_fisher(ctx, module)
        _, g = streamed(ctx, ctx.stage.train[:1] * draws)[module]
        u = torch.randn(forms, len(exact), generator=torch.Generator().manual_seed(2), dtype=torch.float64)
        squares = (g @ u.mT).square().view(draws, -1, forms).sum(dim=1)  # u^T g g^T u, summed over positions
        error = squares.std(dim=0) / draws**0.5
        wanted = ((u @ exact) * u).sum(dim=1)
        assert float(((squares.mean(dim=0) - wanted) / error).abs().max()) < 4.5
        assert float((error / wanted).max()) < 0.2  # the interval is narrow enough to tell a factor of two


@pytest.mark.parametrize("kind", ["causal", "seq2seq", "plain texts", "all tokens"])
def test_padding_and_batch_mates_change_nothing(kind: str, tmp_path: Path) -> None:
    """Examples of unequal lengths in one batch, against each alone with the tokens that were drawn for it."""
    if kind == "seq2seq":
        backbone: Any = Seq2SeqLM.load(Seq2SeqSettings(model=str(tiny_seq2seq(tmp_path)), max_length=64))
    else:
        backbone = causal(tmp_path, loss_on="all" if kind == "all tokens" else "completion")
    metric = {"metric": "inverse-perplexity"} if kind == "plain texts" else {}
    task = Task("t", ROWS, test=ROWS, **metric)
    ctx = started(backbone, task)
    together = streamed(ctx, ctx.stage.train)
    tokens = ctx.generator("drawn tokens")
    ctx.generator = lambda purpose: tokens  # type: ignore[method-assign]  # goes on from example to example
    alone = streamed(ctx, *([example] for example in ctx.stage.train))
    assert together.keys() == alone.keys() == ctx.model.modules.keys()
    for module, (x, g) in together.items():
        for one, other in zip((x, g), alone[module], strict=True):
            assert one.abs().sum() > 0
            torch.testing.assert_close(one.mT @ one, other.mT @ other, rtol=1e-5, atol=1e-9)


def test_a_task_with_labels_keeps_its_label_scores(tmp_path: Path) -> None:
    """Free text draws its tokens by a generator of its own: what tasks with labels give does not change beside it."""
    backbone = causal(tmp_path)
    labelled = Task("named", [("a", "x"), ("b", "y")], test=[("a", "x")], labels={"x": "good", "y": "bad"})
    free = Task("free", ROWS, test=ROWS)
    ctx = started(backbone, labelled)
    backbone.prepare([free])
    both = StageContext(Stage("both", (labelled, free)), 0, Past(), {}, ctx.model, backbone, {}, seed=0)
    own = streamed(ctx, labelled.train)
    mixed = streamed(both, [*labelled.train, *free.train])
    for module, (x, g) in own.items():
        assert torch.equal(mixed[module][0][: len(x)], x)
        assert torch.equal(mixed[module][1][: len(g)], g)
        assert len(mixed[module][0]) > len(x)
