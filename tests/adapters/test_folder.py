"""Adapter folders: read as PEFT means them, written so that PEFT loads them, and refused with a reason otherwise."""

import json
import re
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

from perdure.adapters.folder import Adapter, adapter_names, open_adapter, write_adapter
from perdure.adapters.format import natural
from perdure.errors import AdapterError
from perdure.ops.decompose import compress
from perdure.ops.lowrank import LowRank, dense
from tests.adapter_cases import SmallModel, hand_folder, in_hub_cache, peft_folder

IDS = torch.arange(11)[None]


NAN, INF = float("nan"), float("inf")


def lora_layers(model):
    from peft.tuners.lora import LoraLayer

    return {
        name.removeprefix("base_model.model."): layer
        for name, layer in model.named_modules()
        if isinstance(layer, LoraLayer)
    }


def test_by_hand(tmp_path):
    adapter = Adapter(hand_folder(tmp_path / "a"))
    assert list(adapter) == ["m"]
    assert (adapter.modules["m"].shape, adapter.modules["m"].rank) == ((3, 4), 2)
    assert dense(adapter["m"]).tolist() == [[4.0] * 4] * 3, "alpha / r = 2, times ones @ ones = 2"
    assert adapter.factors("m").scaling == 2


def test_adapters_are_called_after_their_folders():
    places = ["a/adapter", "b/adapter", "runs/b/deployed", "owner/mail box", "..", "adapter"]
    assert adapter_names(places) == ["a", "b", "b.2", "mail-box", "adapter", "adapter.2"]


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"use_rslora": True},
        {"rank_pattern": {"layers.0.up": 2, "down": 6}, "alpha_pattern": {"^layers.1.up": 3, r"layers\.\d\.down": 5}},
        {"rank_pattern": {"up": 2}, "use_rslora": True, "init_lora_weights": "orthogonal"},
        {"target_modules": ["conv"], "fan_in_fan_out": True},
    ],
    ids=["plain", "rslora", "patterns", "rslora-patterns", "conv1d"],
)
def test_reads_what_peft_computes(tmp_path, settings):
    folder, model = peft_folder(tmp_path / "a", **settings)
    adapter, layers = Adapter(folder), lora_layers(model)
    assert set(adapter) == set(layers)
    for name, layer in layers.items():
        expected = layer.get_delta_weight("default").detach()
        expected = expected.mT if adapter.config.fan_in_fan_out else expected
        torch.testing.assert_close(dense(adapter[name]), expected)


def test_reads_velora_as_the_lora_it_is(tmp_path):
    """Its projection is of the backward pass alone: PEFT merges B A."""
    from peft.tuners.lora import VeloraConfig

    folder, model = peft_folder(tmp_path / "a", velora_config=VeloraConfig(num_groups=4))
    assert any("velora" in name for name in load_file(folder / "adapter_model.safetensors"))
    adapter = Adapter(folder)
    for name, layer in lora_layers(model).items():
        torch.testing.assert_close(dense(adapter[name]), layer.get_delta_weight("default").detach())


@pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers`", "ignore:Could not identify embedding")
def test_reads_an_embedding_as_its_transpose(tmp_path):
    folder, model = peft_folder(tmp_path / "a", target_modules=["embed"])
    adapter = Adapter(folder)
    assert (adapter.modules["embed"].kind, adapter.modules["embed"].shape) == ("embedding", (12, 11))
    expected = lora_layers(model)["embed"].get_delta_weight("default").detach()  # [vocabulary, width]
    torch.testing.assert_close(dense(adapter["embed"]), expected.mT)


def test_frozen_embeddings_and_heads_that_peft_saves_beside_their_lora_are_no_part_of_the_update(tmp_path):
    tensors = {
        "base_model.model.embed.lora_embedding_A": torch.ones(2, 5),
        "base_model.model.embed.lora_embedding_B": torch.ones(3, 2),
        "base_model.model.embed.base_layer.weight": torch.ones(5, 3),
        "base_model.model.lm_head.lora_A.weight": torch.ones(2, 3),
        "base_model.model.lm_head.lora_B.weight": torch.ones(5, 2),
        "base_model.model.lm_head.base_layer.weight": torch.ones(5, 3),
        "base_model.model.lm_head.base_layer.bias": torch.ones(5),
    }
    assert list(Adapter(hand_folder(tmp_path / "a", tensors))) == ["embed", "lm_head"]
    del tensors["base_model.model.lm_head.lora_A.weight"], tensors["base_model.model.lm_head.lora_B.weight"]
    with pytest.raises(AdapterError, match=r"'base_model\.model\.lm_head\.base_layer\.\w+' is not a factor"):
        Adapter(hand_folder(tmp_path / "b", tensors))


@pytest.mark.parametrize(
    "settings", [{}, {"use_rslora": True, "rank_pattern": {"up": 2}, "alpha_pattern": {"down": 1}}]
)
def test_what_is_written_loads_in_plain_peft_and_answers_the_same(tmp_path, settings):
    from peft import PeftModel

    folder, model = peft_folder(tmp_path / "a", **settings)
    expected = model(IDS)
    adapter = Adapter(folder)
    (tmp_path / "b").mkdir()
    write_adapter(tmp_path / "b", {name: compress(adapter[name]) for name in adapter}, rank=6, base="some/base")
    loaded = PeftModel.from_pretrained(SmallModel(), str(tmp_path / "b"))
    torch.testing.assert_close(loaded(IDS), expected, rtol=1e-5, atol=1e-5)
    config = json.loads((tmp_path / "b" / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], config["alpha_pattern"], config["rank_pattern"]) == (6, 6, {}, {})
    assert all(layer.scaling["default"] == 1 for layer in lora_layers(loaded).values())


@pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers`", "ignore:Could not identify embedding")
def test_conv1d_and_embedding_survive_a_round_trip(tmp_path):
    from peft import PeftModel

    for target, settings in (("conv", {"fan_in_fan_out": True}), ("embed", {})):
        folder, model = peft_folder(tmp_path / target, target_modules=[target], **settings)
        adapter = Adapter(folder)
        out = tmp_path / f"{target}-out"
        out.mkdir()
        embeddings = [name for name, entry in adapter.modules.items() if entry.kind == "embedding"]
        write_adapter(out, dict(adapter), rank=4, fan_in_fan_out=adapter.config.fan_in_fan_out, embeddings=embeddings)
        torch.testing.assert_close(PeftModel.from_pretrained(SmallModel(), str(out))(IDS), model(IDS))


def test_bf16_is_read_and_scaled_in_fp32(tmp_path):
    A, B = torch.full((1, 2), 1.0, dtype=torch.bfloat16), torch.full((2, 1), 3.0, dtype=torch.bfloat16)
    tensors = {"base_model.model.m.lora_A.weight": A, "base_model.model.m.lora_B.weight": B}
    adapter = Adapter(hand_folder(tmp_path / "a", tensors, r=1, lora_alpha=1.001))
    assert adapter["m"].B.dtype == torch.float32
    assert adapter["m"].B[0, 0].item() == pytest.approx(3.003)


def test_modules_come_in_natural_order(tmp_path):
    tensors = {}
    for layer in (10, 2):
        tensors[f"base_model.model.layers.{layer}.q.lora_A.weight"] = torch.ones(2, 4)
        tensors[f"base_model.model.layers.{layer}.q.lora_B.weight"] = torch.ones(3, 2)
    assert list(Adapter(hand_folder(tmp_path / "a", tensors))) == ["layers.2.q", "layers.10.q"]
    assert natural("layers.2.q") < natural("layers.10.q")


def test_peft_is_not_imported(tmp_path):
    hand_folder(tmp_path / "a")
    code = "import sys; from perdure.adapters.folder import Adapter; Adapter(sys.argv[1])['m']; print('peft' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code, tmp_path / "a"], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_write_refuses_factors_above_its_rank(tmp_path):
    with pytest.raises(ValueError, match="truncate it first"):
        write_adapter(tmp_path, {"m": LowRank(torch.ones(3, 4), torch.ones(5, 3))}, rank=2)


# Bad input: each message names the file, and the tensor where there is one.


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ({"use_dora": True}, "'use_dora' is set; DoRA rescales"),
        ({"modules_to_save": ["head"]}, "'modules_to_save' is set"),
        ({"bias": "lora_only"}, "bias is 'lora_only'"),
        ({"lora_bias": True}, "'lora_bias' is set"),
        ({"peft_type": "IA3"}, "this is a IA3 adapter"),
        ({"peft_type": None}, "this is a nameless adapter"),
        ({"init_lora_weights": "pissa_niter_4"}, "changed the base when training began"),
        ({"init_lora_weights": "loftq"}, "PEFT cannot convert it: train again with another init"),
        ({"init_lora_weights": "lora_ga"}, "path_initial_model_for_weight_conversion"),
        ({"alora_invocation_tokens": [1]}, "only active after certain tokens"),
        ({"target_parameters": ["m.w"]}, "'m.w' is adapted as a bare parameter of one matrix"),
        ({"target_parameters": "m.w"}, "'m.w' is not a list of names"),
        ({"r": 0}, "0 is not a rank"),
        ({"r": "8"}, "'8' is not a rank"),
        ({"rank_pattern": {"(": 2}}, "not what PEFT writes"),
        ({"r": 10**400}, r"1000.*\(401 characters\) is not a rank"),
        ({"rank_pattern": {"m": 10**400}}, "is not a rank"),
        ({"lora_alpha": NAN}, "nan is not a finite alpha"),
        ({"lora_alpha": -INF}, "-inf is not a finite alpha"),
        ({"lora_alpha": 10**400}, r"1000.*\(401 characters\) is not a finite alpha"),
        ({"lora_alpha": True}, "True is not an alpha"),
        ({"lora_alpha": "nan"}, "'nan' is not an alpha"),
        ({"alpha_pattern": {"m": INF}}, "inf is not a finite alpha"),
        ({"alpha_pattern": {"m": 10**400}}, "is not a finite alpha"),
        ({"lora_alpha": 1e39}, r"'m' the scaling 5e\+38, which no weight can hold"),
        ({"lora_alpha": 10**300}, r"'m' the scaling 5e\+299"),
        ({"alpha_pattern": {"m": 1e308}, "use_rslora": True}, "'m' the scaling"),
        ({"r": 3}, r"do not have the rank 3 that adapter_config.json states"),
    ],
)
def test_refuses_by_configuration(tmp_path, config, reason):
    with pytest.raises(AdapterError, match=reason) as refused:
        Adapter(hand_folder(tmp_path / "a", **config))
    assert str(tmp_path / "a") in str(refused.value)


A_NAME, B_NAME = "base_model.model.m.lora_A.weight", "base_model.model.m.lora_B.weight"


@pytest.mark.parametrize(
    ("tensors", "named"),
    [
        ({A_NAME: torch.ones(2, 4)}, f"'{A_NAME}' has no counterpart"),
        ({A_NAME: torch.ones(2, 4, 3, 3), B_NAME: torch.ones(3, 2, 1, 1)}, "convolutions"),
        (
            {
                A_NAME: torch.ones(2, 4),
                B_NAME: torch.ones(3, 2),
                "base_model.model.m.lora_magnitude_vector": torch.ones(3),
            },
            "m.lora_magnitude_vector",
        ),
        (
            {A_NAME: torch.ones(2, 4), B_NAME: torch.ones(3, 2), "base_model.model.head.weight": torch.ones(3)},
            "head.weight",
        ),
        ({A_NAME: torch.ones(2, 4), B_NAME: torch.ones(3, 2), "base_model.model.m.bias": torch.ones(3)}, "m.bias"),
        ({"base_model.model.../../m.lora_A.weight": torch.ones(2, 4)}, r"\.\./m"),
        ({"x": torch.ones(1)}, "'x'"),
    ],
    ids=["half a pair", "convolution", "dora magnitude", "whole module", "bias", "path in a name", "foreign"],
)
def test_refuses_by_tensor(tmp_path, tensors, named):
    with pytest.raises(AdapterError, match=named) as refused:
        Adapter(hand_folder(tmp_path / "a", tensors))
    assert "adapter_model.safetensors" in str(refused.value)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_names_the_tensor_that_is_not_finite(tmp_path, bad):
    B = torch.ones(3, 2)
    B[1, 1] = bad
    adapter = Adapter(hand_folder(tmp_path / "a", {A_NAME: torch.ones(2, 4), B_NAME: B}))
    with pytest.raises(AdapterError, match=rf"adapter_model\.safetensors: '{B_NAME}' contains NaN or Inf"):
        adapter["m"]


@pytest.mark.parametrize(
    ("A", "B", "alpha"), [(1e20, 1e20, 2), (1.0, 1.0, 6e38), (1.0, 2e38, 4), (1e30, 1e-30, 2e38), (3e38, 1.0, 2)]
)
def test_names_the_module_whose_finite_factors_overflow(tmp_path, A, B, alpha):
    """Scaling alpha / 2 and two directions: every entry is alpha A B."""
    tensors = {A_NAME: torch.full((2, 4), A), B_NAME: torch.full((3, 2), B)}
    adapter = Adapter(hand_folder(tmp_path / "a", tensors, lora_alpha=alpha))
    if A * B * alpha < 3.4e38:
        assert adapter["m"].B.isfinite().all()
    else:
        with pytest.raises(AdapterError, match=r"the update of 'm' overflows: its factors, each finite"):
            adapter["m"]


def test_what_does_not_fit_a_dtype_is_not_written(tmp_path):
    update = {"m": LowRank(torch.ones(1, 4), torch.full((3, 1), 70000.0))}
    with pytest.raises(
        AdapterError, match=r"'m' overflows float16, whose largest number is 65504\..* \(bf16 or fp32\)"
    ):
        write_adapter(tmp_path, update, rank=1, dtype=torch.float16)
    with pytest.raises(AdapterError, match="'m' would be written with NaN or Inf"):
        write_adapter(tmp_path, {"m": LowRank(torch.ones(1, 4), torch.full((3, 1), INF))}, rank=1)
    assert list(tmp_path.iterdir()) == []
    write_adapter(tmp_path, update, rank=1, dtype=torch.bfloat16)


def test_refuses_integers(tmp_path):
    adapter = Adapter(hand_folder(tmp_path / "a", {A_NAME: torch.ones(2, 4).int(), B_NAME: torch.ones(3, 2)}))
    with pytest.raises(AdapterError, match="floating point"):
        adapter["m"]


@pytest.mark.parametrize("keep", [0, 4, 60, -1])
def test_names_a_file_that_is_cut_off(tmp_path, keep):
    path = hand_folder(tmp_path / "a") / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(AdapterError, match=r"adapter_model\.safetensors is damaged or cut off"):
        Adapter(tmp_path / "a")


def test_refuses_a_pickle_without_opening_it(tmp_path):
    folder = hand_folder(tmp_path / "a")
    (folder / "adapter_model.safetensors").unlink()
    with pytest.raises(AdapterError, match="incomplete"):
        Adapter(folder)
    (folder / "adapter_model.bin").write_bytes(b"cos\nsystem\n(S'false'\ntR.")
    with pytest.raises(AdapterError, match="is a pickle, which can run any code"):
        Adapter(folder)


@pytest.mark.parametrize(
    "content", ["{", "[]", '{"peft_type": "LORA"}', '{"peft_type": "LORA", "r": 2, "lora_alpha": "x"}']
)
def test_names_a_configuration_that_is_none(tmp_path, content):
    folder = hand_folder(tmp_path / "a")
    (folder / "adapter_config.json").write_text(content)
    with pytest.raises(AdapterError, match=r"adapter_config\.json"):
        Adapter(folder)


def test_a_folder_that_is_none(tmp_path):
    with pytest.raises(AdapterError, match="is not an adapter folder"):
        open_adapter(tmp_path / "nothing")
    save_file({"x": torch.ones(1)}, tmp_path / "adapter_model.safetensors")
    with pytest.raises(AdapterError, match=r"it has no adapter_config\.json"):
        open_adapter(tmp_path)


def test_a_folder_of_checkpoints_a_file_and_shards_are_told_what_to_give(tmp_path):
    places = [hand_folder(tmp_path / "work" / name) for name in ("checkpoint-9", "checkpoint-10")]
    listed = re.escape(", ".join(map(str, places)))
    with pytest.raises(AdapterError, match=rf"The adapters in it are {listed}; give one\."):
        Adapter(tmp_path / "work")
    weights = places[0] / "adapter_model.safetensors"
    with pytest.raises(
        AdapterError, match=rf"is a file; give the folder that holds it .*'{re.escape(str(places[0]))}'"
    ):
        open_adapter(weights)
    weights.rename(places[0] / "adapter_model-00001-of-00002.safetensors")
    (places[0] / "adapter_model.safetensors.index.json").write_text("{}")
    with pytest.raises(AdapterError, match=r"is sharded .*save it as one file, with a larger max_shard_size"):
        Adapter(places[0])


def test_a_hub_id_comes_out_of_the_cache_without_a_network(tmp_path, monkeypatch):
    place = in_hub_cache(tmp_path / "cache", "someone/news", hand_folder(tmp_path / "a"), monkeypatch)
    adapter = open_adapter(place)
    assert (adapter.name, adapter.place, list(adapter)) == ("news", "someone/news", ["m"])
    with pytest.raises(AdapterError, match="'someone/mail' is not a folder here and could not be fetched"):
        open_adapter("someone/mail")


def test_a_pickle_on_the_hub_is_not_fetched(tmp_path, monkeypatch):
    folder = hand_folder(tmp_path / "a")
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")
    with pytest.raises(AdapterError, match=r"has no adapter_model\.safetensors on the hub\. If it has only a pickle"):
        open_adapter(in_hub_cache(tmp_path / "cache", "someone/news", folder, monkeypatch))


def test_a_hub_name_that_cannot_be_fetched(monkeypatch):
    import huggingface_hub

    def offline(*_args, **_kwargs):
        raise huggingface_hub.errors.LocalEntryNotFoundError("no network")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    with pytest.raises(AdapterError, match="'someone/adapter' is not a folder here and could not be fetched"):
        open_adapter("someone/adapter")


def test_a_run_or_a_whole_model_is_told_what_to_give_instead(tmp_path):
    run = tmp_path / "run"
    hand_folder(run / "stages/01-mail/adapter")
    (run / "deployed").mkdir()
    (run / "run.json").write_text("{}")
    (run / "deployed/config.json").write_text("{}")
    with pytest.raises(
        AdapterError, match=r"no adapter_config\.json\. The adapters of the run in '.*run' are .*01-mail/adapter\."
    ):
        Adapter(run)
    with pytest.raises(
        AdapterError, match=r"It is a whole model\. The adapters of the run in '.*run' are .*01-mail/adapter\."
    ):
        Adapter(run / "deployed")
    (tmp_path / "model").mkdir()
    (tmp_path / "model/config.json").write_text("{}")
    with pytest.raises(
        AdapterError, match=r"It is a whole model\. Give the adapters that were trained on it; .* goes to --base"
    ):
        Adapter(tmp_path / "model")
