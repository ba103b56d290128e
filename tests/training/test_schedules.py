"""Learning-rate schedules: perdure's three by hand, transformers' against its own scheduler stepping on an optimizer."""

from __future__ import annotations

import pytest
import torch
from transformers import get_scheduler

from perdure.config.training_settings import TrainingSettings
from perdure.errors import ConfigError
from perdure.training.schedules import schedule


def factors(total: int, rate: float = 1.0, **settings) -> list[float]:
    factor = schedule(TrainingSettings(**settings), total, rate)
    return [factor(step) for step in range(total)]


def test_perdures_own_by_hand():
    linear = factors(10, warmup_share=0.2, schedule="linear")
    assert [linear[s] for s in (0, 1, 2, 6)] == [0.5, 1.0, 1.0, 0.5]
    cosine = factors(8, schedule="cosine")
    assert [cosine[s] for s in (0, 2, 4)] == pytest.approx([1.0, 0.5 * (1 + 2**-0.5), 0.5])
    warm = factors(10, warmup_share=0.2, schedule="cosine")  # steps 2 to 9 are the 8 above
    assert [warm[s] for s in (1, 2, 4, 6)] == pytest.approx([1.0, 1.0, 0.5 * (1 + 2**-0.5), 0.5])
    assert factors(10)[9] == 1.0


def test_transformers_by_hand():
    assert factors(5, schedule="constant_with_warmup", warmup_share=0.4) == [0.0, 0.5, 1.0, 1.0, 1.0]
    squares = factors(4, schedule="polynomial", schedule_args={"power": 2.0, "lr_end": 0.0})
    assert squares == [1.0, 0.5625, 0.25, 0.0625]  # (1 - step / 4) squared
    twice = factors(8, schedule="cosine_with_restarts", schedule_args={"num_cycles": 2})
    assert twice == pytest.approx([1.0, 0.5 * (1 + 2**-0.5), 0.5, 0.5 * (1 - 2**-0.5)] * 2)
    stable = factors(20, schedule="warmup_stable_decay", schedule_args={"decay_type": "linear"})
    assert stable == [1.0] * 19 + [0.5]  # the last tenth, two steps, decays: 1, then one half


@pytest.mark.parametrize(
    "name,args",
    [
        ("constant_with_warmup", {}),
        ("cosine_with_restarts", {"num_cycles": 3}),
        ("cosine_with_min_lr", {"min_lr_rate": 0.1}),
        ("polynomial", {}),
        ("inverse_sqrt", {"timescale": 7}),
        ("warmup_stable_decay", {"num_decay_steps": 9}),
    ],
)
def test_equal_to_transformers_scheduler_step_by_step(name, args):
    sgd = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=3e-3)
    theirs = get_scheduler(name, sgd, 6, 30, args)
    rates = []
    for _ in range(30):
        rates.append(sgd.param_groups[0]["lr"])
        sgd.step()
        theirs.step()
    ours = factors(30, 3e-3, schedule=name, schedule_args=args, warmup_share=0.2)
    assert [3e-3 * factor for factor in ours] == rates


@pytest.mark.parametrize(
    "settings,said",
    [
        ({"schedule": "cosine", "schedule_args": {"num_cycles": 2}}, "takes none"),
        ({"schedule": "polynomial", "schedule_args": {"pover": 2}}, "do not fit"),
        ({"schedule": "polynomial", "schedule_args": {"power": "two"}}, "do not fit"),
        ({"schedule": "polynomial", "schedule_args": {"lr_end": 9}}, "must be smaller"),
        ({"schedule": "inverse_sqrt", "schedule_args": {"timescale": 0}}, "do not fit"),
        ({"schedule": "cosine_with_min_lr"}, "min_lr"),
        ({"schedule": "warmup_stable_decay", "schedule_args": {"num_decay_steps": 11}}, "more than the 10 steps"),
        ({"schedule": "polynomial", "schedule_args": {"lr_end": -1.0}}, "make the learning rate -"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(settings, said):
    with pytest.raises(ConfigError, match=said):
        factors(10, **settings)
