"""What an Experiment's `data` shows of one slice: resized, cut, or one region of it. Numpy and Pillow only.

Shapes: C channels, H W height and width, at the source's size or at the size trained on.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from braintum.data.images import Box, resize_image, resize_mask
from braintum.data.schema import MASKS, TUMOUR
from braintum.parts import Data


class View(NamedTuple):
    """What is seen of one slice, at the size trained on; types and meaning as in a table (`Slices`)."""

    image_CHW: NDArray[np.uint8] | NDArray[np.float16]
    mask_HW: NDArray[np.uint8]
    low_C: NDArray[np.float32]
    high_C: NDArray[np.float32]
    shown: bool
    has_tumour: bool


def view(
    image_CHW: NDArray[Any],
    mask_HW: NDArray[np.uint8] | None,
    data: Data,
    box: Box | None = None,
    *,
    scaled: bool = False,
) -> View:
    """What `data` shows of a slice at the source's size, or of a `box` cut out of it.

    `scaled`: floats are in [0, 1] as they are.
    """
    side = data.image_size
    mask_HW = np.zeros(image_CHW.shape[1:], np.uint8) if mask_HW is None else mask_HW
    seen_HW = whole_HW = resize_mask(mask_HW, side, side)
    if box is not None:
        image_CHW, seen_HW = image_CHW[:, *box], resize_mask(mask_HW[box], side, side)
    image_CHW = resize_image(image_CHW, side, side)
    if image_CHW.dtype != np.uint8:
        image_CHW = image_CHW.astype(np.float16) if scaled else _min_max(image_CHW)
    low_C, high_C = image_CHW.min(axis=(1, 2)), image_CHW.max(axis=(1, 2))
    shown = True
    if data.region in MASKS:
        hidden_HW = seen_HW != MASKS.index(data.region) + 1
        image_CHW = np.where(hidden_HW, low_C[:, None, None], image_CHW)
        shown = not hidden_HW.all()
    has_tumour = bool((whole_HW == TUMOUR).any())
    return View(image_CHW, seen_HW, low_C.astype(np.float32), high_C.astype(np.float32), shown, has_tumour)


def _min_max(image_CHW: NDArray[np.uint16] | NDArray[np.float32]) -> NDArray[np.float16]:
    """Each channel to [0, 1] before it is cut to 11 bits; a constant one to 0."""
    low, high = (f(image_CHW, axis=(1, 2), keepdims=True).astype(np.float32) for f in (np.min, np.max))
    scaled: NDArray[np.float16] = ((image_CHW - low) / np.where(high > low, high - low, 1)).astype(np.float16)
    return scaled
