"""What goes wrong with PEFT alone, and does not here (peft 0.21; docs/merging.md): each test shows both."""

import json
from contextlib import contextmanager

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from torch import nn

from perdure.adapters.folder import Adapter
from perdure.config.lora_settings import LoraSettings
from perdure.errors import AdapterError, ConfigError, StoreError
from perdure.merging.folders import merge_folders
from perdure.merging.linear import sum_updates, task_arithmetic_updates
from perdure.merging.rules import rule_named
from perdure.ops.lowrank import LowRank, dense
from perdure.training.lora import AdaptedModel
from tests.adapter_cases import random_folder
from tests.merging.whole_updates import dare_updates, ties_updates

SHAPES = {"first": (20, 12), "second": (9, 20)}


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


def test_an_existing_name_is_kept_without_a_word(model, tmp_path):
    before = delta_of(model, "two")
    assert model.add_weighted_adapter(["one"], [1.0], "two", combination_type="cat") is None
    assert distance(delta_of(model, "two"), before) == 0, "no error, and nothing merged"
    places = [random_folder(tmp_path / name, seed) for seed, name in enumerate(("one", "two"))]
    with pytest.raises(StoreError, match="is or contains the input"):
        merge_folders(places, tmp_path / "two", rule_named("sum"))


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


def test_dare_equals_peft_on_the_update_with_the_same_mask(model, updates, monkeypatch):
    """Its correct path (`_svd`, on B A) draws with torch.bernoulli; given our masks it gives our merge."""
    generator = torch.Generator().manual_seed(3)
    shapes = {name: delta.shape for name, delta in updates[0].items()}
    drawn = {name: [torch.rand(shape, generator=generator) < 0.6 for _ in updates] for name, shape in shapes.items()}
    queue = [mask for masks in drawn.values() for mask in masks]
    monkeypatch.setattr(torch, "bernoulli", lambda probabilities: queue.pop(0).to(probabilities.dtype))
    settings = {"svd_rank": 20, "density": 0.6, "svd_full_matrices": False}
    model.add_weighted_adapter(["one", "two"], [1.0, 1.0], "dare_right", combination_type="dare_linear_svd", **settings)
    assert queue == [], "all masks were used"
    masks = [lambda m, row, shape, i=i: drawn[m][i][row : row + shape[0]] for i in range(2)]
    assert distance(dare_updates(updates, 0.6, masks=masks), delta_of(model, "dare_right")) < 1e-5


def test_dare_without_its_rescale_shrinks_what_is_merged(updates):
    """Older versions of PEFT pruned and threw the rescaled tensor away; the expectation is then density times the update."""
    seeds = range(300)
    for rescale, expected in ((True, 1.0), (False, 0.5)):
        mean = sum(dare_updates(updates[:1], 0.5, seed, rescale=rescale)["first"] for seed in seeds) / len(seeds)
        kept = float((mean * dense(updates[0]["first"])).sum() / dense(updates[0]["first"]).square().sum())
        assert kept == pytest.approx(expected, abs=0.02)


def test_several_active_adapters_all_train(model):
    model.set_adapter("one")
    model.base_model.set_adapter(["one", "two"])
    trained = {name.split(".")[-2] for name, p in model.named_parameters() if p.requires_grad}
    assert trained == {"one", "two"}, "PEFT's way of standing on an earlier adapter trains it too"
    ours = AdaptedModel(TwoLayers(), LoraSettings(rank=4, targets=("first", "second")), ())
    ours.fold({name: LowRank(torch.ones(4, i), torch.ones(o, 4)) for name, (o, i) in SHAPES.items()})
    ours.enable(True)
    carried = ours.modules["first"].base
    assert not carried.requires_grad, "what was learnt before is inside the frozen base"
    assert [tuple(p.shape) for p in ours.parameters()] == [(4, 12), (20, 4), (4, 20), (9, 4)]


def saved_with_patterns(folder):
    """Two layers of different rank and alpha, saved by PEFT; the folder and the model."""
    model = peft_model(rank_pattern={"second": 2}, alpha_pattern={"second": 6})
    model.save_pretrained(str(folder), selected_adapters=["one"])
    return folder / "one", model


def test_a_server_that_drops_patterns_is_right_about_ours(tmp_path):
    """vLLM wants one rank and has been seen to drop alpha_pattern: what it computes is lora_alpha / r * B A for every module."""
    folder, model = saved_with_patterns(tmp_path)
    merge_folders([folder], tmp_path / "ours", rule_named("sum"))

    def served(place):
        config = json.loads((place / "adapter_config.json").read_text())
        stored = load_file(place / "adapter_model.safetensors")
        factors = {n: [stored[f"base_model.model.{n}.lora_{x}.weight"] for x in "AB"] for n in SHAPES}
        return {n: LowRank(A, B * (config["lora_alpha"] / config["r"])) for n, (A, B) in factors.items()}

    true = delta_of(model, "one")
    assert distance(served(folder), true) > 0.2, "PEFT's own file: the second layer at a third of the wrong scale"
    assert distance(served(tmp_path / "ours"), true) < 1e-6
    assert {delta.rank for delta in served(tmp_path / "ours").values()} == {4}, "one rank for all"


@pytest.mark.parametrize("init", ["pissa", "olora"])
def test_an_init_that_moved_the_base_makes_the_factors_mean_nothing_on_the_original_one(tmp_path, init):
    """PEFT saves B A although training began at B0 A0 taken out of the base. Ours refuses it, and takes PEFT's conversion."""
    torch.manual_seed(0)
    config = LoraConfig(r=4, lora_alpha=4, target_modules=["first", "second"], init_lora_weights=init)
    tuned = get_peft_model(TwoLayers(), config)
    start = {name: delta.clone() for name, delta in delta_of(tuned, "default").items()}
    assert all(delta.norm() > 0.5 for delta in start.values()), "B A of an adapter that has learnt nothing yet"
    tuned.save_pretrained(str(tmp_path / "as_is"))
    with pytest.raises(AdapterError, match="path_initial_model_for_weight_conversion"):
        Adapter(tmp_path / "as_is")
    with settings_changed(tuned, init_lora_weights=True):
        tuned.save_pretrained(str(tmp_path / "start"))
    tuned.base_model.model.first.lora_B["default"].weight.data += 0.1
    learnt = {name: delta - start[name] for name, delta in delta_of(tuned, "default").items()}
    with settings_changed(tuned, init_lora_weights=True):
        tuned.save_pretrained(
            str(tmp_path / "converted"), path_initial_model_for_weight_conversion=str(tmp_path / "start")
        )
    assert distance(Adapter(tmp_path / "converted"), learnt) < 1e-5
    # what perdure exports of a run with such an init is right as it is: tests/commands/test_export.py


@contextmanager
def settings_changed(model, **changed):
    config = model.peft_config["default"]
    before = {key: getattr(config, key) for key in changed}
    for key, value in changed.items():
        setattr(config, key, value)
    yield
    for key, value in before.items():
        setattr(config, key, value)
