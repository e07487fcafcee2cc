"""Reads slices and masks from picture files: PNG, JPEG and TIFF, grey of 8 or 16 bit or colour of 8.

Shapes: C channels, H W height and width in pixels.
"""

from __future__ import annotations

import hashlib
import io
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from PIL.TiffImagePlugin import BITSPERSAMPLE, TiffImageFile

from braintum.data.images import resize_image, resize_mask
from braintum.data.schema import MASKS, DataError

FORMATS = ("PNG", "JPEG", "TIFF")
MOST_PIXELS = 4096 * 4096
MODES = ("1", "L", "LA", "P", "RGB", "RGBA", "I;16", "I;16B", "I;16L", "I")


def refuse_size(size: int | None) -> None:
    """Raises DataError for a side in pixels that no slice is stored at; None: as it is."""
    if size is not None and not 16 <= size <= 4096:
        raise DataError(f"size: {size}: expected 16 to 4096 pixels")


def picture_group(image_CHW: NDArray[Any]) -> str:
    """The group of a slice of which nothing better is known: slices of the same pixels stay together."""
    return f"picture:{hashlib.sha256(image_CHW.tobytes()).hexdigest()[:16]}"


def sized(
    where: str, image_CHW: NDArray[Any], mask_HW: NDArray[np.uint8] | None, mask_name: str, size: int | None
) -> tuple[NDArray[Any], NDArray[np.uint8] | None]:
    """Image and mask at size×size (None: as they are). Raises DataError where they are not of one size."""
    height, width = image_CHW.shape[1:]
    if mask_HW is not None and mask_HW.shape != (height, width):
        raise DataError(
            f"{where}: {mask_name} is {mask_HW.shape[1]}×{mask_HW.shape[0]}, its image {width}×{height}; "
            "they must be of one size"
        )
    if size is None:
        return image_CHW, mask_HW
    return resize_image(image_CHW, size, size), None if mask_HW is None else resize_mask(mask_HW, size, size)


def read_image(path: Path, where: str) -> NDArray[Any]:
    """C,H,W, uint8 or uint16; one channel where all are alike."""
    image = _open(path, where)
    values = np.asarray(image.convert("RGB") if image.mode == "P" else image)
    if image.mode in ("LA", "RGBA"):
        if (values[..., -1] != 255).any():
            raise DataError(f"{where}: {path.name} is transparent in places; save it without alpha")
        values = values[..., :-1]
    if image.mode == "1":
        values = values.astype(np.uint8) * 255
    if image.mode.startswith("I"):
        if values.min() < 0 or values.max() > 65535:
            raise DataError(f"{where}: {path.name} has values {values.min()} to {values.max()}; expected 0 to 65535")
        values = values.astype(np.uint16)
    image_CHW = np.moveaxis(np.atleast_3d(values), 2, 0)
    alike = (image_CHW == image_CHW[:1]).all()
    return image_CHW[:1] if alike else image_CHW


def read_mask(path: Path, where: str) -> NDArray[np.uint8]:
    """A label map H,W."""
    image = _open(path, where)
    values = np.asarray(image)
    if image.mode == "P":  # the colours of a label map mean nothing, but white for background is likely another thing
        light = np.asarray(image.convert("L"))
        if (light[values == 0] > light.min()).any():
            raise DataError(
                f"{where}: mask {path.name}: its palette shows 0, the background, lighter than the rest; "
                "save it as grey, with the values 0, 1 (tumour), 2 (oedema)"
            )
    if image.mode in ("LA", "RGBA"):
        values = values[..., :-1]
    if values.ndim == 3:
        values = values.max(axis=2)
    greatest = int(values.max())
    if greatest <= len(MASKS):
        return values.astype(np.uint8)
    half = 32768 if greatest > 255 else 128
    if greatest < half or int(values.min()) < 0:
        raise DataError(
            f"{where}: mask {path.name} has values up to {greatest}; "
            "expected 0, 1 (tumour), 2 (oedema), or tumour white"
        )
    return (values >= half).astype(np.uint8)


def _open(path: Path, where: str) -> Image.Image:
    """A picture of one of MODES. Raises DataError when it does not open."""
    try:
        content = path.read_bytes()
        with Image.open(io.BytesIO(content), formats=FORMATS) as image:
            pictures = getattr(image, "n_frames", 1)
            depth = _depth(image, content)
            if image.width * image.height > MOST_PIXELS:
                raise ValueError(f"{image.width}×{image.height}, more than {MOST_PIXELS:,} pixels")
            image.load()
    except (OSError, SyntaxError, TypeError, ValueError, Image.DecompressionBombError) as error:
        reason = "not a PNG, JPEG or TIFF" if isinstance(error, UnidentifiedImageError) else str(error)
        raise DataError(f"{where}: {path.name} does not open: {reason}; replace or remove it") from None
    if pictures > 1:
        raise DataError(f"{where}: {path.name} holds several pictures; write one slice a file")
    if image.mode not in MODES:
        raise DataError(f"{where}: {path.name} is of mode {image.mode}; save it as grey of 8 or 16 bit, or RGB of 8")
    if depth > 8 and not image.mode.startswith("I"):
        raise DataError(
            f"{where}: {path.name} has colour or transparency of {depth} bit, of which only 8 would be read; "
            "save it as grey of 16 bit, or of 8 bit"
        )
    return image


def _depth(image: Image.Image, content: bytes) -> int:
    """Bits a channel as the file's header says: Pillow cuts colour of 16 bit to 8."""
    if isinstance(image, TiffImageFile):
        return int(max(image.tag_v2.get(BITSPERSAMPLE, (1,))))
    # of a PNG: signature, length and name of the chunk IHDR, width, height, depth
    return content[24] if image.format == "PNG" else 8
