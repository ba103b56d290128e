"""Encoder-decoders, on a small randomly initialised T5: no package on the index holds a pretrained one."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

from perdure.backbones.seq2seq import Seq2SeqLM, Seq2SeqSettings
from perdure.errors import DataError
from perdure.tasks.task import Example, Task
from tests.backbones.precisions import check_bf16
from tests.backbones.tiny import tiny_seq2seq

FEELING = Task(
    "feeling",
    train=[("a good day", "pos"), ("bad", "neg"), ("neither this nor that", "mid")],
    test=[("fine weather", "pos")],
    labels={"neg": "bad", "pos": "good", "mid": "good and bad", "top": "goodness"},
)
STORY = Task("story", train=[("Say a.", "a b"), ("Say something longer.", "ccc d")], test=[("Say.", "x")])
PROMPTS = ["hi", "a much longer prompt than the first", "mid size", "x" * 40]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_seq2seq(tmp_path_factory.mktemp("t5"))


def load(folder: Path, double: bool = False, **settings) -> Seq2SeqLM:
    backbone = Seq2SeqLM.load(Seq2SeqSettings(model=str(folder), max_new_tokens=20, **settings))
    if double:
        backbone.model.double()
    backbone.prepare([FEELING, STORY])
    return backbone


def test_the_loss_is_that_of_transformers(folder: Path) -> None:
    backbone = load(folder, double=True)
    batch = backbone.collate(FEELING.train)
    tokenizer = backbone.tokenizer
    labels = torch.full_like(batch.inputs["decoder_input_ids"], -100).masked_scatter(
        batch.decoder_mask, batch.extra["answers"]
    )
    assert tokenizer.decode(labels[0][:5]) == "good</s>"
    assert batch.count == len("good") + len("bad") + len("good and bad") + 3
    inputs = {name: batch.inputs[name] for name in ("input_ids", "attention_mask")}
    expected = AutoModelForSeq2SeqLM.from_pretrained(folder).double()(**inputs, labels=labels).loss
    torch.testing.assert_close(backbone.forward(batch).loss, expected, check_dtype=False)


def test_bf16_is_near_fp32_and_not_fp32(folder: Path) -> None:
    backbone = load(folder)
    check_bf16(backbone, backbone.collate(FEELING.train))


def test_a_batch_is_the_mean_over_its_target_tokens(folder: Path) -> None:
    backbone = load(folder, double=True)
    whole = backbone.collate(FEELING.train)
    alone = [backbone.collate([example]) for example in FEELING.train]
    summed = sum(backbone.forward(batch).loss * batch.count for batch in alone)
    torch.testing.assert_close(backbone.forward(whole).loss, summed / whole.count)


def test_input_statistics_leave_out_padding_on_both_sides(folder: Path) -> None:
    """Encoder, decoder and cross-attention see as many positions as there are tokens; also where both are equally long."""
    backbone = load(folder, double=True)
    story = Task("story", train=[("abc", "xyz"), ("a", "x")], test=[("a", "x")])
    backbone.prepare([story])
    batch = backbone.collate(story.train)
    assert batch.inputs["input_ids"].shape[1] == batch.inputs["decoder_input_ids"].shape[1] + 1, "abc</s> and xyz</s>"
    counts: dict[str, int] = {}
    hooks = [
        module.register_forward_pre_hook(lambda _, args, name=name: counts.update({name: len(batch.real(args[0]))}))
        for name, module in backbone.model.named_modules()
        if name.endswith((".q", ".v"))
    ]
    backbone.features(batch)
    for hook in hooks:
        hook.remove()
    assert set(counts.values()) == {4 + 2}, "both texts with their ends, on either side"
    assert any("EncDecAttention.v" in name for name in counts)
    whole, alone = backbone.forward(batch).loss, backbone.collate(story.train[:1])
    both = [backbone.collate([example]) for example in story.train]
    torch.testing.assert_close(whole, sum(backbone.forward(b).loss * b.count for b in both) / batch.count)
    assert alone.mask is not None
    assert alone.mask.tolist() == [[True] * 4 + [False]]


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_ranking_is_scoring_every_label_alone(folder: Path, reduction: str, attention: str) -> None:
    backbone = load(folder, double=True, label_score=reduction, attention=attention)
    prompts = [backbone._prompt(text) for text in PROMPTS]
    completions = [backbone.format.completion(text) for text in FEELING.labels.values()]
    with torch.no_grad():
        packed = backbone._packed(prompts, completions)
        torch.testing.assert_close(packed, backbone._exhaustive(prompts, completions))
        for n, prompt in enumerate(prompts):
            for k, ids in enumerate(completions):
                inputs, fed = torch.tensor([prompt]), torch.tensor([[backbone.start, *ids[:-1]]])
                logits = backbone.model(input_ids=inputs, decoder_input_ids=fed).logits[0].log_softmax(-1)
                steps = [logits[i, token] for i, token in enumerate(ids)]
                by_hand = sum(steps) if reduction == "sum" else sum(steps) / len(steps)
                torch.testing.assert_close(packed[n, k], by_hand)


def test_packing_is_tried_on_the_model_and_used(folder: Path) -> None:
    backbone = load(folder, double=True)
    examples = [Example(text, "pos", "feeling") for text in PROMPTS]
    together = backbone.predict(examples, ["feeling"])
    assert backbone._packs is True
    one_by_one = load(folder, double=True, ranking="exhaustive").predict(examples, ["feeling"])
    for prediction, other in zip(together, one_by_one, strict=True):
        assert prediction.label == other.label
        assert prediction.probabilities == pytest.approx(other.probabilities)


def test_generations_in_a_batch_are_those_of_each_prompt_alone(folder: Path) -> None:
    backbone = load(folder, double=True)
    examples = [Example(text, "", "story") for text in PROMPTS]
    together = backbone.predict(examples, ["story"])
    alone = [backbone.predict([example], ["story"])[0] for example in examples]
    assert together == alone
    assert any(prediction.label for prediction in together)


def test_generation_is_the_greedy_continuation(folder: Path) -> None:
    backbone = load(folder, double=True)
    inputs, fed = torch.tensor([backbone._prompt(PROMPTS[1])]), [backbone.start]
    with torch.no_grad():
        while len(fed) <= 20:
            token = int(backbone.model(input_ids=inputs, decoder_input_ids=torch.tensor([fed])).logits[0, -1].argmax())
            if token == backbone.tokenizer.eos_token_id:
                break
            fed.append(token)
    expected = backbone.tokenizer.decode(fed[1:], skip_special_tokens=True).strip()
    assert backbone.predict([Example(PROMPTS[1], "", "story")], ["story"])[0].label == expected


def test_a_cut_prompt_keeps_both_ends(folder: Path) -> None:
    backbone = load(folder, max_length=8)
    assert backbone.tokenizer.decode(backbone._prompt("abcd" + "x" * 50 + "xyz")) == "abcdxyz</s>"


def test_targets_include_cross_attention(folder: Path) -> None:
    backbone = load(folder)
    assert backbone.default_targets == ("q", "v")
    assert any(name.endswith("EncDecAttention.v") for name, _ in backbone.model.named_modules())


def test_checkpointing_changes_memory_not_gradients(folder: Path) -> None:
    name, grads = "encoder.block.0.layer.0.SelfAttention.q.weight", []
    for on in (False, True):
        backbone = load(folder, gradient_checkpointing=on)
        backbone.forward(backbone.collate(FEELING.train)).loss.backward()
        grads.append(dict(backbone.model.named_parameters())[name].grad)
    torch.testing.assert_close(grads[0], grads[1])


def test_a_saved_model_answers_the_same(folder: Path, tmp_path: Path) -> None:
    backbone = load(folder)
    backbone.save(tmp_path, backbone.model.state_dict())
    assert load(tmp_path).predict(FEELING.test, ["feeling"]) == backbone.predict(FEELING.test, ["feeling"])


def test_scores_have_a_gradient(folder: Path) -> None:
    backbone = load(folder)
    scores = backbone.scores(backbone.collate(FEELING.train), None, "feeling")
    assert scores.shape == (3, 4)
    scores.sum().backward()


def test_a_label_longer_than_the_limit_is_refused(folder: Path) -> None:
    task = Task("long", train=[("a", "x")], test=[("a", "x")], labels={"x": "y" * 30})
    with pytest.raises(DataError, match="has 31 tokens"):
        load(folder).prepare([task])


def test_t5gemma_states_its_start_token_as_its_decoders(tmp_path: Path) -> None:
    from transformers import T5GemmaConfig, T5GemmaForConditionalGeneration

    tokenizer = AutoTokenizer.from_pretrained(tiny_seq2seq(tmp_path / "t5"))
    side = {
        "vocab_size": len(tokenizer),
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "bos_token_id": 3,
        "pad_token_id": 0,
    }
    config = T5GemmaConfig(encoder=dict(side), decoder=dict(side), vocab_size=len(tokenizer), pad_token_id=0)
    model = T5GemmaForConditionalGeneration(config)
    assert getattr(model.config, "decoder_start_token_id", None) is None
    model.save_pretrained(tmp_path / "t5gemma")
    tokenizer.save_pretrained(tmp_path / "t5gemma")
    backbone = load(tmp_path / "t5gemma")
    assert backbone.start == 3
    labels = torch.tensor([[5, 6]])
    assert model.prepare_decoder_input_ids_from_labels(labels).tolist() == [[3, 5]]
