"""Slices to write datasets of."""

from __future__ import annotations

from typing import Any

import numpy as np

from braintum.data.schema import Row

SIZE = 32


def make_row(name: str, label: str | None = "a", **changes: Any) -> Row:
    """A slice of noise, the same for the same name."""
    rng = np.random.default_rng(list(name.encode()))
    image_CHW = rng.integers(3, 250, (1, SIZE, SIZE), np.uint8)
    mask_HW = np.zeros((SIZE, SIZE), np.uint8)
    mask_HW[4:12, 8:20] = 1
    given = {"slice_id": name, "group": name, "image_CHW": image_CHW, "mask_HW": mask_HW, "label": label} | changes
    return Row(**given)
