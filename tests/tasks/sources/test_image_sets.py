"""Image formats on small files with invented contents; the real ones where they are marked."""

import gzip
import io
import json
import struct
from base64 import b64decode
from pathlib import Path

import pytest
from PIL import Image

from perdure.errors import DataError
from perdure.tasks.sources.image_sets import (
    PNG,
    read_bigbench_images,
    read_cifar_100,
    read_idx,
    read_image_classes,
    read_pixel_table,
)
from perdure.tasks.suites import describe, has_data, load_suite
from tests.tasks.sources.test_readers import wheel


def image(source: str) -> Image.Image:
    return Image.open(io.BytesIO(b64decode(source.removeprefix(PNG))))


def test_a_table_of_16_levels_out_of_a_folder(tmp_path: Path) -> None:
    lines = "\n".join(",".join(["16"] + ["0"] * 62 + ["8", str(digit)]) for digit in (3, 5, 3))
    (tmp_path / "a").mkdir()
    (tmp_path / "a/digits.csv.gz").write_bytes(gzip.compress(lines.encode()))
    pool = read_pixel_table(tmp_path, file="a/digits.csv.gz", classes=[3, 4], levels=16)
    assert [label for _, label in pool.train] == ["3", "3"]
    found = image(pool.train[0][0])
    assert (found.size, found.getpixel((0, 0)), found.getpixel((1, 0)), found.getpixel((7, 7))) == ((8, 8), 255, 0, 128)


def test_a_table_of_256_levels_out_of_a_package_file(tmp_path: Path) -> None:
    package = wheel(tmp_path / "m.whl", {"m/d.csv.gz": gzip.compress(b"0,255,7,1,9\n")})
    [(source, label)] = read_pixel_table(package, file="m/d.csv.gz").train
    assert (label, list(image(source).tobytes())) == ("9", [0, 255, 7, 1])


def test_bigbench_images(tmp_path: Path) -> None:
    (tmp_path / "c").mkdir()
    examples = [{"input": "QUJD", "target_scores": {"cat": 0, "dog": 1}}]
    (tmp_path / "c/task.json").write_text(json.dumps({"examples": examples}))
    assert read_bigbench_images(tmp_path, file="c/task.json").train == [(PNG + "QUJD", "dog")]


def write_idx(root: Path, split: str, numbers: list[int]) -> None:
    """Images of 2 x 3 pixels: the first pixel is the image's position, the others are its class."""
    pixels = b"".join(bytes([i, *[number] * 5]) for i, number in enumerate(numbers))
    images = struct.pack(">4I", 0x803, len(numbers), 2, 3) + pixels
    labels = struct.pack(">2I", 0x801, len(numbers)) + bytes(numbers)
    (root / f"{split}-images-idx3-ubyte.gz").write_bytes(gzip.compress(images))
    (root / f"{split}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(labels))


def test_idx_files_of_chosen_classes(tmp_path: Path) -> None:
    write_idx(tmp_path, "train", [4, 0, 1, 0])
    write_idx(tmp_path, "t10k", [1, 9])
    pool = read_idx(tmp_path, classes={0: "zero", 1: "one"})
    assert [label for _, label in pool.train] == ["zero", "one", "zero"]
    assert pool.test is not None
    assert [label for _, label in pool.test] == ["one"]
    assert [list(image(source).tobytes())[:2] for source, _ in pool.train] == [[1, 0], [2, 1], [3, 0]]
    assert image(pool.train[0][0]).size == (3, 2)


@pytest.mark.parametrize(
    "content,message",
    [
        (None, "is missing"),
        (b"no gzip", "not a valid gzip file"),
        (gzip.compress(b"abc")[:10] + b"\xff" * 20, "not a valid gzip file"),
        (gzip.compress(struct.pack(">2I", 0x803, 1)), "not an IDX file of 1 dimensions"),
        (gzip.compress(b"a"), "not an IDX file"),
        (gzip.compress(struct.pack(">2I", 0x801, 3) + b"abc"), "hold 2 images and 3 labels"),
    ],
    ids=[
        "missing",
        "no-gzip",
        "damaged",
        "images-for-labels",
        "cut",
        "too-many",
    ],  # packed bytes hold the time: each process has others
)
def test_wrong_idx_files_are_named(tmp_path: Path, content: bytes | None, message: str) -> None:
    write_idx(tmp_path, "train", [0, 1])
    path = tmp_path / "train-labels-idx1-ubyte.gz"
    path.write_bytes(content) if content is not None else path.unlink()
    with pytest.raises(DataError, match=message):
        read_idx(tmp_path, classes={0: "zero"})


def test_fashion_from_its_files(tmp_path: Path) -> None:
    write_idx(tmp_path, "train", list(range(10)) * 12)
    write_idx(tmp_path, "t10k", [5, 4] * 4)
    [task] = load_suite("fashion-5", data=tmp_path, order="coats-sandals").tasks
    assert {e.label for e in task.train} == {"Coat", "Sandal"}
    assert (len(task.train), len(task.validation), len(task.test)) == (20, 4, 8)


def test_fashion_says_what_it_expects(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"holds none of the tasks.*train-images-idx3-ubyte.*dataset-fashion-mnist of Debian"
    ):
        load_suite("fashion-5", data=tmp_path)


def test_the_usual_folder_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from perdure.tasks import suites

    about = dict(suites.describe("fashion-5"))
    about["data"] = {**about["data"], "usual": str(tmp_path)}
    monkeypatch.setattr(suites, "_description", lambda name: about)
    monkeypatch.delenv("PERDURE_FASHION_MNIST", raising=False)
    write_idx(tmp_path, "train", list(range(10)) * 12)
    write_idx(tmp_path, "t10k", [5, 4] * 4)
    assert has_data("fashion-5")
    assert len(load_suite("fashion-5", order="coats-sandals").tasks) == 1
    monkeypatch.setitem(about["data"], "usual", str(tmp_path / "none"))
    assert not has_data("fashion-5")


def write_cifar(root: Path, rows: dict[str, list[int]]) -> None:
    """CIFAR-100's binary version: every image is (position, 2, 3) in its first pixel and (0, 0, 0) elsewhere."""
    for split, fine in rows.items():
        planes = [bytes([value, *[0] * 1023]) for value in (0, 2, 3)]
        content = b"".join(
            bytes([7, label]) + bytes([i]) + planes[0][1:] + planes[1] + planes[2] for i, label in enumerate(fine)
        )
        (root / f"{split}.bin").write_bytes(content)


def test_split_cifar_100_from_its_binary_version(tmp_path: Path) -> None:
    write_cifar(tmp_path, {"train": [*range(100)] * 2, "test": [*range(100)]})
    suite = load_suite("split-cifar-100", order=20, data=tmp_path)
    assert [task.name for task in suite.tasks] == [f"cifar-20-{i:02}" for i in range(1, 21)]
    last = suite.tasks[-1]
    assert list(last.labels) == ["whale", "willow_tree", "wolf", "woman", "worm"]
    assert (len(last.train), len(last.validation), len(last.test)) == (4, 1, 5)
    pool = read_cifar_100(tmp_path, dataset="", classes={0: "apple"})
    found = image(pool.train[1][0])
    assert (found.size, found.getpixel((0, 0)), found.getpixel((1, 0))) == ((32, 32), (100, 2, 3), (0, 0, 0))


@pytest.mark.parametrize("order,first,count", [(5, "bottle", 20), (10, "beaver", 10)])
def test_class_splits_are_consecutive_and_cover_all(order: int, first: str, count: int) -> None:
    about = describe("split-cifar-100")
    tasks = [about["tasks"][name] for name in about["orders"][str(order)]]
    labels = [label for task in tasks for label in task["labels"]]
    assert len(labels) == len(set(labels)) == 100
    assert labels == sorted(labels)
    assert {len(task["labels"]) for task in tasks} == {count}
    assert first in tasks[0]["labels"]
    assert next(iter(tasks[1]["source"]["classes"])) == count


def test_wrong_cifar_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"holds none of the tasks.*cifar-100-binary"):
        load_suite("split-cifar-100", data=tmp_path)
    (tmp_path / "train.bin").write_bytes(b"x" * 100)
    with pytest.raises(DataError, match=r"train\.bin must hold rows of 3074 bytes"):
        load_suite("split-cifar-100", data=tmp_path)


def test_cifar_100_from_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    def load(name: str, config: None, split: str) -> datasets.Dataset:
        assert (name, config) == ("uoft-cs/cifar100", None)
        count = 60 if split == "train" else 10
        columns = {
            "img": [Image.new("RGB", (32, 32), (i, len(split), 0)) for i in range(count)],
            "fine_label": [*range(5)] * (count // 5),
        }
        features = datasets.Features({"img": datasets.Image(), "fine_label": datasets.Value("int64")})
        return datasets.Dataset.from_dict(columns, features=features)

    monkeypatch.setattr(datasets, "load_dataset", load)
    monkeypatch.delenv("PERDURE_CIFAR_100", raising=False)
    [task] = load_suite("split-cifar-100", order="cifar-20-01").tasks
    assert (len(task.train), len(task.validation), len(task.test)) == (48, 12, 10)
    assert image(task.train[0].text).size == (32, 32)
    assert {e.label for e in task.train} == {"apple", "aquarium_fish", "baby", "bear", "beaver"}


def test_imagenet_r_from_folders(tmp_path: Path) -> None:
    about = describe("imagenet-r")["tasks"]["imagenet-r-20-01"]
    for wnid in about["labels"]:
        (tmp_path / wnid).mkdir()
        for i in range(6):
            Image.new("RGB", (9 + i, 8)).save(tmp_path / wnid / f"art_{i}.jpg")
        (tmp_path / wnid / "notes.txt").write_text("no image")
    suite = load_suite("imagenet-r", order="imagenet-r-20-01,imagenet-r-20-02", data=tmp_path)
    [task] = suite.tasks
    assert (len(task.train), len(task.validation), len(task.test)) == (36, 9, 15)
    assert Path(task.test[0].text).parent.name == task.test[0].label
    assert any(w.startswith("imagenet-r-20-02: left out, not found: folder n01630670") for w in suite.warnings)


def test_another_data_set_of_that_name_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    monkeypatch.setattr(datasets, "load_dataset", lambda *a, **k: datasets.Dataset.from_dict({"text": ["a"]}))
    with pytest.raises(DataError, match=r"axiong/imagenet-r, test: no field .*found text"):
        read_image_classes(None, dataset="axiong/imagenet-r", field="wnid", split="test", classes={0: "n01443537"})


@pytest.mark.slow
@pytest.mark.package_data
def test_vision_3_is_what_it_says() -> None:
    suite = load_suite("vision-3", train="all", validation="all", test="all")
    sizes = {t.name: sum(len(getattr(t, s)) for s in ("train", "validation", "test")) for t in suite.tasks}
    assert sizes == {"cifar-10": 10000, "mnist": 5000, "digits": 1797}
    assert [image(t.test[0].text).size for t in suite.tasks] == [(32, 32), (28, 28), (8, 8)]
    assert all({e.label for e in t.train} == set(t.labels) for t in suite.tasks)
