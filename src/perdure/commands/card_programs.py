"""The programs in a run's model card: how each consumer asks the exported folder, with perdure.json beside it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from perdure.commands.serve import vllm_rank

LOADED = {
    "adapter": "base = {base!r}\nmodel = PeftModel.from_pretrained({auto}.from_pretrained(base), here).eval()\n",
    "model": "base = here\nmodel = {auto}.from_pretrained(here).eval()\n",
}
BEGIN = """{dated}import json
{patterns}from pathlib import Path

import torch
{peft}from transformers import {auto}, AutoTokenizer

here = Path("{here}")  # this folder
{loaded}tokenizer = AutoTokenizer.from_pretrained(base)
about = json.loads((here / "perdure.json").read_text(encoding="utf-8"))
reads, asked = about["reads"], about["tasks"][{task!r}]
"""
ENCODER = """

@torch.inference_mode()
def embedded(texts):
    inputs = tokenizer(texts, padding=True, truncation=True, max_length=reads["max_length"], return_tensors="pt")
    mask = inputs["attention_mask"].unsqueeze(-1)
    mean = (model(**inputs).last_hidden_state * mask).sum(1) / mask.sum(1)
    return torch.nn.functional.normalize(mean, dim=-1)


def probabilities(text):
    scores = embedded([text]) @ embedded(list(asked["labels"].values())).T / reads["temperature"]
    return dict(zip(asked["labels"], scores[0].softmax(0).tolist()))
"""
CAUSAL = """chat = bool(tokenizer.chat_template) and reads.get("chat") is not False


def ids(text, special=False):
    return tokenizer(text, add_special_tokens=special)["input_ids"]


def prompt_ids(text):
    text = asked["template"].replace("{text}", text) if asked["template"] else text
    if chat:
        messages = [{"role": "user", "content": text}]
        if reads.get("system") is not None:
            messages.insert(0, {"role": "system", "content": reads["system"]})
        args = reads.get("template_args") or {}
        return ids(tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False, **args))
    return ids(text.rstrip(" "), special=True)


def answer_ids(text):
    anchor, answer = ("\\n", text) if chat else (":", reads.get("separator", " ") + text)
    return [*ids(anchor + answer)[len(ids(anchor)) :], tokenizer.eos_token_id]


@torch.inference_mode()
def probabilities(text):
    prompt, scores = prompt_ids(text), []
    for answer in map(answer_ids, asked["labels"].values()):
        logits = model(torch.tensor([prompt + answer])).logits[0, len(prompt) - 1 : -1].float()
        score = logits.log_softmax(-1)[range(len(answer)), answer]
        scores.append(score.mean() if reads.get("label_score") == "mean" else score.sum())
    return dict(zip(asked["labels"], torch.stack(scores).softmax(0).tolist()))


@torch.inference_mode()
def written(text):  # a task without labels
    prompt = torch.tensor([prompt_ids(text)])
    found = model.generate(prompt, do_sample=False, max_new_tokens=reads.get("max_new_tokens", 50))
    return tokenizer.decode(found[0, prompt.shape[1] :], skip_special_tokens=True).strip()
"""
CHATS = """if reads.get("template_date"):  # the template writes a date: the one that was learnt with
    date = datetime.date.fromisoformat(reads["template_date"])
    now = r"strftime_now\\(\\s*['\\"]([^'\\"]*)['\\"]\\s*\\)"
    tokenizer.chat_template = re.sub(now, lambda to: json.dumps(date.strftime(to[1])), tokenizer.chat_template)


def ending():  # what the template ends an answer with
    messages = [{"role": "user", "content": "question"}, {"role": "assistant", "content": "answer"}]
    text = tokenizer.apply_chat_template(messages, tokenize=False, **(reads.get("template_args") or {}))
    end = tokenizer(text.rpartition("answer")[2], add_special_tokens=False)["input_ids"]
    return next(token for token in end if token in tokenizer.all_special_ids)


@torch.inference_mode()
def written(messages, tools=None):
    if reads.get("system") is not None and messages[0]["role"] not in ("system", "developer"):
        messages = [{"role": "system", "content": reads["system"]}, *messages]
    args = {"add_generation_prompt": True, "return_dict": False, **(reads.get("template_args") or {})}
    prompt = torch.tensor([tokenizer.apply_chat_template(messages, tools=tools, **args)])
    stops = [ending(), tokenizer.eos_token_id]
    most = {"do_sample": False, "max_new_tokens": reads.get("max_new_tokens", 50), "eos_token_id": stops}
    found = model.generate(prompt, **most, pad_token_id=stops[0])
    return tokenizer.decode(found[0, prompt.shape[1] :], skip_special_tokens=True).strip()
"""
SEQ2SEQ = """start = model.generation_config.decoder_start_token_id
if start is None:
    start = getattr(model.config, "decoder_start_token_id", None)
if start is None:
    start = model.config.decoder.bos_token_id


def prompt_ids(text):
    text = asked["template"].replace("{text}", text) if asked["template"] else text
    return torch.tensor([tokenizer(text)["input_ids"]])


def answer_ids(text):
    found = tokenizer(text_target=text)["input_ids"]
    return found if found and found[-1] == tokenizer.eos_token_id else [*found, tokenizer.eos_token_id]


@torch.inference_mode()
def probabilities(text):
    prompt, scores = prompt_ids(text), []
    for answer in map(answer_ids, asked["labels"].values()):
        read = torch.tensor([[start, *answer[:-1]]])
        logits = model(input_ids=prompt, decoder_input_ids=read).logits[0].float()
        score = logits.log_softmax(-1)[range(len(answer)), answer]
        scores.append(score.mean() if reads.get("label_score") == "mean" else score.sum())
    return dict(zip(asked["labels"], torch.stack(scores).softmax(0).tolist()))


@torch.inference_mode()
def written(text):  # a task without labels
    most = reads.get("max_new_tokens", 50)
    found = model.generate(prompt_ids(text), do_sample=False, num_beams=1, max_new_tokens=most, decoder_start_token_id=start)
    return tokenizer.decode(found[0], skip_special_tokens=True).strip()
"""
AUTO = {"encoder": "AutoModel", "causal": "AutoModelForCausalLM", "seq2seq": "AutoModelForSeq2SeqLM"}
NO_BASE = "THE BASE MODEL'S FOLDER OR HUB ID"


def programs(about: Mapping[str, Any], form: str, here: str, rank: int) -> Iterator[tuple[str, str, str]]:
    """(title, language, text) of each way to ask the folder `here`; `about` as in perdure.json, `rank` of an adapter."""
    task = next(iter(about["tasks"]))
    base, kind = about["base"] or NO_BASE, about["kind"]
    if form.startswith("gguf"):
        loaded = f"{here}/model.gguf" if form == "gguf-model" else f"BASE.gguf --lora {here}/adapter.gguf"
        yield "llama.cpp (BASE.gguf: the base, converted too)", "console", f"llama-server -m {loaded}\n"
        return
    chats = kind == "causal" and about["tasks"][task].get("chats") and not about["tasks"][task].get("labels")
    body = CHATS if chats else {"encoder": ENCODER, "causal": CAUSAL, "seq2seq": SEQ2SEQ}.get(kind)
    if body and about["pooling"] in (None, "mean") and (chats or not about["tasks"][task].get("chats")):
        auto, named = AUTO[kind], {"here": here, "task": task}
        dated = {"dated": "import datetime\n", "patterns": "import re\n"} if chats else {"dated": "", "patterns": ""}
        peft = "from peft import PeftModel\n" if form == "adapter" else ""
        loaded = LOADED[form].format(base=base, auto=auto)
        yield "transformers", "python", BEGIN.format(peft=peft, auto=auto, loaded=loaded, **named, **dated) + body
    if kind == "causal":
        lora = f"{base} --enable-lora --max-lora-rank {vllm_rank(rank)} --lora-modules mine={here}"
        served = lora if form == "adapter" else here
        yield "vLLM (see docs/deployment.md for how prompts are written)", "console", f"vllm serve {served}\n"
    if kind == "encoder" and form == "model":
        yield (
            "sentence-transformers (embeddings; labels are matched by their cosine)",
            "python",
            f"from sentence_transformers import SentenceTransformer\n\nmodel = SentenceTransformer({here!r})\n",
        )
