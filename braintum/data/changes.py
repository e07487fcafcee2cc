"""What is done to slices at random: plain numbers, the same for a CPU and a GPU.

Shapes: B slices, P draws a slice, H W height and width.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from braintum.parts import Augment


class Changes(NamedTuple):
    """What is done to each of B slices.

    move_B23: from a pixel (x, y, 1) of the result to its place in the source, both in pixels from the centre; None
    where nothing moves. factor_B: contrast, around the slice's mean. brightness_B: what is added.
    """

    move_B23: NDArray[np.float64] | None
    factor_B: NDArray[np.float64]
    brightness_B: NDArray[np.float64]

    def of(self, rows: NDArray[np.int64]) -> Changes:
        """Those of some of the slices."""
        move_B23 = None if self.move_B23 is None else self.move_B23[rows]
        return Changes(move_B23, self.factor_B[rows], self.brightness_B[rows])


def changes_of(draws_BP: NDArray[np.float32], augment: Augment, height: int, width: int) -> Changes:
    """What slices of that size are changed by, of their draws."""
    spread_PB = 2 * draws_BP.T.astype(np.float64) - 1
    factor_B, brightness_B = 1 + spread_PB[6] * augment.contrast, spread_PB[7] * augment.brightness
    if not augment.moves:
        return Changes(None, factor_B, brightness_B)
    flip_x_B = np.where(draws_BP[:, 0] < augment.flip_horizontal, -1.0, 1.0)
    flip_y_B = np.where(draws_BP[:, 1] < augment.flip_vertical, -1.0, 1.0)
    angle_B, zoom_B = spread_PB[2] * math.radians(augment.rotate), 1 + spread_PB[3] * augment.scale
    cos_B, sin_B = np.cos(angle_B) / zoom_B, np.sin(angle_B) / zoom_B
    to_x = [cos_B * flip_x_B, -sin_B * flip_x_B, spread_PB[4] * (augment.shift * width)]
    to_y = [sin_B * flip_y_B, cos_B * flip_y_B, spread_PB[5] * (augment.shift * height)]
    return Changes(np.stack([np.stack(to_x, 1), np.stack(to_y, 1)], 1), factor_B, brightness_B)
