"""Replay: uniform and balanced choices, budgets, mixing, memory as tensors, and a foreign buffer refused."""

import dataclasses
from collections import Counter

import pytest
import torch
from pydantic import ValidationError

from perdure.errors import RunMismatch
from perdure.methods.replay import ExampleBuffer, class_balanced, decoded, encoded, reservoir
from perdure.tasks.task import Example, Stage
from tests.methods.two_layers import context, toy_task


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def examples(count: int, label: str = "x", task: str = "t", start: int = 0) -> list[Example]:
    return [Example(str(i), label, task) for i in range(start, start + count)]


def test_reservoir_is_uniform_over_everything_seen() -> None:
    """10 then 30 examples, 4 kept: each should be kept in a tenth of 2000 trials (sd .0067; 5 sd allowed)."""
    counts: Counter[str] = Counter()
    for seed in range(2000):
        g = generator(seed)
        kept = reservoir([], 0, examples(10), 4, g)
        kept = reservoir(kept, 10, examples(30, start=10), 4, g)
        assert len(set(kept)) == 4
        counts.update(e.text for e in kept)
    shares = [counts[str(i)] / 2000 for i in range(40)]
    assert max(abs(share - 0.1) for share in shares) < 0.034


def test_reservoir_keeps_all_while_there_is_room() -> None:
    assert reservoir([], 0, examples(3), 5, generator()) == examples(3)


def test_class_balanced_takes_the_same_of_each_class() -> None:
    pool = [*examples(50, "a"), *examples(5, "b", start=50), *examples(1, "c", start=55)]
    kept = class_balanced(pool, 11, generator())
    assert Counter(e.label for e in kept) == {"a": 5, "b": 5, "c": 1}
    assert len(set(kept)) == 11
    assert len(class_balanced(pool, 100, generator())) == 56
    assert class_balanced([], 3, generator()) == []


def test_same_label_of_two_tasks_is_two_classes() -> None:
    kept = class_balanced([*examples(9, "a", "one"), *examples(90, "a", "two")], 8, generator())
    assert Counter(e.task for e in kept) == {"one": 4, "two": 4}


def test_budget_per_task() -> None:
    part = ExampleBuffer(per_task=6)
    for index in (0, 1):
        part.remember(context(index), toy_task(index).train)
    buffer = part.buffer()
    assert list(buffer) == ["task0", "task1"]
    assert [len(kept) for kept in buffer.values()] == [6, 6]
    assert Counter(e.label for e in buffer["task1"]) == {"2": 3, "3": 3}
    assert set(buffer["task0"]) <= set(toy_task(0).train)


def test_the_usual_budget_is_128_a_task() -> None:
    part = ExampleBuffer()
    part.remember(context(0), examples(200, task="task0"))
    assert len(part.buffer()["task0"]) == 128


@pytest.mark.parametrize("choose", ["reservoir", "class-balanced"])
def test_budget_in_all_is_never_exceeded_and_old_tasks_give_way(choose: str) -> None:
    part = ExampleBuffer(in_all=12, choose=choose)  # type: ignore[arg-type]
    sizes = []
    for index in range(3):
        part.remember(context(index), toy_task(index).train)
        buffer = part.buffer()
        assert sum(len(kept) for kept in buffer.values()) == 12
        sizes.append(len(buffer["task0"]))
    assert sizes[0] == 12
    assert sizes[0] > sizes[1] >= sizes[2]
    if choose == "class-balanced":
        assert [len(kept) for kept in part.buffer().values()] == [4, 4, 4]


def test_a_ratio_is_for_mixed_batches_only() -> None:
    with pytest.raises(ValidationError, match=r"use init-only does not read ratio .only mixed"):
        ExampleBuffer(use="init-only", ratio=0.5)


def test_mixing_adds_old_examples_behind_the_batch() -> None:
    part = ExampleBuffer(per_task=16, ratio=0.5)
    batch = toy_task(1).train[:8]
    assert part.mix(context(0), batch) is batch  # nothing is kept yet
    part.remember(context(0), toy_task(0).train)
    first, second = part.mix(context(1), batch), part.mix(context(1), batch)
    assert list(first[:8]) == list(batch)
    assert [e.task for e in first[8:]] == ["task0"] * 4
    assert set(first[8:]) <= set(part.buffer()["task0"])
    assert list(first[8:]) != list(second[8:])


def test_init_only_does_not_mix() -> None:
    part = ExampleBuffer(use="init-only", per_task=4)
    part.remember(context(0), toy_task(0).train)
    batch = toy_task(1).train[:8]
    assert part.mix(context(1), batch) is batch


def test_examples_survive_as_bytes() -> None:
    odd = [Example('naïve "quoted"\n\0 \U0001f600', "étiquette", "t"), Example("", "", "")]
    data = encoded(odd)
    assert data.dtype == torch.uint8
    assert decoded(data) == odd
    assert decoded(encoded([])) == []


def test_state_restores_the_buffer_and_the_next_draw() -> None:
    part = ExampleBuffer(in_all=10, choose="reservoir")
    part.remember(context(0), toy_task(0).train)
    batch = toy_task(1).train[:4]
    part.mix(context(1), batch)
    copy = ExampleBuffer(in_all=10, choose="reservoir")
    copy.load(part.state())
    assert copy.buffer() == part.buffer()
    assert copy.mix(context(1), batch) == part.mix(context(1), batch)
    for each in (part, copy):
        each.remember(context(1), toy_task(1).train)
    assert copy.buffer() == part.buffer()


def test_a_foreign_buffer_is_refused() -> None:
    part = ExampleBuffer()
    part.remember(context(3), toy_task(3).train)
    with pytest.raises(RunMismatch, match="examples of 'task3'"):
        part.before_task(context(2))
    own = ExampleBuffer()
    own.remember(context(0), toy_task(0).train)
    own.before_task(context(1))


def test_one_budget_only() -> None:
    with pytest.raises(ValidationError, match="per_task or in_all"):
        ExampleBuffer(per_task=3, in_all=4)


def test_a_free_text_task_is_one_class_and_does_not_crowd_out_the_others() -> None:
    part = ExampleBuffer(in_all=12)
    part.remember(context(0), toy_task(0).train)  # two labels
    for index in (1, 2):
        ctx = context(index)
        ctx.stage = Stage("text", (dataclasses.replace(toy_task(index), labels={}),))
        part.remember(ctx, [dataclasses.replace(e, label=e.text) for e in toy_task(index).train])
        copy = ExampleBuffer(in_all=12)
        copy.load(part.state())
        part = copy
    assert {task: len(kept) for task, kept in part.buffer().items()} == {"task0": 6, "task1": 3, "task2": 3}
