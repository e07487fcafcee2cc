"""Resizing and cutting of images and masks, and the perceptual hash. Numpy and Pillow only.

SciPy is imported where it is called: what decodes a dataset, before the first step of a training, needs none.

Shapes: C channels, H W height and width, S the side of a square.
"""

from __future__ import annotations

import math
import zlib
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Box = tuple[slice, slice]
"""Rows and columns of an image that are cut out."""


def _resize_axis(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """One axis at a time: the area's average where it shrinks, bilinear where it grows."""
    shrinks = size[0] * size[1] < image.size[0] * image.size[1]
    return image.resize(size, Image.Resampling.BOX if shrinks else Image.Resampling.BILINEAR)


def resize_plane(plane_HW: NDArray[Any], height: int, width: int) -> NDArray[Any]:
    """An image plane at another size, in its own dtype; float16 comes back as float32."""
    if plane_HW.shape == (height, width):
        return plane_HW
    # Pillow resizes 8-bit and float planes; 16-bit ones go through float
    image = Image.fromarray(plane_HW if plane_HW.dtype == np.uint8 else plane_HW.astype(np.float32))
    image = _resize_axis(_resize_axis(image, (width, image.size[1])), (width, height))
    resized = np.asarray(image)
    return np.rint(resized).astype(plane_HW.dtype) if plane_HW.dtype == np.uint16 else resized


def resize_image(image_CHW: NDArray[Any], height: int, width: int) -> NDArray[Any]:
    """An image at another size: averaged by area where it shrinks, bilinear where it grows; see `resize_plane`."""
    return np.stack([resize_plane(plane_HW, height, width) for plane_HW in image_CHW])


def resize_mask(mask_HW: NDArray[np.uint8], height: int, width: int) -> NDArray[np.uint8]:
    """A label map at another size: a label where it covers at least half of the pixel; nearest where it grows."""
    if mask_HW.shape == (height, width):
        return mask_HW
    if height * width > mask_HW.size:
        image = Image.fromarray(mask_HW).resize((width, height), Image.Resampling.NEAREST)
        return np.asarray(image, np.uint8)
    resized_HW = np.zeros((height, width), np.uint8)
    for value in range(int(mask_HW.max()), 0, -1):  # tumour (1) last: it wins a tie of two halves
        resized_HW[resize_plane((mask_HW == value).astype(np.float32), height, width) >= 0.5] = value
    return resized_HW


def box_around(mask_HW: NDArray[np.bool_], margin: float) -> Box:
    """The square around a mask: its longer side and `margin` (a share of that) on every side, in whole pixels.

    Moved where it would stick out, and cut where the slice is smaller; the whole slice around an empty mask.
    """
    spans = [np.flatnonzero(mask_HW.any(axis=axis)) for axis in (1, 0)]
    if not len(spans[0]):
        return slice(0, mask_HW.shape[0]), slice(0, mask_HW.shape[1])
    side = math.ceil(max(span[-1] + 1 - span[0] for span in spans) * (1 + 2 * margin))
    box = []
    for span, size in zip(spans, mask_HW.shape, strict=True):
        length = min(side, size)
        start = int(np.clip((span[0] + span[-1] + 1 - length) // 2, 0, size - length))
        box.append(slice(start, start + length))
    return box[0], box[1]


def largest_piece(mask_HW: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The largest connected part (corners connect), the first of equal ones; an empty mask as it is."""
    from scipy import ndimage

    piece_HW, count = ndimage.label(mask_HW, structure=np.ones((3, 3)))
    if not count:
        return mask_HW
    largest_HW: NDArray[np.bool_] = piece_HW == np.bincount(piece_HW[mask_HW]).argmax()
    return largest_HW


def pack_mask(mask_HW: NDArray[np.bool_]) -> bytes:
    """A mask in a few hundred bytes: a bit a pixel, compressed. As small as a PNG, and ten times faster to write."""
    return zlib.compress(np.packbits(mask_HW).tobytes(), level=1)


def unpack_mask(packed: bytes, height: int, width: int) -> NDArray[np.bool_]:
    """The mask of `pack_mask`."""
    bits = np.unpackbits(np.frombuffer(zlib.decompress(packed), np.uint8), count=height * width)
    return bits.reshape(height, width).astype(bool)


def perceptual_hash(image_CHW: NDArray[Any]) -> int:
    """64 bits that differ in few places between slices that look alike (compare by Hamming distance).

    pHash: the channels' mean at 32×32, its cosine transform, the signs of the 8×8 lowest frequencies around their
    median. First bit most significant, row by row. Insensitive to brightness, contrast and resolution.
    """
    from scipy.fft import dctn

    plane_HW = image_CHW[0].astype(np.float32) if len(image_CHW) == 1 else image_CHW.mean(axis=0, dtype=np.float32)
    small_SS = resize_plane(plane_HW, 32, 32)
    low_SS = dctn(small_SS, norm="ortho")[:8, :8]
    return int.from_bytes(np.packbits(low_SS > np.median(low_SS)).tobytes(), "big")
