"""`--like peft` gives what PEFT's add_weighted_adapter gives, from saved adapters of different scaling to the merged folder."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

import perdure
from perdure.adapters.folder import Adapter
from perdure.errors import AdapterError, ConfigError, UnknownName
from perdure.merging.dare import drawn
from perdure.merging.like_peft import PEFT
from perdure.merging.result import MergeReport
from perdure.ops.lowrank import dense

WEIGHTS = [(1.0, 1.0), (0.5, 0.5), (0.7, 0.3), (2.0, 1.0), (1.0, -1.0)]
FULL = 8


class TwoLayers(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(FULL, FULL), nn.Linear(FULL, FULL)


def peft_model(folder, ranks=(4, 4)):
    """Adapters "one" and "two" with random factors and different scalings, saved in folders of these names."""
    torch.manual_seed(0)
    configs = [
        LoraConfig(r=rank, lora_alpha=alpha, target_modules=["first", "second"])
        for rank, alpha in zip(ranks, (8, 3), strict=True)
    ]
    model = get_peft_model(TwoLayers(), configs[0], adapter_name="one")
    model.add_adapter("two", configs[1])
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data.normal_()
    model.save_pretrained(str(folder))
    return model


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("peft")
    return folder, peft_model(folder)


def options_of(kind):
    options = {} if kind in ("linear", "svd", "cat") else {"density": 0.4}
    return options | ({"svd_rank": FULL} if "svd" in kind else {})


def with_our_draws(monkeypatch, kind):
    """PEFT's torch.bernoulli, made to draw what perdure draws for seed 0."""
    names = [
        f"{module}{part}"
        for module in ("first", "second")
        for part in ([""] if "svd" in kind else [".lora_A", ".lora_B"])
    ]
    queue = [(name, adapter) for name in names for adapter in range(2)]

    def bernoulli(shares):
        name, adapter = queue.pop(0)
        draws = torch.from_numpy(drawn(0, adapter)(name, 0, tuple(shares.shape)).astype("float64"))
        return (draws < shares.double() * 2**32).to(shares.dtype)

    monkeypatch.setattr(torch, "bernoulli", bernoulli)
    return queue


def theirs(model, name):
    return {
        layer: getattr(model.base_model.model, layer).get_delta_weight(name).detach() for layer in ("first", "second")
    }


def assert_close(folder, expected, tolerance=1e-6):
    ours = Adapter(folder)
    for module, delta in expected.items():
        atol = tolerance * float(delta.abs().max())
        torch.testing.assert_close(dense(ours[module]), delta, rtol=tolerance, atol=atol)


@pytest.mark.parametrize("weights", WEIGHTS, ids=str)
@pytest.mark.parametrize("kind", PEFT)
def test_equals_add_weighted_adapter(kind, weights, saved, tmp_path, monkeypatch):
    folder, model = saved
    queue = with_our_draws(monkeypatch, kind)
    options, name = options_of(kind), f"{kind} {weights}".replace(".", "_")
    model.add_weighted_adapter(["one", "two"], list(weights), name, combination_type=kind, **options)
    assert ("dare" in kind) == (queue == []), "all draws were used"
    places = [folder / "one", folder / "two"]
    perdure.merge(places, tmp_path / "out", kind, {"weights": weights, **options}, like="peft")
    # PEFT decomposes in fp32, which is its own rounding
    assert_close(tmp_path / "out", theirs(model, name), 3e-6 if "svd" in kind else 1e-6)


@pytest.mark.parametrize("kind", ["ties", "ties_svd"])
def test_the_majority_by_number(kind, saved, tmp_path):
    folder, model = saved
    options = {**options_of(kind), "majority_sign_method": "frequency"}
    model.add_weighted_adapter(
        ["one", "two", "one"], [1.0, 0.5, 2.0], f"{kind} frequency", combination_type=kind, **options
    )
    places = [folder / "one", folder / "two", folder / "one"]
    perdure.merge(places, tmp_path / "out", kind, {"weights": [1, 0.5, 2], **options}, like="peft")
    assert_close(tmp_path / "out", theirs(model, f"{kind} frequency"), 3e-6)


def test_the_rank_is_peft_s_default(tmp_path):
    model = peft_model(tmp_path / "in", ranks=(2, 3))
    model.add_weighted_adapter(["one", "two"], [1.0, 0.5], "svd", combination_type="svd")
    places = [tmp_path / "in" / "one", tmp_path / "in" / "two"]

    def rank(out, kind, settings=None, **options):
        report = perdure.merge(places, tmp_path / out, kind, settings, like="peft", **options)
        assert isinstance(report, MergeReport)
        return report.rank

    assert rank("out", "svd", {"weights": [1, 0.5]}) == model.peft_config["svd"].to_dict()["r"] == 3
    assert_close(tmp_path / "out", theirs(model, "svd"), 1e-5)
    assert rank("two", "svd", rank=2) == 2, "--rank is what is asked for"
    assert rank("cat", "cat") == 5


def test_refuses_what_peft_has_and_perdure_has_not(saved, tmp_path):
    folder, _ = saved
    places, out = [folder / "one", folder / "two"], tmp_path / "out"
    for rule, settings, message in (
        ("ties", {}, r"peft's ties\.density: is missing"),
        ("ties", {"density": 0}, "density"),
        ("linear", {"density": 0.5}, "Unknown setting of peft's linear: 'density'"),
        ("ties_svd", {"density": 0.5, "scope": "model"}, "Unknown setting of peft's ties_svd: 'scope'"),
        ("svd", {"svd_clamp": 0.9}, "peft's option svd_clamp clips the factors"),
        ("svd", {"weights": [1]}, "1 weights were given for 2 updates"),
    ):
        with pytest.raises(ConfigError, match=message):
            perdure.merge(places, out, rule, settings, like="peft")
    with pytest.raises(ConfigError, match="svd_rank writes an adapter of that rank"):
        perdure.merge(places, out, "svd", {"svd_rank": 3}, like="peft", rank=2)
    with pytest.raises(UnknownName, match="'max-magnitude' is perdure's own name: leave --like out"):
        perdure.merge(places, out, "max-magnitude", like="peft")
    with pytest.raises(UnknownName, match="Did you mean 'dare_ties'"):
        perdure.merge(places, out, "dare-ties", like="peft")
    with pytest.raises(UnknownName, match=r"Unknown tool for --like: 'pfet'\. Did you mean 'peft'"):
        perdure.merge(places, out, "ties", like="pfet")
    assert not out.exists()


def test_factors_of_different_rank_are_refused_as_in_peft(tmp_path):
    model = peft_model(tmp_path / "in", ranks=(2, 3))
    with pytest.raises(ValueError, match="same r value"):
        model.add_weighted_adapter(["one", "two"], [1.0, 1.0], "no", combination_type="linear")
    with pytest.raises(AdapterError, match="module 'first' they have ranks 2, 3"):
        perdure.merge([tmp_path / "in" / "one", tmp_path / "in" / "two"], tmp_path / "out", "linear", like="peft")
    assert not (tmp_path / "out").exists()
