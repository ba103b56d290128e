"""An encoder pools as its folder's sentence-transformers files say; the numbers are computed by hand beside it."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from huggingface_hub import _CACHED_NO_EXIST
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError
from safetensors.torch import save_file

from perdure.backbones import load_backbone, pooling
from perdure.backbones.encoder import Encoder
from perdure.backbones.pooling import Dense, Pooling, read_pooling
from perdure.errors import ConfigError, FetchError
from tests.backbones.tiny import tiny_encoder

TEXTS = ["a", "some words", "a longer text than both"]
KEYS = ("cls_token", "mean_tokens", "max_tokens", "mean_sqrt_len_tokens", "weightedmean_tokens", "lasttoken")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tiny_encoder(tmp_path / "model")


def sentence_transformer(folder: Path, about: dict, *layers: str, width: int = 32, prefix: str = "models") -> Path:
    """Write modules.json and 1_Pooling as the package does, and the later layers' folders."""
    steps = [
        ("", "Transformer"),
        ("1_Pooling", "Pooling"),
        *((f"{i}_{kind}", kind) for i, kind in enumerate(layers, 2)),
    ]
    listed = [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.{prefix}.{kind}"}
        for i, (path, kind) in enumerate(steps)
    ]
    (folder / "modules.json").write_text(json.dumps(listed))
    (folder / "1_Pooling").mkdir(exist_ok=True)
    (folder / "1_Pooling" / "config.json").write_text(json.dumps({"word_embedding_dimension": width, **about}))
    return folder


def older(on: str) -> dict[str, bool]:
    return {f"pooling_mode_{key}": key == on for key in KEYS}


def dense_layer(folder: Path, activation: str = "torch.nn.modules.activation.Tanh", **more: object) -> dict:
    draw = torch.Generator().manual_seed(1)
    weights = {"linear.weight": torch.randn(8, 32, generator=draw), "linear.bias": torch.randn(8, generator=draw)}
    folder.mkdir(exist_ok=True)
    save_file(weights, folder / "model.safetensors")
    about = {"in_features": 32, "out_features": 8, "bias": True, "activation_function": activation, **more}
    (folder / "config.json").write_text(json.dumps(about))
    return weights


def load(folder: Path, **settings: object) -> Encoder:
    found = load_backbone({"kind": "encoder", "model": str(folder), **settings})
    assert isinstance(found, Encoder)
    return found


def embedded(encoder: Encoder) -> torch.Tensor:
    with torch.inference_mode():
        return encoder._encode(encoder._padded(TEXTS))


def alone(encoder: Encoder, text: str) -> torch.Tensor:
    """The token vectors of one text without padding, [L, D]."""
    with torch.inference_mode():
        return encoder.model(**encoder.tokenizer(text, return_tensors="pt")).last_hidden_state[0]


BY_HAND = {
    "cls": lambda h: h[0],
    "mean": lambda h: h.sum(0) / len(h),
    "max": lambda h: h.max(0).values,
    "lasttoken": lambda h: h[-1],
    "mean_sqrt_len_tokens": lambda h: h.sum(0) / math.sqrt(len(h)),
    "weightedmean": lambda h: sum((i + 1) * row for i, row in enumerate(h)) / sum(range(1, len(h) + 1)),
}


@pytest.mark.parametrize("mode", BY_HAND)
@pytest.mark.parametrize("written", ["older", "newer"])
def test_the_folders_pooling_is_used(folder: Path, mode: str, written: str) -> None:
    key = {"weightedmean": "weightedmean_tokens", "cls": "cls_token"}.get(mode, mode)
    key = f"{mode}_tokens" if mode in ("mean", "max") else key
    about = older(key) if written == "older" else {"pooling_mode": mode, "include_prompt": True}
    prefix = "models" if written == "older" else "sentence_transformer.modules.pooling"
    encoder = load(sentence_transformer(folder, about, "Normalize", prefix=prefix))
    assert encoder.pooling.modes == (mode,)
    for found, text in zip(embedded(encoder), TEXTS, strict=True):
        wanted = BY_HAND[mode](alone(encoder, text))
        torch.testing.assert_close(found, wanted / wanted.norm(), rtol=1e-4, atol=1e-5)


def test_pooling_by_hand() -> None:
    """Two texts of three and one token; the padding holds numbers that nothing may see."""
    hidden = torch.tensor([[[3.0, 0.0], [0.0, 4.0], [3.0, -4.0]], [[0.0, -2.0], [9.0, 9.0], [9.0, 9.0]]])
    mask = torch.tensor([[1, 1, 1], [1, 0, 0]])
    for mode, first in {
        "cls": [3, 0],
        "mean": [2, 0],
        "max": [3, 4],
        "lasttoken": [3, -4],
        "weightedmean": [2, -4 / 6],
        "mean_sqrt_len_tokens": [6 / math.sqrt(3), 0],
    }.items():
        wanted = torch.tensor([first, [0.0, -2.0]])
        wanted = wanted / wanted.norm(dim=1, keepdim=True)
        torch.testing.assert_close(Pooling((mode,))(hidden, mask), wanted)
    both = Pooling(("cls", "mean"))(hidden, mask)
    torch.testing.assert_close(both[0], torch.tensor([3, 0, 2, 0]) / math.sqrt(13))
    # a dense layer that keeps the first number: relu(3 - 1) = 2, then normalised
    layer = Dense(torch.tensor([[1.0, 0.0], [0.0, 0.0]]), torch.tensor([-1.0, 0.0]), "ReLU")
    torch.testing.assert_close(Pooling(("cls",), (layer,))(hidden, mask)[0], torch.tensor([1.0, 0.0]))
    # normalised first: (1, 0); with its input added: relu(0) + 1
    skipping = Dense(layer.weight, layer.bias, "ReLU", residual=True)
    torch.testing.assert_close(skipping(torch.tensor([[3.0, 4.0]])), torch.tensor([[5.0, 4.0]]))
    narrower = Dense(torch.tensor([[1.0, 0.0]]), None, "Identity", residual=torch.tensor([[0.0, 2.0]]))
    torch.testing.assert_close(narrower(torch.tensor([[3.0, 4.0]])), torch.tensor([[11.0]]))


def test_two_poolings_are_described_the_same_only_if_they_are() -> None:
    weight = torch.eye(2)
    each = [
        Pooling(),
        Pooling(("cls",)),
        Pooling(("cls", "mean")),
        Pooling(("mean",), (None,)),
        Pooling(("mean",), (Dense(weight, None, "Tanh"),)),
        Pooling(("mean",), (Dense(weight, None, "Identity"),)),
        Pooling(("mean",), (Dense(weight, torch.ones(2), "Tanh"),)),
        Pooling(("mean",), (Dense(2 * weight, None, "Tanh"),)),
        Pooling(("mean",), (Dense(weight, None, "Tanh", residual=True),)),
    ]
    assert len({pooling.described() for pooling in each}) == len(each)
    assert Pooling(("mean",), (Dense(weight.clone(), None, "Tanh"),)).described() == each[4].described()


@pytest.mark.parametrize("pickled", [False, True])
def test_dense_layers_are_applied(folder: Path, pickled: bool) -> None:
    sentence_transformer(folder, older("mean_tokens"), "Normalize", "Dense", "Normalize")
    weights = dense_layer(folder / "3_Dense")
    if pickled:
        (folder / "3_Dense" / "model.safetensors").unlink()
        torch.save(weights, folder / "3_Dense" / "pytorch_model.bin")
    encoder = load(folder)
    for found, text in zip(embedded(encoder), TEXTS, strict=True):
        mean = alone(encoder, text).mean(0)
        wanted = torch.tanh(weights["linear.weight"] @ (mean / mean.norm()) + weights["linear.bias"])
        torch.testing.assert_close(found, wanted / wanted.norm(), rtol=1e-4, atol=1e-5)


def test_a_setting_replaces_the_folders_pooling(folder: Path) -> None:
    plain = embedded(load(folder))
    sentence_transformer(folder, older("cls_token"), "Dense")
    dense_layer(folder / "2_Dense")
    assert torch.equal(embedded(load(folder, pooling="mean")), plain)
    last = load(folder, pooling="last")
    torch.testing.assert_close(embedded(last)[0], torch.nn.functional.normalize(alone(last, "a")[-1], dim=0))


def test_a_saved_encoder_pools_the_same(folder: Path, tmp_path: Path) -> None:
    sentence_transformer(folder, {"pooling_mode": ["mean", "cls"]}, "Dense", "Normalize")
    weight = torch.randn(4, 64, generator=torch.Generator().manual_seed(2))
    (folder / "2_Dense").mkdir()
    save_file({"linear.weight": weight}, folder / "2_Dense" / "model.safetensors")
    about = {
        "in_features": 64,
        "out_features": 4,
        "bias": False,
        "activation_function": "torch.nn.modules.linear.Identity",
    }
    (folder / "2_Dense" / "config.json").write_text(json.dumps(about))
    for number, settings in enumerate(({}, {"pooling": "cls"}, {"pooling": "mean"})):
        encoder, out = load(folder, **settings), tmp_path / f"saved{number}"
        encoder.save(out, dict(encoder.model.state_dict()))
        again = load(out)
        assert torch.equal(embedded(encoder), embedded(again))
        assert encoder.pools == again.pools
        assert again.pooling.modes == (("mean", "cls"), ("cls",), ("mean",))[number]
        assert (out / "modules.json").exists() == (number < 2)
    assert json.loads((tmp_path / "saved0" / "2_Dense" / "config.json").read_text()) == about


def test_what_is_not_known_is_refused_by_name(folder: Path) -> None:
    sentence_transformer(folder, older("cls_token"), "LSTM")
    with pytest.raises(ConfigError, match=r"module 2 .*sentence_transformers.models.LSTM.*Set backbone.pooling"):
        load(folder)
    load(folder, pooling="cls")
    sentence_transformer(folder, older("cls_token"), "Dense")
    with pytest.raises(ConfigError, match=r"names 2_Dense/config.json, which is missing"):
        load(folder)
    dense_layer(folder / "2_Dense", "my_code.Swish")
    with pytest.raises(ConfigError, match=r"activation my_code.Swish; known are Identity, Tanh"):
        load(folder)
    dense_layer(folder / "2_Dense", module_input_name="token_embeddings")
    with pytest.raises(ConfigError, match=r"2_Dense does not work on the text's embedding but on token_embeddings"):
        load(folder)
    dense_layer(folder / "2_Dense", bias=False)
    with pytest.raises(ConfigError, match=r"are linear.bias, linear.weight; its config.json asks for linear.weight"):
        load(folder)
    dense_layer(folder / "2_Dense")
    sentence_transformer(folder, {"pooling_mode": ["cls", "max"]}, "Dense")
    with pytest.raises(ConfigError, match=r"takes 32 numbers, and gets 64"):
        load(folder)
    sentence_transformer(folder, {"pooling_mode": "attention"})
    with pytest.raises(ConfigError, match=r"1_Pooling/config.json asks for the pooling attention; known are cls"):
        load(folder)
    (folder / "1_Pooling" / "config.json").unlink()
    with pytest.raises(ConfigError, match=r"names 1_Pooling/config.json, which is missing"):
        load(folder)
    listed = json.loads((folder / "modules.json").read_text())
    (folder / "modules.json").write_text(json.dumps([{**listed[0], "path": "0_Transformer"}, *listed[1:]]))
    with pytest.raises(ConfigError, match=r"has the transformer in '0_Transformer'. Move"):
        load(folder)
    (folder / "modules.json").write_text(json.dumps([{**listed[0], "type": "custom_st.Transformer"}]))
    with pytest.raises(ConfigError, match=r"module 0 .*custom_st.Transformer"):
        load(folder)
    for broken in ("{", "[1]", "{}", json.dumps(listed[:1])):
        (folder / "modules.json").write_text(broken)
        with pytest.raises(ConfigError, match=r"modules.json .*Set backbone.pooling"):
            load(folder)


def test_a_plain_folder_and_known_models_are_read_by_their_mean(folder: Path) -> None:
    assert load(folder).pooling.modes == ("mean",)
    found = read_pooling("minilm", "auto")
    assert (found.modes, found.layers) == (("mean",), ())


def test_a_hub_model_that_may_pool_otherwise_is_not_read_by_its_mean(monkeypatch: pytest.MonkeyPatch) -> None:
    raised: list[Exception] = [LocalEntryNotFoundError("no network")]

    def download(*_: object) -> str:
        raise raised[-1]

    monkeypatch.setattr(pooling, "hf_hub_download", download)
    monkeypatch.setattr(pooling, "try_to_load_from_cache", lambda *_: None)
    with pytest.raises(FetchError, match=r"How 'org/name' pools is not known.*Load it once with a network"):
        read_pooling("org/name", "auto")
    monkeypatch.setattr(pooling, "try_to_load_from_cache", lambda *_: _CACHED_NO_EXIST)
    assert read_pooling("org/name", "auto").modes == ("mean",)
    raised.append(EntryNotFoundError("404"))
    assert read_pooling("org/name", "auto").modes == ("mean",)
