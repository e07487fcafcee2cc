"""DICOM: who is who, and which series is taken."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from command_line import refused
from example_dicom import SALT, ingest, pixels, rejected, write_study
from example_scans import affine, head, tumour, write_segmentation, write_series
from pydicom.data import get_testdata_file
from pydicom.uid import generate_uid

from braintum.cli import main
from braintum.data.ingest.dicom_files import found
from braintum.data.ingest.dicom_series import is_contrast_t1
from braintum.data.ingest.slicing import Slicing
from braintum.data.schema import DataError
from braintum.data.shards import read_shard
from braintum.data.table import load_table, read_images
from braintum.parts import Data


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "dump"


def test_a_patient_is_a_keyed_hash(root: Path) -> None:
    write_study(root / "a", "one", 1, StudyDate="20210101")
    write_study(root / "b", "one", 2, StudyDate="20200101")
    write_study(root / "c", "two", 3)
    url, card = ingest(root, strict=True)
    assert (card.name, card.num_slices, card.num_masks, card.num_cases, card.dtype) == ("dicom", 6, 6, 2, "float16")
    assert card.provenance == "DICOM files, identities replaced"
    assert card.options["series"] == "by description and tags"
    table = load_table(url, Data(image_size=32))
    assert all(len(case) == 16 and set(case) <= set("0123456789abcdef") for case in table.case_id_R)
    assert table.group_R == table.case_id_R
    one = max(set(table.case_id_R), key=table.case_id_R.count)
    assert [i for i in table.slice_id_R if i.startswith(one)] == [f"{one}-0{n}-00{k}" for n in (1, 2) for k in (6, 7)]
    later = read_images(url, [f"{one}-02-006"])[f"{one}-02-006"]
    alone = ingest(root / "a", "../alone", strict=True)[0]
    assert (pixels(alone)[0] == later).all()  # scans are numbered in the order of time
    again = ingest(root, "again")[1]
    other = ingest(root, "other", salt="fedcba9876543210")[1]
    drawn = [ingest(root, out, salt=None)[1] for out in ("drawn", "redrawn")]
    assert again.digest == card.digest
    assert len({card.digest, other.digest, drawn[0].digest, drawn[1].digest}) == 4


@pytest.mark.parametrize(
    ("descriptions", "expected"),
    [
        (["T2 TSE tra", "t1 se tra", "t1 se tra +KM"], "t1 se tra +KM"),
        (["AX T1 PRE", "AX T1 POST", "AX FLAIR POST"], "AX T1 POST"),
        (["t1_mprage_sag", "t1_mprage_sag_GD", "t1_mprage_sag_GD_MIP"], "t1_mprage_sag_GD"),
        (["3D BRAVO", "3D BRAVO +C", "DWI +C", "ep2d_perf post"], "3D BRAVO +C"),
        (["T1 without contrast", "T1 with contrast"], "T1 with contrast"),
        (["T1w nativ", "T1CE", "Subtraction T1 post"], "T1CE"),
        (["T1 FLAIR POST", "T2 FLAIR POST"], "T1 FLAIR POST"),
        (["T1 posterior fossa", "T1 post-op", "T1 post"], "T1 post"),
    ],
)
def test_the_contrast_enhanced_t1_is_taken_by_its_description(root: Path, descriptions, expected) -> None:
    (root.parent / "labels.csv").write_text("patient,label\npatient-1,glioma\n")
    study = generate_uid()
    for seed, description in enumerate(descriptions):
        write_series(root / f"s{seed}", head(seed), SeriesDescription=description, StudyInstanceUID=study)
    labels = root.parent / "labels.csv"
    url = ingest(root, labels=labels)[0]
    only = ingest(root / f"s{descriptions.index(expected)}", "../only", labels=labels, series=".*")[0]
    np.testing.assert_array_equal(pixels(url), pixels(only))


CONTRAST = (
    "T1 post Gd", "T1 +C", "T1 MPRAGE KM", "T1C", "T1 post contrast", "T1 con contraste", "T1 avec gado", "CE-T1",
    "AX T1 C+", "t1ce", "T1 nach KM", "T1 dopo mdc", "T1 c/c", "T1 apres injection", "T1 basal ganglia +C",
)  # fmt: skip
NATIVE = (
    "T1 no contrast", "T1 no Gd", "T1 before contrast", "T1 precontrast", "T1 pre-contrast", "T1 w/out", "T1 w/o Gd",
    "T1 C-", "T1 -C", "T1 vor KM", "T1 o. KM", "T1 ohne KM", "T1 sin contraste", "T1 s/c", "T1 senza mdc",
    "T1 sans gado", "T1 sans injection", "T1 non-contrast", "T1 noncontrast", "T1 nativ", "T1 unenhanced", "T1 basal",
    "T1 before Gd", "T1 sem contraste", "T1 prima del mdc", "T1 without gadolinium", "T1 avant injection",
)  # fmt: skip


def test_descriptions_say_with_or_without_contrast(root: Path) -> None:
    """In the languages of consoles, whatever ContrastBolusAgent says of those without: many scanners fill it always."""
    for number, description in enumerate([*CONTRAST, *NATIVE]):
        agent = {"ContrastBolusAgent": "Gadovist"} if description in NATIVE else {}
        write_series(root / f"{number:02d}", head()[:, :, :1], SeriesDescription=description, **agent)
    headers, unreadable, _ = found(root)
    assert not unreadable
    taken = {header.description: is_contrast_t1(header) for header in headers}
    assert [description for description in CONTRAST if not taken[description]] == []
    assert [description for description in NATIVE if taken[description]] == []


TAGS = {"SeriesDescription": "", "ContrastBolusAgent": "Gadovist", "ScanningSequence": "SE", "EchoTime": 12.0,
        "RepetitionTime": 500.0}  # fmt: skip


@pytest.mark.parametrize(
    ("elements", "is_taken"),
    [
        ({}, True),
        ({"ScanningSequence": ["GR", "IR"], "EchoTime": 3.0, "RepetitionTime": 2000.0}, True),
        ({"SeriesDescription": "head axial"}, True),
        ({"SeriesDescription": None, "ProtocolName": "T1 MPRAGE"}, True),
        ({"SeriesDescription": "t1 tra"}, True),
        ({"SeriesDescription": "t1 tra pre"}, False),
        ({"SeriesDescription": "t1 tra", "ContrastBolusAgent": "NONE"}, False),
        ({"ContrastBolusAgent": None}, False),
        ({"RepetitionTime": 4000.0, "EchoTime": 90.0}, False),
        ({"ScanningSequence": "GR", "EchoTime": 25.0}, False),
        ({"EchoTime": None}, False),
        ({"ImageType": ["DERIVED", "SECONDARY", "PROJECTION IMAGE"]}, False),
        ({"Modality": "CT", "SOPClassUID": "1.2.840.10008.5.1.4.1.1.2"}, False),
    ],
)
def test_or_by_its_tags(root: Path, elements, is_taken: bool) -> None:
    write_study(root / "a", masked=True, **(TAGS | elements))
    if is_taken:
        assert ingest(root, strict=True)[1].num_masks == 2
        return
    with pytest.raises(DataError, match="of 1 series there is none of which its description and tags say"):
        ingest(root)


def test_an_expression_overrides_the_rules(root: Path) -> None:
    write_study(root / "a", SeriesDescription="Sequence 7b")
    assert ingest(root, series="sequence 7")[1].options["series"] == "by an expression"
    with pytest.raises(DataError, match="of 1 series there is none of which --series matches its description"):
        ingest(root, "none", series="T1")
    with pytest.raises(DataError, match=r"--series \(: no regular expression"):
        ingest(root, "wrong", series="(")


def test_of_several_the_one_with_a_mask_or_the_finest_pixels_in_the_plane(root: Path) -> None:
    study = {"StudyInstanceUID": generate_uid()}
    (root.parent / "labels.csv").write_text("patient,label\npatient-1,glioma\n")
    labels = {"labels": root.parent / "labels.csv"}
    write_series(root / "a", head(1), affine((3, 1, 1)), "PIR", **study)
    write_series(root / "b", head(2), affine((1, 1, 3)), "LPS", **study)
    images = write_series(root / "c", head(3), affine((2, 2, 2)), "LPS", **study)
    for plane, spacing in (("axial", (1, 1)), ("sagittal", (1, 1))):
        url = ingest(root, plane, slicing=Slicing(2, size=32, plane=plane), **labels)[0]
        assert load_table(url, Data(image_size=32)).spacing_R2[0].tolist() == pytest.approx(spacing)
    write_segmentation(root / "seg", images, {1: tumour()})
    assert load_table(ingest(root, "mask")[0], Data(image_size=32)).spacing_R2[0].tolist() == pytest.approx([2, 2])


def test_annotated_series_are_taken_if_allowed(root: Path) -> None:
    write_study(root / "a", BurnedInAnnotation="YES")
    assert ingest(root, allow_burned_in=True, strict=True)[1].options["burned_in"] is True
    assert ingest(root, "clean", allow_burned_in=True)[1].num_slices == 2


def test_files_are_found_by_content_and_copies_count_once(root: Path) -> None:
    write_study(root / "a")
    for path in sorted((root / "a").glob("0*")):
        shutil.copy(path, root / f"copy of {path.name}.txt")
    (root / "notes.dcm").write_text("not DICOM")
    (root / "empty").touch()
    (root / "DICOMDIR").write_bytes(Path(get_testdata_file("DICOMDIR")).read_bytes())
    card = ingest(root)[1]
    assert (card.num_slices, card.num_rejected) == (2, 0)


def test_damaged_files_are_listed_by_number_and_digest(root: Path) -> None:
    write_study(root / "a")
    (root / "b").write_bytes((root / "a/000").read_bytes()[:300])
    url, card = ingest(root)
    assert (card.num_slices, card.num_rejected) == (2, 1)
    [[what, reason]] = rejected(url)
    assert what.startswith("file 14, SHA-256 ")
    assert reason.startswith("has no Study-, Series- or SOPInstanceUID")


def test_labels_by_patient(root: Path) -> None:
    labels = root.parent / "labels.csv"
    labels.write_text("patient,label\none,glioma\ntwo,\nnobody,other\n")
    write_study(root / "a", "one", 1)
    write_study(root / "b", "two", 2)
    assert ingest(root, labels=labels)[1].slices_per_class == {"glioma": 2}
    for text, message in [
        ("patient,label\none,glioma\none,other\n", "--labels, entry 2: a second label for one patient"),
        ("patient,label\n,glioma\n", "--labels, entry 1: no patient"),
        ("one,glioma\n", "--labels: expected a CSV file, UTF-8, with the columns patient and label, and no other"),
    ]:
        labels.write_text(text)
        with pytest.raises(DataError) as error:
            ingest(root, "bad", labels=labels)
        assert str(error.value).startswith(message)
    with pytest.raises(DataError, match="--labels: cannot be read: No such file"):
        ingest(root, "bad", labels=root.parent / "none.csv")


@pytest.mark.parametrize(
    ("elements", "age", "sex"),
    [
        ({"PatientAge": "045Y", "PatientSex": "F"}, 45, "F"),
        ({"PatientAge": "018M", "PatientSex": "M"}, 1, "M"),
        ({"PatientAge": "103Y", "PatientSex": "O"}, 90, "O"),
        ({"PatientBirthDate": "19800612", "StudyDate": "20200611"}, 39, None),
        ({"PatientBirthDate": "19800612", "StudyDate": "20200612", "PatientSex": ""}, 40, None),
        ({"PatientBirthDate": "20210101", "StudyDate": "20200612"}, None, None),
        ({"PatientAge": "old"}, None, None),
    ],
)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_age_and_sex_only_if_asked_for(root: Path, elements: dict[str, str], age: int | None, sex: str | None) -> None:
    write_study(root, **elements)
    stored = []
    for asked in (False, True):
        url, card = ingest(root, f"out-{asked}", demographics=asked, strict=True)
        rows = read_shard(url, card.shards[0])
        stored.append({(row["age_years"], row["sex"]) for row in rows.select(["age_years", "sex"]).to_pylist()})
        assert card.options["demographics"] == asked
    assert stored == [{(None, None)}, {(age, sex)}]


def test_what_is_no_dicom_is_one_line(root: Path) -> None:
    with pytest.raises(DataError, match="no such folder"):
        ingest(root)
    root.mkdir()
    (root / "a").write_text("text")
    with pytest.raises(DataError, match="dicom: none of the folder's files is DICOM"):
        ingest(root)
    with pytest.raises(DataError, match="salt: has 5 characters; expected 16 or more"):
        ingest(root, salt="short")


def test_the_command_line(root: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    write_study(root / "a")
    out = str(root.parent / "out")
    command = ["ingest", "dicom", str(root), "--size", "32", "--series", "t1", "--name", "mine"]
    monkeypatch.setenv("BRAINTUM_SALT", SALT)
    assert main([*command, "--out", out, "--json", "--strict", "--slices", "2"]) == 0
    card = json.loads(capfd.readouterr().out)
    assert (card["name"], card["num_masks"]) == ("mine", 2)
    assert card["digest"] == ingest(root, "same", series="t1")[1].digest
    refused(capfd, [*command, "--out", f"{out}2", "--salt", "short"], "salt: has 5 characters")
