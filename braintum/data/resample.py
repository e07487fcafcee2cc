"""Affine maps of images and their label maps, on either device.

Shapes: B batch, C channels, H W height and width.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor


def resample_in_batch(image_BCHW: Tensor, mask_B1HW: Tensor, move_B23: Tensor) -> tuple[Tensor, Tensor]:
    """Moved images (bilinear) and float label maps (nearest), with zeros from outside.

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
        F.grid_sample(mask_B1HW, grid_BHW2, "nearest", "zeros", align_corners=False),
    )


def resample_by_opencv(image_BCHW: Tensor, mask_B1HW: Tensor, move_B23: Tensor) -> tuple[Tensor, Tensor]:
    """What `resample_in_batch` does, on a CPU two to three times as fast."""
    import cv2  # not at the top: who trains on a GPU needs none

    cv2.setNumThreads(torch.get_num_threads())
    height, width = image_BCHW.shape[2:]
    centre = np.array([(width - 1) / 2, (height - 1) / 2])
    moves = move_B23.numpy().astype(np.float64)
    moves[:, :, 2] += centre - moves[:, :, :2] @ centre  # cv2 counts from the first pixel
    moved = []
    for source_BCHW, how in ((image_BCHW, cv2.INTER_LINEAR), (mask_B1HW, cv2.INTER_NEAREST)):
        target_BCHW = torch.empty(source_BCHW.shape)
        for sources, targets, move in zip(source_BCHW.numpy(), target_BCHW.numpy(), moves, strict=True):
            for source, target in zip(sources, targets, strict=True):
                cv2.warpAffine(source, move, (width, height), dst=target, flags=how | cv2.WARP_INVERSE_MAP)
        moved.append(target_BCHW)
    return moved[0], moved[1]
