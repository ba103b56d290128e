"""Early stopping and the best checkpoint: by hand, as transformers counts, resumed to the bit, on validation examples alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from perdure.backbones.toy import Toy
from perdure.config.training_settings import TrainingSettings
from perdure.errors import ConfigError, UnknownName
from perdure.files.durable import read_lines
from perdure.methods.contract.parts import Method
from perdure.methods.plain import Kaiming, Sum
from perdure.state.store import Store
from perdure.tasks.task import Stage, Task
from perdure.training.best import Best
from perdure.training.state import Training
from perdure.training.train import Step, train
from perdure.training.validation import check_validation
from tests.contract.runs import bits, short_run
from tests.methods.two_layers import RESUMED, context, killed_and_resumed, learn_toy, notes, toy_tasks


def settings(keep: str = "best", **stopping: Any) -> TrainingSettings:
    return TrainingSettings(keep=keep, early_stopping=stopping)  # type: ignore[arg-type]


def followed(scores: list[float], chosen: TrainingSettings) -> tuple[Best, int]:
    """Scores after steps 1, 2, ...: the verdict, and after how many training ended. The one parameter is its step."""
    parameter = torch.zeros(1)
    best = Best([parameter], chosen, epoch=1, total=len(scores))
    for done, score in enumerate(scores, start=1):
        parameter.fill_(done)
        best.take(done, score)
        if best.stopped:
            break
    best.give()
    assert parameter.item() == (best.step if chosen.keep == "best" else done)
    return best, done


def test_by_hand():
    best, done = followed([0.5, 0.7, 0.7, 0.6, 0.9], settings(patience=2))
    assert (best.step, best.score, done) == (2, 0.7, 4)  # an equal score is not better; .9 is never reached
    best, done = followed([0.5, 0.7, 0.7, 0.6, 0.9], settings(patience=3))
    assert (best.step, done) == (5, 5)
    best, done = followed([0.5, 0.6, 0.65, 0.9], settings(patience=2, min_change=0.2))
    assert (best.step, best.score, done) == (3, 0.65, 3)  # kept, although too little to go on for
    best, done = followed([0.9, 0.1, 0.2], settings())
    assert (best.step, done) == (1, 3)  # without patience nothing ends early
    assert followed([0.9, 0.1], settings(keep="last", patience=1))[1] == 2


def test_counts_as_transformers_callback():
    """EarlyStoppingCallback on the same scores, and the best metric as the Trainer keeps it: it ends at the same evaluation."""
    from transformers import EarlyStoppingCallback, TrainerControl, TrainerState, TrainingArguments

    args = TrainingArguments("unused", metric_for_best_model="score", greater_is_better=True, report_to=[])
    generator = torch.Generator().manual_seed(0)
    ended = set()
    for case in range(100):
        scores = torch.randint(0, 8, (12,), generator=generator).div(8).tolist()
        callback = EarlyStoppingCallback(1 + case % 3, 0.125 * (case % 2))
        state, control, last = TrainerState(), TrainerControl(), len(scores)
        for number, score in enumerate(scores, start=1):
            callback.check_metric_value(args, state, control, score)
            if state.best_metric is None or score > state.best_metric:
                state.best_metric = score
            if callback.early_stopping_patience_counter >= callback.early_stopping_patience:
                last = number
                break
        best, done = followed(scores, settings(patience=1 + case % 3, min_change=0.125 * (case % 2)))
        assert (done, best.score) == (last, state.best_metric)
        ended.add(done)
    assert len(ended) > 4


def test_when_it_is_due():
    best = Best([], settings(every=4), epoch=6, total=18)
    assert [done for done in range(1, 19) if best.due(done)] == [4, 8, 12, 16, 18]
    assert [d for d in range(1, 19) if Best([], settings(), epoch=6, total=18).due(d)] == [6, 12, 18]


class Unwritten:
    def restore(self, training: Training) -> None: ...

    def stepped(self, training: Training) -> None: ...


def trained(chosen: TrainingSettings, seen: list[list[str]] | None = None):
    """One toy stage: its context, its steps, and the trained factors after each."""
    ctx = context()
    ctx.model.start(Kaiming().start(ctx))
    steps: list[Step] = []
    after: list[list[torch.Tensor]] = []
    if seen is not None:
        real = ctx.backbone.predict

        def predict(examples, labels):
            seen.append([example.text for example in examples])
            return real(examples, labels)

        ctx.backbone.predict = predict  # type: ignore[method-assign]

    def report(step: Step, _total: int) -> None:
        steps.append(step)
        after.append([p.detach().clone() for p in ctx.model.parameters()])

    train(ctx.model, ctx.backbone, Method("m", Kaiming(), Sum()), ctx, chosen, report, Unwritten())
    return ctx, steps, after


RATE = {"epochs": 4, "batch_size": 8, "learning_rate": 0.3}


def test_the_factors_of_the_best_step_are_kept_and_training_before_it_is_untouched():
    chosen = TrainingSettings(**RATE, keep="best", early_stopping={"every": 2, "patience": 3})  # type: ignore[arg-type]
    ctx, steps, _ = trained(chosen)
    _, _, plain = trained(TrainingSettings(**RATE))
    validated = {step.step: step.validation for step in steps if step.validation is not None}
    assert all(step % 2 == 0 for step in validated)
    best = max(validated, key=lambda step: (validated[step], -step))
    assert ctx.notes == {"training/kept step": best, "training/best validation score": validated[best]}
    assert best < len(plain)
    for kept, at_best in zip(ctx.model.parameters(), plain[best - 1], strict=True):
        assert torch.equal(kept, at_best)


def test_only_validation_examples_are_answered():
    seen: list[list[str]] = []
    ctx, _, _ = trained(TrainingSettings(**RATE, keep="best"), seen)
    assert len(seen) == 4
    assert all(texts == [example.text for example in ctx.stage.tasks[0].validation] for texts in seen)


STOPPING = {"keep": "best", "epochs": 4, "early_stopping": {"patience": 2, "every": 3}}


@RESUMED
def test_killed_between_evaluations_and_resumed_to_the_bit(minutes: float | None, tmp_path: Path):
    made = Method("m", Kaiming(), Sum())
    learn_toy(made, tmp_path / "whole", toy_tasks(), checkpoint_minutes=minutes, **STOPPING)
    killed_and_resumed(lambda: made, tmp_path / "parts", toy_tasks(), minutes, **STOPPING)
    learn_toy(made, tmp_path / "parts", toy_tasks(), checkpoint_minutes=minutes, **STOPPING)
    assert bits(tmp_path / "parts") == bits(tmp_path / "whole")
    rows = read_lines(Store(tmp_path / "whole").stage_folder(1) / "log.jsonl")
    assert [row["step"] for row in rows if "validation" in row] == [r["step"] for r in rows if r["step"] % 3 == 0]
    assert notes(tmp_path / "whole", 1)["training/kept step"] in range(3, len(rows) + 1)


@pytest.mark.parametrize("method", ["joint", "ps-lora", "replay"])
def test_in_whole_runs(method: str, tmp_path: Path, small_tasks, encoder_folder):
    training = {"epochs": 2, "batch_size": 8, "learning_rate": 0.01, "keep": "best"}
    short_run(tmp_path / "run", small_tasks[:2], encoder_folder, method, training=training)
    assert notes(tmp_path / "run", 1)["training/kept step"] > 0


def half_right(_text: str, answer: str, references: Any) -> float:
    """A metric of our own: 1 where the answer is right, else 1/2."""
    return 1.0 if answer in references else 0.5


def test_own_metric():
    own = {"metric": "tests.training.test_best:half_right"}
    _, steps, _ = trained(TrainingSettings(**RATE, keep="best", early_stopping=own))  # type: ignore[arg-type]
    _, usual, _ = trained(TrainingSettings(**RATE, keep="best"))
    for one, other in zip(steps, usual, strict=True):
        if other.validation is not None:
            assert one.validation == 0.5 + other.validation / 2


def test_what_cannot_choose_is_refused():
    toy, rows = Toy(), [("1", "0"), ("2", "1")]
    bare = Task("bare", train=rows, test=rows, labels={"0": "", "1": ""})
    stage = Stage("bare", (bare,))
    toy.prepare([bare])
    with pytest.raises(ConfigError, match="task 'bare' has none"):
        check_validation(stage, TrainingSettings(keep="best"))
    with pytest.raises(ConfigError, match="average=none"):
        check_validation(stage, TrainingSettings(keep="best", average="last-half"))
    with pytest.raises(ConfigError, match="no effect without `patience`"):
        check_validation(stage, settings(keep="last", every=5))
    whole = Stage("task0", toy_tasks(1))
    with pytest.raises(UnknownName, match="acuracy"):
        check_validation(whole, settings(metric="acuracy"))
    check_validation(whole, settings(metric="macro-f1"))
    check_validation(stage, TrainingSettings())
