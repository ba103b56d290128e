"""A text is matched to its label's text by the same encoder; examples of several tasks may share a batch."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn.functional import cross_entropy

from perdure.backbones import load_backbone
from perdure.backbones.encoder import Encoder
from perdure.config.run_config import EvaluationSettings
from perdure.errors import DataError, UnknownName
from perdure.tasks.task import Example, Task
from perdure.training.evaluation import label_sets, outcomes
from tests.conftest import small_task

FRUIT, SKY = small_task("fruit", "apples", "pears"), small_task("sky", "sun", "moon")


@pytest.fixture(scope="module")
def encoder(encoder_folder) -> Encoder:
    found = load_backbone({"kind": "encoder", "model": str(encoder_folder), "max_length": 24, "temperature": 0.1})
    assert isinstance(found, Encoder)
    found.prepare([FRUIT, SKY])
    return found


def _embedding(encoder: Encoder, text: str) -> torch.Tensor:
    """One text alone, written out: mean over its tokens, normalised."""
    ids = encoder.tokenizer(text, truncation=True, max_length=24, return_tensors="pt")
    with torch.inference_mode():
        hidden = encoder.model(**ids).last_hidden_state[0]
    return hidden.mean(dim=0) / hidden.mean(dim=0).norm()


def test_scores_are_cosines_over_the_temperature(encoder):
    examples = [*FRUIT.train[:3], *FRUIT.test[:2]]
    scores = encoder.scores(encoder.collate(examples), None, "fruit")
    for row, example in zip(scores, examples, strict=True):
        wanted = [_embedding(encoder, example.text) @ _embedding(encoder, t) / 0.1 for t in FRUIT.labels.values()]
        assert row.tolist() == pytest.approx([w.item() for w in wanted], rel=1e-4)


def test_in_a_mixed_batch_every_example_competes_among_its_own_labels(encoder):
    examples = [FRUIT.train[0], SKY.train[1], FRUIT.train[3], SKY.train[2]]
    mixed = encoder.forward(encoder.collate(examples)).loss
    alone = []
    for example in examples:
        scores = encoder.scores(encoder.collate([example]), None, example.task)
        alone.append(cross_entropy(scores, torch.tensor([list(FRUIT.labels).index(example.label)])))
    assert mixed.item() == pytest.approx(torch.stack(alone).mean().item(), rel=1e-4)


def test_the_loss_and_the_scores_share_one_forward_pass_over_the_texts(encoder, monkeypatch):
    batch, calls = encoder.collate(FRUIT.train[:4]), []
    real = encoder.model.forward
    monkeypatch.setattr(encoder.model, "forward", lambda *a, **k: calls.append(k["input_ids"].shape) or real(*a, **k))
    outputs = encoder.forward(batch)
    assert len(calls) == 2, "the texts once, the label texts once"
    encoder.scores(batch, outputs, "sky")
    assert len(calls) == 3, "and only the other task's labels for LwF's scores"


def test_answers_do_not_depend_on_what_else_is_in_the_batch(encoder):
    together = encoder.predict([*FRUIT.test, *FRUIT.train], ["fruit"])
    for example, found in zip(FRUIT.test, together, strict=False):
        (alone,) = encoder.predict([example], ["fruit"])
        assert alone.label == found.label
        assert alone.probabilities == pytest.approx(found.probabilities, abs=1e-5)
        assert sum(found.probabilities) == pytest.approx(1, abs=1e-5)


def test_labels_of_all_tasks_seen_compete_on_request(encoder):
    seen = EvaluationSettings(labels="seen")
    assert label_sets(FRUIT, ["fruit", "sky"], seen) == ["fruit", "sky"]
    assert label_sets(FRUIT, ["sky"], seen) == ["sky", "fruit"]
    assert label_sets(FRUIT, ["fruit", "sky"], EvaluationSettings()) == ["fruit"]
    free = Task("free", [("a", "b")], test=[("a", "b")], metric="rouge-l")
    assert label_sets(free, ["fruit", "sky", "free"], seen) == ["free"]
    found = encoder.predict(FRUIT.test, ["fruit", "sky"])
    assert all(len(p.probabilities) == 4 for p in found)
    # 'a' of another task is not 'a' of this one
    right = [p.label == e.label and p.task == "fruit" for e, p in zip(FRUIT.test, found, strict=True)]
    assert outcomes(FRUIT, FRUIT.test, found) == right


def test_a_text_with_choices_of_its_own_is_matched_to_those(encoder_folder):
    encoder = load_backbone({"kind": "encoder", "model": str(encoder_folder), "temperature": 0.1})
    choices = {"He sang.": ("They left.", "It rained."), "It fell.": ("It broke.", "They left.")}
    copa = Task(
        "copa",
        [("He sang.", "A"), ("It fell.", "B")],
        test=[("It fell.", "A")],
        labels={"A": "A", "B": "B"},
        choices=choices,
    )
    encoder.prepare([copa, FRUIT])
    batch = encoder.collate(copa.train)
    wanted = [
        [float(_embedding(encoder, text) @ _embedding(encoder, choice) / 0.1) for choice in choices[text]]
        for text in ("He sang.", "It fell.")
    ]
    scores = encoder.scores(batch, None, "copa")
    assert scores.tolist() == [pytest.approx(row, rel=1e-4) for row in wanted]
    loss = encoder.forward(batch).loss
    assert loss.item() == pytest.approx(cross_entropy(torch.tensor(wanted), torch.tensor([0, 1])).item(), rel=1e-4)
    probabilities = torch.tensor(wanted).softmax(dim=1)
    for found, row in zip(encoder.predict(copa.train, ["copa"]), probabilities, strict=True):
        assert (found.label, found.task) == ("AB"[int(row.argmax())], "copa")
        assert found.probabilities == pytest.approx(row.tolist(), abs=1e-4)
    assert len(encoder.predict(copa.test, ["fruit", "copa"])[0].probabilities) == 4
    mixed = encoder.forward(encoder.collate([*copa.train, FRUIT.train[0]])).loss
    alone = encoder.forward(encoder.collate([FRUIT.train[0]])).loss
    assert mixed.item() == pytest.approx(((2 * loss + alone) / 3).item(), rel=1e-4)


def test_long_texts_are_cut_and_counted(encoder_folder):
    encoder = load_backbone({"kind": "encoder", "model": str(encoder_folder), "max_length": 8})
    exact = "a" * 6  # a token a byte, and one on each side
    assert len(encoder.tokenizer(exact)["input_ids"]) == 8
    long = Task(
        "long",
        train=[("x" * 100, "a"), ("ab", "b"), (exact, "b")],
        test=[("y" * 100, "a")],
        labels={"a": "a", "b": "b"},
    )
    encoder.prepare([long])
    assert encoder.truncated == 2
    assert encoder.collate(long.train).inputs["input_ids"].shape == (3, 8)


def test_bf16_is_close_to_fp32(encoder):
    batch = encoder.collate(SKY.train[:8])
    exact = encoder.scores(batch, None, "sky")
    encoder.precision = "bf16"
    try:
        rough = encoder.scores(batch, None, "sky")
    finally:
        encoder.precision = "fp32"
    assert not torch.equal(exact, rough)
    assert torch.allclose(exact, rough, atol=0.2)  # scores are cosines / 0.1


def test_unknown_models_and_kinds_name_the_nearest():
    with pytest.raises(UnknownName, match="Did you mean 'minilm'"):
        load_backbone({"model": "minilmm"})
    with pytest.raises(UnknownName, match="Did you mean 'encoder'"):
        load_backbone({"kind": "encode", "model": "minilm"})


def test_labels_that_read_the_same_are_refused(encoder_folder):
    labels = {"a": "a long beginning, then this", "b": "a long beginning, then that"}
    task = Task("twins", [("x", "a")], test=[("x", "b")], labels=labels)
    long, short = (
        load_backbone({"kind": "encoder", "model": str(encoder_folder), "max_length": length}) for length in (48, 12)
    )
    long.prepare([task])
    with pytest.raises(DataError, match=r"'twins': the labels 'a' and 'b' stand for the same text.*first 12 tokens"):
        short.prepare([task])


FILMS = Task("films", [("x", "pos")], test=[("x", "pos")], labels={"neg": "so bad", "pos": "so good"})
SHOPS = Task("shops", [("x", "5")], test=[("x", "5")], labels={"1": "bad", "3": "so bad", "5": "so good"})


def test_labels_of_two_tasks_with_the_same_text_are_one_class(encoder_folder, monkeypatch):
    """Scores by hand: e is what the softmax makes of 'so good', 'so bad' and 'bad' at 0, ln 2 and ln 5."""
    encoder = load_backbone({"kind": "encoder", "model": str(encoder_folder)})
    encoder.prepare([FILMS, SHOPS])
    good, bad, worse = 0.0, math.log(2), math.log(5)
    by_hand = torch.tensor([[bad, good, worse, bad, good]])
    monkeypatch.setattr(encoder, "_match", lambda *_: by_hand)
    (film,) = encoder.predict(FILMS.test, ["films", "shops"])
    assert film.options == (("films", "neg"), ("films", "pos"), ("shops", "1"))
    assert film.probabilities == pytest.approx((2 / 8, 1 / 8, 5 / 8))
    (shop,) = encoder.predict(SHOPS.test, ["films", "shops"])
    assert shop.options == (("shops", "3"), ("shops", "5"), ("shops", "1"))
    assert shop.probabilities == pytest.approx((2 / 8, 1 / 8, 5 / 8))
    assert (film.label, film.task, shop.label, shop.task) == ("1", "shops", "1", "shops")
    by_hand = torch.tensor([[bad, worse, good, bad, worse]])
    (film,), (shop,) = (encoder.predict(task.test, ["films", "shops"]) for task in (FILMS, SHOPS))
    assert (film.label, film.task, shop.label, shop.task) == ("pos", "films", "5", "shops")
    assert outcomes(FILMS, FILMS.test, [film]) == outcomes(SHOPS, SHOPS.test, [shop]) == [1.0]
    (newer,) = encoder.predict([Example("x", "", "shops@2")], ["films", "shops"])
    assert (newer.label, newer.task) == ("5", "shops")
    (other,) = encoder.predict([Example("x", "", "else")], ["films", "shops"])
    assert (other.label, other.task) == ("pos", "films"), "of no such task: the first"
    by_hand = torch.zeros(1, 5)
    tied = encoder.predict(SHOPS.test, ["films", "shops"])[0]
    assert (tied.label, tied.probabilities) == ("3", pytest.approx((1 / 3,) * 3)), "the first of three classes"
    alone = encoder.predict(FILMS.test, ["films"])[0]
    assert alone.options == ()


def test_choices_that_are_also_another_tasks_label_are_one_class(encoder_folder):
    encoder = load_backbone({"kind": "encoder", "model": str(encoder_folder)})
    choices = {"x": ("so good", "it rained"), "y": ("it rained", "SO GOOD")}
    copa = Task("copa", [("x", "A")], test=[("x", "A"), ("y", "B")], labels={"A": "A", "B": "B"}, choices=choices)
    encoder.prepare([FILMS, copa])
    first, second = encoder.predict(copa.test, ["films", "copa"])
    assert first.options == (("films", "neg"), ("copa", "A"), ("copa", "B"))
    assert second.options == (("films", "neg"), ("copa", "B"), ("copa", "A"))
    for found, texts in ((first, ["so bad", "so good", "it rained"]), (second, ["so bad", "so good", *choices["y"]])):
        scores = encoder.features(encoder.collate([copa.test[0 if found is first else 1]]))
        wanted = [scores[0] @ encoder._encode(encoder._padded([text]))[0] / 0.05 for text in texts]
        shares = torch.stack(wanted).softmax(0).tolist()
        if found is second:  # other tokens, the same words
            shares[1] += shares.pop()
        assert found.probabilities == pytest.approx(shares, abs=1e-4)
        assert sum(found.probabilities) == pytest.approx(1)
