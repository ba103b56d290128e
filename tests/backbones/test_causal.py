"""Causal language models: the loss is what transformers says, ranking is what scoring one by one says."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
)

from perdure.backbones import rounded
from perdure.backbones.causal import CausalLM, CausalSettings
from perdure.backbones.mixing import attention_window
from perdure.errors import ConfigError, DataError
from perdure.tasks.task import Example, Task
from tests.backbones.precisions import check_bf16
from tests.backbones.tiny import tiny_causal

FEELING = Task(
    "feeling",
    train=[("a good day\nFeeling:", "pos"), ("bad\nFeeling: ", "neg"), ("neither this nor that\nFeeling:", "mid")],
    test=[("fine weather\nFeeling:", "pos")],
    labels={"neg": "bad", "pos": "good", "mid": "good and bad", "top": "goodness"},  # "good" begins two others
)
STORY = Task("story", train=[("Say a.", "a b"), ("Say something longer.", "ccc d")], test=[("Say.", "x")])
PROMPTS = ["hi", "a much longer prompt than the first", "mid size", "x" * 40]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_causal(tmp_path_factory.mktemp("causal"))


@pytest.fixture(scope="module")
def chat_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_causal(tmp_path_factory.mktemp("chat"), chat=True)


def load(folder: Path, double: bool = False, **settings) -> CausalLM:
    backbone = CausalLM.load(CausalSettings(model=str(folder), max_new_tokens=20, **settings))
    if double:
        backbone.model.double()
    backbone.prepare([FEELING, STORY])
    return backbone


def test_the_loss_is_that_of_transformers_over_the_answer_and_its_end(folder: Path) -> None:
    backbone = load(folder, double=True)
    example = FEELING.train[0]
    batch = backbone.collate([example])
    ids = batch.inputs["input_ids"]
    tokenizer = backbone.tokenizer
    assert tokenizer.decode(ids[0]) == "a good day\nFeeling: good<eos>"
    answer = len(" good") + 1  # one token a byte, and the end
    assert batch.count == answer
    labels = ids.clone()
    labels[:, :-answer] = -100
    expected = AutoModelForCausalLM.from_pretrained(folder).double()(input_ids=ids, labels=labels).loss
    torch.testing.assert_close(backbone.forward(batch).loss.float(), expected)  # transformers' loss is fp32


def test_a_batch_is_the_mean_over_its_target_tokens(folder: Path) -> None:
    backbone = load(folder, double=True)
    whole = backbone.collate(FEELING.train)
    alone = [backbone.collate([example]) for example in FEELING.train]
    assert whole.count == sum(batch.count for batch in alone)
    summed = sum(backbone.forward(batch).loss * batch.count for batch in alone)
    torch.testing.assert_close(backbone.forward(whole).loss, summed / whole.count)
    assert whole.mask is not None
    assert whole.mask.sum(dim=1).tolist() == [backbone.length(example) for example in FEELING.train]


def test_the_loss_over_everything_leaves_out_only_the_first_token(folder: Path) -> None:
    backbone = load(folder, loss_on="all")
    batch = backbone.collate(FEELING.train)
    assert batch.mask is not None
    assert batch.count == int(batch.mask.sum()) - len(FEELING.train)


def test_spaces_before_the_answer_are_written_once(folder: Path) -> None:
    backbone = load(folder)
    ids = backbone.collate([FEELING.train[1]]).inputs["input_ids"]  # its prompt ends with a space
    assert backbone.tokenizer.decode(ids[0]) == "bad\nFeeling: bad<eos>"


@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_ranking_is_scoring_every_label_alone(folder: Path, reduction: str) -> None:
    backbone = load(folder, double=True, label_score=reduction)
    prompts = [backbone._prompt(text) for text in PROMPTS]
    completions = [backbone.format.completion(text) for text in FEELING.labels.values()]
    with torch.no_grad():
        packed = backbone._packed(prompts, completions)
        torch.testing.assert_close(packed, backbone._exhaustive(prompts, completions))
        for n, prompt in enumerate(prompts):
            for k, ids in enumerate(completions):
                logits = backbone.model(torch.tensor([prompt + ids])).logits[0].log_softmax(-1)
                steps = [logits[len(prompt) - 1 + i, token] for i, token in enumerate(ids)]
                by_hand = sum(steps) if reduction == "sum" else sum(steps) / len(steps)
                torch.testing.assert_close(packed[n, k], by_hand)


def test_scores_of_all_possible_answers_sum_to_one(folder: Path) -> None:
    """Over every one-token answer and "anything longer", probability is conserved: the terminator is counted."""
    backbone = load(folder, double=True)
    prompts = [backbone._prompt("hi")]
    end = backbone.tokenizer.eos_token_id
    with torch.no_grad():
        ended = backbone._packed(prompts, [[end]]).exp().item()
        vocabulary = range(len(backbone.tokenizer))
        begun = sum(backbone._exhaustive(prompts, [[token]]).exp().item() for token in vocabulary if token != end)
    assert ended + begun == pytest.approx(1.0)


def test_packing_is_tried_on_the_model_and_used(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    backbone = load(folder)
    backbone.predict(FEELING.test, ["feeling"])
    assert backbone._packs is True
    wrong = load(folder)
    monkeypatch.setattr(wrong, "_packed", lambda prompts, completions: torch.zeros(len(prompts), len(completions)))
    answers = wrong.predict(FEELING.test, ["feeling"])
    assert wrong._packs is False
    assert answers[0].label == backbone.predict(FEELING.test, ["feeling"])[0].label


SMALL: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}


def test_a_sliding_window_shorter_than_a_text_is_ranked_exhaustively(folder: Path, tmp_path: Path) -> None:
    """A packed mask would open the window; two short prompts do not show it."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    config = MistralConfig(
        vocab_size=len(tokenizer), **SMALL, num_key_value_heads=2, sliding_window=30, initializer_range=0.3
    )
    torch.manual_seed(0)
    MistralForCausalLM(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    backbone = load(tmp_path, double=True)
    prompts = [backbone._prompt("a text longer than the window, " + text) for text in PROMPTS]
    completions = [backbone.format.completion(text) for text in FEELING.labels.values()]
    with torch.no_grad():
        right = backbone._exhaustive(prompts, completions)
        assert torch.equal(backbone._scores(prompts, completions), right)
        assert not torch.allclose(backbone._packed(prompts, completions), right)
    with pytest.raises(ConfigError, match=r"window of 30 tokens \(backbone\.max_length \+ max_new_tokens = 276\)"):
        load(tmp_path, ranking="packed")
    short = load(tmp_path, max_length=10, ranking="packed")  # no text reaches past it
    short.predict(FEELING.test, ["feeling"])
    assert short._packs


@pytest.mark.parametrize(
    "config,window",
    [
        (LlamaConfig(), None),
        (MistralConfig(sliding_window=30), 30),
        (Qwen2Config(), None),
        (Qwen2Config(use_sliding_window=True, sliding_window=30, max_window_layers=0), 30),
        (SimpleNamespace(sliding_window=30, use_sliding_window=False), None),
        (SimpleNamespace(sliding_window=30, use_sliding_window=False, layer_types=["sliding_attention"]), 30),
        (SimpleNamespace(attention_chunk_size=20), 20),
    ],
)
def test_what_a_layer_sees_at_most(config, window: int | None) -> None:
    model = SimpleNamespace(config=SimpleNamespace(get_text_config=lambda: config))
    assert attention_window(model) == window


def test_predictions_keep_the_order_and_name_task_and_probabilities(folder: Path) -> None:
    backbone = load(folder, double=True, predict_batch_size=2)
    examples = [Example(text, "pos", "feeling") for text in PROMPTS]
    together = backbone.predict(examples, ["feeling"])
    for example, prediction in zip(examples, together, strict=True):
        alone = backbone.predict([example], ["feeling"])[0]
        assert (prediction.label, prediction.task) == (alone.label, "feeling")
        assert prediction.probabilities == pytest.approx(alone.probabilities)
        assert sum(prediction.probabilities) == pytest.approx(1.0)
        best = list(FEELING.labels)[max(range(4), key=prediction.probabilities.__getitem__)]
        assert prediction.label == best


def test_scores_have_a_gradient(folder: Path) -> None:
    backbone = load(folder)
    batch = backbone.collate(FEELING.train)
    scores = backbone.scores(batch, None, "feeling")
    assert scores.shape == (3, 4)
    scores.sum().backward()
    gradient = backbone.model.get_submodule("model.layers.0.self_attn.q_proj").weight.grad
    assert gradient is not None
    assert gradient.abs().sum() > 0


def test_generations_in_a_batch_are_those_of_each_prompt_alone(folder: Path) -> None:
    backbone = load(folder, double=True, predict_batch_size=8)
    examples = [Example(text, "", "story") for text in PROMPTS]
    together = backbone.predict(examples, ["story"])
    assert together == backbone.predict(examples, ["story"])
    alone = [backbone.predict([example], ["story"])[0] for example in examples]
    assert [p.label for p in together] == [p.label for p in alone]
    assert len({p.label for p in together}) > 1  # it does depend on the prompt


def test_generation_is_greedy_continuation_of_the_prompt(folder: Path) -> None:
    backbone = load(folder, double=True)
    ids = backbone._prompt(PROMPTS[1])
    written: list[int] = []
    with torch.no_grad():
        while len(written) < 20:
            token = int(backbone.model(torch.tensor([ids + written])).logits[0, -1].argmax())
            if token == backbone.tokenizer.eos_token_id:
                break
            written.append(token)
    expected = backbone.tokenizer.decode(written, skip_special_tokens=True).strip()
    assert backbone.predict([Example(PROMPTS[1], "", "story")], ["story"])[0].label == expected


def test_a_written_answer_that_equals_a_label_text_is_that_label(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    backbone = load(folder, answer_by="generation")
    monkeypatch.setattr(backbone, "_generate", lambda prompts: [" Good AND bad.", "nonsense"])
    found = backbone.predict([Example("a", "pos", "feeling"), Example("b", "pos", "feeling")], ["feeling"])
    assert [(p.label, p.task) for p in found] == [("mid", "feeling"), ("nonsense", "")]
    monkeypatch.setattr(backbone, "_generate", lambda prompts: [" Pos.", "top"])  # names of labels, never shown to it
    found = backbone.predict([Example("a", "pos", "feeling"), Example("b", "top", "feeling")], ["feeling"])
    assert [(p.label, p.task) for p in found] == [("", ""), ("", "")]


@pytest.mark.parametrize("metric,answer", [("rouge-l", "A \n"), ("trace-exact-match", " A \n")])
def test_a_metric_of_the_answer_as_written_gets_its_white_space(folder, monkeypatch, metric, answer) -> None:
    """The space between prompt and answer is no part of it; whatever else the model wrote is, where the metric looks at it."""
    task = Task("free", [("a", "A")], test=[("b", "A")], metric=metric)
    backbone = load(folder)
    backbone.prepare([task])
    monkeypatch.setattr("perdure.backbones.language.greedy", lambda *given: ["  A \n"])
    [found] = backbone.predict(task.test, ["free"])
    assert found.label == (answer if metric.startswith("trace") else "A")


def test_a_chat_model_is_asked_through_its_template_and_only_the_answer_is_learnt(chat_folder: Path) -> None:
    backbone = load(chat_folder, system="Be brief.")
    batch = backbone.collate([FEELING.train[0]])
    whole = backbone.tokenizer.decode(batch.inputs["input_ids"][0])
    assert whole == "<|system|>Be brief.<eos><|user|>a good day\nFeeling:<eos><|assistant|>good<eos>"
    targets = batch.extra["answers"]
    assert backbone.tokenizer.decode(targets) == "good<eos>"


def test_a_long_prompt_is_cut_in_the_middle_and_counted(folder: Path) -> None:
    backbone = load(folder, max_length=10)
    assert backbone.tokenizer.decode(backbone._prompt("abcde" + "x" * 50 + "vwxyz")) == "abcdevwxyz"
    assert backbone.truncated == 1 + sum(
        len(text.rstrip(" ")) > 10 for t in (FEELING, STORY) for s in (t.train, t.test) for text in [e.text for e in s]
    )


def test_token_losses_are_the_answers_negative_log_likelihood(folder: Path) -> None:
    backbone = load(folder, double=True)
    losses = backbone.token_losses(STORY.train)
    batch = backbone.collate(STORY.train)
    assert [count for _, count in losses] == [len(" a b") + 1, len(" ccc d") + 1]
    assert sum(total for total, _ in losses) / batch.count == pytest.approx(backbone.forward(batch).loss.item())


def test_bf16_is_near_fp32(folder: Path) -> None:
    backbone = load(folder)
    batch = backbone.collate(FEELING.train)
    exact = backbone.scores(batch, None, "feeling")
    check_bf16(backbone, batch)
    rough = backbone.scores(batch, None, "feeling")
    assert not torch.equal(rough, exact)
    torch.testing.assert_close(rough, exact, rtol=0.05, atol=1.0)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_checkpointing_changes_memory_not_gradients(folder: Path, precision: Any, monkeypatch) -> None:
    monkeypatch.setattr(rounded, "has_fast_bf16", lambda: False)  # products are then ours, also in recomputation
    plain, recomputing = load(folder), load(folder, gradient_checkpointing=True)
    weight = "model.layers.0.self_attn.q_proj.weight"
    grads = []
    for backbone in (plain, recomputing):
        backbone.precision = precision
        backbone.forward(backbone.collate(FEELING.train)).loss.backward()
        grads.append(dict(backbone.model.named_parameters())[weight].grad)
    torch.testing.assert_close(grads[0], grads[1])
    recomputed = [m for m in recomputing.model.modules() if getattr(m, "gradient_checkpointing", False) and m.training]
    assert len(recomputed) == 2  # both layers
    story = [Example("hi", "", "story")]
    assert recomputing.predict(story, ["story"]) == plain.predict(story, ["story"])


def test_a_saved_model_answers_the_same_in_plain_transformers(folder: Path, tmp_path: Path) -> None:
    backbone = load(folder)
    backbone.save(tmp_path, backbone.model.state_dict())
    again = load(tmp_path)
    assert again.predict(FEELING.test, ["feeling"]) == backbone.predict(FEELING.test, ["feeling"])


def test_targets_are_query_and_value(folder: Path) -> None:
    assert load(folder).default_targets == ("q_proj", "v_proj")


def test_input_statistics_see_every_real_position(folder: Path) -> None:
    backbone = load(folder)
    batch = backbone.collate(FEELING.train)
    seen = []
    module = backbone.model.get_submodule("model.layers.1.self_attn.q_proj")
    module.register_forward_pre_hook(lambda _module, args: seen.append(args[0].shape[:2]))
    backbone.features(batch)
    assert batch.mask is not None
    assert seen == [batch.mask.shape]


def test_a_task_asks_in_its_own_words(folder: Path) -> None:
    backbone = load(folder)
    task = Task(
        "worded", train=[("fine", "pos")], test=[("fine", "pos")], labels={"pos": "good"}, template="Is {text}?\nA:"
    )
    backbone.prepare([task])
    ids = backbone.collate(task.train).inputs["input_ids"]
    assert backbone.tokenizer.decode(ids[0]) == "Is fine?\nA: good<eos>"


def test_an_input_may_bring_its_own_choices(folder: Path) -> None:
    backbone = load(folder, double=True)
    pairs = [("It rained, so", "A"), ("He fell, so", "B")]
    choices = {"It rained, so": ("the street got wet", "it ended"), "He fell, so": ("he flew", "it hurt")}
    task = Task("copa", train=pairs, test=pairs, labels={"A": "A", "B": "B"}, choices=choices)
    backbone.prepare([task, FEELING])
    ids = backbone.collate([task.train[1]]).inputs["input_ids"]
    assert backbone.tokenizer.decode(ids[0]) == "He fell, so it hurt<eos>"
    scores = backbone.scores(backbone.collate(task.test), None, "copa")
    for row, (text, _) in enumerate(pairs):
        own = [backbone.format.completion(choice) for choice in choices[text]]
        torch.testing.assert_close(scores[row : row + 1], backbone._packed([backbone._prompt(text)], own))
    lettered = Task(
        "lettered", pairs, test=pairs, labels={"A": "A", "B": "B"}, choices=choices, template="{text} A or B?"
    )
    backbone.prepare([lettered])
    ids = backbone.collate([lettered.train[1]]).inputs["input_ids"]
    assert backbone.tokenizer.decode(ids[0]) == "He fell, so A or B? B<eos>"


# bad input


def test_without_a_pad_token_the_end_is_padded_with_and_still_learnt(tmp_path: Path) -> None:
    backbone = load(tiny_causal(tmp_path, pad=False))
    batch = backbone.collate(FEELING.train)
    end = backbone.tokenizer.eos_token_id
    assert backbone.tokenizer.pad_token_id == end
    targets_of = batch.extra["predicting"].roll(1, dims=1)
    for row, targets in zip(batch.inputs["input_ids"], targets_of, strict=True):
        assert row[targets][-1] == end
        assert (row[targets] == end).sum() == 1


def test_chat_without_a_template_is_refused(folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"no chat template\. Set backbone\.chat=false"):
        load(folder, chat=True)
    with pytest.raises(ConfigError, match=r"backbone\.system"):
        load(folder, system="hello")


def test_a_system_message_that_the_template_refuses_is_named(tmp_path: Path) -> None:
    folder = tiny_causal(tmp_path, chat=True)
    refusing = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('No system role') }}{% endif %}"
    (folder / "chat_template.jinja").write_text(refusing + (folder / "chat_template.jinja").read_text())
    load(folder)
    with pytest.raises(ConfigError, match=r"backbone\.system: .*\(No system role\)\. Remove it"):
        load(folder, system="Be brief.")


def test_a_choice_longer_than_the_limit_is_refused(folder: Path) -> None:
    """Also one of the test examples; not where the prompt asks for the labels themselves."""
    choices = {"a": ("short", "shorter"), "b": ("short", "y" * 30)}
    pairs, labels = [("a", "A")], {"A": "A", "B": "B"}
    task = Task("long", train=pairs, test=[("b", "A")], labels=labels, choices=choices)
    with pytest.raises(DataError, match=r"'long': the choice 'y+' has 32 tokens .*max_new_tokens = 20"):
        load(folder).prepare([task])
    load(folder).prepare([Task("asked", pairs, test=pairs, labels=labels, choices=choices, template="{text} A or B?")])


def test_a_label_longer_than_the_limit_is_refused(folder: Path) -> None:
    backbone = load(folder)
    task = Task("long", train=[("a", "x")], test=[("a", "x")], labels={"x": "y" * 30})
    with pytest.raises(DataError, match=r"'long': the text of label 'x' has 32 tokens .*max_new_tokens = 20"):
        backbone.prepare([task])


def test_a_long_target_is_refused_or_cut_without_its_end(folder: Path) -> None:
    task = Task("long", train=[("a", "y" * 30)], test=[("a", "x")])
    with pytest.raises(DataError, match=r"target 'y+' has 32 tokens .*long_targets=cut"):
        load(folder).prepare([task])
    backbone = load(folder, long_targets="cut")
    backbone.prepare([task])
    assert backbone.tokenizer.decode(backbone._completion(task.train[0])) == " " + "y" * 19


def test_two_labels_of_one_text_are_refused(folder: Path) -> None:
    task = Task("twins", train=[("a", "x")], test=[("a", "x")], labels={"x": "same", "z": "same"})
    with pytest.raises(DataError, match="'x' and 'z' stand for the same text"):
        load(folder).prepare([task])


def test_labels_that_written_answers_cannot_tell_apart_are_refused(folder: Path) -> None:
    task = Task("code", train=[("a", "C")], test=[("a", "C++")], labels=["C", "C++", "C#"])
    load(folder).prepare([task])  # ranked, they are three
    with pytest.raises(DataError, match=r"'code'.*the labels 'C' and 'C\+\+' are one.*answer_by=ranking"):
        load(folder, answer_by="generation").prepare([task])


def test_ranking_a_task_without_labels_is_refused(folder: Path) -> None:
    with pytest.raises(DataError, match="nothing to rank"):
        load(folder, answer_by="ranking").predict(STORY.test, ["story"])


FILMS = Task("films", [("x", "pos")], test=[("x", "pos")], labels={"neg": "bad", "pos": "good"})
SHOPS = Task("shops", [("x", "5")], test=[("x", "5")], labels={"1": "awful", "3": "bad", "5": "Good"})


def test_labels_of_two_tasks_with_the_same_text_are_one_class(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Texts that differ in case only are one too: "good" and "Good" are more probable together than "awful"."""
    backbone = load(folder)
    backbone.prepare([FILMS, SHOPS])
    scores = torch.tensor([[2.0, 3.0, 4.0, 2.0, 3.0]]).log()  # "bad" counts once
    monkeypatch.setattr(backbone, "_label_scores", lambda *_: scores)
    (film,), (shop,) = (backbone.predict(task.test, ["films", "shops"]) for task in (FILMS, SHOPS))
    assert film.options == (("films", "neg"), ("films", "pos"), ("shops", "1"))
    assert shop.options == (("shops", "3"), ("shops", "5"), ("shops", "1"))
    assert film.probabilities == shop.probabilities == pytest.approx((2 / 12, 6 / 12, 4 / 12))
    assert (film.label, film.task, shop.label, shop.task) == ("pos", "films", "5", "shops")
    scores = torch.tensor([[7.0, 1.0, 5.0, 7.0, 4.0]]).log()
    (film,), (shop,) = (backbone.predict(task.test, ["films", "shops"]) for task in (FILMS, SHOPS))
    assert (film.label, film.task, shop.label, shop.task) == ("neg", "films", "3", "shops")
    scores = torch.tensor([[2.0, 1.0, 2.0, 2.0, 1.0]]).log()
    (tied,) = backbone.predict(SHOPS.test, ["films", "shops"])
    assert (tied.label, tied.task, tied.probabilities) == ("3", "shops", pytest.approx((1 / 3,) * 3))


@pytest.mark.parametrize(
    ("first", "second", "classes"),
    [
        (["good", "bad"], ["Good", "BAD"], 2),
        (["very  good", "bad"], ["very good ", "Bad"], 2),
        (["good", "bad"], ["goodness", "not bad"], 4),
        (["good", "Good"], ["good", "bad"], 3),  # told apart in the first task, so by their tokens
        (["c", "C", "d"], ["c", "D"], 3),
    ],
)
def test_which_labels_of_two_tasks_say_the_same(
    first: list[str], second: list[str], classes: int, folder: Path
) -> None:
    tasks = [
        Task(name, [("x", texts[0])], test=[("x", text) for text in texts], labels={text: text for text in texts})
        for name, texts in (("one", first), ("two", second))
    ]
    backbone = load(folder)
    backbone.prepare(tasks)
    for task in tasks:
        for example, found in zip(task.test, backbone.predict(task.test, ["one", "two"]), strict=True):
            assert len(found.options) == classes
            assert sum(found.probabilities) == pytest.approx(1)
            assert (task.name, example.label) in found.options  # each label's own task can name it


def test_one_class_has_the_probability_of_its_texts_alone(folder: Path) -> None:
    backbone = load(folder)
    backbone.prepare([FILMS, SHOPS])
    texts = ("bad", "good", "awful", "Good")
    with torch.no_grad():
        wanted = backbone._exhaustive([backbone._prompt("x")], [backbone.format.completion(text) for text in texts])
    bad, good, awful, also_good = wanted[0].softmax(0).tolist()
    (found,) = backbone.predict(FILMS.test, ["films", "shops"])
    assert found.probabilities == pytest.approx((bad, good + also_good, awful), abs=1e-5)


def test_a_written_answer_that_two_tasks_know_is_the_label_of_the_examples_task(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backbone = load(folder, answer_by="generation")
    backbone.prepare([FILMS, SHOPS])
    monkeypatch.setattr(backbone, "_generate", lambda prompts: ["GOOD."] * len(prompts))
    answers = [backbone.predict(task.test, ["films", "shops"])[0] for task in (FILMS, SHOPS)]
    assert [(a.label, a.task) for a in answers] == [("pos", "films"), ("5", "shops")]
    (other,) = backbone.predict([Example("x", "", "else")], ["films", "shops"])
    assert (other.label, other.task) == ("pos", "films")
