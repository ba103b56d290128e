"""`deployed/` answers the same in plain transformers or PEFT, without perdure."""

from __future__ import annotations

import json

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModel, AutoTokenizer, GPT2Config, GPT2LMHeadModel

from perdure.adapters.folder import Adapter
from perdure.commands.learn import learn
from perdure.errors import AdapterError
from perdure.merging.sources import open_sources
from perdure.state.answers import read_answers
from perdure.state.store import Store
from tests.backbones.tiny import tiny_causal
from tests.contract.runs import SETTINGS, short_run


def _answers(model, tokenizer, task, texts):
    """What a user without perdure writes: mean pooling, cosine to the label texts, the best."""

    def embed(batch):
        inputs = tokenizer(batch, padding=True, truncation=True, max_length=32, return_tensors="pt")
        with torch.inference_mode():
            hidden = model(**inputs).last_hidden_state
        mask = inputs["attention_mask"].unsqueeze(-1)
        return torch.nn.functional.normalize((hidden * mask).sum(1) / mask.sum(1), dim=-1)

    scores = embed(texts) @ embed(list(task.labels.values())).T
    return [list(task.labels)[i] for i in scores.argmax(dim=1).tolist()]


@pytest.mark.parametrize("method", ["inc-lora", "seq-lora", "ps-lora", "per-task"])
def test_the_deployed_model_answers_the_same(method, tmp_path, small_tasks, encoder_folder):
    tasks = small_tasks[:2]
    short_run(
        tmp_path / "run", tasks, encoder_folder, method, training={"epochs": 3, "batch_size": 8, "learning_rate": 0.02}
    )
    deployed, store = tmp_path / "run" / "deployed", Store(tmp_path / "run")
    tokenizer = AutoTokenizer.from_pretrained(encoder_folder)
    for task in tasks:
        folder = deployed / task.name if method == "per-task" else deployed
        if (folder / "adapter_config.json").exists():
            model = PeftModel.from_pretrained(AutoModel.from_pretrained(encoder_folder), folder).eval()
        else:
            model = AutoModel.from_pretrained(folder).eval()
        rows = read_answers(store.stage_folder(2), task.name)
        assert _answers(model, tokenizer, task, [e.text for e in task.test]) == [row["predicted"] for row in rows]


def test_a_dense_merge_is_deployed_as_a_whole_model(tmp_path, small_tasks, encoder_folder):
    short_run(tmp_path / "run", small_tasks[:2], encoder_folder, "ps-lora")
    files = {path.name for path in (tmp_path / "run" / "deployed").iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= files
    plain = AutoModel.from_pretrained(tmp_path / "run" / "deployed").state_dict()
    base = AutoModel.from_pretrained(encoder_folder).state_dict()
    changed = {name for name in base if not torch.equal(base[name], plain[name])}
    assert changed == {name for name in base if name.endswith(("query.weight", "value.weight"))}


def test_an_exact_sum_is_deployed_as_one_adapter_with_scaling_folded_in(tmp_path, small_tasks, encoder_folder):
    short_run(tmp_path / "run", small_tasks[:2], encoder_folder, "inc-lora")
    config = json.loads((tmp_path / "run" / "deployed" / "adapter_config.json").read_text())
    assert config["r"] == config["lora_alpha"] == 4  # two stacked rank-2 updates


def test_adapters_of_a_gpt2_say_that_its_weights_are_transposed(tmp_path, small_tasks):
    """As PEFT's own do; without it the two could not be merged."""
    tokenizer = AutoTokenizer.from_pretrained(tiny_causal(tmp_path / "llama"))
    config = GPT2Config(vocab_size=len(tokenizer), n_embd=16, n_layer=1, n_head=2, bos_token_id=1, eos_token_id=2)
    GPT2LMHeadModel(config).save_pretrained(tmp_path / "gpt2")
    tokenizer.save_pretrained(tmp_path / "gpt2")
    backbone = {"kind": "causal", "model": str(tmp_path / "gpt2"), "max_length": 32}
    with pytest.warns(UserWarning, match="fan_in_fan_out"):  # PEFT's, which then does it right
        learn(out=tmp_path / "run", tasks=small_tasks[:1], method="inc-lora", backbone=backbone, **SETTINGS)
    ours = [tmp_path / "run" / "stages" / "01-fruit" / "adapter", tmp_path / "run" / "deployed"]
    tuned = get_peft_model(GPT2LMHeadModel(config), LoraConfig(r=2, target_modules=["c_attn"], fan_in_fan_out=True))
    tuned.save_pretrained(tmp_path / "peft")
    assert [Adapter(place).config.fan_in_fan_out for place in ours] == [True, True]
    assert all(info.transposed for info in open_sources([*ours, tmp_path / "peft"]).modules.values())
    path = tmp_path / "peft" / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"fan_in_fan_out": False}))
    with pytest.raises(AdapterError, match=r"fan_in_fan_out true in the first and .* fan_in_fan_out false"):
        open_sources([ours[0], tmp_path / "peft"])
