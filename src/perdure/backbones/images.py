"""Images as pixels: a path or a data URI -> RGB -> what the model's image processor makes of it."""

from __future__ import annotations

import base64
import binascii
import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from perdure.errors import ConfigError, DataError

if TYPE_CHECKING:
    from PIL.Image import Image

DATA_URI = "data:image/"


def read_image(source: str) -> Image:
    """The RGB image at a path, or in a `data:image/png;base64,...` text; grey, palette and transparent ones are converted.

    Raises:
        ConfigError: Pillow is not installed.
        DataError: no such file, or no image in it.
    """
    try:
        from PIL import Image, UnidentifiedImageError
    except ImportError as error:
        raise ConfigError("Images need the package Pillow: pip install pillow (or perdure[vision]).") from error
    shown = source if not source.startswith(DATA_URI) else f"{source[:40]}..."
    try:
        with Image.open(_file(source)) as image:
            return image.convert("RGB")
    except FileNotFoundError as error:
        raise DataError(
            f"There is no image '{shown}'; an image task's texts are paths of image files, absolute, or relative to the data "
            f"file they stand in (or else to the current folder, '{Path.cwd()}')."
        ) from error
    except (UnidentifiedImageError, OSError, ValueError, Image.DecompressionBombError) as error:
        raise DataError(f"'{shown}' is not an image that can be read ({error}). Repair or remove it.") from error


def _file(source: str) -> io.BytesIO | Path:
    if not source.startswith(DATA_URI):
        return Path(source)
    _, _, content = source.partition(";base64,")
    try:
        return io.BytesIO(base64.b64decode(content, validate=True))
    except binascii.Error as error:
        raise ValueError(f"its base64 is damaged: {error}") from error


def pixels(sources: Sequence[str], processor: Any) -> Tensor:
    """The images as one tensor [n, channels, height, width]; of any sizes, if the processor resizes.

    Raises:
        DataError: an image cannot be read, or they differ in size after the processor.
    """
    tensors = [_one(source, processor) for source in sources]
    shapes = {tuple(tensor.shape[-2:]) for tensor in tensors}
    if len(shapes) > 1:
        sizes = ", ".join(f"{width} x {height}" for height, width in sorted(shapes))
        raise DataError(
            f"The images differ in size ({sizes}) and the model's image processor does not resize them; set "
            "backbone.image_size, which resizes every image to that."
        )
    return torch.cat(tensors)


def _one(source: str, processor: Any) -> Tensor:
    try:
        return processor(read_image(source), return_tensors="pt")["pixel_values"]
    except DataError:
        raise
    except ValueError as error:
        raise DataError(f"'{source[:80]}' does not fit the model's image processor: {error}") from error
