from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from downloads import BRISC, SIDE, add_brisc, picture, tumour, write_brisc
from PIL import Image

from braintum.cli import main
from braintum.data.folds import split
from braintum.data.ingest.brisc import ingest_brisc
from braintum.data.schema import DataError
from braintum.data.table import load_table, read_images, read_masks
from braintum.parts import Data

SEEN = "brisc2025_train_00001_gl_ax_t1"
HEALTHY = "brisc2025_train_02500_no_ax_t1"


@pytest.fixture
def brisc(tmp_path: Path) -> Path:
    return write_brisc(tmp_path / "brisc2025")


def rejected(out: str) -> dict[str, str]:
    file = Path(out) / "rejected.csv"
    if not file.exists():
        return {}
    with file.open() as lines:
        return {line["what"]: line["reason"] for line in csv.DictReader(lines)}


def test_both_tasks_become_one_set(brisc: Path, tmp_path: Path) -> None:
    out = str(tmp_path / "out")
    card = ingest_brisc(brisc, out, size=SIDE)
    assert (card.num_slices, card.num_masks, card.num_rejected, card.num_cases) == (7, 7, 0, None)
    assert card.slices_per_class == {"glioma": 3, "meningioma": 1, "no_tumor": 2, "pituitary": 1}
    assert (card.slices_per_fold, card.slices_per_plane) == ({"test": 2}, {"axial": 3, "coronal": 2, "sagittal": 2})
    assert (card.name, card.licence, card.options) == ("brisc2025", "CC-BY-4.0", {"size": SIDE})
    assert rejected(out) == {}
    images, masks = read_images(out, BRISC), read_masks(out, BRISC)
    for seed, name in enumerate(BRISC):
        assert np.abs(images[name][0].astype(int) - picture(seed)).mean() < 12  # a JPEG of noise
        np.testing.assert_array_equal(masks[name], tumour(at=seed) * ("_no_" not in name))


def test_the_official_test_part_is_never_trained_on(brisc: Path, tmp_path: Path) -> None:
    for number in range(10, 22):
        kind = ("gl", "me", "pi", "no")[number % 4]
        add_brisc(brisc, f"brisc2025_train_{number:05d}_{kind}_ax_t1", picture(number), tumour())
    out = str(tmp_path / "out")
    ingest_brisc(brisc, out)
    table = load_table(out, Data(image_size=32))
    parts = split(table, None, None, 0)
    names = {table.slice_id_R[row] for part in parts for row in part}
    assert len(names) == 17
    assert not any("test" in name for name in names)


def test_one_folder_deeper_and_one_task_alone(brisc: Path, tmp_path: Path) -> None:
    whole = ingest_brisc(brisc, str(tmp_path / "whole"))
    assert ingest_brisc(brisc.parent, str(tmp_path / "deeper")).digest == whole.digest
    shutil.rmtree(brisc / "segmentation_task")
    labels = ingest_brisc(brisc, str(tmp_path / "labels"))
    assert (labels.num_slices, labels.num_masks) == (7, 2)  # without tumour the mask is known
    shutil.copytree(write_brisc(tmp_path / "other") / "segmentation_task", tmp_path / "masks" / "segmentation_task")
    masks = ingest_brisc(tmp_path / "masks", str(tmp_path / "segmentation"))
    assert (masks.num_slices, masks.num_masks, masks.slices_per_class["glioma"]) == (5, 5, 3)


def test_sizes_and_colour_become_alike(brisc: Path, tmp_path: Path) -> None:
    add_brisc(brisc, SEEN, picture(1, 30, 52), tumour(30, 52))
    grey = np.repeat(np.linspace(0, 255, SIDE)[None], SIDE, 0).astype(np.uint8)
    tinted = np.stack([grey, grey, grey // 2 + 20], 2)
    Image.fromarray(tinted).save(brisc / "classification_task" / "train" / "no_tumor" / f"{HEALTHY}.jpg", quality=95)
    out = str(tmp_path / "out")
    card = ingest_brisc(brisc, out, size=32)
    assert (card.height, card.width, card.channels, card.num_rejected) == (32, 32, 1, 0)
    assert read_masks(out, [SEEN])[SEEN].sum() == pytest.approx(tumour(30, 52).sum() * 32 * 32 / (30 * 52), rel=0.2)
    assert ingest_brisc(brisc, str(tmp_path / "default")).height == 256


def test_a_file_that_is_there_twice_is_taken_once(brisc: Path, tmp_path: Path) -> None:
    """BRISC 2025 has such files, in the training part and across train and test, with masks of their own."""
    in_test, first = "brisc2025_test_00001_gl_ax_t1", "brisc2025_train_00002_gl_co_t1"
    for copy, original in (("brisc2025_train_00900_gl_ax_t1", 5), ("brisc2025_train_00901_gl_co_t1", 1)):
        add_brisc(brisc, copy, picture(original), tumour(at=20))
    out = str(tmp_path / "out")
    card = ingest_brisc(brisc, out)
    assert (card.num_slices, card.num_rejected) == (7, 2)
    images = "segmentation_task/train/images/brisc2025_train"
    assert rejected(out) == {
        f"{images}_00900_gl_ax_t1.jpg": f"the same file as {in_test}; remove one",
        f"{images}_00901_gl_co_t1.jpg": f"the same file as {first}; remove one",
    }
    with pytest.raises(DataError, match=rf"00900_gl_ax_t1\.jpg: the same file as {in_test}"):
        ingest_brisc(brisc, str(tmp_path / "strict"), strict=True)


def move(old: str, new: str) -> Callable[[Path], None]:
    def spoil(root: Path) -> None:
        (root / new).parent.mkdir(parents=True, exist_ok=True)
        (root / old).rename(root / new)

    return spoil


def no_mask(root: Path) -> None:
    (root / "segmentation_task" / "train" / "masks" / f"{SEEN}.png").unlink()


def no_image(root: Path) -> None:
    for file in root.rglob(f"{SEEN}.jpg"):
        file.unlink()


def cut_image(root: Path) -> None:
    file = root / "segmentation_task" / "train" / "images" / f"{SEEN}.jpg"
    file.write_bytes(file.read_bytes()[:-200])


def small_mask(root: Path) -> None:
    Image.fromarray(tumour(20, 20)).save(root / "segmentation_task" / "train" / "masks" / f"{SEEN}.png")


def grey_mask(root: Path) -> None:
    Image.fromarray(tumour() * 90).save(root / "segmentation_task" / "train" / "masks" / f"{SEEN}.png")


def twice(root: Path) -> None:
    folder = root / "segmentation_task" / "train" / "images"
    Image.fromarray(picture(9)).save(folder / f"{SEEN}.png")


CLASSES = "classification_task/train"


@pytest.mark.parametrize(
    ("spoil", "what", "says", "left"),
    [
        (no_mask, f"images/{SEEN}.jpg", "an image without its mask", 6),
        (no_image, f"masks/{SEEN}.png", "a mask without its image", 6),
        (cut_image, f"images/{SEEN}.jpg", "does not open: image file is truncated", 6),
        (small_mask, f"images/{SEEN}.jpg", "is 20×20, its image 48×48", 6),
        (grey_mask, f"images/{SEEN}.jpg", "has values up to 90", 6),
        (twice, f"images/{SEEN}.png", "its name is there twice", 7),
        (move(f"{CLASSES}/no_tumor/{HEALTHY}.jpg", f"{CLASSES}/no_tumor/nt1.jpg"), "nt1.jpg", "none of BRISC's", 6),
        (move(f"{CLASSES}/no_tumor/{HEALTHY}.jpg", f"{CLASSES}/glioma/{HEALTHY}.jpg"), "", "it lies in glioma", 6),
        (
            move(f"{CLASSES}/no_tumor/{HEALTHY}.jpg", f"classification_task/test/no_tumor/{HEALTHY}.jpg"),
            f"test/no_tumor/{HEALTHY}.jpg",
            "its name says train, no_tumor, it lies in test",
            6,
        ),
    ],
)
def test_what_cannot_be_used_is_listed(
    brisc: Path, tmp_path: Path, spoil: Callable[[Path], None], what: str, says: str, left: int
) -> None:
    spoil(brisc)
    out = str(tmp_path / "out")
    card = ingest_brisc(brisc, out)
    ((place, reason),) = rejected(out).items()
    assert place.endswith(what)
    assert says in reason
    assert (card.num_slices, card.num_rejected) == (left, 1)
    with pytest.raises(DataError) as error:
        ingest_brisc(brisc, str(tmp_path / "strict"), strict=True)
    assert str(error.value).startswith(f"{place}: ")
    assert says in str(error.value)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "strict").exists()


def test_folders_that_are_not_brisc(brisc: Path, tmp_path: Path) -> None:
    out = str(tmp_path / "out")
    with pytest.raises(DataError, match="no such folder; unpack"):
        ingest_brisc(tmp_path / "archive.zip", out)
    with pytest.raises(DataError, match="neither segmentation_task nor classification_task"):
        ingest_brisc(brisc / "segmentation_task" / "train", out)
    shutil.copytree(brisc, tmp_path / "again")
    with pytest.raises(DataError, match="twice, in again and brisc2025"):
        ingest_brisc(tmp_path, out)
    (tmp_path / "empty" / "segmentation_task").mkdir(parents=True)
    with pytest.raises(DataError, match="no picture in segmentation_task or"):
        ingest_brisc(tmp_path / "empty", out)
    with pytest.raises(DataError, match="size: 8: expected 16"):
        ingest_brisc(brisc, out, size=8)


def test_on_the_command_line(brisc: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    assert main(["ingest", "brisc", str(brisc), "--out", str(out), "--size", "32", "--name", "b", "--json"]) == 0
    card = json.loads(capfd.readouterr().out)
    assert card == json.loads((out / "card.json").read_text())
    assert (card["name"], card["height"], card["licence"]) == ("b", 32, "CC-BY-4.0")
    assert main(["ingest", "brisc", str(brisc), "--out", str(tmp_path / "other")]) == 0
    assert "planes 3 axial, 2 coronal, 2 sagittal" in " ".join(capfd.readouterr().out.split())
    no_mask(brisc)
    assert main(["ingest", "brisc", str(brisc), "--out", str(tmp_path / "strict"), "--strict"]) == 2
    assert capfd.readouterr().err == (
        f"braintum: segmentation_task/train/images/{SEEN}.jpg: an image without its mask; add that, or remove it from "
        "segmentation_task\n"
    )
