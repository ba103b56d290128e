"""The closed-form head: distances by hand, labels it does not know, versions of a task, memory to the bit, no order of tasks."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from perdure.methods.discriminant import Discriminant
from perdure.tasks.task import Example, Stage, Task

SQUARE = [(1.0, 1.0), (1.0, -1.0), (-1.0, 1.0), (-1.0, -1.0)]


def task(name: str, corners: dict[str, tuple[float, float]], **settings: Any) -> Task:
    """Texts that are points, four around each label's corner."""
    rows = [Example(f"{x + a},{y + b}", label) for label, (a, b) in corners.items() for x, y in SQUARE]
    return Task(name, rows, test=rows, labels={label: label for label in corners}, **settings)


def odds(part: Discriminant, x_ND: torch.Tensor, labels: list[tuple[str, str]]) -> torch.Tensor:
    """What the head adds to an adapter that gives every label the same probability 1; 0 where it has no say."""
    even = torch.ones(len(x_ND), len(labels))
    return part.combined(x_ND, even, labels) if part.has_say(labels) else even.log()


def learn(part: Discriminant, *tasks: Task) -> Discriminant:
    for each in tasks:
        ctx: Any = SimpleNamespace(stage=Stage(each.name, (each,)), vectors=points)
        part.after_task(ctx, {})
    return part


def fitting(each: Task, chances: list[float], notes: dict[str, float]) -> Any:
    """A context whose model gives every text the same chances."""
    return SimpleNamespace(
        stage=Stage(each.name, (each,)),
        vectors=points,
        chances=lambda examples, _: torch.tensor([chances] * len(examples)),
        generator=lambda _: torch.Generator().manual_seed(0),
        note=notes.__setitem__,
    )


def test_the_powers_are_fitted_to_what_the_adapter_leaves_open():
    """Far corners are told apart by the densities: an adapter that gives all texts the same chances gets no say where they favour
    a label that is wrong half the time. Densities without information get none."""
    apart = task("t", {"near": (0, 0), "far": (3, 0)})
    for chances in ([0.5, 0.5], [0.9, 0.1]):
        part, notes = Discriminant(), {}
        part.after_task(fitting(apart, chances, notes), {})
        assert notes["head/power of densities t"] > 0.3
        assert notes["head/power of adapter t"] < 0.05
    part, notes = Discriminant(), {}
    part.after_task(fitting(task("t", {"one": (0, 0), "same": (0, 0)}), [0.5, 0.5], notes), {})
    assert notes["head/power of densities t"] == 0
    assert odds(part, torch.ones(1, 2), [("t", "one"), ("t", "same")]).tolist() == [[0, 0]]


def test_an_adapter_that_knows_its_examples_by_heart_is_left_alone():
    apart = task("t", {"near": (0, 0), "far": (3, 0)})
    ctx, notes = fitting(apart, [], {}), {}
    ctx.note = notes.__setitem__
    right = {e.text: [0.999, 0.001] if e.label == "near" else [0.001, 0.999] for e in apart.train}
    ctx.chances = lambda examples, _: torch.tensor([right[e.text] for e in examples])
    Discriminant().after_task(ctx, {})
    assert notes["head/power of adapter t"] == 1


def test_labels_that_compete_are_compared_by_one_weight():
    part = learn(Discriminant(weight=1), NEAR_FAR, task("u", {"a": (0, 5)}))
    part._powers |= {"t": (1.0, 1.0), "u": (1.0, 0.5)}
    found = odds(part, torch.tensor([[0.0, 1.0]]), [("t", "near"), ("u", "a")])
    assert found.tolist() == [[pytest.approx(-0.75 / 2), pytest.approx(-0.75 / 2 * 16)]]


def test_written_answers_and_single_classes_are_not_weighed():
    for each, chances in ((NEAR_FAR, []), (task("one", {"only": (1, 1)}), [1.0])):
        part, notes = Discriminant(), {}
        part.after_task(fitting(each, chances, notes), {})
        assert [*notes.values()] == [1, 0]


def points(examples: list[Example]) -> torch.Tensor:
    return torch.tensor([[float(number) for number in e.text.split(",")] for e in examples])


NEAR_FAR = task("t", {"near": (0, 0), "far": (10, 0)})


def test_distances_by_hand():
    """The squares' covariance is the identity: squared distances 5 and 85, times -w/2."""
    part = learn(Discriminant(weight=0.5), NEAR_FAR)
    found = odds(part, torch.tensor([[1.0, 2.0]]), [("t", "far"), ("t", "near")])
    assert found.tolist() == [[pytest.approx(-21.25), pytest.approx(-1.25)]]
    assert odds(learn(Discriminant(weight=0), NEAR_FAR), torch.ones(1, 2), [("t", "far")]).tolist() == [[0]]


def test_what_it_has_not_seen():
    """A label without examples is as likely as the least likely one with some; a task without any is left to the adapter."""
    part = learn(Discriminant(weight=2.0), NEAR_FAR)
    x_ND = torch.tensor([[0.0, 0.0]])
    near, new, far = odds(part, x_ND, [("t", "near"), ("t", "new"), ("t", "far")])[0].tolist()
    assert (near, far) == (pytest.approx(0), pytest.approx(-100))
    assert new == far
    assert odds(part, x_ND, [("other", "near"), ("other", "far")]).tolist() == [[0, 0]]
    assert odds(Discriminant(), x_ND, [("t", "near")]).tolist() == [[0]]


def test_versions_of_a_task_share_its_classes():
    """The mean of label 'near' over both versions is (1, 0)."""
    moved = task("t@2", {"near": (2, 0), "far": (10, 0)})
    part = learn(Discriminant(weight=2.0), NEAR_FAR, moved)
    assert odds(part, torch.tensor([[1.0, 0.0]]), [("t@2", "near"), ("t", "near")]).tolist() == [
        [pytest.approx(0, abs=1e-9)] * 2
    ]


def test_the_order_of_tasks_does_not_matter():
    other = task("u", {"a": (3, 5), "b": (-4, 1)})
    asked = [("t", "near"), ("t", "far"), ("u", "a"), ("u", "b")]
    x_ND = torch.randn(20, 2, generator=torch.Generator().manual_seed(0))
    one = odds(learn(Discriminant(weight=1), NEAR_FAR, other), x_ND, asked)
    two = odds(learn(Discriminant(weight=1), other, NEAR_FAR), x_ND, asked)
    torch.testing.assert_close(one, two, rtol=1e-12, atol=1e-12)


def test_memory_is_restored_to_the_bit():
    part = learn(Discriminant(weight=0.1), NEAR_FAR, task("ü", {"é ": (3, 5)}))
    again = Discriminant(weight=0.1)
    again.load(part.state())
    x_ND = torch.randn(5, 2)
    asked = [("t", "near"), ("ü", "é ")]
    assert torch.equal(odds(again, x_ND, asked), odds(part, x_ND, asked))
    assert all(torch.equal(tensor, again.state()[name]) for name, tensor in part.state().items())
    again.load({})
    assert again.state() == {}


def test_free_text_and_own_choices_are_left_to_the_adapter():
    text = [Example("1,1", "some text")]
    rows = [Example("1,1", "a"), Example("2,2", "b")]
    free = Task("free", text, test=text)
    own = Task("own", rows, test=rows, labels={"a": "", "b": ""}, choices={e.text: ("x", "y") for e in rows})
    assert learn(Discriminant(), free, own).state() == {}
