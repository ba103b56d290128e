"""`export --as gguf`: llama.cpp's converter is called on the exported folder, its file checked, and nothing left of a refusal.

The converter here is a stand-in that writes GGUF with the package gguf; `make serve` runs llama.cpp's own.
"""

import json

import pytest
import torch
from safetensors.torch import load_file

from perdure.commands.export import export
from perdure.commands.gguf import FOLDER
from perdure.commands.learn import learn
from perdure.errors import ConfigError, StoreError
from tests.backbones.tiny import tiny_causal

gguf = pytest.importorskip("gguf")

SCRIPT = """
import json, sys
from pathlib import Path
import gguf
from safetensors.torch import load_file
plain, out = Path(sys.argv[1]), sys.argv[sys.argv.index("--outfile") + 1]
Path(out).with_name("asked.json").write_text(json.dumps(sys.argv[1:]))
writer = gguf.GGUFWriter(out, "llama")
tensors = load_file(next(plain.glob("*.safetensors")))
for name, tensor in list(tensors.items())[{skipped}:]:
    name = name.removesuffix(".weight").replace(".lora_A", ".lora_a").replace(".lora_B", ".lora_b")
    writer.add_tensor(name, tensor.numpy())
writer.write_header_to_file(); writer.write_kv_data_to_file(); writer.write_tensors_to_file(); writer.close()
"""


def converters(folder, text):
    folder.mkdir(exist_ok=True)
    for name in ("convert_lora_to_gguf.py", "convert_hf_to_gguf.py"):
        (folder / name).write_text(text)
    return str(folder)


@pytest.fixture(scope="module")
def run(tmp_path_factory, small_tasks):
    folder = tmp_path_factory.mktemp("gguf")
    backbone = {"kind": "causal", "model": str(tiny_causal(folder / "base")), "max_new_tokens": 20}
    settings = {"backbone": backbone, "lora": {"rank": 2}, "training": {"epochs": 1, "batch_size": 10}}
    learn(out=folder / "run", tasks=small_tasks[:2], method="inc-lora", **settings)
    return folder / "run"


def test_an_adapter_and_a_model_with_their_card(run, tmp_path, monkeypatch):
    monkeypatch.setenv(FOLDER, converters(tmp_path / "llama", SCRIPT.format(skipped=0)))
    report = export(run, tmp_path / "out", "gguf")
    assert (report.form, report.rank, report.out) == ("gguf", 4, tmp_path / "out")
    export(run, tmp_path / "adapter")
    wanted = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    found = {tensor.name: tensor.data for tensor in gguf.GGUFReader(tmp_path / "out" / "adapter.gguf").tensors}
    assert len(found) == len(wanted) > 0
    for name, data in found.items():
        key = name.replace(".lora_a", ".lora_A").replace(".lora_b", ".lora_B") + ".weight"
        torch.testing.assert_close(torch.tensor(data), wanted[key], rtol=0, atol=0)
    words = json.loads((tmp_path / "out" / "asked.json").read_text())
    assert words[words.index("--outtype") + 1] == "f32"
    assert words[words.index("--base") + 1] == str(run.parent / "base")
    assert "llama-server -m BASE.gguf --lora out/adapter.gguf" in (tmp_path / "out" / "README.md").read_text()
    assert json.loads((tmp_path / "out" / "perdure.json").read_text())["kind"] == "causal"
    assert export(run, tmp_path / "model", "gguf-model").form == "gguf-model"
    assert (tmp_path / "model" / "model.gguf").is_file()
    assert "llama-server -m model/model.gguf\n" in (tmp_path / "model" / "README.md").read_text()


@pytest.mark.parametrize(
    "script, expected",
    [
        (SCRIPT.format(skipped=2), r"wrote \d+ of the adapter's \d+ layers.*--as gguf-model"),
        ("raise NotImplementedError('Architecture not supported')", "NotImplementedError: Architecture not supported"),
        ("import not_there_at_all", r"No module named 'not_there_at_all' pip install 'perdure\[gguf\]'"),
        ("", "it said nothing"),
    ],
)
def test_nothing_is_left_of_a_refusal(run, tmp_path, monkeypatch, script, expected):
    monkeypatch.setenv(FOLDER, converters(tmp_path / "llama", script))
    with pytest.raises(ConfigError, match=expected):
        export(run, tmp_path / "out", "gguf")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["llama"]


def test_a_missing_converter_is_said_before_anything_is_computed(run, tmp_path, monkeypatch):
    monkeypatch.delenv(FOLDER, raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(
        ConfigError, match=r"convert_lora_to_gguf.py, which is not on the path. Fetch llama.cpp's source"
    ):
        export(run, tmp_path / "out", "gguf")
    monkeypatch.setenv(FOLDER, str(tmp_path / "nothing"))
    with pytest.raises(ConfigError, match=r"convert_hf_to_gguf.py, which is not in the folder LLAMA_CPP names"):
        export(run, tmp_path / "out", "gguf-model")
    monkeypatch.setenv(FOLDER, converters(tmp_path / "llama", SCRIPT.format(skipped=0)))
    (tmp_path / "out").mkdir()
    with pytest.raises(StoreError, match="out"):
        export(run, tmp_path / "out", "gguf")
