"""Chats as token ids: those of `apply_chat_template`, learnt where TRL learns them, and refused where a turn would be lost."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from perdure.backbones import token_rows
from perdure.backbones.causal import CausalLM, CausalSettings
from perdure.backbones.chats import ChatFormat
from perdure.backbones.encoder import Encoder, EncoderSettings
from perdure.backbones.generation import greedy
from perdure.backbones.templates import pin_date
from perdure.errors import ConfigError, DataError
from perdure.tasks.chats import as_text, read_chat
from perdure.tasks.sources.files import load_task
from perdure.tasks.task import Task
from tests.backbones.chat_templates import LAYOUTS, TOOL, chats, tokenizer_of
from tests.backbones.tiny import tiny_causal, tiny_encoder

SYSTEM, ASK = {"role": "system", "content": "s"}, {"role": "user", "content": "a"}
FIRST, MORE, LAST = (
    {"role": "assistant", "content": "b"},
    {"role": "user", "content": "c"},
    {"role": "assistant", "content": "d"},
)
LONG = {"messages": [SYSTEM, ASK, FIRST, MORE, LAST]}


def tokenizer(name: str, *, marks: bool = False) -> Any:
    made = tokenizer_of(name, marks=marks)
    pin_date(made, "2026-11-30" if name == "granite" else None)
    return made


@pytest.mark.parametrize("name", LAYOUTS)
def test_ids_and_masks_are_those_of_apply_chat_template(name: str) -> None:
    """200 chats: the whole, the template's own mask, the mask without one, and the prompt with its answer."""
    plain, marked = tokenizer(name), tokenizer(name, marks=True)
    by_marks, by_prefixes, last = ChatFormat(marked, learn="all"), ChatFormat(plain, learn="all"), ChatFormat(plain)
    rewritten = 0
    for record in chats(name, 200):
        chat, messages, tools = read_chat(record, "here"), record["messages"], record.get("tools")
        options = {"tools": tools, "return_dict": True}
        whole = marked.apply_chat_template(messages, return_assistant_tokens_mask=True, **options)
        mask = [bool(mark) for mark in whole["assistant_masks"]]
        found = by_marks.rendered(*chat)
        assert (found.ids, found.learnt) == (whole["input_ids"], mask)
        prompt = plain.apply_chat_template(messages[:-1], add_generation_prompt=True, **options)["input_ids"]
        found = last.rendered(*chat)
        assert (found.ids, found.start) == (whole["input_ids"], len(prompt))
        assert found.learnt == [i >= len(prompt) for i in range(len(found.ids))]
        assert last.prompt(chat[0]) == prompt == found.ids[: found.start]
        try:
            found = by_prefixes.rendered(*chat)
        except DataError as error:
            if "the template rewrites turn" not in str(error):
                raise
            rewritten += 1
        else:
            assert (found.ids, found.learnt) == (whole["input_ids"], mask)
    assert (rewritten == 0) == LAYOUTS[name].every_turn
    assert rewritten < 200


def test_a_chat_by_hand(tmp_path: Path) -> None:
    """<|user|>a<eos><|assistant|>b<eos>: the answer is b<eos>, and of two answers, the last or both are learnt."""
    backbone = load(tmp_path)
    form = backbone.chats.form
    text, label = read_chat({"messages": [ASK, FIRST, MORE, LAST]}, "here")
    found = form.rendered(text, label)
    said = "<|user|>a<eos><|assistant|>b<eos><|user|>c<eos><|assistant|>d<eos>"
    assert backbone.tokenizer.decode(found.ids) == said
    assert learnt(form, found) == "d<eos>"
    assert learnt(form, ChatFormat(form.tokenizer, learn="all").rendered(text, label)) == "b<eos>d<eos>"
    assert form.stop == backbone.tokenizer.eos_token_id
    batch = backbone.collate(backbone._tasks["long"].train)
    assert backbone.tokenizer.decode(batch.extra["answers"]) == "d<eos>"
    assert batch.count == 2


def learnt(form: ChatFormat, found: Any) -> str:
    return form.tokenizer.decode([token for token, own in zip(found.ids, found.learnt, strict=True) if own])


@pytest.mark.parametrize("marks", [False, True])
def test_weights_choose_the_turns(marks: bool) -> None:
    form = ChatFormat(tokenizer("chatml", marks=marks), learn="weighted")
    chat = read_chat(
        {"messages": [ASK, {**FIRST, "weight": 0}, MORE, LAST, ASK, {"role": "assistant", "content": "e"}]}, "x"
    )
    assert learnt(form, form.rendered(*chat)) == "d<|im_end|>\ne<|im_end|>\n"
    chat = read_chat({"messages": [ASK, FIRST, MORE, {**LAST, "weight": 0}]}, "x")
    found = form.rendered(*chat)
    assert learnt(form, found) == "b<|im_end|>\n"
    assert form.tokenizer.decode(found.ids[found.start :]) == "d<|im_end|>\n"  # it is still the answer that is scored
    with pytest.raises(DataError, match="none of its turns is to be learnt"):
        form.rendered(*read_chat({"messages": [ASK, {**FIRST, "weight": 0}]}, "x"))
    with pytest.raises(DataError, match=r"a turn has `weight: 0`, which counts with backbone.learn=weighted only"):
        ChatFormat(form.tokenizer).rendered(*chat)


def test_a_greeting_is_learnt_by_marks_only() -> None:
    """No prompt asks for it; the last turn is learnt as ever, and a weight of 0 leaves it out."""
    chat = read_chat({"messages": [FIRST, MORE, LAST]}, "x")
    assert learnt(ChatFormat(tokenizer("zephyr")), ChatFormat(tokenizer("zephyr")).rendered(*chat)) == "d</s>\n"
    form = ChatFormat(tokenizer("zephyr", marks=True), learn="all")
    assert learnt(form, form.rendered(*chat)) == "b</s>\nd</s>\n"
    with pytest.raises(DataError, match="its first turn is the assistant's, and no prompt asks for it"):
        ChatFormat(tokenizer("zephyr"), learn="all").rendered(*chat)
    form = ChatFormat(tokenizer("zephyr"), learn="weighted")
    chat = read_chat({"messages": [{**FIRST, "weight": 0}, MORE, LAST]}, "x")
    assert learnt(form, form.rendered(*chat)) == "d</s>\n"


def test_a_system_message_of_the_settings_is_for_chats_without_one() -> None:
    form = ChatFormat(tokenizer("chatml"), system="mine")
    written = [form.tokenizer.decode(form.prompt(as_text(messages))) for messages in ([ASK], [SYSTEM, ASK])]
    assert ["<|im_start|>system\nmine<|im_end|>" in text for text in written] == [True, False]
    assert "<|im_start|>system\ns<|im_end|>" in written[1]


def test_reasoning_is_written_where_the_template_writes_it() -> None:
    """Of earlier turns Qwen 3 drops it; a template that never writes it would learn nothing of it."""
    form = ChatFormat(tokenizer("qwen-3"))
    chat = read_chat(
        {"messages": [ASK, {**FIRST, "reasoning_content": "r"}, MORE, {**LAST, "reasoning_content": "t"}]}, "x"
    )
    assert learnt(form, form.rendered(*chat)) == "<think>\nt\n</think>\n\nd<|im_end|>\n"
    assert "r\n</think>" not in form.tokenizer.decode(form.rendered(*chat).ids)
    with pytest.raises(
        DataError, match=r"drops the reasoning of turn 3 \('assistant'\): nothing would be learnt of it"
    ):
        ChatFormat(tokenizer("chatml")).rendered(*chat)


def test_arguments_of_the_template_reach_it() -> None:
    form = ChatFormat(tokenizer("qwen-3"), args={"enable_thinking": False})
    assert form.tokenizer.decode(form.prompt(as_text([ASK]))).endswith("<|im_start|>assistant\n<think>\n\n</think>\n\n")
    assert learnt(form, form.rendered(as_text([ASK]), "b")) == "b<|im_end|>\n"


def test_parts_of_text_are_joined_where_the_template_reads_strings() -> None:
    parts = [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]
    text = as_text([{"role": "user", "content": parts}])
    chatml = tokenizer("chatml")
    assert "user\none\ntwo<|im_end|>" in chatml.decode(ChatFormat(chatml).prompt(text))
    chatml.chat_template = chatml.chat_template.replace(
        "{{ m.role }}\n{{ m.content }}",
        "{{ m.role }}\n{% if m.content is string %}{{ m.content }}{% else %}"
        "{% for p in m.content %}({{ p.text }}){% endfor %}{% endif %}",
    )
    assert "user\n(one)(two)<|im_end|>" in chatml.decode(ChatFormat(chatml).prompt(text))


DROPPED = {
    "a system message": (
        "{% if m.role != 'system' %}",
        [SYSTEM, ASK, FIRST],
        None,
        r"drops the content of turn 0 \('system'\)",
    ),
    "a tool's answer": (
        "{% if m.role != 'tool' %}",
        [ASK, {"role": "tool", "content": "3"}, FIRST],
        None,
        r"drops the content of turn 1 \('tool'\)",
    ),
    "a tool": ("{% if true %}", [ASK, FIRST], [TOOL], "drops the tool 'add'"),
    "a tool call": (
        "{% if true %}",
        [ASK, {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "add", "arguments": {}}}]}],
        None,
        r"drops the tool call of turn 1 \('assistant'\)",
    ),
}


ANY_ROLE = "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<eos>{% endfor %}"
ANY_ROLE += "{% if add_generation_prompt %}<|assistant|>{% endif %}"


def with_template(folder: Path, template: str) -> CausalLM:
    model = tiny_causal(folder, chat=True)
    (model / "chat_template.jinja").write_text(template)
    return CausalLM.load(CausalSettings(model=str(model)))


def chat_task(records: list[Any]) -> Task:
    return Task("t", records, test=records[:1])


@pytest.mark.parametrize(
    ("role", "hint"),
    [
        ("human", "Did you mean 'user'"),
        ("gpt", "Did you mean 'assistant'"),
        ("User", "Did you mean 'user'"),
        ("usr", "Did you mean 'user'"),
        ("asistant", "Did you mean 'assistant'"),
        ("observation", "Did you mean 'tool'"),
        ("narrator", "chat template. The model"),
    ],
)
def test_a_role_that_nobody_knows_is_refused_with_the_row(role: str, hint: str, tmp_path: Path) -> None:
    """Most templates write any role as it stands: learnt as a speaker that the model never met."""
    backbone = with_template(tmp_path, ANY_ROLE)
    turns = [SYSTEM, {"role": role, "content": "x"}, ASK, FIRST]
    known = "system, developer, user, assistant, tool, function"
    with pytest.raises(DataError, match=f"'t', train example 1: turn 1 has the role '{role}', .* of {known} .*{hint}"):
        backbone.prepare([chat_task([{"messages": [ASK, FIRST]}, {"messages": turns}])])


@pytest.mark.parametrize("role", ["system", "developer", "tool", "function", "user"])
def test_usual_roles_and_those_of_the_template_are_learnt(role: str, tmp_path: Path) -> None:
    turns = [{"role": role, "content": "x"}, ASK, FIRST]
    with_template(tmp_path / "any", ANY_ROLE).prepare([chat_task([{"messages": turns}])])
    own = ANY_ROLE.replace("{{ m.role }}", "{{ 'sensor' if m.role == \"sensor\" else m.role }}")
    with_template(tmp_path / "own", own).prepare(
        [chat_task([{"messages": [{"role": "sensor", "content": "x"}, FIRST]}])]
    )


@pytest.mark.parametrize("name", DROPPED)
def test_a_template_that_drops_something_is_refused_with_the_row(name: str, tmp_path: Path) -> None:
    """Also where what is dropped is a word that the rest of the chat has."""
    condition, messages, tools, message = DROPPED[name]
    folder = tiny_causal(tmp_path, chat=True)
    template = "{% for m in messages %}" + condition + "<|{{ m.role }}|>{{ m.content }}<eos>{% endif %}{% endfor %}"
    (folder / "chat_template.jinja").write_text(template + "{% if add_generation_prompt %}<|assistant|>{% endif %}")
    good, bad = {"messages": [ASK, FIRST]}, {"messages": messages, **({"tools": tools} if tools else {})}
    task = Task("t", [good, bad], test=[good])
    with pytest.raises(DataError, match=rf"Task 't', train example 1: the model's chat template {message}"):
        CausalLM.load(CausalSettings(model=str(folder))).prepare([task])


def test_a_template_that_raises_is_named_with_the_row(tmp_path: Path) -> None:
    folder = tiny_causal(tmp_path, chat=True)
    check = "{% if messages[0].role == 'system' %}{{ raise_exception('No system role') }}{% endif %}"
    (folder / "chat_template.jinja").write_text(check + (folder / "chat_template.jinja").read_text())
    task = Task(
        "t", [{"messages": [ASK, FIRST]}, {"messages": [SYSTEM, ASK, FIRST]}], test=[{"messages": [ASK, FIRST]}]
    )
    with pytest.raises(
        DataError, match=r"'t', train example 1: the model's chat template refuses it \(No system role\)"
    ):
        CausalLM.load(CausalSettings(model=str(folder))).prepare([task])


@pytest.mark.parametrize("many", [1, 1000])
def test_a_chat_of_a_file_that_the_template_refuses_is_named_with_its_line(
    many: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where ids are cached: nothing is left of them."""
    monkeypatch.setattr(token_rows, "MANY", many)
    monkeypatch.setenv("PERDURE_CACHE", str(tmp_path / "cache"))
    folder = tiny_causal(tmp_path / "model", chat=True)
    check = "{% if messages[0].role == 'system' %}{{ raise_exception('No system role') }}{% endif %}"
    (folder / "chat_template.jinja").write_text(check + (folder / "chat_template.jinja").read_text())
    rows = [{"messages": [{"role": "user", "content": f"a{i}"}, FIRST]} for i in range(8)]
    rows[5]["messages"].insert(0, SYSTEM)
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = load_task({"name": "t", "train": str(tmp_path / "a.jsonl"), "validation_size": 0, "test_size": 1})
    with pytest.raises(DataError, match=r"a\.jsonl, line 6: the model's chat template refuses it \(No system role\)"):
        CausalLM.load(CausalSettings(model=str(folder))).prepare([task])
    assert not list((tmp_path / "cache").rglob("ids.bin"))


def test_an_answer_of_which_nothing_is_left_to_learn_is_named(tmp_path: Path) -> None:
    """The template begins every answer with eight letters that are not learnt, and answers are cut to four."""
    folder = tiny_causal(tmp_path, chat=True)
    learnt = "{% generation %}{{ m.content }}<eos>{% endgeneration %}"
    marked = "{% if m.role == 'assistant' %}<|assistant|>thoughts" + learnt + "{% else %}"
    (folder / "chat_template.jinja").write_text(
        "{% for m in messages %}" + marked + "<|{{ m.role }}|>{{ m.content }}<eos>{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>{% endif %}"
    )
    task = Task("t", [{"messages": [ASK, FIRST]}], test=[{"messages": [ASK, FIRST]}])

    def prepared(tokens: int) -> CausalLM:
        backbone = CausalLM.load(CausalSettings(model=str(folder), max_new_tokens=tokens, long_targets="cut"))
        backbone.prepare([task])
        return backbone

    with pytest.raises(
        DataError, match=r"'t', train example 0: what is to be learnt lies behind .*max_new_tokens = 4 tokens"
    ):
        prepared(4)
    backbone = prepared(9)
    assert backbone.tokenizer.decode(backbone.collate(task.train).extra["answers"]) == "b"


def test_a_completion_is_never_cut_away_with_its_prompt(tmp_path: Path) -> None:
    """What is cut to `max_length` is the prompt alone."""
    backbone = CausalLM.load(CausalSettings(model=str(tiny_causal(tmp_path)), max_length=4))
    task = Task("t", [("x" * 50, "whole")], test=[("y" * 50, "whole")], metric="rouge-l")
    backbone.prepare([task])
    assert backbone.tokenizer.decode(backbone.collate(task.train).extra["answers"]).strip() == "whole<eos>"


def test_a_prompt_that_is_written_otherwise_once_it_is_answered_is_refused() -> None:
    """DeepSeek's distilled models begin to reason in the generation prompt, which the answered chat does not have."""
    chatml = tokenizer("chatml")
    chatml.chat_template = chatml.chat_template.replace(
        "<|im_start|>assistant\n{% endif %}", "<|im_start|>assistant\n<think>{% endif %}"
    )
    with pytest.raises(DataError, match=r"writes the prompt of turn 1 otherwise when it is answered \('<think>'\)"):
        ChatFormat(chatml).rendered(as_text([ASK]), "b")


def test_a_template_without_an_end_is_refused() -> None:
    chatml = tokenizer("chatml")
    plain = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    chatml.chat_template = plain + "{% if add_generation_prompt %}assistant:{% endif %}"
    with pytest.raises(ConfigError, match="ends no answer with a special token: a model cannot learn to stop"):
        ChatFormat(chatml)
    marked = tokenizer("chatml", marks=True)
    marked.chat_template = marked.chat_template.replace(
        "<|im_end|>\n{% endgeneration %}", "{% endgeneration %}<|im_end|>\n"
    )
    with pytest.raises(DataError, match=r"\{% generation %\} leaves out the token that ends a turn"):
        ChatFormat(marked, learn="all").rendered(as_text([ASK]), "b")


def load(folder: Path, **settings: Any) -> CausalLM:
    tiny_causal(folder, chat=True)
    backbone = CausalLM.load(CausalSettings(model=str(folder), **settings))
    backbone.prepare([Task("long", [{"messages": [ASK, FIRST, MORE, LAST]}], test=[{"messages": [ASK, FIRST]}])])
    return backbone


def test_long_chats_are_counted_and_named(tmp_path: Path) -> None:
    """`<|user|>` and `<|assistant|>` are 8 and 13 bytes: 22 + 9 tokens ask "a" and "b" more."""
    chat = {"messages": [{"role": "user", "content": "x" * 20}, {"role": "assistant", "content": "y" * 10}]}
    short = {"messages": [ASK, FIRST]}
    task = Task("t", [short, chat, short], test=[short])
    folder = tiny_causal(tmp_path, chat=True)

    def load_with(**settings: Any) -> CausalLM:
        backbone = CausalLM.load(CausalSettings(model=str(folder), **settings))
        backbone.prepare([task])
        return backbone

    with pytest.raises(
        DataError,
        match=r"train example 1: 42 tokens before the answer, and 1 of 4 chats .*max_length = 30\. Raise it to 42",
    ):
        load_with(max_length=30)
    with pytest.raises(
        DataError,
        match=r"train example 1: 11 tokens in the answer, its end included, and 1 of 4 .*max_new_tokens = 5.*long_targets=cut",
    ):
        load_with(max_new_tokens=5)
    cut = load_with(max_new_tokens=5, long_targets="cut")
    assert cut.tokenizer.decode(cut.collate([task.train[1]]).extra["answers"]) == "yyyyy"  # no false end
    assert cut.length(task.train[1]) == 47


def test_the_loss_is_over_the_learnt_turns(tmp_path: Path) -> None:
    """Two turns, b<eos> and d<eos>: the mean of their four tokens' losses, as transformers computes them from labels."""
    backbone = load(tmp_path, learn="all")
    example = backbone._tasks["long"].train[0]
    row = backbone.chats.row(example)
    ids = torch.tensor([row.ids])
    labels = torch.where(torch.tensor([row.learnt]), ids, -100)
    expected = backbone.model(input_ids=ids, labels=labels).loss
    batch = backbone.collate([example])
    assert batch.count == 4
    torch.testing.assert_close(backbone.forward(batch).loss, expected)
    everything = load(tmp_path, loss_on="all")
    assert everything.collate([example]).count == len(row.ids) - 1


def test_a_mixed_batch_learns_each_in_its_own_way(tmp_path: Path) -> None:
    backbone = load(tmp_path)
    plain = Task("plain", [("a", "yes")], test=[("b", "no")])
    backbone.prepare([plain])
    chat, text = backbone._tasks["long"].train[0], plain.train[0]
    alone = [backbone.tokenizer.decode(backbone.collate([e]).extra["answers"]) for e in (chat, text)]
    assert alone == ["d<eos>", "yes<eos>"]
    assert backbone.tokenizer.decode(backbone.collate([chat, text]).extra["answers"]) == "".join(alone)


def test_answers_stop_at_the_template_s_end(tmp_path: Path) -> None:
    """Gemma's turns end with a token that is not the tokenizer's end of text; the written answer is compared as a whole."""
    backbone = load(tmp_path)
    assert backbone.predict(backbone._tasks["long"].test, ["long"])[0].wanted == "b"
    prompt = backbone.chats.prompt(backbone._tasks["long"].test[0].text)
    written = backbone.model.generate(torch.tensor([prompt]), max_new_tokens=8, do_sample=False)[
        0, len(prompt) :
    ].tolist()
    second = next(token for token in written[1:] if token != written[0])
    first = written[: written.index(second)]
    assert backbone.tokenizer.eos_token_id not in first
    found = greedy(backbone.model, backbone.tokenizer, [prompt], 8, more_stops=[second])
    assert found == [backbone.tokenizer.decode(first, skip_special_tokens=True).strip()]


def test_models_without_a_template_refuse_chats(tmp_path: Path) -> None:
    task = Task("t", [{"messages": [ASK, FIRST]}], test=[{"messages": [ASK, FIRST]}])
    with pytest.raises(
        DataError,
        match=r"'t': chats need a language model with a chat template that is used .* backbone.chat not false",
    ):
        CausalLM.load(CausalSettings(model=str(tiny_causal(tmp_path / "c")))).prepare([task])
    with pytest.raises(DataError, match=r"'t': chats need a language model with a chat template .*; an encoder reads"):
        Encoder.load(EncoderSettings(model=str(tiny_encoder(tmp_path / "e")))).prepare([task])


def test_the_date_is_pinned_and_said() -> None:
    """In every format that the template writes; a computed one, a random one and a date without effect are refused."""
    made = tokenizer_of("granite")
    assert pin_date(made, "2026-11-30") == "2026-11-30"
    assert "Today's Date: November 30, 2026." in made.decode(ChatFormat(made).prompt(as_text([ASK])))
    assert pin_date(tokenizer_of("granite"), None) is not None
    with pytest.raises(ConfigError, match="template_date has no effect"):
        pin_date(tokenizer_of("chatml"), "2026-11-30")
    odd = tokenizer_of("chatml")
    odd.chat_template = "{% set f = '%Y' %}{{ strftime_now(f) }}" + odd.chat_template
    with pytest.raises(ConfigError, match="computes the format of today's date"):
        pin_date(odd, None)
    odd.chat_template = "{{ [1, 2] | random }}"
    with pytest.raises(ConfigError, match="draws at random"):
        pin_date(odd, None)


def test_arguments_that_the_template_does_not_read_are_refused(tmp_path: Path) -> None:
    folder = str(tiny_causal(tmp_path, chat=True))
    for args, message in (({"enable_thinking": False}, "has no effect"), ({"tools": []}, "is set for each chat")):
        with pytest.raises(ConfigError, match=rf"backbone\.template_args\.{next(iter(args))} {message}"):
            CausalLM.load(CausalSettings(model=folder, template_args=args))
    with pytest.raises(ConfigError, match="template_args and template_date belong to a chat template"):
        CausalLM.load(CausalSettings(model=folder, chat=False, template_args={"messages": 1}))
