"""`perdure show RUN --serve`: how to serve a run's language model so that it reads the prompts it learnt from.

One text that is a Python program (transformers and PEFT) with the commands for vLLM in its comments.
"""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

from perdure.adapters.format import CONFIG_FILE, read_config
from perdure.backbones import backbone_kind
from perdure.backbones.models import model_folder
from perdure.errors import ConfigError, StoreError, UnknownName
from perdure.state.reopen import learner_config
from perdure.state.store import DEPLOYED, Store

VLLM_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
PAGE = "docs/deployment.md shows how to answer with it."
DATE = """# the template writes a date: the one that was learnt with
DATE = datetime.date.fromisoformat({date!r})
NOW = r"strftime_now\\(\\s*['\\"]([^'\\"]*)['\\"]\\s*\\)"
tokenizer.chat_template = re.sub(NOW, lambda now: json.dumps(DATE.strftime(now[1])), tokenizer.chat_template)
Path("template.jinja").write_text(tokenizer.chat_template, encoding="utf-8")  # for vLLM
"""
PROGRAM = '''r"""Answers of {run} in transformers and PEFT, and in vLLM: the prompts are those that were learnt.

vLLM:
    {command}
Then send to http://localhost:8000/v1/chat/completions, with your own `messages` (and `tools`):
    {request}
"""

{dated}import torch
{imports}from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

tokenizer = AutoTokenizer.from_pretrained({tokenizer!r}{revision})
{date}model = {model}.eval()
GREEDY = GenerationConfig(do_sample=False, max_new_tokens={longest}, eos_token_id={stops}, pad_token_id={pad})


def prompt_ids(messages, tools=None):
{system}    return tokenizer.apply_chat_template(
        messages, tools=tools, add_generation_prompt=True, return_dict=False, **{args!r}
    )


@torch.inference_mode()
def answer(messages, tools=None):
    ids = torch.tensor([prompt_ids(messages, tools)])
    written = model.generate(ids, attention_mask=torch.ones_like(ids), generation_config=GREEDY)
    return tokenizer.decode(written[0, ids.shape[1] :], skip_special_tokens=True).strip()


if __name__ == "__main__":
    print(answer([{{"role": "user", "content": {question!r}}}]))
'''


def serving(folder: str | Path, task: str | None = None) -> str:
    """The program for the task (default: the run's only one).

    Raises:
        StoreError: no finished stage, or an adapter for each task. UnknownName: no such task.
        ConfigError: not a language model with a chat template, or a task whose labels are ranked.
    """
    store = Store(Path(folder))
    about = store.about
    chosen = _task(store, task)
    settings, place = learner_config(store).backbone, store.folder / DEPLOYED
    if not place.is_dir() or not store.stages():
        raise StoreError(f"'{folder}' deploys nothing yet. Finish the run first.")
    if not (place / CONFIG_FILE).is_file() and not (place / "config.json").is_file():
        raise StoreError(
            f"The run in '{folder}' deploys an adapter for each task. Export one: perdure export {folder} --task TASK."
        )
    if backbone_kind(settings) != "causal" or about["asked"][chosen]["labels"]:
        raise ConfigError(f"Task '{chosen}' is answered by a label or a model that writes no chat. {PAGE}")
    return PROGRAM.format(run=store.folder, **_parts(about["asked"][chosen], settings, place))


def _task(store: Store, task: str | None) -> str:
    asked = store.about["asked"]
    if task is not None and task not in asked:
        raise UnknownName("task", task, list(asked))
    kinds = {(bool(a["labels"]), a["template"], a.get("chats", False)) for a in asked.values()}
    if task is None and len(kinds) > 1:
        raise StoreError(
            f"The tasks of '{store.folder}' are asked in different ways. Choose one with --task: {', '.join(asked)}."
        )
    return task or next(iter(asked))


def _parts(asked: dict[str, Any], given: dict[str, Any], place: Path) -> dict[str, Any]:
    from perdure.backbones.causal import CausalSettings, chat_format, pinned
    from perdure.backbones.pretrained import load_tokenizer
    from perdure.settings.read import validate

    settings = validate(CausalSettings, given, "backbone")
    tokenizer = load_tokenizer(settings)
    if settings.chat is False or not tokenizer.chat_template:
        raise ConfigError(f"The run's model has no chat template. {PAGE}")
    date = pinned(tokenizer, settings)
    stops: Any = [chat_format(tokenizer, settings).stop] if asked.get("chats") else []
    stops = list(dict.fromkeys([*stops, tokenizer.eos_token_id]))
    base, adapted = model_folder(settings.model), (place / CONFIG_FILE).is_file()
    revision = f", revision={settings.revision!r}" if settings.revision else ""
    source = f"{base!r}{revision}" if adapted else repr(str(place))
    model = f"AutoModelForCausalLM.from_pretrained({source}, dtype=torch.{settings.dtype})"
    question = asked["template"].replace("{text}", "...") if asked["template"] else "..."
    return {
        "command": _command(base, place, settings, adapted, date),
        "request": _request(place, settings, adapted, stops),
        "dated": "import datetime\nimport json\nimport re\nfrom pathlib import Path\n\n" if date else "",
        "imports": "from peft import PeftModel\n" if adapted else "",
        "tokenizer": base,
        "revision": revision,
        "date": DATE.format(date=date) if date else "",
        "model": f"PeftModel.from_pretrained({model}, {str(place)!r})" if adapted else model,
        "longest": settings.max_new_tokens,
        "stops": stops,
        "pad": tokenizer.pad_token_id,
        "system": _system(settings.system),
        "args": settings.template_args,
        "question": question,
    }


def _system(system: str | None) -> str:
    if system is None:
        return ""
    return (
        '    if messages[0]["role"] not in ("system", "developer"):\n'
        f'        messages = [{{"role": "system", "content": {system!r}}}, *messages]\n'
    )


def vllm_rank(rank: int) -> int:
    """The value of --max-lora-rank for an adapter of this rank, of those that vLLM takes; the rank itself if it is above them."""
    return next((allowed for allowed in VLLM_RANKS if allowed >= rank), rank)


def _command(base: str, place: Path, settings: Any, adapted: bool, date: str | None) -> str:
    words = ["vllm", "serve", base if adapted else str(place), "--generation-config", "vllm", "--dtype", settings.dtype]
    if adapted:
        config = read_config(place)
        rank = max(config.rank, *config.rank_pattern.values(), 0)
        words += ["--enable-lora", "--max-lora-rank", str(vllm_rank(rank))]
        words += ["--lora-modules", f"deployed={place}"]
    if settings.revision and adapted:
        words += ["--revision", settings.revision]
    if date:
        words += ["--chat-template", "template.jinja"]
    return shlex.join(words)


def _request(place: Path, settings: Any, adapted: bool, stops: list[int]) -> str:
    system = [{"role": "system", "content": settings.system}] if settings.system is not None else []
    request = {
        "model": "deployed" if adapted else str(place),
        "messages": [*system, {"role": "user", "content": "..."}],
        "temperature": 0,
        "max_tokens": settings.max_new_tokens,
        "stop_token_ids": stops,
        **({"chat_template_kwargs": settings.template_args} if settings.template_args else {}),
    }
    return json.dumps(request)
