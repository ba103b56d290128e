"""Image sets as (PNG data URI, label) pairs: tables of pixels, IDX files, and BIG-bench's copy of CIFAR-10."""

from __future__ import annotations

import base64
import gzip
import json
import math
import struct
from pathlib import Path

from perdure.errors import DataError
from perdure.tasks.archives import member
from perdure.tasks.benchmarks import MissingTask
from perdure.tasks.splits import Pair, Pool

PNG = "data:image/png;base64,"
IMAGES, LABELS = 0x00000803, 0x00000801  # what IDX files of unsigned bytes begin with: 3 dimensions, 1 dimension


def read_pixel_table(source: Path, *, file: str, classes: list[int] | None = None, levels: int = 256) -> Pool:
    """Square grey images out of a gzipped table: one image a line, its pixels from 0 to `levels`, its digit last.

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
        classes: number -> label of the classes to take.

    Raises:
        MissingTask: none of the files is there; DataError: one is missing or is no IDX file.
    """
    if not any(root.glob("*-idx?-ubyte.gz")):
        raise MissingTask(f"there is no train-images-idx3-ubyte.gz in {root}")
    return Pool(_idx_pairs(root, "train", classes), _idx_pairs(root, "t10k", classes))


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
        raise DataError(f"{path} is missing; the folder should hold it.") from None
    except (OSError, EOFError) as error:
        raise DataError(f"{path} is not a gzip file that can be read ({error}).") from None
    rank = magic & 0xFF
    shape = struct.unpack_from(f">{1 + rank}I", content) if len(content) >= 4 * (1 + rank) else (0,)
    if shape[0] != magic or len(content) != 4 * (1 + rank) + math.prod(shape[1:]):
        raise DataError(f"{path} is not an IDX file of {rank} dimensions in unsigned bytes, as MNIST's are.")
    return shape[1:], content[4 * (1 + rank) :]


def _content(source: Path, file: str) -> bytes:
    """A member of a package file, or the unpacked file that ends so."""
    if source.is_file():
        return member(source, file)
    return next(path for path in source.rglob(Path(file).name) if path.as_posix().endswith(file)).read_bytes()


def _png(pixels: bytes, width: int | None = None) -> str:
    """A grey image as a PNG data URI; square without a width."""
    import io

    from PIL import Image

    width = width or math.isqrt(len(pixels))
    buffer = io.BytesIO()
    Image.frombytes("L", (width, len(pixels) // width), pixels).save(buffer, "PNG")
    return PNG + base64.b64encode(buffer.getvalue()).decode()
