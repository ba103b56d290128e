"""What a run decides before it learns: threads, precision, what cannot be split over processes."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from benchmarks.breadth.architectures import build

import perdure
import perdure.backbones.device
import perdure.backbones.language
import perdure.commands.learn
import perdure.commands.run_record
from perdure.backbones.device import choose_precision
from perdure.commands.before_run import check_shards
from perdure.commands.learn import run_config
from perdure.config.run_config import RunConfig, load_config
from perdure.errors import ConfigError
from perdure.files.durable import read_lines
from perdure.state.answers import read_answers
from perdure.state.store import Store
from perdure.training.state import Training
from tests.backbones.tiny import tiny_causal
from tests.contract.runs import short_run


def test_the_recorded_threads_are_set_before_tasks_are_prepared(tmp_path, small_tasks, encoder_folder, monkeypatch):
    """What a backbone measures then rounds as it did when the run began."""
    found, real = [], perdure.commands.learn.load_learner

    def load(*given: Any) -> Any:
        found.append(torch.get_num_threads())
        return real(*given)

    monkeypatch.setattr(perdure.commands.learn, "load_learner", load)
    before = torch.get_num_threads()
    try:
        for threads in (2, 1):
            torch.set_num_threads(threads)
            short_run(tmp_path / "run", small_tasks[:1], encoder_folder, "inc-lora", threads=None)
    finally:
        torch.set_num_threads(before)
    assert found == [2, 2]


@pytest.mark.parametrize(
    "exact,rough,chosen", [(1.6, 1.0, "bf16"), (1.4, 1.0, "fp32"), (1.0, 3.0, "fp32")], ids=lambda given: str(given)
)
def test_bf16_is_chosen_where_it_is_half_as_fast_again_as_fp32_where_the_model_is(exact, rough, chosen, monkeypatch):
    """A clock that only products move on: seconds for one in fp32, in bf16."""
    seconds, seen = {torch.float32: exact, torch.bfloat16: rough}, []

    def mm(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        assert left.dtype == right.dtype
        seen.append((left.device.type, left.dtype))
        return torch.zeros(1, 1)

    monkeypatch.setattr(torch, "mm", mm)
    monkeypatch.setattr(
        perdure.backbones.device, "time", SimpleNamespace(perf_counter=lambda: sum(seconds[dtype] for _, dtype in seen))
    )
    assert choose_precision("auto", torch.device("meta")) == chosen
    assert set(seen) == {("meta", torch.float32), ("meta", torch.bfloat16)}


def test_a_run_learns_and_answers_in_its_precision(tmp_path, small_tasks, encoder_folder):
    """Also when it is opened again, by a command that is not told the precision."""
    task, losses, probabilities = small_tasks[0], {}, {}
    for precision in ("fp32", "bf16"):
        out = tmp_path / precision
        short_run(out, [task], encoder_folder, "inc-lora", precision=precision)
        assert Store(out).about["precision"] == precision
        losses[precision] = [row["loss"] for row in read_lines(Store(out).stage_folder(1) / "log.jsonl")]
        stored = read_answers(Store(out).stage_folder(1), task.name)
        found = perdure.predict(out, [example.text for example in task.test])
        assert [row["label"] for row in found] == [row["predicted"] for row in stored]
        probabilities[precision] = [row["probability"] for row in stored]
        assert [max(row["probabilities"].values()) for row in found] == probabilities[precision]
    assert losses["bf16"] != losses["fp32"]
    assert losses["bf16"] == pytest.approx(losses["fp32"], rel=0.1)
    assert probabilities["bf16"] != probabilities["fp32"], "or the answers above could not tell the precisions apart"


def test_a_split_base_that_must_answer_while_it_is_written_is_refused():
    vision: Any = SimpleNamespace(answers_from_examples=True)
    text: Any = SimpleNamespace(answers_from_examples=False)
    check_shards(RunConfig(), vision)
    check_shards(RunConfig(shard=True), text)
    with pytest.raises(ConfigError, match="shard=true does not work with a vision backbone"):
        check_shards(RunConfig(shard=True), vision)


@pytest.mark.parametrize("name", ["deberta", "xmod"])
def test_a_model_that_does_not_compute_in_bf16(name: str, tmp_path, small_tasks, monkeypatch) -> None:
    """Asked for it is refused before a run is begun; 'auto' takes fp32, however fast bf16 is."""
    folder = build("encoder", name, tmp_path / name)
    with pytest.raises(ConfigError, match=r"precision=bf16: \w+ does not compute in bf16: .* Set precision=fp32"):
        short_run(tmp_path / "asked", small_tasks[:1], folder, "inc-lora", precision="bf16")
    assert not (tmp_path / "asked" / "run.json").exists()
    monkeypatch.setattr(perdure.commands.run_record, "choose_precision", lambda wanted, device: "bf16")
    short_run(tmp_path / "auto", small_tasks[:1], folder, "inc-lora", precision="auto")
    assert Store(tmp_path / "auto").about["precision"] == "fp32"


class Stopped(Exception):
    """The run ends here."""


def test_a_resumed_run_tries_nothing_again_and_gives_the_same(tmp_path, small_tasks, monkeypatch):
    """Up to its next step it makes no forward pass; with other libraries it tries the model again."""
    settings = {
        "method": "seq-lora",
        "backbone": {"kind": "causal", "model": str(tiny_causal(tmp_path / "model")), "max_length": 64},
        "training": {"epochs": 1, "batch_size": 8},
        "lora": {"rank": 2},
        "threads": 1,
    }
    config, seen = load_config(settings), []
    whole = run_config(config, tmp_path / "whole", tasks=small_tasks[:2])

    def until_step(stage: int, run: str) -> list[str]:
        """What is computed before the first step of a stage."""
        begin = Training.begin_step

        def stop(training: Training) -> float:
            if len(Store(tmp_path / run).stages()) == stage:
                raise Stopped
            return begin(training)

        seen.clear()
        with monkeypatch.context() as patched:
            patched.setattr(Training, "begin_step", stop)
            with pytest.raises(Stopped):
                run_config(config, tmp_path / run, tasks=small_tasks[:2])
        return list(seen)

    real = perdure.backbones.language.logits_at
    monkeypatch.setattr(perdure.backbones.language, "logits_at", lambda *a, **k: seen.append("pass") or real(*a, **k))
    assert until_step(1, "stopped")  # it reads, scores and learns
    assert until_step(1, "stopped") == []
    other = perdure.commands.run_record.versions() | {"torch": "9"}
    with monkeypatch.context() as patched:
        patched.setattr(perdure.commands.run_record, "versions", lambda: other)
        assert until_step(1, "stopped")
    resumed = run_config(config, tmp_path / "stopped", tasks=small_tasks[:2])
    assert resumed.score_matrix == whole.score_matrix
    assert Store(tmp_path / "stopped").about["ranking"] == Store(tmp_path / "whole").about["ranking"]
