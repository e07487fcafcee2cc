"""Slices changed at random on a GPU, in batch: one operation after another; see `change_by_slice` for CPUs.

Shapes: B batch, C channels, H W height and width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from braintum.data.changes import Changes


def change_in_batch(image_BCHW: Tensor, mask_B1HW: Tensor, changes: Changes) -> tuple[Tensor, Tensor]:
    """Changed copies of images in [0, 1] and of uint8 label maps.

    Images and label maps are moved together; then contrast by a factor around the slice's mean, brightness, and a cut
    to [0, 1].
    """
    if changes.move_B23 is not None:
        image_BCHW, mask_B1HW = resample_in_batch(image_BCHW, mask_B1HW, torch.from_numpy(changes.move_B23).float())
    factor_B, brightness_B = (torch.from_numpy(values).float().to(image_BCHW.device) for values in changes[1:])
    factor_B111 = factor_B[:, None, None, None]
    mean_BC11 = image_BCHW.mean(3, keepdim=True).mean(2, keepdim=True)
    offset_BC11 = mean_BC11 * (1 - factor_B111) + brightness_B[:, None, None, None]
    return (image_BCHW * factor_B111).add_(offset_BC11).clamp_(0, 1), mask_B1HW


def resample_in_batch(image_BCHW: Tensor, mask_B1HW: Tensor, move_B23: Tensor) -> tuple[Tensor, Tensor]:
    """Moved images (bilinear) and uint8 label maps (nearest), with zeros from outside.

    move_B23: from a pixel (x, y, 1) of the result to its place in the source, both in pixels from the centre.
    """
    device, (height, width) = image_BCHW.device, image_BCHW.shape[2:]
    unit_B23 = move_B23.to(device) * 2 / torch.tensor([[width], [height]], device=device)  # a grid counts half sides
    x_W = torch.arange(width, device=device) - (width - 1) / 2
    y_H = torch.arange(height, device=device) - (height - 1) / 2
    along_x_B2W = unit_B23[:, :, 0:1] * x_W + unit_B23[:, :, 2:3]
    along_y_B2H = unit_B23[:, :, 1:2] * y_H
    grid_BHW2 = (along_x_B2W[:, :, None, :] + along_y_B2H[:, :, :, None]).permute(0, 2, 3, 1)
    return (
        F.grid_sample(image_BCHW, grid_BHW2, "bilinear", "zeros", align_corners=False),
        F.grid_sample(mask_B1HW.float(), grid_BHW2, "nearest", "zeros", align_corners=False).to(torch.uint8),
    )
