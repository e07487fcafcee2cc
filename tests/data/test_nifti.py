"""NIfTI volumes by pattern and by CSV."""

from __future__ import annotations

import csv
import gzip
import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from command_line import refused
from example_scans import affine, head, tumour, write_nifti

from braintum.cli import main
from braintum.data.batches import ordered_batches
from braintum.data.ingest.nifti import ingest_nifti
from braintum.data.ingest.slicing import Slicing
from braintum.data.ingest.volumes import MaskValues
from braintum.data.schema import DataError
from braintum.data.table import load_table, read_images, read_masks
from braintum.parts import Data

FEW = Slicing(2, size=32)
PATTERNS = {"image": "*_t1.nii.gz", "mask": "*_seg.nii.gz"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two patients of two scans each."""
    root = tmp_path / "scans"
    for seed, name in enumerate(("p1/before", "p1/after", "p2/before", "p2/after")):
        write_nifti(root / f"{name}_t1.nii.gz", head(seed))
        write_nifti(root / f"{name}_seg.nii.gz", tumour())
    return root


def ingest(path: Path, out: str = "out", **options):
    url = str(path.parent / out) if path.suffix != ".csv" else str(path.parent.parent / out)
    whose = {} if path.suffix == ".csv" else {"case": ".+"}
    return url, ingest_nifti(path, url, **({"slicing": FEW} | whose | options))


def rejected(url: str) -> list[list[str]]:
    with open(f"{url}/rejected.csv", newline="") as file:
        return list(csv.reader(file))[1:]


def test_nothing_of_a_folder_is_passed_over_in_silence(folder: Path) -> None:
    """Folders that links lead to are read, and a mask without its image is listed."""
    (folder / "p2").rename(folder.parent / "elsewhere")
    (folder / "p2").symlink_to(folder.parent / "elsewhere")
    (folder / "p2/round").symlink_to(folder)  # a link that leads back
    (folder / "p1/before_t1.nii.gz").unlink()
    url, card = ingest(folder, **PATTERNS, case="^[^/]+")
    assert (card.num_cases, card.num_slices) == (2, 6)
    assert rejected(url) == [["scans/p1/before_seg.nii.gz", "image: no such file; replace or remove it"]]
    with pytest.raises(DataError, match=r"p1/before_seg\.nii\.gz: image: no such file"):
        ingest(folder, "strict", **PATTERNS, case="^[^/]+", strict=True)


@pytest.mark.parametrize("bits", [16, 8])
def test_a_slice_keeps_its_place_in_its_volumes_scale(folder: Path, bits: int) -> None:
    """A dim slice is dim in a batch too: it is not stretched to [0, 1] by itself."""
    for seed, file in enumerate(sorted(folder.rglob("*_t1.nii.gz"))):
        image = head(seed) // (1 if bits == 16 else 4)
        image[:, :, 6] //= 2
        write_nifti(file, image.astype(f"uint{bits}"))
    url, _ = ingest(folder, **PATTERNS, case="^[^/]+", slicing=Slicing("all", size=32, intensity="minmax"))
    table = load_table(url, Data(image_size=32))
    names = [f"p1/before-{number:03d}" for number in (6, 7)]
    batch = next(ordered_batches(table, np.array([table.slice_id_R.index(name) for name in names]), 2))
    dim, bright = batch.image_BCHW.amax((1, 2, 3)).tolist()
    assert dim / bright < 0.7
    assert bright > 0.9


def test_a_pattern_names_volumes_and_finds_their_masks(folder: Path) -> None:
    url, card = ingest(folder, **PATTERNS, case="^[^/]+", label="glioma", licence="CC0-1.0", strict=True)
    assert (card.name, card.num_slices, card.num_masks, card.num_cases) == ("scans", 8, 8, 2)
    assert (card.dtype, card.height, card.classes, card.masks) == ("float16", 32, ["glioma"], ["tumour"])
    assert card.provenance == "NIfTI volumes of scans: *_t1.nii.gz, *_seg.nii.gz"
    assert card.options == {
        "slices": 2, "healthy": 0, "plane": "axial", "size": 32, "intensity": "percentile", "context": 0,
        "mask_tumour": "1", "mask_oedema": "2", "mask_background": "0",
    }  # fmt: skip
    table = load_table(url, Data(image_size=32))
    assert set(table.group_R) == {"p1", "p2"}
    assert table.slice_id_R[0] == "p1/after-006"
    assert not np.isnan(table.spacing_R2).any()
    alone = ingest(folder, "alone", **PATTERNS)[1]
    assert (alone.num_cases, alone.classes) == (4, [])


def test_a_pattern_that_finds_masks_too_leaves_them_out(folder: Path) -> None:
    for file in folder.rglob("*_t1.nii.gz"):
        file.rename(file.with_name(file.name.replace("_t1", "")))
    assert ingest(folder, image="*.nii.gz", mask="*_seg.nii.gz", strict=True)[1].num_cases == 4


def test_several_stars_are_filled_in_order(tmp_path: Path) -> None:
    write_nifti(tmp_path / "in/p1/anat/p1_t1.nii", head())
    write_nifti(tmp_path / "in/p1/masks/p1.nii", tumour())
    url, card = ingest(tmp_path / "in", image="*/anat/*_t1.nii", mask="*/masks/*.nii", strict=True)
    assert card.num_masks == 2
    assert load_table(url, Data(image_size=32)).case_id_R[0] == "p1/p1"


def test_a_csv_says_image_mask_case_and_label(folder: Path) -> None:
    (folder / "list.csv").write_text(
        "image,mask,case,label\n"
        "p1/before_t1.nii.gz,p1/before_seg.nii.gz,p1,glioma\n"
        "p1/after_t1.nii.gz,,p1,glioma\n"
        "p2/after_t1.nii.gz,p2/after_seg.nii.gz,p2,\n"
    )
    url, card = ingest(folder / "list.csv", strict=True)
    assert (card.num_slices, card.num_masks, card.num_cases) == (6, 4, 2)
    assert card.slices_per_class == {"glioma": 4}
    assert load_table(url, Data(image_size=32)).slice_id_R[0] == "p1/before_t1-006"


@pytest.mark.parametrize("axes", ["LPS", "ASR", "IRP"])
def test_stored_axes_change_nothing(tmp_path: Path, axes: str) -> None:
    for name, stored in (("a", "RAS"), ("b", axes)):
        write_nifti(tmp_path / name / "x_t1.nii", head(), axes=stored)
        write_nifti(tmp_path / name / "x_seg.nii", tumour(), axes="RAS" if name == "b" else axes)
    first, second = (ingest(tmp_path / n, f"out-{n}", image="*_t1.nii", mask="*_seg.nii", strict=True)[0] for n in "ab")
    ids = load_table(first, Data(image_size=32)).slice_id_R
    assert load_table(second, Data(image_size=32)).slice_id_R == ids
    for read in (read_images, read_masks):
        np.testing.assert_array_equal(*(np.stack(list(read(url, ids).values())) for url in (first, second)))


def test_eight_bits_stay_eight_unless_any_volume_has_more(tmp_path: Path) -> None:
    write_nifti(tmp_path / "in/a_t1.nii", (head() / 4).astype(np.uint8))
    assert ingest(tmp_path / "in", "flat", image="*_t1.nii", label="x")[1].dtype == "uint8"
    write_nifti(tmp_path / "in/b_t1.nii", head(1))
    assert ingest(tmp_path / "in", "deep", image="*_t1.nii", label="x")[1].dtype == "float16"


def test_lengths_in_metres_are_metres(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    image = nib.Nifti1Image(head(), np.diag([1e-3, 1e-3, 2e-3, 1]))
    image.header.set_xyzt_units("meter")
    nib.save(image, tmp_path / "in/a_t1.nii")
    url = ingest(tmp_path / "in", image="*_t1.nii", label="x", strict=True)[0]
    np.testing.assert_allclose(load_table(url, Data(image_size=32)).spacing_R2, 1, rtol=1e-4)


def test_mask_values_mean_what_is_said(folder: Path) -> None:
    labels = tumour() * 3 + (tumour(radius=(5, 5, 2.5)) - tumour()) * 7
    labels[0, 0, 0] = 9
    for file in folder.rglob("*_seg.nii.gz"):
        write_nifti(file, labels)
    url, card = ingest(folder, **PATTERNS, mask_values=MaskValues((3,), (7,), (9,)), strict=True)
    assert card.masks == ["tumour", "oedema"]
    assert (card.options["mask_tumour"], card.options["mask_oedema"], card.options["mask_background"]) == (
        "3",
        "7",
        "0,9",
    )
    [mask] = read_masks(url, ["p1/after-006"]).values()
    assert ((mask == 1).sum(), (mask == 2).sum()) == (tumour()[:, :, 6].sum(), (labels[:, :, 6] == 7).sum())


def write_flat(path: Path) -> None:
    image = nib.Nifti1Image(head(), affine())
    image.header.set_sform(np.diag([1.0, 1, 0, 1]), "scanner")
    image.header["srow_z"] = 0
    path.write_bytes(gzip.compress(image.header.binaryblock + bytes(4) + head().tobytes("F")))


BAD: dict[str, tuple[object, str]] = {
    "another shape": (
        lambda folder: write_nifti(folder / "p1/after_seg.nii.gz", tumour()[:20]),
        "mask p1/after_seg.nii.gz is 20×28×12 voxels, its image 24×28×12 (right, front, top); they must be of one grid",
    ),
    "elsewhere": (
        lambda folder: write_nifti(folder / "p1/after_seg.nii.gz", tumour(), affine() + np.eye(4, k=3) * 3),
        "mask p1/after_seg.nii.gz lies up to 3.0 mm away from its image, both 24×28×12 voxels; they must be of one",
    ),
    "unknown value": (
        lambda folder: write_nifti(folder / "p1/after_seg.nii.gz", tumour() * 4),
        "mask p1/after_seg.nii.gz: has the value 4; known: tumour 1, oedema 2; say what it is with --tumour, --oedema",
    ),
    "fraction": (
        lambda folder: write_nifti(folder / "p1/after_seg.nii.gz", tumour() * np.float32(0.3)),
        "mask p1/after_seg.nii.gz: has the value 0.3, no label map; resample masks by nearest neighbour",
    ),
    "not a number": (
        lambda folder: write_nifti(folder / "p1/after_seg.nii.gz", np.where(tumour(), np.nan, 0).astype(np.float32)),
        "has the value nan, no label map",
    ),
    "no mask": (lambda folder: (folder / "p1/after_seg.nii.gz").unlink(), "mask p1/after_seg.nii.gz: no such file"),
    "text": (
        lambda folder: (folder / "p1/after_t1.nii.gz").write_text("no volume"),
        "image: is not NIfTI; replace or remove it",
    ),
    "cut short": (
        lambda folder: (folder / "p1/after_t1.nii.gz").write_bytes((folder / "p1/after_t1.nii.gz").read_bytes()[:3000]),
        "image: is cut short or damaged (EOFError); replace or remove it",
    ),
    "four axes": (
        lambda folder: write_nifti(folder / "p1/after_t1.nii.gz", np.stack([head(), head()], 3)),
        "image: holds 24×28×12×2 of int16; expected three axes of numbers",
    ),
    "complex": (
        lambda folder: write_nifti(folder / "p1/after_t1.nii.gz", head().astype(np.complex64)),
        "image: holds 24×28×12 of complex64; expected three axes of numbers",
    ),
    "flat affine": (
        lambda folder: write_flat(folder / "p1/after_t1.nii.gz"),
        "image: its affine puts voxels nowhere",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_what_cannot_be_read_is_listed_or_with_strict_an_error(folder: Path, name: str) -> None:
    spoil, message = BAD[name]
    spoil(folder)
    url, card = ingest(folder, **PATTERNS)
    assert (card.num_rejected, card.num_cases) == (1, 3)
    [[what, reason]] = rejected(url)
    assert what == "scans/p1/after_t1.nii.gz"
    assert message in reason
    with pytest.raises(DataError) as error:
        ingest(folder, "strict", **PATTERNS, strict=True)
    assert message in str(error.value)
    assert str(folder) not in str(error.value)


def test_no_more_voxels_than_memory_takes(tmp_path: Path) -> None:
    path = write_nifti(tmp_path / "in/a_t1.nii", head())
    content = bytearray(path.read_bytes())
    content[42:48] = np.array([32767] * 3, "<i2").tobytes()
    path.write_bytes(content)
    with pytest.raises(DataError, match="holds 32767×32767×32767 voxels; expected 268,435,456 or fewer"):
        ingest(tmp_path / "in", image="*_t1.nii", label="x")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "--image is missing: expected a pattern with a *"),
        ({"image": "t1.nii"}, "--image t1.nii: expected a pattern with a *"),
        ({"image": "*/*_t1.nii.gz", "mask": "*_seg.nii.gz"}, "--image */*_t1.nii.gz --mask *_seg.nii.gz: expected"),
        ({"image": "*_t2.nii.gz"}, "scans: --image *_t2.nii.gz finds none of 8 files"),
        ({**PATTERNS, "case": None}, "--case is missing: which part of a volume's name is its patient?"),
        ({**PATTERNS, "case": "^q"}, "--case ^q: matches nothing in 'p1/after', so its patient is not known"),
        ({**PATTERNS, "case": "("}, "--case (: no regular expression: missing )"),
        ({"image": "*_t1.nii.gz"}, "neither a mask nor a label"),
    ],
)
def test_bad_patterns_are_one_line(folder: Path, options, message) -> None:
    with pytest.raises(DataError) as error:
        ingest(folder, **options)
    assert message in str(error.value)
    assert not (folder.parent / "out").exists()


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        ("image,mask\na.nii,b.nii\n", {}, "list.csv: no column 'case'"),
        ("image,case,mask\na.nii,,b.nii\n", {}, "list.csv line 2: no case; which patient is it of?"),
        ("image,case\n,p\n", {}, "list.csv line 2: no image"),
        ("image,case,fold\na.nii,p,1\n", {}, "list.csv: unknown column 'fold'; Known: image, mask, case, label"),
        ("image,case,mask\n../a.nii,p,b.nii\n", {}, "list.csv line 2: ../a.nii leaves the folder"),
        ("image,case,mask\na.nii,p,/b.nii\n", {}, "list.csv line 2: /b.nii leaves the folder"),
        ("image,case,label\na.nii,p,x\n", {}, "list.csv line 2: image: no such file"),
        ("image,case,label\na.nii,p,x\n", {"case": "."}, "--case .: has no effect with a CSV; leave it out"),
    ],
)
def test_bad_csv_files_are_one_line(folder: Path, text: str, options, message: str) -> None:
    (folder / "list.csv").write_text(text)
    with pytest.raises(DataError) as error:
        ingest(folder / "list.csv", **options)
    assert message in str(error.value)


def test_no_folder_and_no_csv(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none: no such folder, and no \.csv file"):
        ingest(tmp_path / "none", image="*")
    with pytest.raises(DataError, match=r"none\.csv: no such file"):
        ingest(tmp_path / "in/none.csv")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"tumour": (1, 2)}, "2 is listed twice"),
        ({"tumour": ()}, "expected a tumour value or more"),
        ({"oedema": (0,)}, "values above 0"),
    ],
)
def test_mask_values_have_one_meaning(values, message: str) -> None:
    with pytest.raises(DataError, match=message):
        MaskValues(**values)


def test_the_command_line(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    command = ["ingest", "nifti", str(folder), "--image", "*_t1.nii.gz", "--mask", "*_seg.nii.gz", "--case", "^[^/]+"]
    options = ["--slices=tumour", "--healthy=1", "--plane=sagittal", "--size=40", "--intensity=minmax", "--context=1",
               "--tumour=1", "--oedema=", "--background=2,3", "--label=glioma"]  # fmt: skip
    url = str(folder.parent / "out")
    assert main([*command, *options, "--out", url, "--strict", "--json"]) == 0
    card = json.loads(capfd.readouterr().out)
    assert (card["num_cases"], card["channels"], card["height"]) == (2, 3, 40)
    assert set(card["slices_per_plane"]) == {"sagittal"}
    assert card["options"] == {
        "slices": "tumour", "healthy": 1, "plane": "sagittal", "size": 40, "intensity": "minmax", "context": 1,
        "mask_tumour": "1", "mask_oedema": "none", "mask_background": "0,2,3",
    }  # fmt: skip
    other = ["--out", f"{url}2"]
    refused(capfd, [*command, *other, "--tumour", "x"], "--tumour x: expected whole numbers with commas between")
    refused(capfd, [*command, *other, "--slices", "-3"], "slices: '-3': expected a number above 0, all or tumour")
    refused(capfd, [*command, "--out", url], "exists; choose another --out")


@pytest.mark.real
def test_real_scans(real_data: Path, tmp_path: Path) -> None:
    """Two patients before and after, with tumour in the left frontal lobe: in the picture above and right."""
    url = str(tmp_path / "btp")
    card = ingest_nifti(
        real_data / "btp-nifti", url, image="*_Scan_T1.nii.gz", mask="*_Mask.nii.gz", case="^[^/]+", label="glioma",
        slicing=Slicing(20, healthy=2), strict=True,
    )  # fmt: skip
    assert (card.num_slices, card.num_cases, card.dtype, card.height) == (40, 2, "float16", 256)
    assert card.slices_per_class == {"glioma": 32, "no_tumor": 8}
    table = load_table(url, Data(image_size=256))
    assert set(table.group_R) == {"01", "03"}
    y, x = (np.concatenate([np.nonzero(mask)[axis] for mask in table.mask_RHW]) for axis in (0, 1))
    assert y.mean() < 128 < x.mean()
    images = table.image_RCHW[:, 0].astype(float)
    edges = images[:, 0] + images[:, -1] + images[:, :, 0] + images[:, :, -1]
    assert np.median(edges) == 0
    assert np.quantile(images, 0.99) > 0.7
