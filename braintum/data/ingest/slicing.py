"""Turns a volume into slices: which, in which plane, of which size.

Slices are shown as radiologists expect them. Axial ones from below, the front up, and coronal ones from the front, the
top of the head up: the patient's right is on the left. Sagittal ones from the left: the nose on the left, the top up.

Shapes: C channels, X Y Z voxels in canonical order (`braintum.data.ingest.volumes`), K slices along an axis, H W height
and width of a slice.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from braintum.data.images import resize_image, resize_mask
from braintum.data.ingest.volumes import Affine, Head, Intensity, Scan, Volume, find_head, scaled
from braintum.data.schema import NO_TUMOR, TUMOUR, DataError, Row

Plane = Literal["axial", "coronal", "sagittal"]
AXES: dict[Plane, tuple[int, int, int]] = {"axial": (2, 1, 0), "coronal": (1, 2, 0), "sagittal": (0, 2, 1)}
"""Which of X, Y, Z a plane's slices, rows and columns run along. Rows and columns run against them."""
IN_HEAD = 0.1
"""A slice has head in it where that covers so much of the largest such area of the volume."""
MAX_ASPECT = 3.0
"""Of a pixel: longer ones are those of a scan cut across its thick slices."""


@dataclass(frozen=True)
class Slicing:
    """How a volume becomes slices. Every field lands in the card.

    slices: a number: those with most tumour, one of each of so many equal parts of its extent along the axis, all
    of them where there are no more; where there is no mask, so many spread evenly over the head. "tumour": all
    with tumour. "all": all with head in them. Tumour is value 1 of a mask.
    healthy: so many slices more, with head but an empty mask, spread evenly. A slice with an empty mask is labelled
    NO_TUMOR whatever its case's label, here and with "all".
    size: pixels of a side. The slice is cut or padded with 0 around the middle of the head's box, and shrunk (by the
    area's average, its spacing grows) only where that box is larger. Pixels are not made square.
    intensity: of the head of each volume and channel, to [0, 1]; see `scaled`.
    context: so many neighbours on either side become channels, the lowest first, each with all modalities; at the
    volume's ends the last slice is repeated.
    """

    slices: int | str = 20
    healthy: int = 0
    plane: Plane = "axial"
    size: int = 256
    intensity: Intensity = "percentile"
    context: int = 0

    def __post_init__(self) -> None:
        if self.slices not in ("all", "tumour") and not (isinstance(self.slices, int) and self.slices > 0):
            raise DataError(f"slices: {self.slices!r}: expected a number above 0, all or tumour")
        if self.healthy < 0:
            raise DataError(f"healthy: {self.healthy}: expected a number of slices, 0 for none")
        if self.healthy and self.slices == "all":
            raise DataError(f"healthy: {self.healthy}: has no effect with slices: all, which are all; leave it out")
        if self.plane not in AXES:
            raise DataError(f"plane: {self.plane!r}: expected one of {', '.join(AXES)}")
        if not 16 <= self.size <= 4096:
            raise DataError(f"size: {self.size}: expected 16 to 4096 pixels")
        if self.intensity not in ("percentile", "minmax"):
            raise DataError(f"intensity: {self.intensity!r}: expected percentile or minmax")
        if not 0 <= self.context <= 8:
            raise DataError(f"context: {self.context}: expected 0 to 8 neighbours")

    def options(self) -> dict[str, Any]:
        """For the card."""
        return asdict(self)


@dataclass(frozen=True, eq=False)
class Case:
    """One scan of a patient, on its way into slices.

    `name`: what slice ids begin with. `image_CXYZ`: in canonical order, at `affine` (mm). `mask_XYZ`: a label map as
    `Row` has it, or None where nobody drew one. `head_XYZ`: where the source knows it (all else becomes 0), else it is
    found. `few_bits`: 8 bits are stored, not 16.
    """

    name: str
    case_id: str
    where: str
    image_CXYZ: Volume
    affine: Affine
    mask_XYZ: NDArray[np.uint8] | None
    label: str | None
    head_XYZ: Head | None = None
    few_bits: bool = False
    age_years: int | None = None
    sex: str | None = None


def slices_of(case: Case, slicing: Slicing) -> list[Row]:
    """The slices of a scan, in their order along the axis: from below, from the back, or from the left.

    `position`: mm from the volume's first slice. Raises DataError for neither mask nor label, for values that are no
    numbers, for a volume without a head or without the slices asked for, and for pixels longer than MAX_ASPECT.
    """
    if case.mask_XYZ is None and case.label is None:
        raise DataError(f"{case.where}: neither a mask nor a label, so nothing can be learned; give one")
    along, y, x = AXES[slicing.plane]
    voxel_mm = Scan(case.image_CXYZ[0], case.affine).voxel_mm
    _refuse_long(voxel_mm, slicing.plane, case.where)
    image_CXYZ, head_XYZ = _scaled(case, slicing.intensity)
    image_CKHW = np.stack([_turned(image_XYZ, slicing.plane) for image_XYZ in image_CXYZ])
    head_KHW = _turned(head_XYZ, slicing.plane)
    mask_KHW = None if case.mask_XYZ is None else _turned(case.mask_XYZ, slicing.plane)
    chosen = _chosen(head_KHW, mask_KHW, slicing, case.where)
    seen_KHW: NDArray[np.bool_] = head_KHW if mask_KHW is None else head_KHW | (mask_KHW > 0)
    window = _Window.around(seen_KHW, slicing.size)
    rows = []
    for k in chosen:
        neighbours = np.clip(np.arange(k - slicing.context, k + slicing.context + 1), 0, len(head_KHW) - 1)
        image_CHW = window.image(np.concatenate([image_CKHW[:, neighbour] for neighbour in neighbours]))
        mask_HW = None if mask_KHW is None else window.mask(mask_KHW[k])
        healthy = mask_KHW is not None and not mask_KHW[k].any()
        rows.append(
            Row(
                slice_id=f"{case.name}-{k:03d}", group=case.case_id, case_id=case.case_id, mask_HW=mask_HW,
                image_CHW=np.rint(image_CHW * 255).astype(np.uint8) if case.few_bits else image_CHW.astype(np.float16),
                label=NO_TUMOR if healthy else case.label, position=float(k * voxel_mm[along]),
                spacing_yx_mm=(voxel_mm[y] * window.shrunk, voxel_mm[x] * window.shrunk), where=case.where,
                plane=slicing.plane, age_years=case.age_years, sex=case.sex,
            )
        )  # fmt: skip
    return rows


def _refuse_long(voxel_mm: Sequence[float], plane: Plane, where: str) -> None:
    """Raises DataError for a plane across a scan's thick slices: it shows the head flat."""
    long = {name: max(voxel_mm[y], voxel_mm[x]) / min(voxel_mm[y], voxel_mm[x]) for name, (_, y, x) in AXES.items()}
    if long[plane] > MAX_ASPECT:
        _, y, x = AXES[plane]
        best = min(long, key=lambda name: long[name])
        raise DataError(
            f"{where}: {plane} pixels would be {voxel_mm[y]:.2f}×{voxel_mm[x]:.2f} mm, and the head flat; "
            f"take --plane {best}, or resample the volume"
        )


def _scaled(case: Case, how: Intensity) -> tuple[Volume, Head]:
    if not np.isfinite(case.image_CXYZ).all():
        raise DataError(f"{case.where}: some voxels are no finite numbers; replace them, for background by 0")
    head_XYZ = find_head(case.image_CXYZ[0]) if case.head_XYZ is None else case.head_XYZ
    if not head_XYZ.any():
        raise DataError(f"{case.where}: every voxel has the value {case.image_CXYZ.flat[0]:g}: there is no head in it")
    image_CXYZ = np.stack([scaled(image_XYZ, head_XYZ, how, case.where) for image_XYZ in case.image_CXYZ])
    if case.head_XYZ is not None:
        image_CXYZ *= head_XYZ
    return image_CXYZ, head_XYZ


def _turned(volume_XYZ: NDArray[Any], plane: Plane) -> NDArray[Any]:
    """K,H,W as shown."""
    return np.flip(volume_XYZ.transpose(AXES[plane]), (1, 2))


def _chosen(head_KHW: Head, mask_KHW: NDArray[np.uint8] | None, slicing: Slicing, where: str) -> list[int]:
    """The slices that `slicing` asks for, in order. Raises DataError where there are none."""
    area_K = head_KHW.sum(axis=(1, 2))
    in_head_K = area_K >= IN_HEAD * area_K.max()
    if mask_KHW is None:
        if slicing.slices == "tumour" or slicing.healthy:
            asked = "--slices tumour" if slicing.slices == "tumour" else "--healthy"
            raise DataError(f"{where}: {asked} needs a mask, and there is none; leave it out, or give a mask")
        candidates = np.flatnonzero(in_head_K)
        return candidates.tolist() if slicing.slices == "all" else _spread(candidates, int(slicing.slices))
    tumour_K = (mask_KHW == TUMOUR).sum(axis=(1, 2))
    healthy = np.flatnonzero(in_head_K & ~(mask_KHW > 0).any(axis=(1, 2)))
    if slicing.slices == "all":
        return np.flatnonzero(in_head_K | (mask_KHW > 0).any(axis=(1, 2))).tolist()
    found = np.flatnonzero(tumour_K).tolist()
    if isinstance(slicing.slices, int):
        found = _most(tumour_K, found, slicing.slices)
    chosen = sorted([*found, *_spread(healthy, slicing.healthy)])
    if not chosen:
        raise DataError(
            f"{where}: its mask shows no tumour; --healthy takes slices without, --slices all takes every slice"
        )
    return chosen


def _most(tumour_K: NDArray[np.int64], found: list[int], count: int) -> list[int]:
    """Of the slices `found`, the one with most tumour in each of `count` equal parts of their extent.

    A part without any gives its turn to the largest that is left.
    """
    if len(found) <= count:
        return found
    edges = np.linspace(found[0], found[-1] + 1, count + 1)
    parts = [range(math.ceil(start), math.ceil(end)) for start, end in pairwise(edges)]
    most = [max(part, key=lambda k: int(tumour_K[k])) for part in parts]
    chosen = [k for k in most if tumour_K[k]]
    left = sorted(set(found) - set(chosen), key=lambda k: (-int(tumour_K[k]), k))
    return chosen + left[: count - len(chosen)]


def _spread(candidates: NDArray[np.int64], count: int) -> list[int]:
    """So many of them, evenly: the middle one of each of `count` equal parts; all where there are no more."""
    if len(candidates) <= count:
        return [int(k) for k in candidates]
    return [int(candidates[int((part + 0.5) * len(candidates) / count)]) for part in range(count)]


@dataclass(frozen=True)
class _Window:
    """The square of a slice that is stored: `side` pixels from (`top`, `left`), which may lie outside of the slice."""

    top: int
    left: int
    side: int
    size: int

    @classmethod
    def around(cls, seen_KHW: NDArray[np.bool_], size: int) -> _Window:
        """Around the middle of the box of what has to be seen, and at least as large as that."""
        rows, columns = (np.flatnonzero(seen_KHW.any(axis=axes)) for axes in ((0, 2), (0, 1)))
        (top, bottom), (left, right) = ((int(seen[0]), int(seen[-1]) + 1) for seen in (rows, columns))
        side = max(size, bottom - top, right - left)
        return cls((top + bottom - side) // 2, (left + right - side) // 2, side, size)

    @property
    def shrunk(self) -> float:
        """How many of the slice's pixels a stored one is long."""
        return self.side / self.size

    def image(self, image_CHW: Volume) -> Volume:
        return resize_image(self._cut(image_CHW), self.size, self.size)

    def mask(self, mask_HW: NDArray[np.uint8]) -> NDArray[np.uint8]:
        return resize_mask(self._cut(mask_HW), self.size, self.size)

    def _cut(self, slice_HW: NDArray[Any]) -> NDArray[Any]:
        """The square out of the last two axes; 0 where it leaves them."""
        height, width = slice_HW.shape[-2:]
        top, left = max(self.top, 0), max(self.left, 0)
        inside_HW = slice_HW[..., top : min(self.top + self.side, height), left : min(self.left + self.side, width)]
        cut_HW = np.zeros((*slice_HW.shape[:-2], self.side, self.side), slice_HW.dtype)
        y, x = top - self.top, left - self.left
        cut_HW[..., y : y + inside_HW.shape[-2], x : x + inside_HW.shape[-1]] = inside_HW
        return cut_HW
