"""Draws a set of brain-like slices with tumours: data for a demo and for tests, on any machine, without a download.

Nothing here is anatomy. It is a problem of the same kind as contrast-enhanced T1: bright tumours among other bright
things (scalp, vessels, sinus), four classes that differ in place, shape and texture, and cases whose slices look alike.

glioma: deep in one hemisphere, irregular outline, bright ring around a dark core.
meningioma: at the brain's edge, smooth, even, broad where it touches the skull.
pituitary: small, round, near the midline at the base, in a dark cistern that every head has.
no_tumor: none of these, and an empty mask.

Every case has its own head, tissue texture, contrast, bias field and bright spots, so that a model can recognise a case
instead of its tumour: a random split flatters, a grouped one does not.

Shapes: H W height and width, y down, x right, both from −1 to 1 over the picture.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from braintum.data.ingest.engine import About, ingest
from braintum.data.schema import NO_TUMOR, Card, DataError, Row

CLASSES = ("glioma", "meningioma", "pituitary", NO_TUMOR)
FIELD_OF_VIEW_MM = 230.0
SLICE_GAP_MM = 6.0

Plane = NDArray[np.float64]


def ingest_phantom(
    out: str, *, cases: int = 120, slices_per_case: int = 4, size: int = 128, seed: int = 0, name: str = "phantom"
) -> Card:
    """Draws a phantom set and writes it as a dataset at `out`; returns its card. A pure function of its arguments.

    The classes take turns, so that each has about cases/4 cases. Raises DataError for sizes that cannot be drawn.
    """
    phantom = _checked(cases, slices_per_case, size, seed)
    provenance = f"drawn: cases={cases} slices_per_case={slices_per_case} size={size} seed={seed}"
    return ingest(phantom, range(cases), out, About(name, provenance, "CC0-1.0"), strict=True)


def phantom_rows(*, cases: int, slices_per_case: int, size: int, seed: int) -> Iterator[Row]:
    """The slices of a phantom set, case by case. Raises DataError for sizes that cannot be drawn."""
    phantom = _checked(cases, slices_per_case, size, seed)
    return (row for case in range(cases) for row in phantom.read(case))


def _checked(cases: int, slices_per_case: int, size: int, seed: int) -> _Phantom:
    if cases < len(CLASSES) or slices_per_case < 1 or not 32 <= size <= 1024:
        raise DataError(
            f"phantom: cases={cases} slices_per_case={slices_per_case} size={size}: "
            f"expected {len(CLASSES)} cases or more, a slice or more, a size of 32 to 1024"
        )
    return _Phantom(slices_per_case, size, seed)


@dataclass(frozen=True)
class _Phantom:
    """Draws cases by their number. The classes take turns."""

    slices_per_case: int
    size: int
    seed: int

    def where(self, case: int) -> str:
        return f"phantom case-{case:04d}"

    def files(self, case: int) -> list[Path]:
        return []

    def read(self, case: int) -> list[Row]:
        drawn = _Case(CLASSES[case % len(CLASSES)], np.random.default_rng([self.seed, case]), self.size)
        case_id, spacing_mm = f"case-{case:04d}", FIELD_OF_VIEW_MM / self.size
        levels = np.linspace(-1, 1, self.slices_per_case) if self.slices_per_case > 1 else [0.0]
        rows = []
        for index, level in enumerate(levels):
            image_HW, mask_HW = drawn.draw(float(level))
            rows.append(
                Row(
                    slice_id=f"{case_id}-{index:02d}", group=case_id, image_CHW=image_HW[None], mask_HW=mask_HW,
                    label=drawn.label, case_id=case_id, position=index * SLICE_GAP_MM,
                    spacing_yx_mm=(spacing_mm, spacing_mm), where=self.where(case),
                )
            )  # fmt: skip
        return rows


@dataclass(frozen=True)
class _Tumour:
    """A blob around (y, x): `radius` by direction is warped by `rough` noise, squeezed by `aspect` along `angle`."""

    y: float
    x: float
    radius: float
    aspect: float
    angle: float
    rough: float
    core: float
    contrast: float


class _Case:
    """One head, and the tumour in it."""

    def __init__(self, label: str, rng: np.random.Generator, size: int) -> None:
        self.label = label
        self._rng = rng
        axis = (np.arange(size) + 0.5) / size * 2 - 1
        self._y_HW, self._x_HW = np.meshgrid(axis, axis, indexing="ij")
        self._size = size
        # head: half axes, a tilt, and a wavy outline
        self._half = rng.uniform(0.76, 0.9), rng.uniform(0.6, 0.75)
        self._centre = rng.uniform(-0.05, 0.05, 2)
        self._tilt = rng.uniform(-0.2, 0.2)
        self._waves = rng.normal(0, [0.03, 0.02, 0.01]), rng.uniform(0, 2 * np.pi, 3)
        # tissue, from dark to bright
        self._fluid, self._grey = rng.uniform(0.08, 0.2), rng.uniform(0.34, 0.46)
        self._white = self._grey + rng.uniform(0.06, 0.14)
        self._scalp, self._vessel = rng.uniform(0.75, 1.0), rng.uniform(0.75, 1.0)
        self._noise = rng.uniform(0.015, 0.035)
        self._folds_HW = self._texture(0.035)
        self._patches_HW = self._texture(0.15)
        self._bias_HW = 1 + 0.12 * self._texture(0.5)
        self._warp_HW = self._texture(0.07)
        self._grain_HW = self._texture(0.025)
        self._ventricle = rng.uniform(0.1, 0.2), rng.uniform(0.22, 0.38), rng.uniform(0.05, 0.1)
        self._spots = [
            (*(rng.uniform(-0.6, 0.6, 2)), rng.uniform(0.015, 0.04), rng.uniform(-0.15, 0.15, 2))
            for _ in range(rng.integers(5, 10))
        ]
        self._tumour = self._draw_tumour()

    def draw(self, level: float) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        """The image and mask at a level from −1 (low) to 1 (high) through the tumour."""
        inside_HW, angle_HW = self._head(level)
        brain_HW = inside_HW < 0.84
        cortex_HW = inside_HW + 0.09 * self._folds_HW > 0.66
        image_HW = np.where(cortex_HW, self._grey, self._white) + 0.03 * self._patches_HW
        image_HW = np.where((inside_HW > 0.77) & (self._folds_HW > 0.5), self._fluid, image_HW)
        image_HW = np.where(self._ventricles(level), self._fluid, image_HW)
        cistern_HW = np.hypot((self._y_HW - self._centre[0] - 0.48) / 0.17, (self._x_HW - self._centre[1]) / 0.2) < 1
        image_HW = np.where(cistern_HW, self._fluid, image_HW)
        falx_HW = (np.abs(self._x_HW - self._centre[1]) < 0.013) & (inside_HW > 0.45)
        image_HW = np.where(falx_HW, self._vessel * 0.8, image_HW)
        for y, x, radius, drift in self._spots:  # vessels: bright, round, everywhere
            near = (self._y_HW - y * 0.8 - drift[0] * level) ** 2 + (self._x_HW - x * 0.7 - drift[1] * level) ** 2
            image_HW = np.where(near < radius**2, self._vessel, image_HW)
        mask_HW = np.zeros_like(brain_HW)
        if self._tumour is not None:
            depth_HW = self._tumour_depth(self._tumour, level)
            mask_HW = (depth_HW > 0) & brain_HW
            texture_HW = 0.05 * self._grain_HW if self._tumour.core else 0.01 * self._grain_HW
            bright = self._white + self._tumour.contrast
            core_HW = (self._tumour.core > 0) & (depth_HW + 0.12 * self._grain_HW > 1 - self._tumour.core)
            body_HW = np.where(core_HW, self._fluid + 0.1, bright) + texture_HW
            image_HW = np.where(mask_HW, body_HW, image_HW)
        skull_HW = (inside_HW >= 0.84) & (inside_HW < 0.91)
        scalp_HW = (inside_HW >= 0.91) & (inside_HW < 1)
        image_HW = np.where(skull_HW, 0.06, image_HW)
        image_HW = np.where(scalp_HW, self._scalp * (0.85 + 0.15 * np.cos(2 * angle_HW)), image_HW)
        image_HW = np.where(inside_HW >= 1, 0.0, image_HW) * self._bias_HW
        image_HW = gaussian_filter(image_HW, 0.55 * self._size / 128)
        # magnitude images have Rician noise
        noise = self._rng.normal(0, self._noise, (2, self._size, self._size))
        image_HW = np.hypot(image_HW + noise[0], noise[1])
        return np.rint(np.clip(image_HW / 1.15, 0, 1) * 255).astype(np.uint8), mask_HW.astype(np.uint8)

    def _texture(self, scale: float) -> Plane:
        """Smooth noise of mean 0 and deviation 1; `scale`: of its blobs, in half sides of the picture."""
        sigma = scale * self._size / 2
        noise_HW: Plane = gaussian_filter(self._rng.normal(size=(self._size, self._size)), sigma, mode="wrap")
        smooth_HW: Plane = (noise_HW - noise_HW.mean()) / noise_HW.std()
        return smooth_HW

    def _head(self, level: float) -> tuple[Plane, Plane]:
        """How far out a pixel lies (1 at the skin), and in which direction."""
        y_HW, x_HW = self._y_HW - self._centre[0], self._x_HW - self._centre[1]
        cos, sin = np.cos(self._tilt), np.sin(self._tilt)
        y_HW, x_HW = cos * y_HW - sin * x_HW, sin * y_HW + cos * x_HW
        angle_HW = np.arctan2(y_HW, x_HW)
        radius_HW = np.hypot(y_HW / self._half[0], x_HW / self._half[1])
        outline_HW = 1 + sum(
            size * np.cos((k + 2) * angle_HW + phase) for k, (size, phase) in enumerate(zip(*self._waves, strict=True))
        )
        return radius_HW / (outline_HW * (1 - 0.05 * level**2)), angle_HW

    def _ventricles(self, level: float) -> NDArray[np.bool_]:
        offset, length, width = self._ventricle
        inside_HW = np.zeros_like(self._y_HW, dtype=bool)
        for side in (-1, 1):
            bend_HW = self._x_HW - self._centre[1] - side * (offset * 0.5 + 0.4 * self._y_HW**2)
            inside_HW |= (bend_HW / width) ** 2 + ((self._y_HW + 0.08 * level) / length) ** 2 < 1
        return inside_HW

    def _draw_tumour(self) -> _Tumour | None:
        rng = self._rng
        side = rng.choice([-1.0, 1.0])
        if self.label == "glioma":
            y, x = rng.uniform(-0.35, 0.35), side * rng.uniform(0.18, 0.34)
            shape = rng.uniform(0.2, 0.3), rng.uniform(0.75, 1.0), rng.uniform(0, np.pi), rng.uniform(0.16, 0.26)
            return _Tumour(y, x, *shape, core=rng.uniform(0.45, 0.65), contrast=rng.uniform(0.15, 0.3))
        if self.label == "meningioma":
            direction = rng.uniform(0, 2 * np.pi)
            y, x = np.sin(direction) * self._half[0] * 0.74, np.cos(direction) * self._half[1] * 0.74
            shape = rng.uniform(0.18, 0.27), rng.uniform(0.7, 0.9), direction, rng.uniform(0.0, 0.05)
            return _Tumour(y, x, *shape, core=0.0, contrast=rng.uniform(0.14, 0.28))
        if self.label == "pituitary":
            y, x = rng.uniform(0.4, 0.52), rng.uniform(-0.05, 0.05)
            shape = rng.uniform(0.13, 0.19), rng.uniform(0.75, 1.0), rng.uniform(0, np.pi), rng.uniform(0.02, 0.08)
            return _Tumour(y, x, *shape, core=0.0, contrast=rng.uniform(0.14, 0.28))
        return None

    def _tumour_depth(self, tumour: _Tumour, level: float) -> Plane:
        """1 in the tumour's middle, 0 at its edge, negative outside. Smaller away from its middle slice."""
        y_HW = self._y_HW - self._centre[0] - tumour.y
        x_HW = self._x_HW - self._centre[1] - tumour.x
        cos, sin = np.cos(tumour.angle), np.sin(tumour.angle)
        along_HW, across_HW = cos * x_HW + sin * y_HW, cos * y_HW - sin * x_HW
        radius = tumour.radius * np.sqrt(1 - 0.4 * level**2)
        depth_HW: Plane = 1 - np.hypot(along_HW / tumour.aspect, across_HW) / radius + tumour.rough * self._warp_HW
        return depth_HW
