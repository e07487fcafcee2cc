"""Random changes of training slices, in batch and on the device that trains.

Random numbers are drawn per dataset row from (seed, epoch), so that a slice is changed alike whatever batch, worker or
resumed run it comes in.

Shapes: B batch, C channels, H W height and width, R rows of the table, P draws a row.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from braintum.data.resample import resample_by_opencv, resample_in_batch
from braintum.parts import Augment

NUM_DRAWS = 8
_ORDER, _AUGMENT, _PARTS = 0, 1, 2  # which stream of a (seed, epoch)


def _raw(seed: int, epoch: int, stream: int, count: int) -> NDArray[np.uint64]:
    """64 random bits each. A counter-based generator's raw stream, which numpy promises never to change."""
    key = np.array([seed, epoch], np.uint64)
    return np.random.Philox(key=key, counter=np.array([0, 0, 0, stream], np.uint64)).random_raw(count)


def shuffled(
    rows: NDArray[np.int64], seed: int, epoch: int, window: int, part_ends: NDArray[np.int64]
) -> NDArray[np.int64]:
    """The rows in the order of an epoch: a pure function of the arguments.

    More than `window` rows are brought part by part (`part_ends`: the row behind the last of each), the parts in a
    random order, cut into windows of nearly equal size, and shuffled within each.
    """
    if len(rows) <= window:
        return rows[np.argsort(_raw(seed, epoch, _ORDER, len(rows)), kind="stable")]
    place_of_part = np.argsort(np.argsort(_raw(seed, epoch, _PARTS, len(part_ends)), kind="stable"))
    part_R = np.searchsorted(part_ends, rows, side="right")
    rows = rows[np.argsort(place_of_part[part_R], kind="stable")]
    windows = np.array_split(rows, -(-len(rows) // window))
    window_R = np.repeat(np.arange(len(windows)), [len(part) for part in windows])
    return rows[np.lexsort((_raw(seed, epoch, _ORDER, len(rows)), window_R))]


def augment_draws(num_rows: int, seed: int, epoch: int) -> Tensor:
    """[R, P] float32, uniform in [0, 1): what `augment_batch` needs, for every row of the table."""
    uniform = (_raw(seed, epoch, _AUGMENT, num_rows * NUM_DRAWS) >> np.uint64(40)).astype(np.float32) * 2.0**-24
    return torch.from_numpy(uniform.reshape(num_rows, NUM_DRAWS))


def augment_batch(image_BCHW: Tensor, mask_B1HW: Tensor, draws_BP: Tensor, augment: Augment) -> tuple[Tensor, Tensor]:
    """Changed copies of images in [0, 1] and of uint8 label maps; the inputs are left as they are.

    Flips, rotation, zoom and shift are one resampling (image bilinear, mask nearest, zeros from outside). Then contrast
    around the slice's mean, brightness, and a cut to [0, 1].
    """
    moves = augment.flip_horizontal or augment.flip_vertical or augment.rotate or augment.scale or augment.shift
    if moves:
        move_B23 = _moves(draws_BP, augment, *image_BCHW.shape[2:])
        resample = resample_in_batch if image_BCHW.is_cuda else resample_by_opencv
        image_BCHW, mask_B1HW = resample(image_BCHW, mask_B1HW, move_B23)
    spread_PB = (2 * draws_BP.to(image_BCHW.device) - 1).unbind(1)
    if augment.brightness or augment.contrast:
        factor_B111 = (1 + spread_PB[6] * augment.contrast)[:, None, None, None]
        # row by row: over both axes at once, a slice alone in a batch would be summed in another order by two threads
        mean_BC11 = image_BCHW.mean(3, keepdim=True).mean(2, keepdim=True)
        offset_BC11 = mean_BC11 * (1 - factor_B111) + (spread_PB[7] * augment.brightness)[:, None, None, None]
        scaled_BCHW = image_BCHW.mul_(factor_B111) if moves else image_BCHW * factor_B111  # the input stays as it is
        image_BCHW = scaled_BCHW.add_(offset_BC11).clamp_(0, 1)  # addcmul alone takes as long on a CPU
    return image_BCHW, mask_B1HW


def _moves(draws_BP: Tensor, augment: Augment, height: int, width: int) -> Tensor:
    """[B, 2, 3], as `resample_in_batch` takes them."""
    spread_PB = (2 * draws_BP - 1).unbind(1)
    flip_x_B = torch.where(draws_BP[:, 0] < augment.flip_horizontal, -1.0, 1.0)
    flip_y_B = torch.where(draws_BP[:, 1] < augment.flip_vertical, -1.0, 1.0)
    angle_B = spread_PB[2] * math.radians(augment.rotate)
    zoom_B = 1 + spread_PB[3] * augment.scale
    cos_B, sin_B = angle_B.cos() / zoom_B, angle_B.sin() / zoom_B
    to_x = [cos_B * flip_x_B, -sin_B * flip_x_B, spread_PB[4] * (augment.shift * width)]
    to_y = [sin_B * flip_y_B, cos_B * flip_y_B, spread_PB[5] * (augment.shift * height)]
    return torch.stack([torch.stack(to_x, 1), torch.stack(to_y, 1)], 1)
