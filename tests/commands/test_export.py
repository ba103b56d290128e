"""What a run or a merge state deploys, exported: it loads in plain PEFT and transformers and answers the same."""

import json
import re
import shutil

import pytest
import torch
from huggingface_hub import ModelCard
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoTokenizer, GenerationConfig

from perdure.adapters.folder import Adapter
from perdure.commands.card_programs import NO_BASE, programs
from perdure.commands.export import export
from perdure.commands.learn import learn
from perdure.commands.serve import vllm_rank
from perdure.errors import ConfigError, CorruptFile, RunMismatch, StoreError
from perdure.merging.rules import rule_named
from perdure.merging.state import merge_into
from perdure.state.answers import read_answers
from perdure.state.scores import read_scores
from perdure.state.store import Store
from tests.adapter_cases import random_folder
from tests.backbones.test_runs import image_tasks
from tests.backbones.tiny import tiny_causal, tiny_seq2seq, tiny_vision
from tests.contract.runs import SETTINGS

IDS = torch.arange(5, 25)[None]


ABOUT = {"tasks": {"fruit": {"chats": True}}, "base": "org/base", "kind": "causal", "pooling": None}


@pytest.fixture(scope="module")
def runs(tmp_path_factory, encoder_folder, small_tasks):
    """Method -> a finished run of two tasks."""
    folder = tmp_path_factory.mktemp("runs")
    settings = {
        "backbone": {"kind": "encoder", "model": str(encoder_folder)},
        "training": {"epochs": 1, "batch_size": 10, "learning_rate": 0.05},
        "lora": {"rank": 2},
    }
    for method in ("inc-lora", "ps-lora", "per-task"):
        learn(out=folder / method, tasks=small_tasks[:2], method=method, **settings)
    return folder


def hidden(folder, adapter=None):
    model = AutoModel.from_pretrained(folder)
    model = model if adapter is None else PeftModel.from_pretrained(model, str(adapter))
    with torch.no_grad():
        return model.eval()(IDS).last_hidden_state


def test_a_low_rank_run_as_adapter_and_as_model(runs, encoder_folder, tmp_path):
    as_adapter = export(runs / "inc-lora", tmp_path / "adapter")
    as_model = export(runs / "inc-lora", tmp_path / "model", "model")
    assert (as_adapter.rank, as_adapter.energy, as_model.rank) == (4, 1.0, None)
    left, right = hidden(encoder_folder, tmp_path / "adapter"), hidden(tmp_path / "model")
    torch.testing.assert_close(left, right, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(left, hidden(encoder_folder, runs / "inc-lora" / "deployed"), rtol=1e-4, atol=1e-4)
    assert (left - hidden(encoder_folder)).abs().max() > 0.001


def test_a_run_on_a_base_whose_weights_transformers_renames(tmp_path):
    """ViT: `encoder.layer.0.attention.attention.query` in the file is `layers.0.attention.q_proj` in the model."""
    base, pixels = tiny_vision(tmp_path / "vit"), torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    settings = {"lora": {"rank": 2}, "training": {"epochs": 2, "batch_size": 8, "learning_rate": 0.05}}
    backbone = {"kind": "vision", "model": str(base)}
    learn(
        out=tmp_path / "run", tasks=image_tasks(tmp_path / "images"), method="inc-lora", backbone=backbone, **settings
    )
    export(tmp_path / "run", tmp_path / "model", "model")

    def features(folder, adapter=None):
        model = AutoModel.from_pretrained(folder)
        model = model if adapter is None else PeftModel.from_pretrained(model, str(adapter))
        with torch.no_grad():
            return model.eval()(pixels).last_hidden_state

    deployed = features(base, tmp_path / "run" / "deployed")
    torch.testing.assert_close(features(tmp_path / "model"), deployed, rtol=1e-5, atol=1e-5)
    assert (deployed - features(base)).abs().max() > 0.001


def test_a_language_model_answers_as_it_was_scored(tmp_path, small_tasks):
    """A base that samples, and stops at one token only: its export is greedy and stops where scored answers did."""
    base = tiny_causal(tmp_path / "base")
    sampling = {"do_sample": True, "temperature": 0.7, "top_k": 5, "eos_token_id": 9}
    (base / "generation_config.json").write_text(json.dumps(sampling))
    backbone = {"kind": "causal", "model": str(base), "max_new_tokens": 20}
    for method in ("inc-lora", "ties"):  # deployed as an adapter, and as a model
        run = tmp_path / method
        learn(
            out=run, tasks=small_tasks[:1], method=method, backbone=backbone, lora={"rank": 2}, training={"epochs": 1}
        )
        export(run, tmp_path / f"{method}-model", "model")
        folders = [tmp_path / f"{method}-model", *([run / "deployed"] if method == "ties" else [])]
        for folder in folders:
            settings = GenerationConfig.from_pretrained(folder)
            tokenizer = AutoTokenizer.from_pretrained(folder)
            assert (settings.do_sample, settings.num_beams, settings.max_new_tokens) == (False, 1, 20)
            assert settings.eos_token_id == [tokenizer.eos_token_id, 9]
            assert settings.pad_token_id == tokenizer.pad_token_id
            assert "temperature" not in json.loads((folder / "generation_config.json").read_text())


def test_a_damaged_run_is_not_exported(runs, tmp_path):
    run = shutil.copytree(runs / "inc-lora", tmp_path / "run")
    path = Store(run).stage_folder(2) / "state.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(CorruptFile, match=r"state\.safetensors' is damaged"):
        export(run, tmp_path / "adapter")
    assert not (tmp_path / "adapter").exists()


@pytest.mark.parametrize(("method", "rank"), [("lora-ga", 8), ("slice", 8), ("loram", 6)])
def test_an_init_that_moves_the_base_is_right_on_the_untouched_one(method, rank, encoder_folder, small_tasks, tmp_path):
    """B A of such a run means nothing there: the export holds s (B A - B0 A0) of every task, at twice the rank.

    LoRAM starts every task from the same B0 A0, which the stacked factors hold once.
    """
    settings = {
        "backbone": {"kind": "encoder", "model": str(encoder_folder)},
        "training": {"epochs": 1, "batch_size": 10, "learning_rate": 0.05},
        "lora": {"rank": 2},
    }
    learn(out=tmp_path / "run", tasks=small_tasks[:2], method=method, **settings)
    exported = export(tmp_path / "run", tmp_path / "adapter")
    assert (exported.rank, exported.energy) == (rank, 1.0), "two tasks of rank 2, each with its offset"
    config = Adapter(tmp_path / "adapter").config
    assert (config.rank, config.alpha, config.alpha_pattern, config.rank_pattern) == (rank, rank, {}, {})
    export(tmp_path / "run", tmp_path / "model", "model")
    answered = hidden(encoder_folder, tmp_path / "run" / "deployed")
    torch.testing.assert_close(hidden(encoder_folder, tmp_path / "adapter"), answered, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(hidden(tmp_path / "model"), answered, rtol=1e-3, atol=1e-3)


def test_a_dense_run_as_model_is_what_the_run_deployed(runs, tmp_path):
    export(runs / "ps-lora", tmp_path / "model", "model")
    torch.testing.assert_close(hidden(tmp_path / "model"), hidden(runs / "ps-lora" / "deployed"), rtol=1e-4, atol=1e-4)


def test_a_dense_run_as_adapter_needs_a_rank_and_says_what_it_keeps(runs, tmp_path):
    with pytest.raises(ConfigError, match="is not low rank"):
        export(runs / "ps-lora", tmp_path / "adapter")
    report = export(runs / "ps-lora", tmp_path / "adapter", rank=1)
    assert 0.2 < report.energy < 1
    assert Adapter(tmp_path / "adapter").config.rank == 1


def test_one_of_a_run_that_deploys_one_for_each_task(runs, encoder_folder, tmp_path):
    with pytest.raises(ConfigError, match="choose one with --task: fruit, sky"):
        export(runs / "per-task", tmp_path / "adapter")
    export(runs / "per-task", tmp_path / "adapter", task="sky")
    expected = hidden(encoder_folder, runs / "per-task" / "stages" / "02-sky" / "adapter")
    torch.testing.assert_close(hidden(encoder_folder, tmp_path / "adapter"), expected, rtol=1e-4, atol=1e-4)
    with pytest.raises(ConfigError, match="leave --task out"):
        export(runs / "inc-lora", tmp_path / "other", task="sky")


def test_the_card_names_tasks_method_scores_and_base(runs, encoder_folder, tmp_path):
    export(runs / "inc-lora", tmp_path / "adapter")
    text = (tmp_path / "adapter" / "README.md").read_text()
    assert "# LoRA adapter learnt with inc-lora" in text
    assert "Tasks, in the order they were learnt: fruit, sky." in text
    assert "| fruit | accuracy | " in text
    assert str(encoder_folder) not in text, "a folder of this machine"
    data = ModelCard(text).data
    assert [(r.dataset_name, r.metric_type) for r in data.eval_results] == [("fruit", "accuracy"), ("sky", "accuracy")]
    assert data.eval_results[0].metric_value == read_scores(runs / "inc-lora").score_matrix[-1][0]


@pytest.mark.parametrize("method", ["inc-lora", "ps-lora"])
@pytest.mark.parametrize("kind", ["encoder", "causal", "seq2seq"])
def test_the_program_of_the_card_answers_from_the_exported_folder_alone(
    kind, method, tmp_path, small_tasks, encoder_folder, monkeypatch
):
    """Labels, template, length and temperature come from perdure.json; the base of an adapter is named by the reader."""
    made = {"causal": tiny_causal, "seq2seq": tiny_seq2seq}
    base = made[kind](tmp_path / "base") if kind in made else encoder_folder
    reading = {"kind": kind, "model": str(base), "max_length": 32}
    learn(out=tmp_path / "run", tasks=small_tasks[:2], method=method, backbone=reading, **SETTINGS)
    form = "adapter" if method == "inc-lora" else "model"
    export(tmp_path / "run", tmp_path / "out", form)
    monkeypatch.chdir(tmp_path)
    text = (tmp_path / "out/README.md").read_text()
    (program,) = re.findall(r"^## transformers\n\n```python\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE)
    names: dict = {}
    exec(program.replace(NO_BASE, str(base)), names)
    rows = read_answers(Store(tmp_path / "run").stage_folder(2), "fruit")
    for example, row in zip(small_tasks[0].test, rows, strict=True):
        found = names["probabilities"](example.text)
        assert max(found, key=found.get) == row["predicted"]
        assert found[row["predicted"]] == pytest.approx(row["probability"], abs=2e-5)
    assert str(tmp_path) not in (tmp_path / "out/perdure.json").read_text()
    if kind == "causal" and form == "adapter":  # rank 2 or more a task, two tasks; vLLM takes 8 at least
        rank = json.loads((tmp_path / "out/adapter_config.json").read_text())["r"]
        assert f"--max-lora-rank {vllm_rank(rank)} " in text


@pytest.mark.parametrize(("rank", "expected"), [(0, 8), (8, 8), (9, 16), (65, 128), (129, 256), (400, 512), (600, 600)])
def test_the_rank_that_vllm_is_told(rank, expected):
    assert vllm_rank(rank) == expected
    (served,) = [text for _, kind, text in programs(ABOUT, "adapter", "out", rank) if kind == "console"]
    assert served == f"vllm serve org/base --enable-lora --max-lora-rank {expected} --lora-modules mine=out\n"


def test_a_state(tmp_path):
    for seed in range(2):
        merge_into(tmp_path / "state", random_folder(tmp_path / f"t{seed}", seed), rule_named("max-magnitude"))
    with pytest.raises(ConfigError, match="is not low rank"):
        export(tmp_path / "state", tmp_path / "out")
    with pytest.raises(ConfigError, match="base of this update is not recorded"):
        export(tmp_path / "state", tmp_path / "out", "model")
    with pytest.raises(ConfigError, match="has no rank"):
        export(tmp_path / "state", tmp_path / "out", "model", rank=3)
    with pytest.raises(ConfigError, match="leave --base out"):
        export(tmp_path / "state", tmp_path / "out", rank=3, base=tmp_path)
    with pytest.raises(ConfigError, match="leave --task out"):
        export(tmp_path / "state", tmp_path / "out", rank=3, task="t0")
    assert export(tmp_path / "state", tmp_path / "out", rank=6).energy > 0.99


def test_a_model_stands_on_the_base_the_run_learnt_on(runs, encoder_folder, tmp_path):
    other = shutil.copytree(encoder_folder, tmp_path / "other")
    weights = load_file(other / "model.safetensors")
    save_file({name: tensor + 1 for name, tensor in weights.items()}, other / "model.safetensors", {"format": "pt"})
    with pytest.raises(RunMismatch, match=r"other' is not the base that the run in .* was trained on: its fingerprint"):
        export(runs / "inc-lora", tmp_path / "model", "model", base=other)
    assert not (tmp_path / "model").exists()
    moved = shutil.copytree(encoder_folder, tmp_path / "moved")
    assert export(runs / "inc-lora", tmp_path / "model", "model", base=moved).notes == ()


def test_a_model_of_a_hub_stands_on_the_revision_of_the_run(runs, encoder_folder, tmp_path, monkeypatch):
    import huggingface_hub

    def fetched(name, **options):
        assert (name, options["revision"]) == ("org/name", "v1")
        return str(encoder_folder)

    run = shutil.copytree(runs / "inc-lora", tmp_path / "run")
    about = json.loads((run / "run.json").read_text())
    about["config"]["backbone"] |= {"model": "org/name", "revision": "v1"}
    (run / "run.json").write_text(json.dumps(about))
    monkeypatch.setattr(huggingface_hub, "snapshot_download", fetched)
    export(run, tmp_path / "model", "model")
    assert (tmp_path / "model" / "model.safetensors").is_file()
    export(run, tmp_path / "adapter")
    assert json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())["revision"] == "v1"


def test_a_run_without_a_fingerprint_says_that_its_base_was_not_checked(runs, tmp_path):
    run = shutil.copytree(runs / "inc-lora", tmp_path / "run")
    about = json.loads((run / "run.json").read_text())
    del about["base"]
    (run / "run.json").write_text(json.dumps(about))
    (note,) = export(run, tmp_path / "model", "model").notes
    assert note.startswith("Whether the base is the one the run was trained on was not checked")


def test_a_run_or_a_state_is_not_written_over(runs, tmp_path):
    run = shutil.copytree(runs / "inc-lora", tmp_path / "run")
    state = merge_into(tmp_path / "state", random_folder(tmp_path / "t", 1), rule_named("sum")).folder
    for folder, out in ((run, run), (run, tmp_path), (run, run / "deployed"), (state, state), (state, run)):
        with pytest.raises(StoreError, match=r"is or contains|is inside|does not replace"):
            export(folder, out, overwrite=True)
    assert Store(run).finished
    assert (state / "state.json").is_file()


def test_a_folder_that_is_neither(tmp_path):
    with pytest.raises(StoreError, match="neither a merge state nor a run"):
        export(tmp_path, tmp_path / "out")
    adapter = random_folder(tmp_path / "news", 0)
    with pytest.raises(StoreError, match=r"It is an adapter: `perdure merge .*news --rule sum --base MODEL --out DIR`"):
        export(adapter, tmp_path / "out", "model", base=tmp_path)
