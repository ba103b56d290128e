"""Texts learnt as they are: the loss, the score and a run, on tiny models."""

from __future__ import annotations

import math
import random
from pathlib import Path
from statistics import fmean, stdev

import pytest
import torch

import perdure
from perdure.backbones import load_backbone
from perdure.backbones.base import Prediction
from perdure.errors import DataError
from perdure.state.store import Store
from perdure.sweeps.record import outcome_values, run_record
from perdure.tasks.task import Example, Task
from perdure.training.evaluation import outcomes, perplexity, score
from tests.backbones.tiny import tiny_causal, tiny_encoder, tiny_seq2seq

STORIES = [("a dog ran", ""), ("the dog sat down", ""), ("dogs", ""), ("one dog more", "")]
PETS = Task("pets", train=STORIES, validation=STORIES[:1], test=STORIES[:2], metric="inverse-perplexity")


def test_perplexity_by_hand() -> None:
    """Two texts of 1 and 3 tokens, each token of probability 1/2: perplexity 2, over tokens and not over texts."""
    known = [Prediction("", nats=math.log(2), tokens=1), Prediction("", nats=3 * math.log(2), tokens=3)]
    assert perplexity(known) == pytest.approx(2)
    assert score(PETS, PETS.test, known) == pytest.approx(0.5)
    uneven = [Prediction("", nats=0.0, tokens=1), Prediction("", nats=4 * math.log(3), tokens=3)]
    assert perplexity(uneven) == pytest.approx(3)
    assert score(PETS, [], []) is None


def test_outcomes_of_texts_average_to_the_score_and_spread_as_the_jackknife_says() -> None:
    draw = random.Random(0)
    tokens = [draw.randint(5, 40) for _ in range(60)]
    known = [Prediction("", nats=count * draw.uniform(1, 3), tokens=count) for count in tokens]
    examples = PETS.test * 30
    found = outcomes(PETS, examples, known)
    assert fmean(found) == pytest.approx(score(PETS, examples, known))
    without = [1 / perplexity(known[:i] + known[i + 1 :]) for i in range(60)]
    jackknife = math.sqrt(59 / 60 * sum((each - fmean(without)) ** 2 for each in without))
    assert stdev(found) / math.sqrt(60) == pytest.approx(jackknife, rel=0.02)


@pytest.mark.parametrize("chat", [False, True])
def test_a_text_is_scored_after_the_first_token_alone(tmp_path: Path, chat: bool) -> None:
    backbone = load_backbone({"kind": "causal", "model": str(tiny_causal(tmp_path, chat=chat))})
    backbone.prepare([PETS])
    tokenizer = backbone.tokenizer  # type: ignore[attr-defined]
    ids = [*tokenizer("a dog ran", add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
    fed = torch.tensor([[tokenizer.bos_token_id, *ids[:-1]]])
    with torch.no_grad():
        logits = backbone.model(input_ids=fed).logits[0].log_softmax(-1)
    by_hand = -sum(float(logits[i, token]) for i, token in enumerate(ids))
    [found] = backbone.predict(PETS.test[:1], ["pets"])
    assert found.nats == pytest.approx(by_hand, rel=1e-4)
    assert found.tokens == len("a dog ran") + 1
    loss = backbone.forward(backbone.collate(PETS.test[:1])).loss
    assert loss.item() == pytest.approx(by_hand / len(ids), rel=1e-4)


def test_long_texts_are_cut_without_an_end(tmp_path: Path) -> None:
    backbone = load_backbone({"kind": "causal", "model": str(tiny_causal(tmp_path)), "max_length": 8})
    backbone.prepare([PETS])
    [found] = backbone.predict([Example("x" * 100, "", "pets")], ["pets"])
    assert found.tokens == 8


def test_texts_that_are_cut_are_counted(tmp_path: Path) -> None:
    backbone = load_backbone({"kind": "causal", "model": str(tiny_causal(tmp_path)), "max_length": 10})
    backbone.prepare([PETS])
    # a token a byte, and the end: of the two that are longer, one is in train and in test
    assert backbone.truncated == 2


@pytest.mark.parametrize("make,kind", [(tiny_causal, "causal"), (tiny_seq2seq, "seq2seq")])
def test_a_run_learns_texts(tmp_path: Path, make, kind: str) -> None:
    """Training on a text raises its score, and the score matrix holds 1 / perplexity."""
    folder = make(tmp_path / "model")
    town = Task("town", train=[("big town", "")] * 8, test=[("big town", "")], metric="inverse-perplexity")
    scores = perdure.learn(
        tasks=[town, PETS],
        out=tmp_path / "run",
        method="inc-lora",
        backbone={"kind": kind, "model": str(folder)},
        lora={"rank": 2},
        training={"epochs": 8, "batch_size": 4, "learning_rate": 0.02},
        precision="fp32",
    )
    untrained, learnt = scores.untrained_scores[0], scores.score_matrix[0][0]
    assert untrained is not None
    assert learnt is not None
    assert 0 < untrained < learnt < 1
    values = outcome_values(run_record(Store(tmp_path / "run"), scores))["pets"]
    assert len(values) == len(PETS.test)
    assert values.mean() == pytest.approx(scores.score_matrix[-1][1], abs=1e-6)


def test_an_encoder_says_it_needs_labels(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"has no labels.*take a language model"):
        load_backbone({"kind": "encoder", "model": str(tiny_encoder(tmp_path))}).prepare([PETS])
