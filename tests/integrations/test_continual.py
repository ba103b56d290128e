"""A trainer's next task: what is measured and remembered, what is written, and what is refused before training."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import save
from transformers import AutoModelForCausalLM

from perdure.adapters.folder import open_adapter
from perdure.errors import AdapterError, ConfigError, StoreError, UnmetNeed
from perdure.files.output import MARK
from perdure.integrations import Continual, earlier
from perdure.integrations.earlier import MEMORY_FILE
from perdure.integrations.untouched import check_base
from perdure.merging.linear import average_updates, sum_updates
from perdure.merging.max_magnitude import max_magnitude_updates
from perdure.methods.table import PRESETS
from perdure.ops.lowrank import dense
from perdure.training.lora import AdaptedModel
from tests.backbones.tiny import tiny_causal
from tests.integrations.trainers import peft_model, plain_trainer
from tests.merging.whole_updates import magmax_updates, ties_updates

LENGTH, COUNT = 6, 20


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_causal(tmp_path_factory.mktemp("models") / "tiny-causal")


def rows(seed: int) -> list[dict[str, torch.Tensor]]:
    """Random token ids, from another half of the vocabulary for odd seeds; the last position is padding."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(5 + 120 * (seed % 2), 120 + 120 * (seed % 2), (COUNT, LENGTH), generator=generator)
    mask = torch.ones(LENGTH, dtype=torch.long)
    mask[-1] = 0
    return [{"input_ids": one, "attention_mask": mask, "labels": one.masked_fill(mask == 0, -100)} for one in ids]


def stack(chosen: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    return {name: torch.stack([one[name] for one in chosen]) for name in chosen[0]}


def learn(continual: Continual, folder: Path, model_folder: Path, seed: int, **settings: Any) -> Any:
    """Train on the task of `seed` and save its adapter to `folder`."""
    lora = settings.pop("lora", {})
    trainer = plain_trainer(
        peft_model(model_folder, **lora), rows(seed), folder.parent, stack, per_device_train_batch_size=4, **settings
    )
    continual.attach(trainer)
    trainer.train()
    continual.save(folder)
    return trainer


def measuring(name: str) -> dict[str, Any]:
    """A preset that measures something, on batches that fit the twenty rows."""
    small = {"batches": 2, "batch_size": 4}
    composed: dict[str, Any] = {
        "ewc": {"penalties": {"fisher": {"weight": 1e4}}},
        "output-drift": {"penalties": {"output-drift": {"weight": 1.0}}},
        "slice": {"init": small},
        "slice-free": {"init": small},
        "lora-ga": {"init": small},
    }
    return {"preset": name, **composed.get(name, {})}


@pytest.mark.parametrize("name", ["ewc", "output-drift", "perdure", "slice-free", "inf-lora", "covariance-gain"])
def test_what_is_measured_goes_on_from_folder_to_folder(name, tmp_path, model_folder):
    learn(Continual(measuring(name)), tmp_path / "march", model_folder, 0)
    assert (tmp_path / "march" / MEMORY_FILE).is_file()
    second = Continual(measuring(name), history=[tmp_path / "march"])
    learn(second, tmp_path / "april", model_folder, 1)
    assert open_adapter(tmp_path / "april")["model.layers.0.self_attn.q_proj"].B.any()
    for penalty in second.method.penalties:
        assert second.penalties[f"penalty/{penalty}"] > 0  # without its memory it would be 0
    without = tmp_path / "without"
    without.mkdir()
    for file in ("adapter_config.json", "adapter_model.safetensors"):
        (without / file).write_bytes((tmp_path / "march" / file).read_bytes())
    trainer = plain_trainer(peft_model(model_folder), rows(1), tmp_path, stack)
    with pytest.raises(UnmetNeed, match=r"measures statistics on every task.*Continual\.save writes them"):
        Continual(measuring(name), history=[without]).attach(trainer)


def test_a_memory_of_another_history_is_not_taken(tmp_path, model_folder):
    for name, seed in (("march", 0), ("other", 2)):
        learn(Continual(measuring("ewc")), tmp_path / name, model_folder, seed)
    learn(Continual(measuring("ewc"), history=[tmp_path / "march"]), tmp_path / "april", model_folder, 1)
    for history, reason in ((["april"], "is of 2 tasks, not 1"), (["other", "april"], "is of other adapters")):
        continual = Continual(measuring("ewc"), history=[tmp_path / name for name in history])
        with pytest.raises(UnmetNeed, match=reason):
            continual.attach(plain_trainer(peft_model(model_folder), rows(3), tmp_path, stack))
    for content, reason in (
        (b"half of a file", "is damaged"),
        (save({"a": torch.ones(1)}), "was not written by perdure"),
    ):
        (tmp_path / "april" / MEMORY_FILE).write_bytes(content)
        continual = Continual(measuring("ewc"), history=[tmp_path / "march", tmp_path / "april"])
        with pytest.raises(UnmetNeed, match=reason):
            continual.attach(plain_trainer(peft_model(model_folder), rows(3), tmp_path, stack))


def test_where_no_memory_is_needed_that_of_another_history_is_left_alone(tmp_path, model_folder, monkeypatch):
    """What SLICE remembers may begin anew."""
    loaded, real, old = [], earlier.load_checkpoint, {"march": rows(0)}
    monkeypatch.setattr(earlier, "load_checkpoint", lambda path, *given: (loaded.append(path), real(path, *given))[1])
    learn(Continual("inc-lora"), tmp_path / "march", model_folder, 0)
    given = Continual(measuring("slice"), history=[tmp_path / "march"], old_examples=old)
    learn(given, tmp_path / "april", model_folder, 1)
    for history, whole in ((["april"], []), (["march", "april"], [tmp_path / "april" / MEMORY_FILE])):
        continual = Continual(measuring("slice"), history=[tmp_path / name for name in history], old_examples=old)
        continual.attach(plain_trainer(peft_model(model_folder), rows(2), tmp_path, stack))
        assert loaded == whole


def test_the_memory_is_of_the_training_that_counts(tmp_path, model_folder):
    """Training on with the same trainer replaces what was measured; it is not added twice."""
    continual = Continual(measuring("output-drift"))
    trainer = learn(continual, tmp_path / "once", model_folder, 0)
    part = continual.method.penalties["output-drift"]
    once = part.state()
    trainer.train()
    module = "moment.model.layers.0.self_attn.q_proj"  # its inputs do not depend on what is trained
    torch.testing.assert_close(part.state()[module], once[module])


def test_old_examples_serve_slice(tmp_path, model_folder):
    learn(Continual("inc-lora"), tmp_path / "march", model_folder, 0)
    continual = Continual(measuring("slice"), history=[tmp_path / "march"], old_examples={"march": rows(0)})
    trainer = learn(continual, tmp_path / "april", model_folder, 1)
    assert -1 <= continual.notes["slice/cosine"] <= 1
    saved = open_adapter(tmp_path / "april")
    assert saved.config.rank == 4  # twice the rank: right on the untouched base, offset included
    live = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float64), tmp_path / "april"
    )
    live.load_adapter(tmp_path / "march", "march")
    live.base_model.set_adapter(["default", "march"])
    batch = stack(rows(1))
    with torch.no_grad():
        torch.testing.assert_close(live(**batch).logits, trainer.model.eval()(**batch).logits, rtol=1e-6, atol=1e-6)
    new = plain_trainer(peft_model(model_folder), rows(1), tmp_path, stack)
    with pytest.raises(UnmetNeed, match="examples of earlier tasks"):
        Continual("slice", history=[tmp_path / "march"]).attach(new)
    with pytest.raises(ConfigError, match="old_examples: 'march' has none"):
        Continual("slice", history=[tmp_path / "march"], old_examples={"march": []})


@pytest.mark.parametrize("method", ["inc-lora", "ps-lora", "per-task"])
def test_what_answers_queries_is_written(method, tmp_path, model_folder):
    learn(Continual(method), tmp_path / "march", model_folder, 0)
    continual = Continual(method, history=[tmp_path / "march"])
    learn(continual, tmp_path / "april", model_folder, 1)
    continual.save_deployed(tmp_path / "deployed")
    march, april = (open_adapter(tmp_path / name) for name in ("march", "april"))
    module = "model.layers.1.self_attn.v_proj"
    old, new = dense(march[module]), dense(april[module])
    if method == "per-task":
        torch.testing.assert_close(dense(open_adapter(tmp_path / "deployed" / "march")[module]), old.float())
        return
    if method == "inc-lora":
        torch.testing.assert_close(dense(open_adapter(tmp_path / "deployed")[module]), (old + new).float())
        return
    weights = [
        AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64).get_submodule(module).weight
        for folder in (tmp_path / "deployed", model_folder)
    ]
    merged = torch.where(old.abs() >= new.abs(), old, new)
    torch.testing.assert_close(weights[0] - weights[1], merged, rtol=1e-5, atol=1e-6)


@pytest.fixture(scope="module")
def march(tmp_path_factory: pytest.TempPathFactory, model_folder: Path) -> Path:
    """An earlier adapter that brings no memory."""
    folder = tmp_path_factory.mktemp("earlier") / "march"
    learn(Continual("inc-lora"), folder, model_folder, 0)
    return folder


ELSEWHERE = {
    "joint", "lwf", "replay", "slice+replay", "frozen-head", "perdure+head",  # refused, below
    "ewc", "output-drift", "perdure", "slice-free", "inf-lora", "covariance-gain",  # above
    "slice", "inc-lora", "ps-lora", "per-task",  # above
    "n-lora-proximal", "o-lora+n-lora", "seq-lora", "slao", "loram",  # test_same_as_the_loop.py
}  # fmt: skip
DEPLOYED: dict[str, Any] = {
    "average": average_updates,
    "ties": lambda updates: ties_updates(updates, 0.2, "model"),
    "magmax": lambda updates: magmax_updates(updates),
    "dare": None,  # drawn: what it keeps is told by tests/merging/test_dare.py
    "slice+ps-lora": lambda updates: max_magnitude_updates(*updates),
}
"""What answers after two tasks; the sum where nothing stands here."""


@pytest.mark.parametrize("name", [name for name in PRESETS if name not in ELSEWHERE])
def test_every_other_preset_trains_on_and_writes_what_answers(name, march, tmp_path, model_folder):
    """Any weight penalty, init and consolidation: those that no other test here takes through a trainer."""
    old = {"march": rows(0)} if PRESETS[name].replay else None
    reads = PRESETS[name].init["kind"] in ("slice", "lora-ga")
    method: Any = {"preset": name, **({"init": {"batches": 2, "batch_size": 4}} if reads else {})}
    continual = Continual(method, history=[march], old_examples=old)
    learn(continual, tmp_path / "april", model_folder, 1)
    continual.save_deployed(tmp_path / "deployed")
    updates = [open_adapter(folder) for folder in (march, tmp_path / "april")]
    for penalty in PRESETS[name].penalties:
        assert continual.penalties[f"penalty/{penalty}"] > 0
    for module, delta in updates[1].items():
        assert dense(delta).abs().max() > 0, module
    answers = DEPLOYED.get(name, sum_updates)
    if answers is None:
        return
    found = deployed_change(tmp_path / "deployed", model_folder, list(updates[1]))
    for module, expected in answers(updates).items():
        torch.testing.assert_close(found[module], dense(expected).double(), rtol=1e-4, atol=1e-6)


def deployed_change(folder: Path, base: Path, modules: list[str]) -> dict[str, torch.Tensor]:
    """What a deployed folder, adapter or merged model, changes in the base."""
    if (folder / "adapter_config.json").is_file():
        return {module: dense(delta).double() for module, delta in open_adapter(folder).items()}
    after, before = (AutoModelForCausalLM.from_pretrained(place, dtype=torch.float64) for place in (folder, base))
    return {m: after.get_submodule(m).weight.detach() - before.get_submodule(m).weight.detach() for m in modules}


def test_the_revision_of_the_base_is_written(tmp_path, model_folder):
    continual = Continual()
    continual.attach(plain_trainer(peft_model(model_folder, revision="v1"), rows(0), tmp_path / "work", stack))
    continual.save(tmp_path / "march")
    assert json.loads((tmp_path / "march" / "adapter_config.json").read_text())["revision"] == "v1"


def test_penalties_are_logged_and_the_adapter_is_plain_peft(tmp_path, model_folder):
    learn(Continual("inc-lora"), tmp_path / "march", model_folder, 0)
    continual = Continual("ps-lora", history=[tmp_path / "march"])
    trainer = learn(continual, tmp_path / "april", model_folder, 1)
    logs = [log for log in trainer.state.log_history if "loss" in log]
    assert len(logs) == 5
    assert logs[0]["penalty/sign-magnitude"] == 0  # the update starts at 0
    assert all(log["penalty/sign-magnitude"] > 0 and log["share/sign-magnitude"] > 0 for log in logs[1:])
    assert sorted(p.name for p in (tmp_path / "april").iterdir() if p.name != MARK) == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]
    assert json.loads((tmp_path / "april" / "adapter_config.json").read_text())["base_model_name_or_path"] == str(
        model_folder
    )
    with pytest.raises(StoreError, match="already exists"):
        continual.save(tmp_path / "april")


def test_a_resumed_trainer_gives_the_same_adapter(tmp_path, model_folder):
    """attach starts the adapter; the trainer's checkpoint then puts A, B and the optimiser back."""
    learn(Continual("inc-lora"), tmp_path / "march", model_folder, 0)
    for name, settings in (("whole", {}), ("stopped", {"max_steps": 2, "save_strategy": "steps", "save_steps": 2})):
        learn(Continual("ps-lora", history=[tmp_path / "march"]), tmp_path / name, model_folder, 1, **settings)
    continual = Continual("ps-lora", history=[tmp_path / "march"])
    trainer = plain_trainer(peft_model(model_folder), rows(1), tmp_path, stack, per_device_train_batch_size=4)
    continual.attach(trainer)
    trainer.train(resume_from_checkpoint=str(tmp_path / "trainer" / "checkpoint-2"))
    continual.save(tmp_path / "resumed")
    whole, resumed = (open_adapter(tmp_path / name) for name in ("whole", "resumed"))
    for module, delta in whole.items():
        torch.testing.assert_close(resumed[module].B, delta.B, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    "method,message",
    [("lwf", "reads each batch's labels and scores"), ("replay", "concatenate old and new data"),
     ("joint", "trains all tasks at once"), ("pslora", "Did you mean 'ps-lora'")],
)  # fmt: skip
def test_methods_that_need_the_loop_are_refused(method, message):
    with pytest.raises(ConfigError, match=message):
        Continual(method)


def named(model: Any, adapter: str) -> Any:
    model.add_adapter(adapter, model.peft_config["default"])
    model.set_adapter(adapter)
    model.delete_adapter("default")
    return model


@pytest.mark.parametrize("adapter", ["debias", "unbiased-news", "text_norm"])
def test_an_adapter_whose_name_switches_weight_decay_off_is_refused(adapter, model_folder, tmp_path):
    model = named(peft_model(model_folder), adapter)
    with pytest.raises(ConfigError, match=rf"lora_A\.{adapter}\.weight.*would not apply weight_decay=0\.1"):
        Continual("inc-lora").attach(plain_trainer(model, rows(1), tmp_path, stack, weight_decay=0.1))


@pytest.mark.parametrize(("adapter", "decay"), [("german", 0.1), ("debias", 0.0)])
def test_any_other_name_and_no_decay_are_fine(adapter, decay, model_folder, tmp_path):
    model = named(peft_model(model_folder), adapter)
    Continual("inc-lora").attach(plain_trainer(model, rows(1), tmp_path, stack, weight_decay=decay))


@pytest.mark.parametrize(
    "settings,message",
    [({"fp16": True}, "fp16 multiplies gradients"), ({"optim": "lomo"}, "steps inside backward"),
     ({"distributed_type": "DEEPSPEED"}, "DeepSpeed keeps gradients"),
     ({"distributed_type": "FSDP"}, "perdure's own loop shards only the base"),
     ({"distributed_type": "MEGATRON_LM"}, "Megatron-LM replaces the model"),
     ({"tp_size": 2}, r"splits the model or its sequences over processes \(tp\)"),
     ({"model_init": object}, "recreates its model")],
)  # fmt: skip
def test_engines_that_hide_gradients_are_refused(settings, message):
    parallel = SimpleNamespace(tp_size=settings["tp_size"]) if "tp_size" in settings else None
    engine = SimpleNamespace(value=settings.get("distributed_type", "NO"))
    args = SimpleNamespace(fp16=settings.get("fp16", False), optim=settings.get("optim", "adamw_torch"))
    trainer = SimpleNamespace(
        training_step=None, callback_handler=None, args=args, model_init=settings.get("model_init"),
        accelerator=SimpleNamespace(distributed_type=engine, parallelism_config=parallel),
    )  # fmt: skip
    with pytest.raises(ConfigError, match=message):
        Continual().attach(trainer)
    with pytest.raises(ConfigError, match="Expected a transformers Trainer"):
        Continual().attach(object())


@pytest.mark.parametrize(
    "lora,message",
    [({"use_dora": True}, "DoRA rescales"), ({"modules_to_save": ["lm_head"]}, "whole trained modules"),
     ({"init_lora_weights": "pissa", "dtype": torch.float32}, "has changed the base already"),
     ({"init_lora_weights": "mica", "dtype": torch.float32}, "freezes B and trains only A"),
     ({"target_modules": ["embed_tokens"]}, "does not adapt a linear layer")],
)  # fmt: skip
def test_models_that_train_something_else_are_refused(lora, message, tmp_path, model_folder):
    trainer = plain_trainer(peft_model(model_folder, **lora), rows(0), tmp_path, stack)
    with pytest.raises(ConfigError, match=message):
        Continual().attach(trainer)


def test_a_model_on_several_devices_is_refused(tmp_path, model_folder):
    model = peft_model(model_folder)
    trainer = plain_trainer(model, rows(0), tmp_path, stack)
    model.get_base_model().lm_head.to("meta")
    with pytest.raises(ConfigError, match=r"several devices \(cpu, meta; device_map\).*Load it without device_map"):
        Continual().attach(trainer)


def test_other_trained_parameters_are_refused(tmp_path, model_folder):
    model = peft_model(model_folder)
    model.get_base_model().lm_head.weight.requires_grad_(True)
    with pytest.raises(ConfigError, match=r"also trains 1 parameters that are not LoRA factors, such as '.*lm_head"):
        Continual().attach(plain_trainer(model, rows(0), tmp_path, stack))


def test_a_history_that_does_not_fit_is_refused(tmp_path, model_folder):
    learn(Continual("inc-lora"), tmp_path / "march", model_folder, 0)
    fewer = plain_trainer(peft_model(model_folder, target_modules=["q_proj"]), rows(0), tmp_path, stack)
    with pytest.raises(AdapterError, match=r"changes '.*v_proj', which the model's LoRA does not target"):
        Continual(history=[tmp_path / "march"]).attach(fewer)
    larger = plain_trainer(peft_model(model_folder, r=4), rows(0), tmp_path, stack)
    with pytest.raises(AdapterError, match=r"has rank 2 at .*, where the model's LoRA has rank 4\. .*LoraConfig"):
        Continual("seq-lora", history=[tmp_path / "march"]).attach(larger)
    plain = plain_trainer(AutoModelForCausalLM.from_pretrained(model_folder), rows(0), tmp_path, stack)
    with pytest.raises(ConfigError, match="Expected a PEFT model with one active LoRA adapter"):
        Continual().attach(plain)


def test_nothing_is_saved_before_it_is_attached(tmp_path):
    with pytest.raises(ConfigError, match=r"Call attach\(trainer\) and train first"):
        Continual().save(tmp_path / "x")


def test_earlier_tasks_are_called_after_their_folders(tmp_path, model_folder):
    """Two folders called `adapter`: neither is lost, and both can be folders of what is deployed."""
    for name, seed in (("march", 0), ("april", 1)):
        learn(Continual("inc-lora"), tmp_path / name / "adapter", model_folder, seed)
    history = [str(tmp_path / name / "adapter") for name in ("march", "april")]
    continual = Continual("per-task", history=history, task="may")
    learn(continual, tmp_path / "may", model_folder, 2)
    continual.save_deployed(tmp_path / "deployed")
    held = sorted(path.name for path in (tmp_path / "deployed").iterdir())
    assert held == [MARK, "april", "march", "may"]
    with pytest.raises(ConfigError, match="cannot be called 'april': an earlier adapter's folder"):
        Continual(history=history, task="april")
    with pytest.raises(ConfigError, match=r"cannot be called '\.\./may': use letters"):
        Continual(history=history, task="../may")


def test_one_continual_serves_one_trainer_and_one_trainer_one_continual(tmp_path, model_folder):
    continual = Continual()
    trainer = plain_trainer(peft_model(model_folder), rows(0), tmp_path, stack)
    continual.attach(trainer)
    with pytest.raises(ConfigError, match="attached already"):
        continual.attach(trainer)
    with pytest.raises(ConfigError, match=r"Another Continual is attached to this trainer.*Make a new trainer"):
        Continual().attach(trainer)


def test_a_trainer_that_has_trained_is_refused(tmp_path, model_folder):
    trainer = plain_trainer(peft_model(model_folder), rows(0), tmp_path, stack, per_device_train_batch_size=10)
    trainer.train()
    with pytest.raises(ConfigError, match=r"has trained 2 steps already.*Call attach before trainer\.train"):
        Continual().attach(trainer)


def test_an_adapter_that_has_learnt_is_not_thrown_away(march, tmp_path, model_folder):
    base = AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float64)
    learnt = PeftModel.from_pretrained(base, march, is_trainable=True)
    with pytest.raises(
        ConfigError, match=r"has learnt something already \(B is not zero at 'model\.layers\.0.*`history`"
    ):
        Continual().attach(plain_trainer(learnt, rows(0), tmp_path, stack))
    drawn = peft_model(model_folder, init_lora_weights=False)  # B is drawn, and replaced as any other start
    continual = Continual("inc-lora")
    continual.attach(plain_trainer(drawn, rows(0), tmp_path, stack))
    assert not any(pair.B.any() for pair in continual.model.copied_factors().values())


def test_a_base_that_was_changed_in_memory_is_refused(march, tmp_path, model_folder):
    base = AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float64)
    merged = PeftModel.from_pretrained(base, march).merge_and_unload()
    again = get_peft_model(merged, LoraConfig(r=2, target_modules=["q_proj", "v_proj"]))
    with pytest.raises(
        ConfigError, match=r"'model\.layers\.0\.self_attn\.[qv]_proj' differs.*Reload it with from_pretrained"
    ):
        Continual().attach(plain_trainer(again, rows(0), tmp_path, stack))
    merged.save_pretrained(tmp_path / "merged")  # what is saved is a base of its own
    Continual().attach(plain_trainer(peft_model(tmp_path / "merged"), rows(0), tmp_path, stack))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_a_base_in_another_precision_is_the_same_base(dtype, tmp_path, model_folder):
    Continual().attach(plain_trainer(peft_model(model_folder, dtype=dtype), rows(0), tmp_path, stack))


def test_a_base_without_files_on_this_machine_is_not_compared(tmp_path, model_folder):
    model = peft_model(model_folder)
    for name in ("somebody/not-downloaded", "no name of a hub: at all", ""):
        model.peft_config["default"].base_model_name_or_path = name
        check_base(model, AdaptedModel.around(model))


@pytest.mark.parametrize("method,first", [("inc-lora", ["march"]), ("loram", [])])  # what is carried; an init's offset
def test_a_base_that_carries_the_past_is_not_given_it_again(method, first, march, tmp_path, model_folder):
    model = peft_model(model_folder)
    Continual().attach(plain_trainer(model, rows(0), tmp_path, stack))  # leaves the base as it is
    history = [march] if first else []
    Continual(method, history=history).attach(plain_trainer(model, rows(1), tmp_path, stack))
    again = Continual("inc-lora", history=[march])
    with pytest.raises(ConfigError, match=r"already carry the earlier tasks.*Reload the base"):
        again.attach(plain_trainer(model, rows(2), tmp_path, stack))
    again.attach(plain_trainer(peft_model(model_folder), rows(2), tmp_path, stack))
