"""What all prompts of a task begin with is computed once: the same answers, with less to compute."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase

from perdure.backbones import sharing
from perdure.backbones.causal import CausalLM, CausalSettings
from perdure.backbones.prefix import common_ids, computed_prefix
from perdure.backbones.tokens import in_batches
from perdure.tasks.task import Example, Task
from tests.backbones.test_mixing import NOT_PLAIN, PLAIN
from tests.backbones.tiny import tiny_causal

WORDS = "Which feeling? Options: bad, good.\n"
TEXTS = ["hi", "a much longer text than the first", "mid size", "x" * 40, "fine weather", "no"]
FEELING = Task(
    "feeling", [("a", "pos")], test=[("b", "pos")], labels={"neg": "bad", "pos": "good"}, template=WORDS + "{text}\n"
)
STORY = Task("story", [("a", "b c")], test=[("b", "c")], template=WORDS + "{text}\n")


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(tiny_causal(tmp_path_factory.mktemp("llama")))


def backbone_of(name: str, tokenizer: PreTrainedTokenizerBase, **settings: Any) -> CausalLM:
    special = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    config = AutoConfig.for_model(name, vocab_size=len(tokenizer), **special, **{**NOT_PLAIN, **PLAIN}[name])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config).eval()
    if model.config._attn_implementation == "sdpa":
        model = model.double()  # eager attention over padding alone is NaN in float64
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim >= 2:
                parameter.mul_(3)  # so that answers differ between texts
    backbone = CausalLM(model, tokenizer, CausalSettings(model=name, max_length=128, max_new_tokens=8, **settings))
    backbone.prepare([FEELING, STORY])
    return backbone


def asked(backbone: CausalLM, task: str, texts: Sequence[str] = TEXTS) -> tuple[list[Any], int]:
    """The answers, and how many token positions went through the model's first layer."""
    seen = [0]
    table = backbone.model.get_input_embeddings()  # type: ignore[operator]
    hook = table.register_forward_hook(lambda _module, args, _out: seen.append(args[0].numel()))
    try:
        return backbone.predict([Example(text, "pos", task) for text in texts], [task]), sum(seen)
    finally:
        hook.remove()


@pytest.mark.parametrize("task", ["feeling", "story"])
@pytest.mark.parametrize("name", PLAIN)
def test_answers_are_those_of_whole_prompts(name: str, task: str, tokenizer: PreTrainedTokenizerBase) -> None:
    backbone = backbone_of(name, tokenizer)
    asked(backbone, task, ["x", "another"])  # tried here
    answers, positions = asked(backbone, task)
    assert backbone._shared == {"ranked" if task == "feeling" else "written": True}
    whole, more = asked(backbone_of(name, tokenizer, share_prefix=False, ranking="exhaustive"), task)
    assert [(a.label, a.task) for a in answers] == [(a.label, a.task) for a in whole]
    for answer, other in zip(answers, whole, strict=True):
        assert answer.probabilities == pytest.approx(other.probabilities, abs=1e-5)
    assert len({a.label for a in answers}) > 1 or task == "feeling"
    assert positions < more


def test_how_much_is_computed(tokenizer: PreTrainedTokenizerBase) -> None:
    """A byte is a token: the words and the start once, then two texts of 3 and their line ends with 7 nodes ("good", "bad")."""
    backbone = backbone_of("llama", tokenizer)
    asked(backbone, "feeling")
    begin = len(backbone.format.prompt(WORDS + "x")) - 1
    nodes = len(" bad") + len("good")  # after the space that both begin with
    assert asked(backbone, "feeling", ["abc", "xyz"])[1] == begin + 2 * (3 + 1 + nodes)


@pytest.mark.parametrize("task", ["feeling", "story"])
@pytest.mark.parametrize("name", ["lfm2", "gpt_neo", "mpt"])
def test_what_is_not_plain_attention_shares_nothing(
    name: str, task: str, tokenizer: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sharing, "computed_prefix", lambda *_: pytest.fail("a prefix was computed"))
    backbone = backbone_of(name, tokenizer)
    answers, _ = asked(backbone, task)
    assert backbone._shared == {}
    assert answers == asked(backbone_of(name, tokenizer, share_prefix=False), task)[0]


@pytest.mark.parametrize("task", ["feeling", "story"])
def test_a_prefix_that_changes_scores_is_not_used(
    task: str, tokenizer: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in a model that reads its cache otherwise; and in one that refuses it."""
    expected = asked(backbone_of("llama", tokenizer, share_prefix=False), task)[0]

    def wrong(model: Any, ids: list[int]) -> Any:
        prefix = computed_prefix(model, ids)
        prefix.lent.layers[-1].values.mul_(1.01)  # type: ignore[union-attr]
        return prefix

    def refuses(*_: Any) -> Any:
        raise TypeError("forward() got an unexpected keyword argument 'past_key_values'")

    for broken in (wrong, refuses):
        monkeypatch.setattr(sharing, "computed_prefix", broken)
        backbone = backbone_of("llama", tokenizer)
        answers = asked(backbone, task)[0]
        assert [*backbone._shared.values()] == [False]
        assert [a.label for a in answers] == [a.label for a in expected]
        assert backbone._prefix is None


def test_a_prefix_ends_with_the_answers(tokenizer: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also after an error: scores asked for in training never meet it."""
    backbone = backbone_of("llama", tokenizer)
    asked(backbone, "feeling")
    assert backbone._prefix is None
    monkeypatch.setattr(backbone, "_ranked", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        asked(backbone, "feeling")
    assert backbone._prefix is None


def test_a_short_window_shares_nothing(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    backbone = backbone_of("llama", tokenizer)
    backbone.model.config.sliding_window = 20
    windowed = CausalLM(backbone.model, tokenizer, backbone.settings)  # type: ignore[arg-type]
    windowed.prepare([FEELING, STORY])
    for task in ("feeling", "story"):
        asked(windowed, task)
    assert windowed._shared == {}


def test_what_prompts_have_in_common() -> None:
    shared = [*range(40)]
    assert common_ids([[*shared, 1], [*shared, 2, 3]]) == shared
    assert common_ids([shared, shared]) == shared[:-1]  # the last is asked, not known
    assert common_ids([[*shared, 1]]) == []  # nobody to share it with
    assert common_ids([[1, 2, 3, 4], [1, 2, 5]]) == []  # a pass for two tokens costs more than it saves


def test_batches_are_cut_where_padding_costs_more_than_a_pass() -> None:
    """[10, 10] and [1, 1] with two passes of 5: 20 + 2 + 10 = 32 positions, in one batch 40 + 5; with passes of 50 90 < 122."""

    def batches(pass_cost: int, size: int = 4) -> list[list[int]]:
        seen: list[list[int]] = []
        in_batches([1, 10, 1, 10], size, lambda chosen: (seen.append(chosen), chosen)[1], None, pass_cost)
        return seen

    assert batches(5) == [[1, 3], [0, 2]]
    assert batches(50) == batches(0) == [[1, 3, 0, 2]]
    assert batches(50, size=3) in ([[1, 3, 0], [2]], [[1, 3], [0, 2]])
    assert max(map(len, batches(1000, size=3))) <= 3
