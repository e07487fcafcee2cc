from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold, cross_val_score
from sklearn.neighbors import KNeighborsClassifier

from braintum.data.folds import held_out_folds
from braintum.data.ingest.phantom import CLASSES, ingest_phantom
from braintum.data.schema import DataError
from braintum.data.table import SliceTable, load_table
from braintum.parts import Data


def test_what_a_phantom_holds(phantom) -> None:
    assert phantom.classes == tuple(sorted(CLASSES))
    assert phantom.has_mask_R.all()
    assert len(set(phantom.case_id_R)) == 24
    assert phantom.group_R == phantom.case_id_R
    has_tumour_R = phantom.mask_RHW.any((1, 2))
    np.testing.assert_array_equal(has_tumour_R, phantom.label_R != phantom.classes.index("no_tumor"))
    shares = phantom.mask_RHW[has_tumour_R].mean((1, 2))
    assert 0.003 < shares.min() < shares.max() < 0.12
    assert (phantom.spacing_R2 == np.float32(230 / 48)).all()
    assert held_out_folds(phantom, 3, 0).keys() == {"1", "2", "3"}


def test_types_differ_in_place_and_shape(phantom) -> None:
    def of(label: str) -> np.ndarray:
        return phantom.mask_RHW[phantom.label_R == phantom.classes.index(label)].astype(float)

    axis = (np.arange(48) + 0.5) / 48 * 2 - 1
    y, x = np.meshgrid(axis, axis, indexing="ij")
    places = {label: [((m * y).sum() / m.sum(), (m * x).sum() / m.sum()) for m in of(label)] for label in CLASSES[:3]}
    far = {label: np.mean([np.hypot(*place) for place in found]) for label, found in places.items()}
    assert far["meningioma"] > far["glioma"] + 0.1
    assert np.mean([abs(x) for _, x in places["pituitary"]]) < 0.1 < np.mean([abs(x) for _, x in places["glioma"]])
    assert of("pituitary").mean() < of("glioma").mean()


@pytest.fixture(scope="module")
def demo(demo_phantom: str) -> SliceTable:
    return load_table(demo_phantom, Data(image_size=128))


def test_no_threshold_finds_the_tumour(demo) -> None:
    truth = demo.mask_RHW[demo.mask_RHW.any((1, 2))] > 0
    images = demo.image_RCHW[demo.mask_RHW.any((1, 2)), 0]
    dice = [
        np.mean(2 * (drawn & truth).sum((1, 2)) / (drawn.sum((1, 2)) + truth.sum((1, 2))))
        for threshold in range(20, 250, 5)
        for drawn in (images > threshold, (images > threshold) & (images < threshold + 60))
    ]
    assert max(dice) < 0.4


def test_a_random_split_flatters(demo) -> None:
    """Slices of a case look alike: whoever has seen the case knows its class."""
    pixels = demo.image_RCHW[:, 0, ::8, ::8].reshape(len(demo), -1) / 255
    nearest = KNeighborsClassifier(1)
    random = StratifiedKFold(3, shuffle=True, random_state=0)
    grouped = StratifiedGroupKFold(3, shuffle=True, random_state=0)
    flattered = cross_val_score(nearest, pixels, demo.label_R, cv=random).mean()
    honest = cross_val_score(nearest, pixels, demo.label_R, groups=demo.group_R, cv=grouped).mean()
    assert flattered > honest + 0.2


def test_a_phantom_is_a_function_of_its_seed(tmp_path: Path) -> None:
    def digest(name: str, **options: int) -> str:
        return ingest_phantom(str(tmp_path / name), cases=4, slices_per_case=2, size=32, **options).digest

    assert digest("one") == digest("two") != digest("three", seed=1)


@pytest.mark.parametrize("options", [{"cases": 3}, {"slices_per_case": 0}, {"size": 16}])
def test_what_cannot_be_drawn_is_refused(tmp_path: Path, options: dict[str, int]) -> None:
    with pytest.raises(DataError, match="phantom: cases="):
        ingest_phantom(str(tmp_path / "out"), **options)
    assert not (tmp_path / "out").exists()
