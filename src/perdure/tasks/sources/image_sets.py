"""Image sets as (image, label) pairs, an image being a data URI or a path: pixel tables, IDX files, CIFAR-100, folders."""

from __future__ import annotations

import gzip
import io
import json
import math
import struct
import zlib
from pathlib import Path
from typing import Literal

from perdure.errors import DataError, MissingTask
from perdure.tasks.content import IMAGE_SUFFIXES
from perdure.tasks.pool import Pair, Pool
from perdure.tasks.sources.archives import member
from perdure.tasks.sources.hub import data_uri, dataset_images

PNG = "data:image/png;base64,"
IMAGES, LABELS = 0x00000803, 0x00000801  # magic numbers of IDX files of unsigned bytes: 3 dimensions, 1 dimension


def read_pixel_table(source: Path, *, file: str, classes: list[int] | None = None, levels: int = 256) -> Pool:
    """Square grey images from a gzipped table: one image per line, its pixels from 0 to `levels`, then its digit.

    Args:
        source: the package file, or the folder with what is kept of it.
        classes: only these; None = all.
    """
    pairs: list[Pair] = []
    for line in gzip.decompress(_content(source, file)).decode().split():
        *pixels, digit = (int(float(number)) for number in line.split(","))
        if classes is None or digit in classes:
            pairs.append((_png(bytes(min(255, pixel * 256 // levels) for pixel in pixels)), str(digit)))
    return Pool(pairs)


def read_bigbench_images(folder: Path, *, file: str) -> Pool:
    """A BIG-bench task whose inputs are PNG files in base64; the label is the key of the top score."""
    examples = json.loads(_content(folder, file))["examples"]
    return Pool([(PNG + e["input"], max(e["target_scores"], key=e["target_scores"].get)) for e in examples])


def read_idx(root: Path, *, classes: dict[int, str]) -> Pool:
    """MNIST's own files, <train|t10k>-images-idx3-ubyte.gz and <train|t10k>-labels-idx1-ubyte.gz, in their official split.

    Args:
        classes: number -> label of the classes to read.

    Raises:
        MissingTask: none of the files is there; DataError: one is missing or is not an IDX file.
    """
    if not any(root.glob("*-idx?-ubyte.gz")):
        raise MissingTask(f"not found: train-images-idx3-ubyte.gz in {root}")
    return Pool(_idx_pairs(root, "train", classes), _idx_pairs(root, "t10k", classes))


def read_cifar_100(root: Path | None, *, dataset: str, classes: dict[int, str]) -> Pool:
    """CIFAR-100's fine classes from its binary version, or from the hub, in the official split.

    Raises:
        MissingTask: train.bin is not there; DataError: a file is missing or is not of that version.
    """
    if root is None:
        train, test = (dataset_images(dataset, split, "img", "fine_label", classes) for split in ("train", "test"))
        return Pool(train, test)
    if not (root / "train.bin").is_file():
        raise MissingTask(f"not found: train.bin in {root}")
    return Pool(_cifar_pairs(root / "train.bin", classes), _cifar_pairs(root / "test.bin", classes))


def _cifar_pairs(path: Path, classes: dict[int, str]) -> list[Pair]:
    """A row is the coarse class, the fine class, and 32 x 32 pixels of red, green and blue, one plane each."""
    import numpy as np

    row = 2 + 3 * 32 * 32
    content = path.read_bytes() if path.is_file() else b""
    if not content or len(content) % row:
        raise DataError(
            f"{path} must hold rows of {row} bytes, as CIFAR-100's binary version does; get a complete copy."
        )
    rows = np.frombuffer(content, np.uint8).reshape(-1, row)
    return [
        (_png(image[2:].reshape(3, -1).T.tobytes(), 32, "RGB"), classes[image[1]])
        for image in rows
        if image[1] in classes
    ]


def read_image_classes(root: Path | None, *, dataset: str, field: str, split: str, classes: dict[int, str]) -> Pool:
    """Images in one folder per class, or from the hub, where `field` holds the class; one split, to be cut.

    Raises:
        MissingTask: a class has no folder, or no image in it.
    """
    if root is None:
        return Pool(dataset_images(dataset, split, "image", field, {label: label for label in classes.values()}))
    pairs: list[Pair] = []
    for label in classes.values():
        images = sorted(path for path in (root / label).glob("*") if path.suffix.lower() in IMAGE_SUFFIXES)
        if not images:
            raise MissingTask(f"not found: folder {label} with images in {root}")
        pairs += [(str(path), label) for path in images]
    return Pool(pairs)


def _idx_pairs(root: Path, split: str, classes: dict[int, str]) -> list[Pair]:
    (count, height, width), pixels = _idx(root / f"{split}-images-idx3-ubyte.gz", IMAGES)
    (labelled,), numbers = _idx(root / f"{split}-labels-idx1-ubyte.gz", LABELS)
    if labelled != count:
        raise DataError(f"{root}: the {split} files hold {count} images and {labelled} labels.")
    size = height * width
    return [
        (_png(pixels[i * size : (i + 1) * size], width), classes[number])
        for i, number in enumerate(numbers)
        if number in classes
    ]


def _idx(path: Path, magic: int) -> tuple[tuple[int, ...], bytes]:
    """(dimensions, content) of a gzipped IDX file of unsigned bytes."""
    try:
        content = gzip.decompress(path.read_bytes())
    except FileNotFoundError:
        raise DataError(f"{path} is missing.") from None
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path} is not a valid gzip file ({error}).") from None
    rank = magic & 0xFF
    shape = struct.unpack_from(f">{1 + rank}I", content) if len(content) >= 4 * (1 + rank) else (0,)
    if shape[0] != magic or len(content) != 4 * (1 + rank) + math.prod(shape[1:]):
        raise DataError(f"{path} is not an IDX file of {rank} dimensions in unsigned bytes, as MNIST's are.")
    return shape[1:], content[4 * (1 + rank) :]


def _content(source: Path, file: str) -> bytes:
    """A member of a package file, or the unpacked file whose path ends in `file`."""
    if source.is_file():
        return member(source, file)
    return next(path for path in source.rglob(Path(file).name) if path.as_posix().endswith(file)).read_bytes()


def _png(pixels: bytes, width: int | None = None, mode: Literal["L", "RGB"] = "L") -> str:
    """A grey (L) or RGB image as a PNG data URI; square by default."""
    from PIL import Image

    count = len(pixels) // len(mode)
    width = width or math.isqrt(count)
    buffer = io.BytesIO()
    Image.frombytes(mode, (width, count // width), pixels).save(buffer, "PNG")
    return data_uri(buffer.getvalue())
