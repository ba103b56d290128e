"""A merge whose numbers overflow says so, by module, and changes nothing that is there."""

import pytest
import torch
from safetensors.torch import load_file

from perdure.adapters.folder import Adapter
from perdure.commands.export import export
from perdure.errors import AdapterError, ConfigError
from perdure.merging.folders import merge_folders
from perdure.merging.rules import RULES, rule_named
from perdure.merging.state import merge_into
from tests.adapter_cases import hand_folder
from tests.merging.test_base import model_folder

INF = float("inf")
ONE_BY_ONE = [name for name, rule in RULES.items() if rule.incremental]


def even(folder, value, rank=1):
    """An adapter of module `m` [3, 4] whose update is `value` everywhere."""
    tensors = {
        "base_model.model.m.lora_A.weight": torch.ones(rank, 4),
        "base_model.model.m.lora_B.weight": torch.full((3, rank), value / rank),
    }
    return hand_folder(folder, tensors, r=rank, lora_alpha=rank)


def content(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("form", ["adapter", "model"])
@pytest.mark.parametrize(
    ("rule", "settings"), [("sum", {}), ("arithmetic", {"scale": 1e300}), ("ties", {"scale": 1e30})]
)
def test_a_merge_that_overflows_leaves_the_old_output(tmp_path, form, rule, settings):
    base = model_folder(tmp_path / "base", {"m.weight": torch.zeros(3, 4)})
    places = [even(tmp_path / "a", 2e38), even(tmp_path / "b", 2e38)]
    to = {"base": base} if form == "model" else {"rank": 1}
    merge_folders(places[:1], tmp_path / "out", rule_named("sum"), **to)
    before = content(tmp_path / "out")
    for overwrite, out in ((True, "out"), (False, "new")):
        with pytest.raises(AdapterError, match=r"'m(\.weight)?'.*NaN or Inf"):
            merge_folders(places, tmp_path / out, rule_named(rule, settings), overwrite=overwrite, **to)
    assert content(tmp_path / "out") == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b", "base", "out"]


@pytest.mark.parametrize(
    ("dtype", "fits", "too_large"),
    [(torch.float16, 65519.0, 65520.0), (torch.bfloat16, 3.38e38, 3.4e38)],  # half of the last step above the largest
)
def test_a_dtype_that_is_too_narrow_is_named(tmp_path, dtype, fits, too_large):
    base = model_folder(tmp_path / "base", {"m.weight": torch.zeros(3, 4)})
    for form in ({"base": base}, {}):
        fine, bad = (even(tmp_path / f"{name}{bool(form)}", value) for name, value in (("a", fits), ("b", too_large)))
        merge_folders([fine], tmp_path / f"fine{bool(form)}", rule_named("sum"), dtype=dtype, **form)
        if not form:  # its factors share the magnitude evenly: they fit although their product would not
            continue
        with pytest.raises(AdapterError, match=rf"'m\.weight' overflows {str(dtype).removeprefix('torch.')}"):
            merge_folders([bad], tmp_path / "bad", rule_named("sum"), dtype=dtype, **form)
        assert not (tmp_path / "bad").exists()


def test_weights_of_the_base_that_do_not_fit_are_named_and_its_own_inf_stays(tmp_path):
    place = even(tmp_path / "a", 1.0)
    large = model_folder(tmp_path / "large", {"m.weight": torch.zeros(3, 4), "other": torch.full((2, 2), 1e5)})
    with pytest.raises(AdapterError, match=r"'other' overflows float16.*bf16 or fp32"):
        merge_folders([place], tmp_path / "out", rule_named("sum"), base=large, dtype=torch.float16)
    masked = model_folder(tmp_path / "masked", {"m.weight": torch.zeros(3, 4), "mask": torch.tensor([[0.0, -INF]])})
    merge_folders([place], tmp_path / "out", rule_named("sum"), base=masked, dtype=torch.float16)
    assert load_file(tmp_path / "out" / "model.safetensors")["mask"].tolist() == [[0, -INF]]


def test_a_base_whose_own_weight_is_not_finite_is_not_merged_into(tmp_path):
    weight = torch.zeros(3, 4)
    weight[2, 3] = float("nan")
    base = model_folder(tmp_path / "base", {"m.weight": weight})
    with pytest.raises(AdapterError, match=r"'m\.weight' would be written with NaN or Inf.*the base's own weights"):
        merge_folders([even(tmp_path / "a", 1.0)], tmp_path / "out", rule_named("sum"), base=base)


@pytest.mark.parametrize(
    "name", [name for name in ONE_BY_ONE if name in ("sum", "average", "arithmetic", "ties", "dare")]
)
@pytest.mark.parametrize("rank", [1, 3])  # kept as factors, and dense
def test_a_state_is_never_poisoned(tmp_path, name, rank):
    state = tmp_path / "state"
    merge_into(
        state, even(tmp_path / "a", 2e38, rank), rule_named(name, {"density": 1} if name in ("ties", "dare") else {})
    )
    before = content(state)
    with pytest.raises(AdapterError, match=r"'m(/\w+)?'.*(NaN or Inf|overflows)"):
        merge_into(state, even(tmp_path / "b", 3e38, rank))
    assert content(state) == before
    assert merge_into(state, even(tmp_path / "c", 1e30, rank)).about.count == 2


@pytest.mark.parametrize("name", ONE_BY_ONE)
def test_no_rule_begins_with_an_adapter_that_overflows(tmp_path, name):
    """Finite factors, an infinite update: TIES never ended on it."""
    tensors = {
        "base_model.model.m.lora_A.weight": torch.full((1, 4), 1e30),
        "base_model.model.m.lora_B.weight": torch.tensor([[1e30], [-1e30], [0.0]]),
    }
    place = hand_folder(tmp_path / "a", tensors, r=1, lora_alpha=1)
    for merge in (
        lambda: merge_into(tmp_path / "state", place, rule_named(name)),
        lambda: merge_folders([place, place], tmp_path / "out", rule_named(name), rank=1),
    ):
        with pytest.raises(AdapterError, match="the update of 'm' overflows"):
            merge()
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


@pytest.mark.parametrize("weight", [float("nan"), INF])
def test_a_weight_is_finite(tmp_path, weight):
    with pytest.raises(ConfigError, match="is a finite number, not"):
        merge_into(tmp_path / "state", even(tmp_path / "a", 1.0), rule_named("average"), weight=weight)
    assert not (tmp_path / "state").exists()


def test_an_export_of_a_state_is_looked_at_too(tmp_path):
    base = model_folder(tmp_path / "base", {"m.weight": torch.zeros(3, 4)})
    merge_into(tmp_path / "state", even(tmp_path / "a", 1e5), rule_named("sum"))
    with pytest.raises(AdapterError, match=r"'m\.weight' overflows float16"):
        export(tmp_path / "state", tmp_path / "out", "model", base=base, dtype=torch.float16)
    export(tmp_path / "state", tmp_path / "out", "model", base=base, dtype=torch.bfloat16)
    assert load_file(tmp_path / "out" / "model.safetensors")["m.weight"].isfinite().all()


def test_an_adapter_written_is_an_adapter_read(tmp_path):
    """The largest update there is, 3e38, survives as an adapter: nothing is refused that is finite."""
    merge_folders([even(tmp_path / "a", 3e38)], tmp_path / "out", rule_named("sum"))
    assert float(Adapter(tmp_path / "out")["m"].B.abs().max()) < 1e21
