"""Mining: cosines against exact gradients within their standard error; searches against brute force and by hand."""

import itertools
from xml.etree import ElementTree

import pytest
import torch
from torch import Tensor

from perdure.config.lora_settings import LoraSettings
from perdure.errors import ConfigError, DataError
from perdure.studies.mining import Conflicts, Mined, find_sequence, gradient_conflicts, mine
from perdure.tasks.task import Example, Task
from perdure.training.lora import AdaptedModel
from tests.methods.two_layers import Toy, toy_task


def setup(*tasks: Task) -> tuple[AdaptedModel, Toy]:
    toy = Toy()
    toy.prepare(tasks)
    return AdaptedModel(toy.model, LoraSettings(rank=2), toy.default_targets), toy


def opposite(task: Task) -> Task:
    """The same inputs with the other label."""
    first, second = task.labels
    rows = [Example(e.text, second if e.label == first else first) for e in task.train]
    return Task(f"not-{task.name}", rows, test=rows[:1], labels=task.labels)


def exact_cosine(one: Task, other: Task) -> float:
    """Over whole tasks, from autograd."""
    grads = []
    for task in (one, other):
        toy = Toy()
        toy.prepare((task,))
        toy.forward(toy.collate(task.train)).loss.backward()
        grads.append(torch.cat([layer.weight.grad.reshape(-1) for layer in (toy.model.first, toy.model.second)]))  # type: ignore[union-attr, operator]
    return float(torch.nn.functional.cosine_similarity(grads[0], grads[1], dim=0))


def test_cosines_are_those_of_the_full_gradients() -> None:
    """Over whole tasks (one batch of 48), within 4 standard errors; a task and its opposite conflict."""
    tasks = [toy_task(0), toy_task(1), opposite(toy_task(0))]
    found = gradient_conflicts(tasks, *setup(*tasks), batches=1, batch_size=48, buckets=20_000)
    assert found.tasks == ("task0", "task1", "not-task0")
    for i, j in itertools.combinations(range(3), 2):
        exact = exact_cosine(tasks[i], tasks[j])
        assert float(found.cosines[i, j]) == pytest.approx(exact, abs=4 * 2**0.5 * found.standard_error)
    assert float(found.cosines[0, 2]) < -0.5
    assert torch.equal(found.cosines, found.cosines.mT)
    assert found.cosines.diagonal().tolist() == [1.0] * 3


def test_same_seed_same_numbers_and_the_model_is_left_alone() -> None:
    tasks = (toy_task(0), toy_task(1))
    model, toy = setup(*tasks)
    before = {name: tensor.clone() for name, tensor in toy.model.state_dict().items()}
    first, second = gradient_conflicts(tasks, model, toy), gradient_conflicts(tasks, model, toy)
    assert torch.equal(first.cosines, second.cosines)
    assert all(torch.equal(before[name], tensor) for name, tensor in toy.model.state_dict().items())
    assert not any(p.requires_grad for p in toy.model.parameters())


def by_hand() -> Conflicts:
    """Four tasks; b, c, d conflict with each other (-.5, -.4, -.3), a agrees with everyone (.9, .8, .7)."""
    cosines = torch.eye(4)
    for (i, j), value in {(0, 1): 0.9, (0, 2): 0.8, (0, 3): 0.7, (1, 2): -0.5, (1, 3): -0.4, (2, 3): -0.3}.items():
        cosines[i, j] = cosines[j, i] = value
    return Conflicts(("a", "b", "c", "d"), cosines, 0.0)


@pytest.mark.parametrize("limit", [10, 0])
def test_sequences_by_hand(limit: int) -> None:
    most = find_sequence(by_hand(), 3, limit=limit)
    assert most.tasks == ("b", "c", "d")
    assert most.mean_cosine == pytest.approx(-0.4)
    assert most.exhaustive == (limit > 0)
    least = find_sequence(by_hand(), 2, most=False, limit=limit)
    assert least.tasks == ("a", "b")
    assert least.mean_cosine == pytest.approx(0.9)
    assert find_sequence(by_hand(), 4, limit=limit).mean_cosine == pytest.approx(0.2)


def random_conflicts(seed: int, count: int = 12) -> Conflicts:
    vectors = torch.randn(count, 5, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    vectors /= vectors.norm(dim=1, keepdim=True)
    return Conflicts(tuple(map(str, range(count))), vectors @ vectors.mT, 0.0)


def brute(cosines: Tensor, length: int) -> float:
    return min(
        sum(float(cosines[i, j]) for i, j in itertools.combinations(subset, 2)) / (length * (length - 1) / 2)
        for subset in itertools.combinations(range(len(cosines)), length)
    )


@pytest.mark.parametrize("seed", range(3))
def test_exhaustive_is_the_best_and_greedy_close_to_it(seed: int) -> None:
    conflicts = random_conflicts(seed)
    best = brute(conflicts.cosines, 4)
    assert find_sequence(conflicts, 4).mean_cosine == pytest.approx(best)
    greedy = find_sequence(conflicts, 4, limit=0)
    assert best <= greedy.mean_cosine + 1e-12
    assert greedy.mean_cosine <= best + 0.05
    assert len(set(greedy.tasks)) == 4


def test_exchange_cannot_be_improved_by_one_swap() -> None:
    conflicts = random_conflicts(7, count=30)
    found = find_sequence(conflicts, 6, limit=0)
    inside = [int(name) for name in found.tasks]
    for position, other in itertools.product(range(6), set(range(30)) - set(inside)):
        swapped = [*inside[:position], *inside[position + 1 :], other]
        mean = sum(float(conflicts.cosines[i, j]) for i, j in itertools.combinations(swapped, 2)) / 15
        assert mean >= found.mean_cosine - 1e-9


def test_plain_values() -> None:
    assert find_sequence(by_hand(), 3).as_dict()["search"] == "exhaustive"
    assert find_sequence(by_hand(), 3, limit=0).as_dict()["search"] == "greedy with exchange"
    assert by_hand().as_dict()["tasks"] == ["a", "b", "c", "d"]


def test_bad_input_is_named() -> None:
    with pytest.raises(ConfigError, match="sequence of 5 tasks cannot be chosen from 4"):
        find_sequence(by_hand(), 5)
    with pytest.raises(ConfigError, match="at least two"):
        gradient_conflicts([toy_task(0)], *setup(toy_task(0)))
    with pytest.raises(ConfigError, match="at least two"):
        mine([toy_task(0)], *setup(toy_task(0)), length=2)
    with pytest.raises(ConfigError, match="at least two"):
        find_sequence(Conflicts(("a",), torch.ones(1, 1), 0.0), 2)
    tasks = (toy_task(0), toy_task(1))
    with pytest.raises(DataError, match="Task 'task0' has 48 examples, fewer than one batch of 49"):
        gradient_conflicts(tasks, *setup(*tasks), batch_size=49)
    model, toy = setup(*tasks)
    model.modules["second"].base.data.zero_()
    model.modules["first"].base.data.zero_()
    model.modules["second"].pretrained_OI.zero_()  # type: ignore[union-attr]
    model.modules["first"].pretrained_OI.zero_()  # type: ignore[union-attr]
    toy.model.first.base_layer.bias.data.zero_()  # type: ignore[union-attr, operator]
    with pytest.raises(ConfigError, match="gradient of task 'task0' is zero"):
        gradient_conflicts(tasks, model, toy)


def test_table_and_picture_say_the_same() -> None:
    conflicts = by_hand()
    mined = Mined(conflicts, find_sequence(conflicts, 3), find_sequence(conflicts, 2, most=False))
    text = mined.as_markdown()
    assert "| b | 0.90 | 1.00 | -0.50 | -0.40 |" in text
    assert "Most conflicting: b, c, d (mean cosine -0.400, exhaustive)" in text
    root = ElementTree.fromstring(mined.as_svg())
    words = [element.text for element in root.iter("{http://www.w3.org/2000/svg}text")]
    assert words.count("-0.50") == 2
    assert words.count("b") == 2


def test_mine_end_to_end() -> None:
    tasks = [toy_task(i) for i in range(4)]
    mined = mine(tasks, *setup(*tasks), length=3, batches=2, batch_size=8, buckets=5000)
    assert mined.most.mean_cosine <= mined.least.mean_cosine
    assert len(mined.as_dict()["most"]["tasks"]) == 3
    with pytest.raises(ConfigError, match="ask for 2 to 4"):
        mine(tasks, *setup(*tasks), length=5)
