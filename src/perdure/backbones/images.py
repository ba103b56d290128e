"""Images as pixels: a path or a data URI -> RGB -> the model's image processor."""

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
    """The RGB image at a path or in a data URI (`data:image/png;base64,...`); grey, palette and transparent ones are converted.

    Raises:
        ConfigError: Pillow is not installed.
        DataError: no such file, or not an image.
    """
    try:
        from PIL import Image, UnidentifiedImageError
    except ImportError as error:
        raise ConfigError("Images need the package Pillow: pip install pillow (or perdure[vision]).") from error
    shown, file = source, Path(source)
    try:
        if source.startswith(DATA_URI):
            shown = f"{source[:40]}..."
            file = io.BytesIO(base64.b64decode(source.partition(";base64,")[2], validate=True))
        with Image.open(file) as image:
            return image.convert("RGB")
    except FileNotFoundError as error:
        raise DataError(
            f"No such image: '{shown}'. The texts of an image task are paths of image files, absolute or relative to the "
            f"data file (without one, to the current folder, '{Path.cwd()}')."
        ) from error
    except (UnidentifiedImageError, OSError, ValueError, Image.DecompressionBombError) as error:
        reason = f"its base64 is damaged: {error}" if isinstance(error, binascii.Error) else error
        raise DataError(f"'{shown}' is not an image that can be read ({reason}). Repair or remove it.") from error


def pixels(sources: Sequence[str], processor: Any) -> Tensor:
    """The images as one tensor [n, channels, height, width]; of any sizes, if the processor resizes.

    Raises:
        DataError: an image cannot be read or processed, or they differ in size after the processor.
    """
    tensors: list[Tensor] = []
    for source in sources:
        image = read_image(source)
        try:
            tensors.append(processor(image, return_tensors="pt")["pixel_values"])
        except ValueError as error:
            raise DataError(f"'{source[:80]}' does not fit the model's image processor: {error}") from error
    shapes = {tuple(tensor.shape[-2:]) for tensor in tensors}
    if len(shapes) > 1:
        sizes = ", ".join(f"{width} x {height}" for height, width in sorted(shapes))
        raise DataError(
            f"The images differ in size ({sizes}) and the model's image processor does not resize them; set "
            "backbone.image_size to resize them all."
        )
    return torch.cat(tensors)
