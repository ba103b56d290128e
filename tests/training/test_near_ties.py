"""Answers in bf16 whose two best labels are as good as equal."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from perdure.backbones.base import Prediction
from perdure.backbones.causal import CausalLM, CausalSettings
from perdure.tasks.task import Example, Task
from perdure.training.near_ties import near_tie, settled
from tests.backbones.tiny import tiny_causal


def shares(best: float, second: float) -> tuple[float, ...]:
    return second, 1 - best - second, best


@pytest.mark.parametrize(
    ("probabilities", "near"),
    [
        (shares(0.45, 0.4), True),  # log .45 - log .4 = .12 < .12 (2 + .80 + .92)
        (shares(0.6, 0.3), False),  # .69 > .12 (2 + .51 + 1.20)
        ((1.0, 0.0), False),
        ((1.0,), False),
        ((), False),  # written, not chosen
    ],
)
def test_near_ties_by_hand(probabilities: tuple[float, ...], near: bool) -> None:
    assert near_tie(Prediction("a", probabilities)) is near


class Rounding:
    """Answers "rough" in bf16 and "exact" in fp32; texts say how sure it is."""

    def __init__(self, dtype: torch.dtype, precision: str) -> None:
        self.model, self.precision = torch.nn.Linear(1, 1, dtype=dtype), precision
        self.asked: list[int] = []

    def predict(self, examples: Sequence[Example], labels: Sequence[str]) -> list[Prediction]:
        self.asked.append(len(examples))
        said = "rough" if self.precision == "bf16" else "exact"
        return [Prediction(said, (0.9, 0.1) if example.text == "sure" else (0.51, 0.49)) for example in examples]


@pytest.mark.parametrize(
    ("dtype", "precision", "said", "asked"),
    [
        (torch.float32, "bf16", ["rough", "exact", "rough", "exact"], [4, 2]),
        (torch.float32, "fp32", ["exact"] * 4, [4]),
        (torch.bfloat16, "bf16", ["rough"] * 4, [4]),  # no fp32 weights to ask
    ],
)
def test_only_near_ties_are_asked_again(dtype, precision, said, asked) -> None:
    backbone = Rounding(dtype, precision)
    examples = [Example(text, "rough") for text in ("sure", "torn", "sure", "torn")]
    answers = settled(backbone, examples, ["task"], backbone.predict(examples, ["task"]))  # pyright: ignore[reportArgumentType]
    assert [answer.label for answer in answers] == said
    assert backbone.asked == asked
    assert backbone.precision == precision


def test_a_text_is_answered_alike_alone_and_among_others(tmp_path: Path) -> None:
    folder = tiny_causal(tmp_path)
    labels = {f"{i}": f"number {i}" for i in range(40)}  # so many that some are nearly equal
    examples = [Example(f"{'long ' * (i % 7)}text number {i}", "1") for i in range(100)]
    task = Task("forty", examples[:6], test=examples, labels=labels)

    def answers(size: int, **settings) -> list[Prediction]:
        backbone = CausalLM.load(
            CausalSettings(model=str(folder), predict_batch_size=size, label_score="mean", **settings)
        )
        backbone.prepare([task])
        backbone.precision = "bf16"
        parts = [examples[i : i + size] for i in range(0, len(examples), size)]
        return [p for part in parts for p in settled(backbone, part, ["forty"], backbone.predict(part, ["forty"]))]

    among, alone = answers(32), answers(1, ranking="exhaustive", share_prefix=False)
    assert [p.label for p in among] == [p.label for p in alone]
    for one, other in zip(among, alone, strict=True):
        assert [math.log(p) for p in one.probabilities] == pytest.approx(
            [math.log(p) for p in other.probabilities], abs=0.06
        )
