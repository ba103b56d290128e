"""A proof that was run on a model is read from the cache when the same model is loaded again, and only then."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from perdure import learn
from perdure.backbones import verdicts
from perdure.backbones.causal import CausalLM, CausalSettings
from perdure.config.lora_settings import LoraSettings
from perdure.errors import ConfigError
from perdure.state.store import Store
from perdure.tasks.task import Example, Task
from perdure.training.lora import AdaptedModel
from tests.backbones.tiny import tiny_causal

ROWS = [Example(text, "a", "t") for text in ("rain", "a clear blue sky over the hills", "the soup was cold")]
TASK = Task("t", ROWS, test=ROWS, labels={"a": "good", "b": "good and bad", "c": "bad"})
PACKED = "packed: both ways agree"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tiny_causal(tmp_path / "model")


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PERDURE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(verdicts, "SLOW", 0.0)
    return tmp_path / "cache" / "verdicts"


@pytest.fixture
def tried(monkeypatch: pytest.MonkeyPatch) -> list[str | None]:
    """What every trial of packing found, in order."""
    found: list[str | None] = []
    right = CausalLM._tried

    def counted(self: CausalLM, *given: Any) -> str | None:
        found.append(right(self, *given))
        return found[-1]

    monkeypatch.setattr(CausalLM, "_tried", counted)
    return found


def loaded(folder: Path, task: Task = TASK, **settings: Any) -> CausalLM:
    backbone = CausalLM.load(CausalSettings(model=str(folder), **settings))
    backbone.prepare([task])
    return backbone


def test_a_verdict_is_read_again_and_recorded_as_it_was(folder: Path, cache: Path, tried: list[Any]) -> None:
    assert [loaded(folder).how_ranked() for _ in range(3)] == [PACKED] * 3
    assert tried == [None, None]  # both pairs of prompts, once
    assert len(list(cache.iterdir())) == 1


def test_a_refusal_is_read_again_with_its_reason(
    folder: Path, cache: Path, tried: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    right = CausalLM._packed
    monkeypatch.setattr(CausalLM, "_packed", lambda *given: right(*given) + 0.5)
    first, second = (loaded(folder).how_ranked() for _ in range(2))
    assert first == second == "exhaustive: both ways were tried, and scores differ by 0.5"
    assert len(tried) == 1
    with pytest.raises(ConfigError, match=r"scores differ by 0\.5"):
        loaded(folder, ranking="packed").how_ranked()


def test_an_error_is_no_verdict(folder: Path, cache: Path, tried: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Too little memory once is not too little memory for ever."""
    right, free = CausalLM._packed, []

    def packed(*given: Any) -> torch.Tensor:
        if not free:
            raise RuntimeError("can't allocate memory")
        return right(*given)

    monkeypatch.setattr(CausalLM, "_packed", packed)
    assert "does not accept it (can't allocate memory)" in (loaded(folder).how_ranked() or "")
    assert not cache.exists()
    free.append(True)
    assert loaded(folder).how_ranked() == PACKED


def _weight(backbone: CausalLM) -> None:
    with torch.no_grad():
        backbone.model.get_input_embeddings().weight[-1, -1] += 1e-3  # pyright: ignore


def _attention(backbone: CausalLM) -> None:
    backbone.model.set_attn_implementation("eager")  # pyright: ignore


def _buffer(backbone: CausalLM) -> None:
    next(b for name, b in backbone.model.named_buffers() if "inv_freq" in name).mul_(1.001)


@pytest.mark.parametrize("change", [_weight, _attention, _buffer])
def test_a_model_that_is_not_the_same_is_tried_itself(
    change: Callable[[CausalLM], None], folder: Path, cache: Path, tried: list[Any]
) -> None:
    loaded(folder).how_ranked()
    other = loaded(folder)
    change(other)
    assert other.how_ranked() == PACKED
    assert len(tried) == 4


@pytest.mark.parametrize(
    "given",
    [
        {"dtype": "bfloat16"},
        {"label_score": "mean"},
        {"max_length": 100},
        {"task": Task("t", ROWS, test=ROWS, labels={"a": "good", "b": "bad"})},
        {"task": Task("t", [*ROWS, Example("a much longer text than all others were", "a", "t")], test=ROWS, labels=TASK.labels)},
    ],
)  # fmt: skip
def test_other_settings_or_inputs_are_tried_themselves(
    given: dict[str, Any], folder: Path, cache: Path, tried: list[Any]
) -> None:
    loaded(folder).how_ranked()
    loaded(folder, **given).how_ranked()
    assert len(tried) == 4


def test_other_code_or_another_machine_is_tried_itself(
    folder: Path, cache: Path, tried: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded(folder).how_ranked()
    monkeypatch.setattr(verdicts, "_code", lambda: "changed")
    loaded(folder).how_ranked()
    assert len(tried) == 4
    monkeypatch.setattr(verdicts.transformers, "__version__", "6.0")
    loaded(folder).how_ranked()
    assert len(tried) == 6
    monkeypatch.setattr(torch, "get_num_threads", lambda: 7)
    loaded(folder).how_ranked()
    assert len(tried) == 8


def test_an_adapter_that_is_switched_on_or_a_hook_is_tried_itself(folder: Path, cache: Path, tried: list[Any]) -> None:
    def attached() -> tuple[CausalLM, AdaptedModel]:
        backbone = loaded(folder)
        return backbone, AdaptedModel(backbone.model, LoraSettings(), backbone.default_targets)

    for _ in range(2):  # switched off, an adapter takes no part, whatever it holds
        attached()[0].how_ranked()
    assert len(tried) == 2
    backbone, model = attached()
    model.enable(True)
    backbone.how_ranked()
    assert len(tried) == 4
    backbone, _ = attached()
    backbone.model.register_forward_pre_hook(lambda *_: None)
    backbone.how_ranked()
    assert len(tried) == 6
    assert len(list(cache.iterdir())) == 1


def _truncated(file: Path) -> None:
    file.write_text(file.read_text()[:-20])


def _another_verdict(file: Path) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), "verdict": "it was tried"}))


def _a_list(file: Path) -> None:
    file.write_text("[]")


def _not_text(file: Path) -> None:
    file.write_bytes(b"\xff\0")


def _a_folder(file: Path) -> None:
    file.unlink()
    file.mkdir()


@pytest.mark.parametrize("damage", [_truncated, _another_verdict, _a_list, _not_text, _a_folder])
def test_a_damaged_verdict_counts_as_none(
    damage: Callable[[Path], None], folder: Path, cache: Path, tried: list[Any]
) -> None:
    loaded(folder).how_ranked()
    [file] = cache.iterdir()
    damage(file)
    assert loaded(folder).how_ranked() == PACKED
    assert len(tried) == 4
    assert loaded(folder).how_ranked() == PACKED
    assert len(tried) == (6 if file.is_dir() else 4)  # written again


def test_a_verdict_of_another_circumstance_under_this_name_counts_as_none(
    folder: Path, cache: Path, tried: list[Any]
) -> None:
    loaded(folder).how_ranked()
    [first] = cache.iterdir()
    loaded(folder, label_score="mean").how_ranked()
    [second] = set(cache.iterdir()) - {first}
    second.write_bytes(first.read_bytes())
    loaded(folder, label_score="mean").how_ranked()
    assert len(tried) == 6


def test_a_cache_that_cannot_be_written_costs_the_trial_only(folder: Path, cache: Path, tried: list[Any]) -> None:
    cache.parent.write_text("a file, not a folder")
    assert [loaded(folder).how_ranked() for _ in range(2)] == [PACKED] * 2
    assert len(tried) == 4


def test_what_is_fast_is_not_kept(folder: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verdicts, "SLOW", 60.0)
    assert loaded(folder).how_ranked() == PACKED
    assert not cache.exists()


def test_packed_rows_are_proven_once(folder: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    right, calls = CausalLM._logits_of, []
    monkeypatch.setattr(CausalLM, "_logits_of", lambda self, rows: calls.append(1) or right(self, rows))
    for _ in range(2):
        loaded(folder, packing=True)
    assert len(calls) == 2  # different examples, and equal ones
    monkeypatch.setattr(CausalLM, "_logits_of", lambda self, rows: right(self, rows) * 1.1)
    monkeypatch.setattr(verdicts, "_code", lambda: "changed")
    for _ in range(2):
        with pytest.raises(ConfigError, match="it was tried, and the loss is"):
            loaded(folder, packing=True)


def test_a_run_records_a_verdict_from_the_cache_as_its_own(
    folder: Path, cache: Path, tried: list[Any], tmp_path: Path
) -> None:
    for name in ("one", "two"):
        learn(out=tmp_path / name, tasks=[TASK], method="inc-lora", backbone={"kind": "causal", "model": str(folder)})
    one, two = (Store(tmp_path / name).about for name in ("one", "two"))
    assert one["ranking"] == two["ranking"] == PACKED
    assert len(tried) == 2
    assert one == two
