"""A run whose past is adapters people already have."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoConfig, AutoModel, MixtralConfig, MixtralForCausalLM

import perdure
from perdure.adapters.folder import open_adapter
from perdure.commands.learn import resume, run_config
from perdure.config.lora_settings import LoraSettings
from perdure.config.run_config import load_config
from perdure.errors import ConfigError, PerdureError, RunMismatch, UnmetNeed
from perdure.loop.adapter_history import as_called_here, check_fits, history_stages, history_warnings, own_factors
from perdure.merging.conversion import name_now
from perdure.merging.folders import merge_folders
from perdure.merging.rules import rule_named
from perdure.ops.lowrank import dense
from perdure.state.scores import read_scores
from perdure.state.store import Store
from perdure.sweeps.record import outcome_values, run_record
from perdure.training.lora import AdaptedModel
from perdure.training.reporter import Quiet
from tests.adapter_cases import random_folder
from tests.contract.runs import bits, short_run
from tests.merging.test_conversion import MODELS, tiny_model
from tests.months import write_config, write_task
from tests.own_files import perdure as perdure_command


def peft_adapter(encoder, folder, seed, rank=2, targets=("query", "value")):
    """An adapter as PEFT saves it, with random factors."""
    torch.manual_seed(seed)
    config = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=list(targets), init_lora_weights=False)
    get_peft_model(AutoModel.from_pretrained(encoder), config).save_pretrained(folder)
    return folder


@pytest.fixture
def past(encoder_folder, tmp_path):
    """Two adapters of different ranks."""
    return [peft_adapter(encoder_folder, tmp_path / name, seed, rank) for seed, (name, rank) in
            enumerate((("news", 2), ("mail", 3)))]  # fmt: skip


def started(tmp_path, encoder, past, method="inc-lora", **settings):
    config = write_config(tmp_path, encoder, ["fruit"], method, **settings)
    return load_config(config, {"history": [str(folder) for folder in past]})


def test_the_past_is_carried_and_deployed(tmp_path, encoder_folder, past):
    scores = run_config(started(tmp_path, encoder_folder, past), tmp_path / "run")
    store = Store(tmp_path / "run")
    assert store.stages() == ["history-news", "history-mail", "fruit"]
    assert (scores.tasks, scores.stages, len(scores.score_matrix)) == (["fruit"], ["fruit"], 1)
    assert outcome_values(run_record(store, scores))["fruit"].mean() == scores.score_matrix[0][0]
    assert set(run_record(store, scores)["right"]) == {"fruit"}
    parts = [open_adapter(folder) for folder in (*past, store.stage_folder(3) / "adapter")]
    deployed = open_adapter(tmp_path / "run/deployed")
    for module in deployed:
        wanted = sum(dense(part[module]) for part in parts)
        assert torch.allclose(dense(deployed[module]), wanted, atol=1e-6)
        assert dense(parts[2][module]).abs().max() > 0
    for index, folder in enumerate(past, start=1):
        kept = open_adapter(store.stage_folder(index) / "adapter")
        assert all(torch.equal(dense(kept[m]), dense(open_adapter(folder)[m])) for m in kept)


def test_a_history_of_perdures_own_adapters_is_the_run_that_made_them(tmp_path, small_tasks, encoder_folder):
    """Two tasks learnt, and the second learnt on the adapter of the first: the same adapter, the same model."""
    for method in ("inc-lora", "o-lora", "seq-lora", "ps-lora"):
        whole, later = tmp_path / method / "whole", tmp_path / method / "later"
        short_run(whole, small_tasks[:2], encoder_folder, method)
        adapter = Store(whole).stage_folder(1) / "adapter"
        short_run(later, small_tasks[1:2], encoder_folder, method, history=[str(adapter)])
        assert Store(later).stages() == ["history-01-fruit", "sky"]
        one, other = (bits(folder)["stages"][2]["files"] for folder in (whole, later))
        assert one["adapter/adapter_model.safetensors"] == other["adapter/adapter_model.safetensors"], method
        assert bits(whole)["deployed"] == bits(later)["deployed"]


def test_it_grows_goes_on_and_goes_back_like_any_run(tmp_path, encoder_folder, past):
    config = started(tmp_path, encoder_folder, past, "ps-lora")
    run_config(config, tmp_path / "run")
    one = bits(tmp_path / "run")
    for folder in past:
        shutil.rmtree(folder)  # taken in: not needed any more
    resume(tmp_path / "run")
    assert bits(tmp_path / "run") == one
    scores = perdure.add(tmp_path / "run", write_task(tmp_path, "sky"))
    assert scores.stages == ["fruit", "sky"]
    assert scores.forgetting is not None
    assert [len(row) for row in scores.score_matrix] == [2, 2]
    perdure.rollback(tmp_path / "run", "fruit")
    assert bits(tmp_path / "run") == one
    assert perdure.predict(tmp_path / "run", ["apples"])[0]["label"] in ("a", "b")
    with pytest.raises(PerdureError, match=r"Known: fruit\."):
        perdure.rollback(tmp_path / "run", "history-mail")


def test_a_method_that_goes_on_from_the_last_adapter_says_so(tmp_path, encoder_folder, past):
    def warned(method, adapters):
        config = started(tmp_path, encoder_folder, adapters, method)
        return [w for w in history_warnings(config, Store(tmp_path / "run")) if "continues from the last adapter" in w]

    assert len(warned("seq-lora", past)) == 1
    assert not warned("seq-lora", past[:1])
    assert not warned("inc-lora", past)


def test_the_untrained_scores_are_told_after_the_beginning(tmp_path, encoder_folder, past):
    told = []

    class Notes(Quiet):
        def begin(self, stages, finished):
            told.append((stages, finished))

        def scored(self, learnt, scores):
            told.append((learnt, set(scores)))

        def end(self, scores):
            told.append(scores is not None)

    run_config(started(tmp_path, encoder_folder, past), tmp_path / "run", report=Notes())
    stages = ["history-news", "history-mail", "fruit"]
    assert told == [(stages, 2), ((), {"fruit"}), (stages[2:], {"fruit"}), True]


def test_its_tasks_are_studied_on_the_past(tmp_path, encoder_folder, past, monkeypatch, capsys):
    run_config(started(tmp_path, encoder_folder, past), tmp_path / "run")
    ended = perdure_command(monkeypatch, capsys, "study", "sign-split", tmp_path / "run", "--out", tmp_path / "out")
    assert ended.code == 0, ended.err
    assert "mean score on the new task" in (tmp_path / "out/sign-split.svg").read_text()
    rows = json.loads((tmp_path / "out/sign-split.json").read_text())["rows"]
    assert {(row["stage"], row["old"]) for row in rows} == {("fruit", None)}
    whole = next(row for row in rows if row["part"] == "whole update")
    assert whole["new"] == read_scores(tmp_path / "run").score_matrix[0][0]
    parts = {row["part"]: row["positions"] for row in rows if row["share"] == 1}
    assert parts["same sign"] > 0 < parts["opposite sign"]


def test_stopped_while_taking_in_the_past(tmp_path, encoder_folder, past, monkeypatch):
    import perdure.loop.adapter_history

    config = started(tmp_path, encoder_folder, past)
    run_config(config, tmp_path / "whole")
    real, calls = perdure.loop.adapter_history.save_stage, []

    def stop(*args, **kwargs):
        calls.append(args)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(*args, **kwargs)

    monkeypatch.setattr(perdure.loop.adapter_history, "save_stage", stop)
    with pytest.raises(KeyboardInterrupt):
        run_config(config, tmp_path / "run")
    monkeypatch.setattr(perdure.loop.adapter_history, "save_stage", real)
    assert Store(tmp_path / "run").stages() == ["history-news"]
    with pytest.raises(PerdureError, match=r"No stage .* is finished"):
        read_scores(tmp_path / "run")
    weights = past[1] / "adapter_model.safetensors"
    kept = weights.read_bytes()
    save_file({name: 2 * tensor for name, tensor in load_file(weights).items()}, weights)
    with pytest.raises(RunMismatch, match=r"history\.history-mail"):
        resume(tmp_path / "run")
    weights.write_bytes(kept)
    resume(tmp_path / "run")
    assert bits(tmp_path / "run") == bits(tmp_path / "whole")


def test_what_does_not_fit_names_module_and_remedy(tmp_path, encoder_folder, past):
    from tests.backbones.tiny import tiny_causal

    other = tiny_causal(tmp_path / "other-base")
    from transformers import AutoModelForCausalLM

    model = get_peft_model(
        AutoModelForCausalLM.from_pretrained(other), LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False)
    )
    model.save_pretrained(tmp_path / "foreign")
    wide = peft_adapter(encoder_folder, tmp_path / "wide", 0, targets=("query", "key"))
    every = {"rank": 3, "targets": ["query", "key", "value"]}
    cases = [
        ("inc-lora", [tmp_path / "foreign"], {}, r"'model\.layers\.0\.self_attn\.q_proj'.*another base.*--backbone"),
        (
            "inc-lora",
            [wide],
            {},
            r"'encoder\.layer\.0\.attention\.self\.key'.*does not target.*lora\.targets=\[key,query,value\]",
        ),
        ("inc-lora", [tmp_path / "nowhere"], {}, r"nowhere' is not an adapter folder: it has no adapter_config\.json"),
        ("per-task", past, {}, "adapters without a task"),
        ("seq-lora", past, {}, r"seq-lora.*mail' has rank 3 at 'encoder.*rank 2\. Set lora\.rank"),
        ("seq-lora", past, {"lora": every}, r"mail' changes nothing at 'encoder.*lora\.targets"),
        ("slao", past, {"lora": {"rank": 3}}, r"slao.*news' has rank 2 at 'encoder.*rank 3\. Set lora\.rank"),
    ]
    for method, places, settings, message in cases:
        with pytest.raises(PerdureError, match=message):
            run_config(started(tmp_path, encoder_folder, places, method, **settings), tmp_path / "run")
        assert not Store(tmp_path / "run").exists, "the remedy is told for this folder"
    # only the last adapter is gone on with, so only its rank counts; the one before it may be of any
    run_config(started(tmp_path, encoder_folder, past, "seq-lora", lora={"rank": 3}), tmp_path / "run")
    run_config(started(tmp_path, encoder_folder, [wide], lora=every), tmp_path / "other")


@pytest.mark.parametrize(
    ("method", "reason"),
    [
        ("ewc", r"penalties\.fisher: fisher requires the data of every task learnt before"),
        ("inf-lora", "init: inf-lora requires the data of every task learnt before"),
        ("lwf", r"penalties\.distillation: distillation requires the data of every task learnt before"),
        ("output-drift", r"penalties\.output-drift: output-drift requires the data of every task learnt before"),
        ("slice", "init: slice requires examples of earlier tasks"),
        ("a-gem", "step_rule: a-gem requires examples of earlier tasks"),
    ],
)
def test_a_method_that_needs_the_old_data_is_refused(method, reason, tmp_path, encoder_folder, past):
    with pytest.raises(UnmetNeed, match=f"Method '{method}'.*{reason}"):
        run_config(started(tmp_path, encoder_folder, past, method), tmp_path / "run")


def test_every_adapter_has_a_stage_of_its_own_name():
    names = [stage.name for stage in history_stages(["x/v1.2", "x/v1", "y/v1"])]
    assert names == ["history-v1.2", "history-v1", "history-v1.3"]


def test_a_task_called_like_a_stage_of_the_history_is_refused(tmp_path, encoder_folder, past):
    """Its scores would be taken for those of the adapter, which has none."""
    news, mail = (write_task(tmp_path, f"history-{name}", ("apples", "pears")) for name in ("news", "mail"))
    history, backbone = [str(folder) for folder in past], {"kind": "encoder", "model": str(encoder_folder)}
    with pytest.raises(ConfigError, match=r"cannot be called 'history-news'.*Rename"):
        perdure.learn(out=tmp_path / "refused", tasks=[news], history=history, backbone=backbone)
    run_config(started(tmp_path, encoder_folder, past), tmp_path / "run")
    with pytest.raises(ConfigError, match="cannot be called 'history-mail'"):
        perdure.add(tmp_path / "run", mail)
    assert Store(tmp_path / "run").stages() == ["history-news", "history-mail", "fruit"]


def test_embeddings_saved_with_the_past_are_the_runs_own(tmp_path, encoder_folder):
    from transformers import BertModel

    def saved(name, change):
        model = BertModel.from_pretrained(encoder_folder)
        adapted = get_peft_model(model, LoraConfig(r=2, target_modules=["query", "value"], init_lora_weights=False))
        model.get_input_embeddings().weight.data[3] += change
        adapted.save_pretrained(tmp_path / name, save_embedding_layers=True)
        assert "base_model.model.embeddings.word_embeddings.weight" in load_file(
            tmp_path / name / "adapter_model.safetensors"
        )
        return tmp_path / name

    run_config(started(tmp_path, encoder_folder, [saved("same", 0.0)]), tmp_path / "run")
    assert Store(tmp_path / "run").stages() == ["history-same", "fruit"]
    with pytest.raises(
        PerdureError, match=r"brings 'embeddings\.word_embeddings\.weight' .* the run's model has another"
    ):
        run_config(started(tmp_path, encoder_folder, [saved("other", 1.0)]), tmp_path / "refused")


def test_a_module_with_the_name_of_an_earlier_transformers_is_said_to_be_one(tmp_path):
    """One expert's matrix: transformers 5 holds all of a layer in one tensor."""
    torch.manual_seed(0)
    config = MixtralConfig(
        vocab_size=50, hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, num_local_experts=2, num_experts_per_tok=1,
    )  # fmt: skip
    model = MixtralForCausalLM(config)
    adapted = AdaptedModel(model, LoraSettings(rank=2), ("q_proj", "v_proj"))
    for module, now in (
        ("model.layers.0.block_sparse_moe.experts.1.w2", r"model\.layers\.0\.mlp\.experts\.down_proj"),
        ("model.layers.0.block_sparse_moe.gate", r"model\.layers\.0\.mlp\.gate\.weight"),
    ):
        folder = random_folder(tmp_path / module, 1, shapes={module: (16, 24)})
        with pytest.raises(PerdureError, match=rf"changes '{module}', which this version .* '{now}'.*perdure merge"):
            check_fits([open_adapter(folder)], adapted)
    other = random_folder(tmp_path / "other", 1, shapes={"model.layers.9.q": (16, 24)}, base="other/base")
    with pytest.raises(PerdureError, match=r"which the model does not have\. Use another base .*other/base"):
        check_fits([open_adapter(other)], adapted)


@pytest.mark.parametrize("name", ["vit", "dinov2", "dinov3_vit", "beit", "swin", "segformer", "gte", "nemotron_h"])
def test_layers_that_transformers_renamed_are_found_under_their_old_names(name, tmp_path):
    """Names of the file, which are those of transformers 4; the scaling is that of the old name."""
    model = tiny_model(name, MODELS[name])
    model.save_pretrained(tmp_path / "base")
    held = load_file(tmp_path / "base/model.safetensors")
    present = dict(model.named_modules())
    linear = {module: layer for module, layer in present.items() if type(layer) is nn.Linear}
    old = {tensor.removesuffix(".weight"): tuple(held[tensor].shape) for tensor in held if held[tensor].ndim == 2}
    found = {m: name_now(model, f"{m}.weight", linear) for m in old if m not in present}
    old = {m: old[m] for m, now in found.items() if now and now[1] and not m.endswith("out_proj")}  # Mamba's is refused
    assert old
    folder = random_folder(tmp_path / "old", 1, shapes=old)
    config = json.loads((folder / "adapter_config.json").read_text())
    first = next(iter(old))
    config["alpha_pattern"] = {first.replace(".", r"\."): 10.0}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    targets = tuple(module for module in linear if not module.endswith("out_proj"))
    adapted = AdaptedModel(model, LoraSettings(rank=2, targets=targets), ())
    here = as_called_here(open_adapter(folder), adapted)
    check_fits([here], adapted)
    assert len(here) == len(old)
    assert not here.keys() & old.keys()
    kept = tmp_path / "kept"
    merge_folders([folder], kept, rule_named("sum"), base=tmp_path / "base")
    merged = dict(type(model).from_pretrained(kept).named_parameters())
    for module, delta in here.items():
        weight = linear[module].weight
        torch.testing.assert_close(merged[f"{module}.weight"], weight + dense(delta), rtol=1e-5, atol=1e-5)
    ours = own_factors(here, adapted)
    assert ours.keys() == here.keys()


def test_a_run_begins_from_an_adapter_of_an_earlier_transformers(tmp_path, encoder_folder):
    """GTE's output projection, by both names: the same run."""
    config = AutoConfig.for_model("gte", **{**MODELS["gte"], "vocab_size": 400, "max_position_embeddings": 128})
    torch.manual_seed(0)
    AutoModel.from_config(config).save_pretrained(tmp_path / "gte")
    for file in encoder_folder.glob("tokenizer*"):
        shutil.copy(file, tmp_path / "gte")
    names = {"old": "encoder.layer.{}.attention.o_proj", "new": "layers.{}.self_attn.o_proj"}
    for place, module in names.items():
        past = random_folder(tmp_path / place, 1, shapes={module.format(i): (16, 16) for i in (0, 1)})
        lora = {"targets": ["o_proj"], "rank": 2}
        (tmp_path / "config" / place).mkdir(parents=True)
        run_config(
            started(tmp_path / "config" / place, tmp_path / "gte", [past], "seq-lora", lora=lora),
            tmp_path / f"run-{place}",
        )
    old, new = (bits(tmp_path / f"run-{place}") for place in names)
    for one, other in zip(old["stages"], new["stages"], strict=True):  # the state names the stages
        assert {k: v for k, v in one["files"].items() if "state" not in k} == {
            k: v for k, v in other["files"].items() if "state" not in k
        }
    assert old["deployed"] == new["deployed"]


def test_a_layer_named_in_both_ways_is_refused(tmp_path):
    names = ("encoder.layer.1.attention.attention.query", "layers.1.attention.q_proj")
    folder = random_folder(tmp_path / "both", 1, shapes=dict.fromkeys(names, (16, 16)))
    adapted = AdaptedModel(tiny_model("vit", MODELS["vit"]), LoraSettings(rank=2), ("q_proj",))
    with pytest.raises(
        PerdureError, match=r"'layers\.1\.attention\.q_proj' twice, under its name and that of transformers 4"
    ):
        as_called_here(open_adapter(folder), adapted)
