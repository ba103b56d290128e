"""What PEFT's add_weighted_adapter gets wrong, and that our rules do not (peft 0.21; docs/merging.md)."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from perdure.errors import ConfigError
from perdure.merging.dare import dare_updates
from perdure.merging.linear import sum_updates, task_arithmetic_updates
from perdure.merging.ties import ties_updates
from perdure.ops.lowrank import LowRank, dense


class TwoLayers(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(12, 20), nn.Linear(20, 9)


def peft_model(**settings):
    """Adapters "one" and "two" with random factors on two layers."""
    torch.manual_seed(0)
    config = LoraConfig(r=4, lora_alpha=8, target_modules=["first", "second"], **settings)
    model = get_peft_model(TwoLayers(), config, adapter_name="one")
    model.add_adapter("two", config)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data.normal_()
    return model


def layers(model):
    return {name: getattr(model.base_model.model, name) for name in ("first", "second")}


def update_of(model, adapter):
    return {
        name: LowRank(
            layer.lora_A[adapter].weight.detach(), layer.lora_B[adapter].weight.detach() * layer.scaling[adapter]
        )
        for name, layer in layers(model).items()
    }


def delta_of(model, adapter):
    return {name: layer.get_delta_weight(adapter).detach() for name, layer in layers(model).items()}


def distance(left, right):
    """Relative Frobenius distance over all modules."""
    difference = sum((dense(left[name]) - dense(right[name])).square().sum() for name in right)
    return float((difference / sum(dense(delta).square().sum() for delta in right.values())).sqrt())


@pytest.fixture(scope="module")
def model():
    return peft_model()


@pytest.fixture(scope="module")
def updates(model):
    return [update_of(model, "one"), update_of(model, "two")]


@pytest.fixture(scope="module")
def true_sum(model):
    one, two = delta_of(model, "one"), delta_of(model, "two")
    return {name: one[name] + two[name] for name in one}


def test_linear_combines_factors_and_misses_the_sum(model, updates, true_sum):
    model.add_weighted_adapter(["one", "two"], [1.0, 1.0], "linear", combination_type="linear")
    assert distance(delta_of(model, "linear"), true_sum) > 0.7
    assert distance(sum_updates(updates), true_sum) < 1e-6


def test_weights_of_linear_equal_its_correct_path(model, updates):
    model.add_weighted_adapter(["one", "two"], [0.7, 0.2], "cat", combination_type="cat")
    assert distance(task_arithmetic_updates(updates, [0.7, 0.2]), delta_of(model, "cat")) < 1e-5


def test_ties_trims_and_votes_on_factors(model, updates):
    full_rank = {"svd_rank": 20, "density": 0.3, "svd_full_matrices": False}
    model.add_weighted_adapter(["one", "two"], [1.0, 1.0], "right", combination_type="ties_svd", **full_rank)
    model.add_weighted_adapter(["one", "two"], [1.0, 1.0], "wrong", combination_type="ties", density=0.3)
    right = delta_of(model, "right")
    assert distance(delta_of(model, "wrong"), right) > 0.7
    assert distance(ties_updates(updates, 0.3, "tensor"), right) < 1e-5


def test_magnitude_prune_prunes_factors(model, updates):
    full_rank = {"svd_rank": 20, "density": 0.3, "svd_full_matrices": False}
    names, ones = ["one", "two"], [1.0, 1.0]
    model.add_weighted_adapter(names, ones, "pruned_right", combination_type="magnitude_prune_svd", **full_rank)
    model.add_weighted_adapter(names, ones, "pruned_wrong", combination_type="magnitude_prune", density=0.3)
    right = delta_of(model, "pruned_right")
    assert distance(delta_of(model, "pruned_wrong"), right) > 0.7
    trimmed = [ties_updates([update], 0.3, "tensor") for update in updates]
    assert distance(sum_updates(trimmed), right) < 1e-5


def test_an_rslora_merge_comes_out_too_large():
    model = peft_model(use_rslora=True)
    updates = [update_of(model, "one"), update_of(model, "two")]
    one, two = delta_of(model, "one"), delta_of(model, "two")
    true_sum = {name: one[name] + two[name] for name in one}
    model.add_weighted_adapter(["one", "two"], [1.0, 1.0], "cat", combination_type="cat")
    too_large = delta_of(model, "cat")
    for name in true_sum:
        torch.testing.assert_close(too_large[name], true_sum[name] * 8**0.5, msg="sqrt of the new rank, 4 + 4")
    assert distance(sum_updates(updates), true_sum) < 1e-6


def test_an_existing_name_is_kept_without_a_word(model):
    before = delta_of(model, "two")
    assert model.add_weighted_adapter(["one"], [1.0], "two", combination_type="cat") is None
    assert distance(delta_of(model, "two"), before) == 0, "no error, and nothing merged; ours refuses: test_folders.py"


def test_dare_at_density_zero_is_not_a_number_there_and_refused_here(updates):
    model = peft_model()
    model.add_weighted_adapter(["one", "two"], [1.0, 1.0], "none", combination_type="dare_linear", density=0.0)
    assert all(delta.isnan().any() for delta in delta_of(model, "none").values())
    with pytest.raises(ConfigError, match="density"):
        dare_updates(updates, 0.0)


def test_dare_drops_entries_of_factors(model, updates):
    """Dropped on factors, the expectation of B A is right but almost no entry of the update is 0."""
    model.add_weighted_adapter(["one", "two"], [1.0, 1.0], "dare", combination_type="dare_linear", density=0.5)
    theirs, ours = delta_of(model, "dare")["first"], dare_updates(updates, 0.5)["first"]
    assert (theirs == 0).float().mean() < 0.1
    assert (ours == 0).float().mean().item() == pytest.approx(0.25, abs=0.12), "both dropped: .5 * .5"


def test_several_active_adapters_all_train(model):
    model.set_adapter("one")
    model.base_model.set_adapter(["one", "two"])
    trained = {name.split(".")[-2] for name, p in model.named_parameters() if p.requires_grad}
    assert trained == {"one", "two"}, "freeze the old ones before the optimiser is built (perdure.lora)"
