"""Eight chat templates, written from the layouts that their makers document, and random chats that they can write.

`marked(template)` puts {% generation %} around what an assistant writes, as TRL's training templates do.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerFast

from tests.backbones.tiny import byte_tokenizer

BEGIN, END = "[[", "]]"  # where `marked` puts the generation mask


@dataclass(frozen=True)
class Layout:
    """A template, the special tokens it writes, and what chats may hold under it."""

    template: str
    special: tuple[str, ...]
    eos: str
    system: bool = True
    tools: bool = False
    reasoning: bool = False
    every_turn: bool = True
    """whether earlier turns stay as they were answered."""


CHATML = (
    "{% for m in messages %}{% if loop.first and m.role != 'system' %}<|im_start|>system\nYou are helpful.<|im_end|>\n{% endif %}"
    "{% if m.role == 'assistant' %}<|im_start|>assistant\n[[{{ m.content }}<|im_end|>\n]]"
    "{% else %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LLAMA3 = (
    "{{ bos_token }}{% for m in messages %}<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n"
    "{% if m.role == 'assistant' %}[[{{ m.content | trim }}<|eot_id|>]]{% else %}{{ m.content | trim }}<|eot_id|>{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
MISTRAL = (
    "{{ bos_token }}{% set ns = namespace(system='') %}{% for m in messages %}"
    "{% if m.role == 'system' %}{% set ns.system = m.content + '\n\n' %}"
    "{% elif m.role == 'user' %}[INST] {{ ns.system + m.content }} [/INST]{% set ns.system = '' %}"
    "{% elif m.role == 'assistant' %}[[ {{ m.content }}{{ eos_token }}]]"
    "{% else %}{{ raise_exception('Only user and assistant roles are supported') }}{% endif %}{% endfor %}"
)
GEMMA = (
    "{{ bos_token }}{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate') }}{% endif %}"
    "{% if m.role == 'assistant' %}<start_of_turn>model\n[[{{ m.content | trim }}<end_of_turn>\n]]"
    "{% else %}<start_of_turn>{{ m.role }}\n{{ m.content | trim }}<end_of_turn>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
PHI = (
    "{% for m in messages %}{% if m.role == 'assistant' %}<|assistant|>\n[[{{ m.content }}<|end|>\n]]"
    "{% else %}<|{{ m.role }}|>\n{{ m.content }}<|end|>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% elif messages[-1].role == 'assistant' %}[[{{ eos_token }}]]"
    "{% else %}{{ eos_token }}{% endif %}"
)
QWEN3 = (
    "{% if tools %}<|im_start|>system\n{% if messages[0].role == 'system' %}{{ messages[0].content }}\n\n{% endif %}<tools>"
    "{% for tool in tools %}\n{{ tool | tojson }}{% endfor %}\n</tools><|im_end|>\n"
    "{% elif messages[0].role == 'system' %}<|im_start|>system\n{{ messages[0].content }}<|im_end|>\n{% endif %}"
    "{% set ns = namespace(query=-1) %}{% for m in messages %}{% if m.role == 'user' %}"
    "{% set ns.query = loop.index0 %}{% endif %}{% endfor %}"
    "{% for m in messages %}{% if m.role == 'user' %}<|im_start|>user\n{{ m.content }}<|im_end|>\n"
    "{% elif m.role == 'assistant' %}<|im_start|>assistant\n[["
    "{% if loop.index0 > ns.query and (loop.last or m.reasoning_content) %}"
    "<think>\n{{ (m.reasoning_content or '') | trim }}\n</think>\n\n{% endif %}{{ m.content }}"
    "{% for call in m.tool_calls or [] %}{% if not loop.first or m.content %}\n{% endif %}<tool_call>\n"
    '{"name": "{{ call.function.name }}", "arguments": {{ call.function.arguments | tojson }}}\n</tool_call>{% endfor %}'
    "<|im_end|>\n]]{% elif m.role == 'tool' %}{% if loop.first or messages[loop.index0 - 1].role != 'tool' %}"
    "<|im_start|>user{% endif %}\n<tool_response>\n{{ m.content }}\n</tool_response>"
    "{% if loop.last or messages[loop.index0 + 1].role != 'tool' %}<|im_end|>\n{% endif %}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and enable_thinking is false %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)
GRANITE = (
    "{% if messages[0].role != 'system' %}<|start_of_role|>system<|end_of_role|>Knowledge Cutoff Date: April 2024.\n"
    "Today's Date: {{ strftime_now('%B %d, %Y') }}.\nYou are Granite.<|end_of_text|>\n{% endif %}"
    "{% if tools %}<|start_of_role|>tools<|end_of_role|>{{ tools | tojson(indent=4) }}<|end_of_text|>\n{% endif %}"
    "{% for m in messages %}{% if m.role == 'assistant' %}<|start_of_role|>assistant<|end_of_role|>[["
    "{% if m.tool_calls %}<|tool_call|>{{ m.tool_calls | tojson }}{% endif %}{{ m.content }}<|end_of_text|>\n]]"
    "{% else %}<|start_of_role|>{{ m.role }}<|end_of_role|>{{ m.content }}<|end_of_text|>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|start_of_role|>assistant<|end_of_role|>{% endif %}"
)
ZEPHYR = (
    "{% for m in messages %}{% if m.role == 'assistant' %}<|assistant|>\n[[{{ m.content + eos_token }}\n]]"
    "{% else %}<|{{ m.role }}|>\n{{ m.content + eos_token }}\n{% endif %}"
    "{% if loop.last and add_generation_prompt %}<|assistant|>\n{% endif %}{% endfor %}"
)
HEADS = ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
LAYOUTS = {
    "chatml": Layout(CHATML, ("<|im_start|>",), "<|im_end|>"),
    "llama-3": Layout(LLAMA3, HEADS[:2], "<|eot_id|>"),
    "mistral": Layout(MISTRAL, (), "</s>"),
    "gemma": Layout(GEMMA, ("<start_of_turn>", "<end_of_turn>"), "<eos>", system=False),
    "phi": Layout(PHI, ("<|user|>", "<|assistant|>", "<|system|>", "<|end|>"), "<|endoftext|>"),
    "qwen-3": Layout(QWEN3, ("<|im_start|>",), "<|im_end|>", tools=True, reasoning=True, every_turn=False),
    "granite": Layout(
        GRANITE, ("<|start_of_role|>", "<|end_of_role|>", "<|tool_call|>"), "<|end_of_text|>", tools=True
    ),
    "zephyr": Layout(ZEPHYR, (), "</s>"),
}
TOOL = {
    "type": "function",
    "function": {
        "name": "add",
        "description": "Adds.",
        "parameters": {"type": "object", "properties": {"a": {"type": "integer"}}},
    },
}
WORDS = ("ja", "Grüße", "two words", "x = 3", "日本", "a\nb", "no.", "It's <b>", "   indented", "🙂")


def tokenizer_of(name: str, *, marks: bool = False) -> PreTrainedTokenizerFast:
    """A byte-level tokenizer with the layout's special tokens and template."""
    layout = LAYOUTS[name]
    tokenizer = byte_tokenizer({"bos_token": "<bos>", "eos_token": layout.eos, "pad_token": "<pad>"})
    tokenizer.add_special_tokens({"additional_special_tokens": list(layout.special)})
    template = layout.template
    for mark, word in ((BEGIN, "generation"), (END, "endgeneration")):
        template = template.replace(mark, f"{{% {word} %}}" if marks else "")
    tokenizer.chat_template = template
    return tokenizer


def chats(name: str, count: int, seed: int = 0) -> list[dict[str, Any]]:
    """Random records of one to four exchanges, with whatever the layout has: system messages, tools, reasoning."""
    layout, draw = LAYOUTS[name], random.Random(f"{name}/{seed}")
    return [_record(layout, draw) for _ in range(count)]


def _record(layout: Layout, draw: random.Random) -> dict[str, Any]:
    messages: list[dict[str, Any]] = []
    if layout.system and draw.random() < 0.5:
        messages.append({"role": "system", "content": _text(draw)})
    with_tools = layout.tools and draw.random() < 0.5
    for _ in range(draw.randint(1, 4)):
        messages.append({"role": "user", "content": _text(draw)})
        if with_tools and draw.random() < 0.5:
            arguments = {"b": draw.randint(0, 9), "a": _text(draw)}
            call = {"type": "function", "function": {"name": "add", "arguments": arguments}}
            messages.append({"role": "assistant", "content": "", "tool_calls": [call]})
            messages.append({"role": "tool", "content": _text(draw)})
        answer = {"role": "assistant", "content": _text(draw)}
        if layout.reasoning and draw.random() < 0.5:
            answer["reasoning_content"] = _text(draw).strip()
        messages.append(answer)
    return {"messages": messages, **({"tools": [TOOL]} if with_tools else {})}


def _text(draw: random.Random) -> str:
    return " ".join(draw.choice(WORDS) for _ in range(draw.randint(1, 5)))
