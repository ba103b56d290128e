"""Models that cannot be used as asked are refused when they are loaded or see their first inputs, with what to do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from benchmarks.breadth.architectures import build

from perdure.backbones import load_backbone
from perdure.errors import ConfigError
from tests.conftest import small_task


def test_an_encoder_decoder_is_not_a_sentence_encoder(tmp_path: Path) -> None:
    folder = build("encoder", "t5", tmp_path / "t5")
    with pytest.raises(ConfigError, match=r"'.*t5' \(T5Model\) is an encoder and a decoder.*kind=seq2seq"):
        load_backbone({"kind": "encoder", "model": str(folder)})


def test_inputs_that_a_model_cannot_read_are_its_refusal(tmp_path: Path) -> None:
    """Nystroemformer splits texts into landmarks of equal length."""
    folder = build("encoder", "nystromformer", tmp_path / "nystromformer")
    backbone = load_backbone({"kind": "encoder", "model": str(folder)})
    with pytest.raises(ConfigError, match=r"\(NystromformerModel\) cannot read such inputs: shape"):
        backbone.prepare([small_task("fruit", "apples", "pears and plums and cherries")])


def test_an_autoencoder_that_hides_patches_is_refused(tmp_path: Path) -> None:
    """It answered differently each time."""
    folder = build("vision", "vit_mae", tmp_path / "vit_mae")
    with pytest.raises(ConfigError, match=r"\(ViTMAEModel\) hides a random part of every image.*mask_ratio to 0"):
        load_backbone({"kind": "vision", "model": str(folder)})
    config = folder / "config.json"
    config.write_text(config.read_text().replace('"mask_ratio": 0.75', '"mask_ratio": 0.0'))
    load_backbone({"kind": "vision", "model": str(folder)})


def test_the_mean_of_a_convolutional_net_is_over_the_places_of_the_image(tmp_path: Path) -> None:
    """It was over the channels, and the first training step failed."""
    folder = build("vision", "convnext", tmp_path / "convnext")
    backbone: Any = load_backbone({"kind": "vision", "model": str(folder), "pooling": "mean"})
    pixels = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        features, hidden = backbone._encode(pixels), backbone.model(pixels).last_hidden_state
    assert hidden.shape[1:] == (64, 1, 1)
    torch.testing.assert_close(features, hidden.mean(dim=(2, 3)))


def test_a_language_model_that_answers_in_another_shape_is_refused_before_it_learns(tmp_path: Path) -> None:
    """ProphetNet predicts several tokens at once."""
    folder = build("seq2seq", "prophetnet", tmp_path / "prophetnet")
    backbone = load_backbone({"kind": "seq2seq", "model": str(folder)})
    with pytest.raises(ConfigError, match=r"\(ProphetNetForConditionalGeneration\) cannot read such inputs: "):
        backbone.prepare([small_task("fruit", "apples", "pears")])
