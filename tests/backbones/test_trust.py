"""A model folder runs no code of its own, even where the user would answer yes, and is never read as a pickle."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from perdure.backbones import load_backbone
from perdure.backbones.load_errors import explained
from perdure.errors import ConfigError
from tests.backbones.tiny import tiny_causal, tiny_encoder, tiny_seq2seq, tiny_vision

MAKE: dict[str, Callable[[Path], Path]] = {
    "encoder": tiny_encoder,
    "causal": tiny_causal,
    "seq2seq": tiny_seq2seq,
    "vision": tiny_vision,
}
AUTO = {"AutoConfig": "own.C", **dict.fromkeys(("AutoModel", "AutoModelForCausalLM", "AutoModelForSeq2SeqLM"), "own.M")}


@pytest.fixture
def says_yes(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A user who answers every question with yes; the questions."""
    asked: list[str] = []
    monkeypatch.setattr("builtins.input", lambda question="": asked.append(question) or "y")
    return asked


def with_code(folder: Path, kind: str, settings: str, **changed: Any) -> Path:
    """A model folder whose settings name code that writes a file beside it; returns that file's path."""
    MAKE[kind](folder)
    marker = folder.parent / "code-ran"
    classes = "from transformers import BertConfig as C, BertModel as M, PreTrainedTokenizerFast as T, ViTImageProcessor as P\n"
    (folder / "own.py").write_text(f"open({str(marker)!r}, 'w').write('ran')\n{classes}")
    path = folder / settings
    path.write_text(json.dumps(json.loads(path.read_text()) | changed))
    return marker


@pytest.mark.parametrize("kind", MAKE)
def test_a_models_own_code_never_runs(kind: str, tmp_path: Path, says_yes: list[str]) -> None:
    marker = with_code(tmp_path / "model", kind, "config.json", model_type="own-thing", auto_map=AUTO)
    with pytest.raises(ConfigError, match=r"model' brings code of its own, which perdure never runs"):
        load_backbone({"kind": kind, "model": str(tmp_path / "model")})
    assert not marker.exists()
    assert says_yes == []


@pytest.mark.parametrize("kind", MAKE)
def test_a_model_that_transformers_knows_is_read_without_its_code(kind: str, tmp_path: Path, says_yes) -> None:
    marker = with_code(tmp_path / "model", kind, "config.json", auto_map=AUTO)
    assert load_backbone({"kind": kind, "model": str(tmp_path / "model")})
    assert not marker.exists()
    assert says_yes == []


@pytest.mark.parametrize("kind", ["causal", "vision"])
def test_a_tokenizers_or_image_processors_own_code_never_runs(kind: str, tmp_path: Path, says_yes) -> None:
    if kind == "vision":
        changed: dict[str, Any] = {"image_processor_type": "OwnP", "auto_map": {"AutoImageProcessor": "own.P"}}
        marker = with_code(tmp_path / "model", kind, "preprocessor_config.json", **changed)
    else:
        changed = {"tokenizer_class": "OwnT", "auto_map": {"AutoTokenizer": ["own.T", "own.T"]}}
        marker = with_code(tmp_path / "model", kind, "tokenizer_config.json", **changed)
    with pytest.raises(ConfigError, match=r"model' brings code of its own, which perdure never runs"):
        load_backbone({"kind": kind, "model": str(tmp_path / "model")})
    assert not marker.exists()
    assert says_yes == []


@pytest.mark.parametrize("file", ["pytorch_model.bin", "pytorch_model-00001-of-00001.bin"])
@pytest.mark.parametrize("kind", MAKE)
def test_pickled_weights_are_refused_as_in_a_merge(kind: str, file: str, tmp_path: Path) -> None:
    folder = MAKE[kind](tmp_path / "model")
    weights = folder / "model.safetensors"
    torch.save(load_file(weights), folder / file)
    assert load_backbone({"kind": kind, "model": str(folder)})  # safetensors beside it are read instead
    weights.unlink()
    with pytest.raises(ConfigError, match=r"model' has only pickled weights, which are refused: save it with safe_ser"):
        load_backbone({"kind": kind, "model": str(folder)})


def test_pickled_weights_of_the_hub_are_refused_in_the_same_words() -> None:
    """As transformers words it for a repository without safetensors."""
    error = OSError(
        "org/a does not appear to have a file named model.safetensors and thus cannot be loaded with `safetensors`."
    )
    with pytest.raises(ConfigError, match=r"^'org/a' has only pickled weights"), explained("org/a", "language model"):
        raise error
