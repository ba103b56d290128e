"""GRPO's and RLOO's examples: prompts with an answer that the model draws."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from perdure.integrations import Continual
from perdure.integrations.trainer_context import answered
from perdure.integrations.written import writes, written
from tests.backbones.tiny import tiny_causal
from tests.integrations.test_references import SMALL, trained, trainer

pytestmark = pytest.mark.filterwarnings("ignore")
METHOD = {"preset": "perdure", "penalties": {"score-drift": SMALL}}


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_causal(tmp_path_factory.mktemp("models") / "tiny-causal")


@pytest.mark.parametrize("kind", ["GRPO", "RLOO"])
def test_prompts_have_an_answer_each_and_only_it_is_scored(kind: str, tmp_path: Path, model_folder: Path) -> None:
    one = trainer(kind, model_folder, tmp_path)
    rows = [{"prompt": "What is 1? "}, {"prompt": "a much longer question, what is 2 or 3? "}]
    given = written(one, one.model.eval(), rows)
    prompts = [one.processing_class(row["prompt"])["input_ids"] for row in rows]
    labels = answered(given)
    assert labels is not None
    for row, prompt in enumerate(prompts):
        real = given["input_ids"][row][given["attention_mask"][row] == 1].tolist()
        learnt = labels[row][labels[row] != -100].tolist()
        assert real == [*prompt, *learnt]
        assert 1 <= len(learnt) <= one.max_completion_length
    again = written(one, one.model, rows)
    assert torch.equal(given["input_ids"], again["input_ids"]), "the same seed, the same answers"


def test_only_trainers_that_write_are_asked_to(tmp_path: Path, model_folder: Path) -> None:
    assert [writes(trainer(kind, model_folder, tmp_path / kind)) for kind in ("SFT", "DPO", "KTO", "GRPO", "RLOO")] == [
        False, False, False, True, True,
    ]  # fmt: skip


def test_statistics_are_those_of_prompt_and_answer(tmp_path: Path, model_folder: Path) -> None:
    """C has as many terms as the model read at positions that scores depend on: more prompts' positions, none of generation."""
    first = trainer("GRPO", model_folder, tmp_path)
    continual = trained(first, METHOD)
    state = continual.method.penalties["score-drift"].state()
    C = {key: value for key, value in state.items() if key.startswith("inputs.")}
    F = {key: value for key, value in state.items() if key.startswith("outputs.")}
    assert C
    assert F
    for matrix in (*C.values(), *F.values()):
        assert torch.isfinite(matrix).all()
        assert torch.linalg.eigvalsh(matrix.double()).min() > -1e-6 * matrix.trace()
        assert matrix.trace() > 0
    # layer-normed inputs: the mean square of an entry is 1 before the norm's weight, so the trace is about the width
    assert all(0.2 < float(matrix.trace()) / len(matrix) < 5 for matrix in C.values())


def test_the_second_task_is_held_back(tmp_path: Path, model_folder: Path) -> None:
    trained(trainer("GRPO", model_folder, tmp_path / "a"), METHOD).save(tmp_path / "march")
    free = trained(trainer("GRPO", model_folder, tmp_path / "b"), "inc-lora", [tmp_path / "march"])
    strong = {"preset": "perdure", "penalties": {"score-drift": {**SMALL, "weight": 1e6}}}
    held = Continual(strong, history=[tmp_path / "march"])
    one = trainer("GRPO", model_folder, tmp_path / "c")
    held.attach(one)
    one.train()
    assert one.state.global_step == 2
    assert held.penalties["penalty/score-drift"] >= 0
    assert free.penalties == {}
