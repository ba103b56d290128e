"""TRL's trainers with a reference model: at the first step it is the model itself, whatever the method starts from."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from perdure.adapters.folder import open_adapter
from perdure.errors import ConfigError, UnmetNeed
from perdure.integrations import Continual
from tests.backbones.tiny import tiny_causal

trl = pytest.importorskip("trl")

pytestmark = pytest.mark.filterwarnings("ignore")  # TRL's own, of what it deprecates
COUNT = 8
ROWS: dict[str, list[dict[str, Any]]] = {
    "SFT": [{"prompt": f"What is {n}? ", "completion": f"{n} is good"} for n in range(COUNT)],
    "DPO": [{"prompt": f"What is {n}? ", "chosen": f"{n} is good", "rejected": f"no {n}"} for n in range(COUNT)],
    "KTO": [{"prompt": f"What is {n}? ", "completion": f"{n} is good", "label": n % 2 == 0} for n in range(COUNT)],
    "GRPO": [{"prompt": f"What is {n}? "} for n in range(COUNT)],
    "RLOO": [{"prompt": f"What is {n}? "} for n in range(COUNT)],
    "Reward": [{"chosen": f"{n} is good", "rejected": f"no {n}"} for n in range(COUNT)],
}
LORA: dict[str, Any] = {"r": 2, "lora_alpha": 4, "target_modules": ["q_proj", "v_proj"]}
SMALL = {"batches": 2, "batch_size": 2}
STARTS: dict[str, Any] = {
    "ps-lora": "ps-lora",  # B = 0
    "seq-lora": "seq-lora",  # goes on from the last adapter
    "loram": "loram",  # offsets the base
    "lora-ga": {"preset": "lora-ga", "init": SMALL},  # offsets it by what it measures with the trainer's loss
}


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_causal(tmp_path_factory.mktemp("models") / "tiny-causal")


@pytest.fixture(scope="module")
def march(tmp_path_factory: pytest.TempPathFactory, model_folder: Path) -> Path:
    folder = tmp_path_factory.mktemp("earlier") / "march"
    trained(trainer("SFT", model_folder, folder.parent), "inc-lora").save(folder)
    return folder


def reward(completions: list[str], **_: Any) -> list[float]:
    """Differs between almost all completions, or no advantage would be left."""
    return [float(sum(map(ord, completion)) % 97) for completion in completions]


def trainer(
    kind: str, model_folder: Path, folder: Path, *, made: bool = False, lora: Any = None, **settings: Any
) -> Any:
    """One of TRL's trainers, two steps long; `made`: the caller makes the PEFT model, and TRL copies its adapter as "ref"."""
    arguments: dict[str, Any] = {
        "max_steps": 2, "logging_steps": 1, "save_strategy": "no", "report_to": "none", "disable_tqdm": True, "use_cpu": True,
        "bf16": False, "learning_rate": 0.01, "lr_scheduler_type": "constant", "per_device_train_batch_size": 2,
        **({"beta": 0.1, "num_generations": 2, "max_completion_length": 6} if kind in ("GRPO", "RLOO") else {}),
        **settings,
    }  # fmt: skip
    config = LoraConfig(**(lora or LORA))
    auto: Any = AutoModelForSequenceClassification if kind == "Reward" else AutoModelForCausalLM
    model = auto.from_pretrained(model_folder, dtype=torch.float32, **({"num_labels": 1} if kind == "Reward" else {}))
    given: dict[str, Any] = (
        {"model": get_peft_model(model, config)} if made else {"model": model, "peft_config": config}
    )
    return getattr(trl, f"{kind}Trainer")(
        **given,
        **({"reward_funcs": reward} if kind in ("GRPO", "RLOO") else {}),
        args=getattr(trl, f"{kind}Config")(str(folder / "trainer"), **arguments),
        train_dataset=Dataset.from_list(ROWS[kind]),
        processing_class=AutoTokenizer.from_pretrained(model_folder),
    )


def trained(made: Any, method: Any, history: Any = ()) -> Continual:
    continual = Continual(method, history=list(history))
    continual.attach(made)
    made.train()
    return continual


# GRPO and RLOO have no loss that LoRA-GA could measure: refused, below
CASES = [(k, s) for k in ("DPO", "KTO", "GRPO", "RLOO") for s in STARTS if s != "lora-ga" or k in ("DPO", "KTO")]


@pytest.mark.parametrize("later", [False, True])
@pytest.mark.parametrize("kind,start", CASES)
def test_the_first_step_begins_at_the_reference(kind, start, later, march, tmp_path, model_folder):
    """DPO: -log sigmoid(0) = ln 2 and a margin of 0. KTO: 1 - sigmoid(0). GRPO and RLOO: no divergence."""
    one = trainer(kind, model_folder, tmp_path, made=later)
    trained(one, STARTS[start], [march] if later else [])
    first, second = (log for log in one.state.log_history if "loss" in log)
    if kind in ("GRPO", "RLOO"):
        assert first["kl"] == 0
        assert second["kl"] != 0  # the policy moved, the reference did not; an estimate, which may be negative
        return
    assert first["loss"] == pytest.approx(math.log(2) if kind == "DPO" else 0.5, abs=1e-6)
    assert first["rewards/margins"] == pytest.approx(0, abs=1e-6)
    assert abs(second["rewards/margins"]) > 1e-4


def test_the_reference_stays_what_training_began_with(march, tmp_path, model_folder):
    """Also where the LoRA has dropout and the user's TRL keeps it: the reference has none, and is not trained."""
    one = trainer("DPO", model_folder, tmp_path, made=True, lora={**LORA, "lora_dropout": 0.5}, disable_dropout=False)
    continual = Continual("seq-lora", history=[march])
    continual.attach(one)
    layer = one.model.get_base_model().model.layers[0].self_attn.q_proj
    began = layer.lora_B["ref"].weight.detach().clone()
    one.train()
    torch.testing.assert_close(began, open_adapter(march)["model.layers.0.self_attn.q_proj"].B / 2)  # alpha / r = 2
    torch.testing.assert_close(layer.lora_B["ref"].weight, began, rtol=0, atol=0)
    assert not torch.equal(layer.lora_B["default"].weight, began)
    assert not layer.lora_A["ref"].weight.requires_grad
    assert isinstance(layer.lora_dropout["ref"], torch.nn.Identity)


def test_a_factor_that_is_not_trained_stays_so_when_the_reference_answers(tmp_path, model_folder):
    """PEFT makes every factor of an adapter trainable when it switches back to it; InfLoRA freezes A."""
    one = trainer("DPO", model_folder, tmp_path)
    continual = Continual({"preset": "inf-lora", "init": SMALL})
    continual.attach(one)
    layer = one.model.get_base_model().model.layers[0].self_attn.q_proj
    began = layer.lora_A["default"].weight.detach().clone()
    one.train()
    assert not layer.lora_A["default"].weight.requires_grad
    assert layer.lora_A["default"].weight.grad is None
    torch.testing.assert_close(layer.lora_A["default"].weight, began, rtol=0, atol=0)
    assert layer.lora_B["default"].weight.abs().max() > 0


def test_a_resumed_preference_training_has_the_same_reference(march, tmp_path, model_folder):
    def one(**settings: Any) -> Any:
        return trainer("DPO", model_folder, tmp_path, **settings)

    whole = trained(one(max_steps=3), "seq-lora", [march])
    trained(one(save_strategy="steps", save_steps=2), "seq-lora", [march])
    resumed = Continual("seq-lora", history=[march])
    again = one(max_steps=3)
    resumed.attach(again)
    again.train(resume_from_checkpoint=str(tmp_path / "trainer" / "checkpoint-2"))
    for name, pair in whole.model.factors().items():
        torch.testing.assert_close(resumed.model.factors()[name].B, pair.B)


@pytest.mark.parametrize("kind", ["GRPO", "RLOO"])
@pytest.mark.parametrize("method", ["ewc", "lora-ga", "slice-free"])
def test_a_loss_that_needs_rewards_is_refused_before_training(kind, method, tmp_path, model_folder):
    with pytest.raises(
        UnmetNeed, match=rf"measures the loss of examples, and a {kind}Trainer has none.*such as perdure"
    ):
        Continual(method).attach(trainer(kind, model_folder, tmp_path))


@pytest.mark.parametrize(
    ("kind", "method"),
    [("DPO", "perdure"), ("DPO", "ewc"), ("KTO", "perdure"), ("KTO", "ewc"), ("GRPO", "perdure"), ("RLOO", "perdure")],
)
def test_what_was_learnt_is_measured_and_remembered(kind, method, tmp_path, model_folder):
    part = {"perdure": {"score-drift": SMALL}, "ewc": {"fisher": {"examples": 4}}}[method]
    preset = {"preset": method, "penalties": part}
    first = trainer(kind, model_folder, tmp_path)
    trained(first, preset).save(tmp_path / "march")
    assert [log["num_tokens"] for log in first.state.log_history if "loss" in log] == sorted(
        log["num_tokens"] for log in first.state.log_history if "loss" in log
    )
    second = trained(trainer(kind, model_folder, tmp_path), preset, [tmp_path / "march"])
    assert all(value > 0 for name, value in second.penalties.items() if name.startswith("penalty/"))


def test_a_measurement_is_not_logged_as_training(tmp_path, model_folder):
    """LoRA-GA computes the trainer's loss on rows; TRL's counters must not see them."""
    logs = []
    for method in ("inc-lora", STARTS["lora-ga"]):
        one = trainer("DPO", model_folder, tmp_path)
        trained(one, method)
        logs.append(next(log for log in one.state.log_history if "loss" in log))
    assert logs[0]["num_tokens"] == logs[1]["num_tokens"]


def test_a_reference_computed_before_is_refused(tmp_path, model_folder):
    one = trainer("DPO", model_folder, tmp_path, precompute_ref_log_probs=True)
    with pytest.raises(
        ConfigError, match=r"computed its reference when it was made.*Set precompute_ref_log_probs=False"
    ):
        Continual("inc-lora").attach(one)


def test_a_reference_from_elsewhere_is_refused(tmp_path, model_folder):
    class Another(trl.SFTTrainer):
        """As a2po and online_dpo keep one."""

        ref_model = None

    one = trainer("SFT", model_folder, tmp_path)
    one.__class__ = Another
    with pytest.raises(ConfigError, match=r"Another takes its reference from a model that attach cannot set"):
        Continual("inc-lora").attach(one)
    one = trainer("SFT", model_folder, tmp_path)
    one.args.teacher_model_kind = "base"
    with pytest.raises(ConfigError, match=r"Set teacher_model_kind='live'"):
        Continual("inc-lora").attach(one)


def test_a_reference_that_the_user_gave_is_the_reference(march, tmp_path, model_folder):
    one = trainer("DPO", model_folder, tmp_path)
    one.ref_model = AutoModelForCausalLM.from_pretrained(model_folder)
    Continual("seq-lora", history=[march]).attach(one)
    assert "ref" not in one.model.peft_config


def test_a_reward_model_is_refused_with_advice_that_works(tmp_path, model_folder):
    one = trainer("Reward", model_folder, tmp_path, lora={**LORA, "task_type": "SEQ_CLS"})
    with pytest.raises(ConfigError, match=r"PEFT trains the classification head too.*Leave task_type out"):
        Continual("ps-lora").attach(one)
    head = AutoModelForSequenceClassification.from_pretrained(model_folder, num_labels=1)
    head.save_pretrained(tmp_path / "with-head")
    AutoTokenizer.from_pretrained(model_folder).save_pretrained(tmp_path / "with-head")
    trained(trainer("Reward", tmp_path / "with-head", tmp_path), "ewc").save(tmp_path / "march")
    second = trained(trainer("Reward", tmp_path / "with-head", tmp_path), "ewc", [tmp_path / "march"])
    assert second.penalties["penalty/fisher"] > 0
    assert open_adapter(tmp_path / "march")["model.layers.0.self_attn.q_proj"].B.abs().max() > 0
