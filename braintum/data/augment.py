"""Random changes of training slices, in batch and on the device that trains.

Random numbers are drawn per dataset row from (seed, epoch), so that a slice is changed alike whatever batch, worker or
resumed run it comes in.

Shapes: B batch, C channels, H W height and width, R rows of the table, P draws a row.
"""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

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
    """Changed copies of images in [0, 1] and of float label maps; the inputs are left as they are.

    Flips, rotation, zoom and shift are one resampling (image bilinear, mask nearest, zeros from outside). Then contrast
    around the slice's mean, brightness, and a cut to [0, 1].
    """
    draws_BP = draws_BP.to(image_BCHW.device)
    spread_PB = (2 * draws_BP - 1).unbind(1)
    moves = augment.flip_horizontal or augment.flip_vertical or augment.rotate or augment.scale or augment.shift
    if moves:
        flip_x_B = torch.where(draws_BP[:, 0] < augment.flip_horizontal, -1.0, 1.0)
        flip_y_B = torch.where(draws_BP[:, 1] < augment.flip_vertical, -1.0, 1.0)
        angle_B = spread_PB[2] * math.radians(augment.rotate)
        zoom_B = 1 + spread_PB[3] * augment.scale
        height, width = image_BCHW.shape[2:]
        cos_B, sin_B = angle_B.cos() / zoom_B, angle_B.sin() / zoom_B
        # theta maps a pixel of the result to its place in the source, in units of half a side: hence the shape's ratio
        row_x = [cos_B * flip_x_B, sin_B * flip_x_B * (-height / width), spread_PB[4] * (2 * augment.shift)]
        row_y = [sin_B * flip_y_B * (width / height), cos_B * flip_y_B, spread_PB[5] * (2 * augment.shift)]
        grid_BHW2 = _affine_grid(torch.stack([torch.stack(row_x, 1), torch.stack(row_y, 1)], 1), height, width)
        image_BCHW = F.grid_sample(image_BCHW, grid_BHW2, "bilinear", "zeros", align_corners=False)
        mask_B1HW = F.grid_sample(mask_B1HW, grid_BHW2, "nearest", "zeros", align_corners=False)
    if augment.brightness or augment.contrast:
        factor_B111 = (1 + spread_PB[6] * augment.contrast)[:, None, None, None]
        # row by row: over both axes at once, a slice alone in a batch would be summed in another order by two threads
        mean_BC11 = image_BCHW.mean(3, keepdim=True).mean(2, keepdim=True)
        offset_BC11 = mean_BC11 * (1 - factor_B111) + (spread_PB[7] * augment.brightness)[:, None, None, None]
        scaled_BCHW = image_BCHW.mul_(factor_B111) if moves else image_BCHW * factor_B111  # the input stays as it is
        image_BCHW = scaled_BCHW.add_(offset_BC11).clamp_(0, 1)  # addcmul alone takes as long on a CPU
    return image_BCHW, mask_B1HW


def _affine_grid(theta_B23: Tensor, height: int, width: int) -> Tensor:
    """F.affine_grid(..., align_corners=False), written as a column plus a row: several times faster on a CPU.

    x and y are the parts of a complex number, so that one addition fills memory in the order in which it lies.
    """
    x_W = (torch.arange(width, device=theta_B23.device) * 2 + 1) / width - 1
    y_H = (torch.arange(height, device=theta_B23.device) * 2 + 1) / height - 1
    along_x_B2W = theta_B23[:, :, 0:1] * x_W
    along_y_B2H = theta_B23[:, :, 1:2] * y_H + theta_B23[:, :, 2:3]
    row_BW, column_BH = (torch.complex(line[:, 0], line[:, 1]) for line in (along_x_B2W, along_y_B2H))
    return torch.view_as_real(row_BW[:, None, :] + column_BH[:, :, None])
