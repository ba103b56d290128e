"""`deployed/` answers the same in plain transformers or PEFT, without perdure."""

from __future__ import annotations

import json

import pytest
import torch
from peft import PeftModel
from transformers import AutoModel, AutoTokenizer

from perdure.durable import read_lines
from perdure.store import Store
from tests.contract.runs import short_run


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
        rows = read_lines(store.stage_folder(2) / "predictions" / f"{task.name}.jsonl")
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
