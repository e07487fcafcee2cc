"""A scan as a volume: its axes, its mask, where the head is, its intensities in [0, 1].

Shapes: I J K voxels as a file stores them; X Y Z the same voxels in canonical order (RAS+): X towards the patient's
right, Y to the front, Z to the top. C channels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import nibabel as nib
import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from braintum.data.schema import MASKS, TUMOUR, DataError

MAX_VOXELS = 2**28
"""Of a volume that is read: 1024×512×512. A damaged header can say anything."""
ABOVE = 0.1
"""How far between the dark and the bright end of a volume the head begins (as in FSL's BET)."""

Intensity = Literal["percentile", "minmax"]
Volume = NDArray[np.float32]
Head = NDArray[np.bool_]
Affine = NDArray[np.float64]


class Scan(NamedTuple):
    """Voxels in canonical order, and the 4×4 matrix from their indices to mm (RAS+)."""

    values_XYZ: NDArray[Any]
    affine: Affine

    @property
    def voxel_mm(self) -> tuple[float, float, float]:
        """Sizes of a voxel along X, Y, Z."""
        x, y, z = np.linalg.norm(self.affine[:3, :3], axis=0)
        return float(x), float(y), float(z)


@dataclass(frozen=True)
class MaskValues:
    """What the values of a label map mean. 0 is background, and what `background` lists besides."""

    tumour: tuple[int, ...] = (1,)
    oedema: tuple[int, ...] = (2,)
    background: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        every = [*self.tumour, *self.oedema, *self.background]
        twice = [value for value in every if every.count(value) > 1]
        if twice:
            raise DataError(f"mask values: {twice[0]} is listed twice; give it one of tumour, oedema, background")
        if not self.tumour or any(value < 1 for value in (*self.tumour, *self.oedema)):
            raise DataError(f"mask values: {self}: expected a tumour value or more, and values above 0")

    def __str__(self) -> str:
        return f"tumour {_listed(self.tumour)}, oedema {_listed(self.oedema)}"

    def options(self) -> dict[str, str]:
        """For the card."""
        return {"mask_tumour": _listed(self.tumour), "mask_oedema": _listed(self.oedema),
                "mask_background": _listed((0, *self.background))}  # fmt: skip

    def label_map(self, values: NDArray[Any], what: str) -> NDArray[np.uint8]:
        """Values as MASKS numbers them. Raises DataError, naming `what`, for fractions and for unknown values."""
        present = np.unique(values[values != 0])
        with np.errstate(invalid="ignore"):
            whole = np.rint(present)
            fraction = ~(np.abs(present - whole) <= 1e-3)  # a header's scale makes whole numbers a little less so
        if fraction.any():
            raise DataError(
                f"{what}: has the value {present[fraction][0]:.4g}, no label map; resample masks by nearest neighbour"
            )
        for value in whole:
            if value not in (0, *self.tumour, *self.oedema, *self.background):
                raise DataError(
                    f"{what}: has the value {value:.0f}; known: {self}; say what it is with --tumour, --oedema or "
                    "--background"
                )
        rounded = np.rint(values)
        labels = np.zeros(values.shape, np.uint8)
        for number, meant in ((MASKS.index("oedema") + 1, self.oedema), (TUMOUR, self.tumour)):
            for value in meant:
                labels[rounded == value] = number
        return labels


def _listed(values: tuple[int, ...]) -> str:
    return ",".join(map(str, values)) or "none"


def canonical(values_IJK: NDArray[Any], affine: Affine, what: str) -> Scan:
    """The same voxels with axes flipped and swapped to the nearest of RAS+; nothing is interpolated.

    An oblique scan stays oblique. Raises DataError, naming `what`, for an affine that puts voxels nowhere.
    """
    # finite before it is inverted; a scan of the head fits into ten metres
    if not np.isfinite(affine).all() or np.abs(affine).max() > 1e4 or abs(np.linalg.det(affine[:3, :3])) < 1e-9:
        raise DataError(f"{what}: its affine puts voxels nowhere: {affine.round(3).tolist()}; correct the header")
    orientation = nib.orientations.io_orientation(affine)
    if np.isnan(orientation).any():
        raise DataError(f"{what}: its affine puts two axes along one: {affine.round(3).tolist()}; correct the header")
    turned_XYZ = nib.orientations.apply_orientation(values_IJK, orientation)
    return Scan(turned_XYZ, affine @ nib.orientations.inv_ornt_aff(orientation, values_IJK.shape))


def refuse_other_grid(scan: Scan, image: Scan, what: str, of: str) -> None:
    """Raises DataError unless `scan`, called `what`, has the voxels of `image`, called `of`."""
    shape, expected = scan.values_XYZ.shape, image.values_XYZ.shape
    if shape != expected:
        raise DataError(
            f"{what} is {shown(shape)} voxels, {of} {shown(expected)} (right, front, top); they must be of one grid: "
            "resample it to that"
        )
    corners_4N = np.array([[*corner, 1.0] for corner in np.ndindex(2, 2, 2)]).T * [[n - 1] for n in (*shape, 2)]
    far = np.linalg.norm((scan.affine - image.affine) @ corners_4N, axis=0).max()
    if far > min(image.voxel_mm) / 2:
        raise DataError(
            f"{what} lies up to {far:.1f} mm away from {of}, both {shown(shape)} voxels; they must be of one grid: "
            "resample it to that, or correct its affine"
        )


def shown(shape: tuple[int, ...]) -> str:
    return "×".join(map(str, shape))


def find_head(image_XYZ: Volume) -> Head:
    """Which voxels are head: all that is brighter than the background, in one piece, and what that encloses.

    Bright is what lies above a tenth of the way from the volume's 2nd percentile to the 98th percentile of what is
    above its least value (so that padding counts for nothing); the threshold is that of FSL's BET. The largest piece of
    that (faces connect) is the head, with the dark holes that it encloses within its axial slices: fluid, bone, air.
    """
    low = np.percentile(image_XYZ, 2)
    not_padding = image_XYZ[image_XYZ > image_XYZ.min()]
    if not len(not_padding):
        return np.zeros(image_XYZ.shape, bool)
    bright_XYZ = image_XYZ > low + ABOVE * (np.percentile(not_padding, 98) - low)
    piece_XYZ, _ = ndimage.label(bright_XYZ)
    sizes = np.bincount(piece_XYZ.ravel())
    sizes[0] = 0
    head_XYZ = piece_XYZ == sizes.argmax()
    in_plane = np.zeros((3, 3, 3), bool)
    in_plane[:, 1, 1] = in_plane[1, :, 1] = True
    hole_XYZ, count = ndimage.label(~head_XYZ, structure=in_plane)
    outside = np.zeros(count + 1, bool)
    for edge in (hole_XYZ[0], hole_XYZ[-1], hole_XYZ[:, 0], hole_XYZ[:, -1]):
        outside[edge] = True
    outside[0] = False
    filled_XYZ: Head = ~outside[hole_XYZ]
    return filled_XYZ


def scaled(image_XYZ: Volume, head_XYZ: Head, how: Intensity, what: str) -> Volume:
    """Intensities in [0, 1]: from the 0.5th to the 99.5th percentile of the head, or from its least to its greatest.

    What is below or above becomes 0 or 1. Raises DataError, naming `what`, for a head of one value.
    """
    values = image_XYZ[head_XYZ]
    low, high = np.percentile(values, (0.5, 99.5)) if how == "percentile" else (values.min(), values.max())
    low, high = float(low), float(high)
    if not high > low:
        raise DataError(f"{what}: nearly all of the head has the value {low:g}; is it an image, or a mask?")
    result_XYZ = image_XYZ.astype(np.float32)
    with np.errstate(over="ignore"):  # what overflows is cut to 1
        result_XYZ -= low
        result_XYZ /= high - low
    np.clip(result_XYZ, 0, 1, out=result_XYZ)
    return result_XYZ
