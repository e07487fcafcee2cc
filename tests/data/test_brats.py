"""BraTS folders as downloaded."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from command_line import refused
from example_scans import head, tumour, write_nifti

from braintum.cli import main
from braintum.data.ingest.brats import ingest_brats
from braintum.data.ingest.slicing import Slicing
from braintum.data.schema import DataError
from braintum.data.table import load_table, read_images, read_masks
from braintum.parts import Data

FEW = Slicing(2, size=32)
ALL = ("flair", "t1", "t1ce", "t2")


def write_case(folder: Path, seed: int, ending: str = ".nii.gz", enhancing: int = 4) -> None:
    """A skull-stripped head: nothing around it. A necrotic core in the enhancing tumour, in oedema."""
    for number, modality in enumerate(ALL):
        image = head(10 * seed + number)
        write_nifti(folder / f"{folder.name}_{modality}{ending}", np.where(image > 500, image, 0), axes="LPS")
    mask = 2 * tumour(radius=(5, 5, 3)) + (enhancing - 2) * tumour() - (enhancing - 1) * tumour(radius=(1, 1, 1))
    write_nifti(folder / f"{folder.name}_seg{ending}", mask, axes="LPS")


def ingest(root: Path, out: str = "out", **options):
    url = str(root.parent / out)
    return url, ingest_brats(root, url, **({"slicing": FEW} | options))


@pytest.fixture
def years(tmp_path: Path) -> dict[str, Path]:
    """A case or two as each year lays them out."""
    roots = {year: tmp_path / f"brats{year}" for year in ("2018", "2020", "2021")}
    write_case(roots["2018"] / "HGG/Brats18_2013_2_1", 1)
    write_case(roots["2018"] / "LGG/Brats18_TCIA09_141_1", 2)
    training = roots["2020"] / "MICCAI_BraTS2020_TrainingData"
    write_case(training / "BraTS20_Training_001", 3, ".nii")
    write_case(training / "BraTS20_Training_355", 4, ".nii")
    odd = training / "BraTS20_Training_355/BraTS20_Training_355_seg.nii"
    odd.rename(odd.with_name("W39_1998.09.19_Segm.nii"))  # as in the download
    (training / "name_mapping.csv").write_text(
        "Grade,BraTS_2017_subject_ID,BraTS_2018_subject_ID,BraTS_2019_subject_ID,BraTS_2020_subject_ID\n"
        "HGG,Brats17_1,Brats18_1,BraTS19_1,BraTS20_Training_001\nLGG,NA,NA,NA,BraTS20_Training_355\n"
    )
    write_case(roots["2021"] / "BraTS2021_00000", 5, enhancing=3)
    return roots


def test_a_case_of_another_name_is_listed(years: dict[str, Path]) -> None:
    root = years["2021"]
    write_case(root / "BraTS2021_00002", 7)
    (root / "BraTS2021_00002").rename(root / "patient two")
    url, card = ingest(root)
    assert card.num_cases == 1
    with open(f"{url}/rejected.csv", newline="") as file:
        assert list(csv.reader(file))[1:] == [
            ["patient two", "no patient two_t1ce.nii or .nii.gz; choose other --modalities"]
        ]


@pytest.mark.parametrize(
    ("year", "classes", "cases"),
    [
        ("2018", {"HGG": 2, "LGG": 2}, ["Brats18_2013_2_1", "Brats18_TCIA09_141_1"]),
        ("2020", {"HGG": 2, "LGG": 2}, ["BraTS20_Training_001", "BraTS20_Training_355"]),
        ("2021", {}, ["BraTS2021_00000"]),
    ],
)
def test_every_year_as_downloaded(years, year: str, classes, cases) -> None:
    url, card = ingest(years[year], strict=True)
    assert (card.name, card.slices_per_class, card.masks) == (f"brats{year}", classes, ["tumour", "oedema"])
    assert (card.channels, card.dtype, card.options["modalities"]) == (1, "float16", "t1ce")
    table = load_table(url, Data(image_size=32))
    assert sorted(set(table.case_id_R)) == cases
    middle = f"{cases[0]}-006"
    [image], [mask] = (list(read(url, [middle]).values()) for read in (read_images, read_masks))
    core = tumour()[:, :, 6].sum()  # the necrotic part is tumour
    assert ((mask == 1).sum(), (mask == 2).sum()) == (core, tumour(radius=(5, 5, 3))[:, :, 6].sum() - core)
    assert (image == 0).mean() > 0.5


def test_modalities_become_channels_each_scaled_by_its_own_head(years) -> None:
    url, card = ingest(years["2018"], modalities=("t2", "flair"), strict=True)
    assert (card.channels, card.options["modalities"]) == (2, "t2,flair")
    single = ingest(years["2018"], "single", modalities=("flair",), strict=True)[0]
    ids = ["Brats18_2013_2_1-006"]
    np.testing.assert_array_equal(read_images(url, ids)[ids[0]][1:], read_images(single, ids)[ids[0]])


def test_a_label_for_all(years) -> None:
    assert ingest(years["2018"], label="glioma")[1].classes == ["glioma"]


def test_what_is_missing_is_listed(years) -> None:
    root = years["2018"]
    (root / "HGG/Brats18_2013_2_1/Brats18_2013_2_1_t1ce.nii.gz").unlink()
    (root / "LGG/Brats18_TCIA09_141_1/Brats18_TCIA09_141_1_seg.nii.gz").unlink()
    write_case(root / "LGG/other", 7)
    write_nifti(root / "LGG/other/other_t2.nii.gz", head()[:20])
    url, card = ingest(root, slicing=Slicing(1, size=32), modalities=("t1ce",))
    assert card.num_rejected == 2
    with open(f"{url}/rejected.csv", newline="") as file:
        assert list(csv.reader(file))[1:] == [
            ["HGG/Brats18_2013_2_1", "no Brats18_2013_2_1_t1ce.nii or .nii.gz; choose other --modalities"],
            ["LGG/Brats18_TCIA09_141_1", "expected one mask, Brats18_TCIA09_141_1_seg.nii or .nii.gz; found none"],
        ]
    url, card = ingest(root, "other", modalities=("flair", "t2"))
    with open(f"{url}/rejected.csv", newline="") as file:
        what, reason = list(csv.reader(file))[-1]
    assert what == "LGG/other"
    assert reason.startswith("t2 is 20×28×12 voxels, flair 24×28×12")


def test_what_is_no_brats_is_one_line(years, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="empty: no case of BraTS: expected folders with files such as CASE/CASE_t1ce"):
        ingest(tmp_path / "empty")
    with pytest.raises(DataError, match="none: no such folder"):
        ingest(tmp_path / "none")
    for modalities in (("t1c",), ("t1", "t1")):
        with pytest.raises(DataError, match="expected each once, of flair, t1, t1ce, t2"):
            ingest(years["2018"], modalities=modalities)
    (years["2021"] / "name_mapping.csv").write_text("Grade,ID\nhigh,BraTS2021_00000\n")
    with pytest.raises(DataError, match="grade 'high': expected a column Grade of HGG or LGG"):
        ingest(years["2021"])


def test_the_command_line(years, capfd: pytest.CaptureFixture[str]) -> None:
    out = str(years["2018"].parent / "out")
    command = ["ingest", "brats", str(years["2018"]), "--size", "32", "--slices", "all"]
    assert main([*command, "--modalities", "t1ce, flair", "--out", out, "--json", "--strict"]) == 0
    card = json.loads(capfd.readouterr().out)
    assert (card["channels"], card["classes"]) == (2, ["HGG", "LGG", "no_tumor"])
    refused(capfd, [*command, "--modalities", "t3", "--out", f"{out}2"], "modalities: t3: expected each once")
