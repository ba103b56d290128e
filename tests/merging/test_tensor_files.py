"""Safetensors files by rows: what is written is what the safetensors library reads, and the other way round."""

import pytest
import torch
from safetensors.torch import load_file, save_file

from perdure.errors import AdapterError
from perdure.merging.tensor_files import TensorReader, TensorWriter

TENSORS = {
    "w": torch.arange(12.0).view(3, 4),
    "half": torch.arange(6.0, dtype=torch.bfloat16).view(2, 3),
    "cube": torch.arange(8, dtype=torch.int64).view(2, 2, 2),
    "scalar": torch.tensor(7.0),
    "empty": torch.zeros(0, 3),
}


def test_reads_rows_of_what_the_library_wrote(tmp_path):
    save_file(TENSORS, tmp_path / "x.safetensors", {"format": "pt", "note": "here"})
    with TensorReader(tmp_path / "x.safetensors") as reader:
        assert torch.equal(reader.rows("w", 1, 3), TENSORS["w"][1:])
        assert torch.equal(reader.rows("half", 0, 1), TENSORS["half"][:1])
        assert torch.equal(reader.rows("cube", 1, 2), TENSORS["cube"][1:].view(1, 4))
        assert reader.rows("scalar", 0, 1).item() == 7
        assert reader.metadata == {"format": "pt", "note": "here"}


def test_the_library_reads_what_was_written_in_any_order(tmp_path):
    save_file(TENSORS, tmp_path / "x.safetensors")
    with TensorReader(tmp_path / "x.safetensors") as reader:
        layout = {name: (stored.dtype, stored.shape) for name, stored in reader.tensors.items()}
        with TensorWriter(tmp_path / "y.safetensors", layout) as writer:
            writer.write_rows("w", 2, TENSORS["w"][2:])
            writer.write_rows("w", 0, TENSORS["w"][:2].double())
            for name in ("half", "cube", "scalar", "empty"):
                writer.copy(name, reader)
    found = load_file(tmp_path / "y.safetensors")
    assert set(found) == set(TENSORS)
    for name, tensor in TENSORS.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor)


@pytest.mark.parametrize(
    "dtype", [torch.uint16, torch.uint32, torch.uint64, torch.complex64, torch.float8_e4m3fn, torch.float8_e8m0fnu]
)
def test_dtypes_that_are_only_copied_keep_their_size(tmp_path, dtype):
    bits = torch.arange(1, 6 * dtype.itemsize + 1, dtype=torch.uint8)
    save_file({"odd": bits.view(dtype).view(2, 3), "w": TENSORS["w"]}, tmp_path / "x.safetensors")
    with TensorReader(tmp_path / "x.safetensors") as reader:
        layout = {name: (stored.dtype, stored.shape) for name, stored in reader.tensors.items()}
        with TensorWriter(tmp_path / "y.safetensors", layout, reader) as writer:
            for name in layout:
                writer.copy(name, reader)
    found = load_file(tmp_path / "y.safetensors")
    assert torch.equal(found["odd"].view(-1).view(torch.uint8), bits)
    assert torch.equal(found["w"], TENSORS["w"])


def test_long_tensors_are_copied_in_chunks(tmp_path, monkeypatch):
    monkeypatch.setattr("perdure.merging.tensor_files.CHUNK", 7)
    save_file({"w": TENSORS["w"]}, tmp_path / "x.safetensors")
    layout = {"w": ("F32", (3, 4))}
    with TensorReader(tmp_path / "x.safetensors") as reader, TensorWriter(tmp_path / "y.safetensors", layout) as writer:
        writer.copy("w", reader)
    assert torch.equal(load_file(tmp_path / "y.safetensors")["w"], TENSORS["w"])


def test_rows_left_out_are_noticed(tmp_path):
    writer = TensorWriter(tmp_path / "y.safetensors", {"w": ("F32", (3, 4))})
    with pytest.raises(AssertionError, match="'w'"), writer:
        writer.write_rows("w", 0, TENSORS["w"][:2])


def test_a_file_cut_off_is_refused(tmp_path):
    save_file(TENSORS, tmp_path / "x.safetensors")
    content = (tmp_path / "x.safetensors").read_bytes()
    (tmp_path / "x.safetensors").write_bytes(content[:-1])
    with pytest.raises(AdapterError, match="damaged or cut off"):
        TensorReader(tmp_path / "x.safetensors")


def test_a_file_that_shrinks_while_it_is_read(tmp_path):
    save_file({"w": TENSORS["w"]}, tmp_path / "x.safetensors")
    with TensorReader(tmp_path / "x.safetensors") as reader:
        with (tmp_path / "x.safetensors").open("r+b") as file:
            file.truncate(100)
        with pytest.raises(AdapterError, match="was truncated"):
            reader.rows("w", 0, 3)
