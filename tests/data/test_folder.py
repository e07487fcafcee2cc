from __future__ import annotations

import csv
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from braintum.data.folds import held_out_folds
from braintum.data.ingest.folder import ingest_folder
from braintum.data.schema import DataError
from braintum.data.table import load_table, read_images, read_masks
from braintum.parts import Data

SIZE = 24
GREY = np.arange(SIZE * SIZE, dtype=np.uint8).reshape(SIZE, SIZE)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "raw"
    root.mkdir()
    mask = np.zeros((SIZE, SIZE), np.uint8)
    mask[3:9, 5:11] = 255
    for name in "abcd":
        Image.fromarray(np.roll(GREY, ord(name))).save(root / f"{name}.png")
    Image.fromarray(mask).save(root / "mask.png")
    text = PngInfo()
    text.add_text("about", "x" * 2**21, zip=True)  # more than Pillow is willing to unpack
    Image.fromarray(mask[:12]).save(root / "short.png")
    Image.fromarray(np.roll(mask, 1)).save(root / "other.png")
    Image.fromarray(GREY[:12]).save(root / "small.png")
    Image.fromarray(np.stack([GREY, GREY, 255 - GREY], 2)).save(root / "colour.png")
    (root / "deep_colour.png").write_bytes(deep_colour_png())
    (root / "deep_colour.tif").write_bytes(deep_colour_tiff())
    for name in ("same", "again"):
        Image.fromarray(np.roll(GREY, ord("a"))).save(root / f"{name}.png")
    Image.fromarray(np.zeros_like(GREY)).save(root / "blank.png")
    (root / "broken.png").write_bytes((root / "a.png").read_bytes()[:60])
    Image.new("1", (5000, 4000)).save(root / "huge.png")
    (root / "notes.png").write_text("not an image")
    Image.fromarray(GREY).save(root / "text.png", pnginfo=text)
    Image.fromarray(GREY).convert("F").save(root / "float.tif")
    Image.fromarray(GREY).save(root / "two.tif", save_all=True, append_images=[Image.fromarray(GREY)])
    Image.fromarray(np.full((SIZE, SIZE), 77, np.uint8)).save(root / "grey_mask.png")
    return root


DEEP = np.arange(SIZE * SIZE * 3, dtype=np.uint16).reshape(SIZE, SIZE * 3) * 37
"""Colour of 16 bit, which Pillow cannot write."""


def deep_colour_png() -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    lines = b"".join(b"\0" + line.astype(">u2").tobytes() for line in DEEP)
    header = struct.pack(">IIBBBBB", SIZE, SIZE, 16, 2, 0, 0, 0)
    chunks = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(lines)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunks


def deep_colour_tiff() -> bytes:
    pixels = DEEP.astype("<u2").tobytes()
    depths = 8 + len(pixels)
    width, height, depth, compression, colour, at, channels, rows, length = 256, 257, 258, 259, 262, 273, 277, 278, 279
    short, long = 3, 4
    entries = [
        (width, short, 1, SIZE), (height, short, 1, SIZE), (depth, short, 3, depths), (compression, short, 1, 1),
        (colour, short, 1, 2), (at, long, 1, 8), (channels, short, 1, 3), (rows, short, 1, SIZE),
        (length, long, 1, len(pixels)),
    ]  # fmt: skip
    directory = struct.pack("<H", len(entries)) + b"".join(struct.pack("<HHII", *e) for e in entries) + bytes(4)
    return b"II*\0" + struct.pack("<I", depths + 6) + pixels + struct.pack("<3H", 16, 16, 16) + directory


def ingest(root: Path, text: str, **options):
    (root / "manifest.csv").write_text(text)
    return ingest_folder(root, str(root.parent / "out"), strict=True, **options)


def test_columns_become_rows(folder: Path) -> None:
    text = (
        "\ufeffslice_id, image,mask,label,case,fold,spacing_y,spacing_x,position\n"
        "s1,a.png,mask.png,glioma,p1,1,0.5,0.6,2\n"
        "s2,b.png,,glioma,p1,1,,,\n"
        "s3,c.png,mask.png,,p2,2,,,\n"
    )
    card = ingest(folder, text, name="mine", licence="CC0-1.0")
    assert (card.name, card.licence, card.num_cases, card.num_masks) == ("mine", "CC0-1.0", 2, 2)
    assert (card.slices_per_fold, card.slices_per_class) == ({"1": 2, "2": 1}, {"glioma": 2})
    table = load_table(str(folder.parent / "out"), Data(image_size=SIZE))
    assert table.slice_id_R == ["s1", "s2", "s3"]
    assert table.group_R[0] == table.group_R[1] != table.group_R[2]
    assert table.has_mask_R.tolist() == [True, False, True]
    assert table.label_R.tolist() == [0, 0, -1]
    np.testing.assert_allclose(table.spacing_R2, [[0.5, 0.6], [np.nan] * 2, [np.nan] * 2])
    np.testing.assert_array_equal(table.image_RCHW[0, 0], np.roll(GREY, ord("a")))
    assert table.mask_RHW[0].sum() == 36
    assert table.mask_RHW[0, 3:9, 5:11].all()


def test_groups_are_cases_then_folds_then_slices(folder: Path, tmp_path: Path) -> None:
    def groups(text: str, out: str) -> list[str]:
        (folder / "manifest.csv").write_text(text)
        ingest_folder(folder, str(tmp_path / out))
        return load_table(str(tmp_path / out), Data(image_size=SIZE)).group_R

    by_fold = groups("image,label,fold\na.png,x,1\nb.png,x,1\nc.png,x,2\n", "fold")
    assert by_fold[0] == by_fold[1] != by_fold[2]
    # "train" and "test" are no folds to hold out one after another
    assert len(set(groups("image,label,fold\na.png,x,train\nb.png,x,train\nc.png,x,test\n", "test"))) == 3
    picture = groups("image,label\na.png,x\nb.png,x\nsame.png,x\n", "picture")
    assert picture[0] == picture[2] != picture[1]


def test_the_same_picture_twice_on_one_side_of_any_split(folder: Path) -> None:
    text = "image,label,case,fold\na.png,x,p,1\nsame.png,x,p,1\nagain.png,x,q,1\nb.png,x,r,2\n"
    assert ingest(folder, text).num_slices == 4


def test_what_a_picture_says_twice_is_left_out_and_listed(folder: Path, tmp_path: Path) -> None:
    """All at once; the rest is a dataset that no split parts."""
    text = (
        "slice_id,image,mask,label,case,fold\n"
        "a1,a.png,,x,p,1\na2,same.png,,x,q,2\na3,again.png,,x,r,1\n"  # in two folds: those beside the first stay
        "b1,b.png,,x,r,1\nb2,b.png,,y,s,2\nb3,b.png,mask.png,,s,2\n"  # two labels: none stays
        "c1,c.png,,y,r,1\nc2,c.png,,y,t,test\nc3,c.png,,y,s,2\nc4,c.png,,y,u,test\n"  # the test set stays
        "d1,d.png,mask.png,y,v,2\n"
    )
    (folder / "manifest.csv").write_text(text)
    out = tmp_path / "out"
    card = ingest_folder(folder, str(out))
    gone = ["a2", "b1", "b2", "b3", "c1", "c3"]
    table = load_table(str(out), Data(image_size=SIZE))
    assert (card.excluded, table.slice_id_R) == (gone, ["a1", "a3", "c2", "c4", "d1"])
    assert (card.num_slices, card.num_masks, card.num_cases, card.num_rejected) == (5, 1, 5, 6)
    assert (card.slices_per_class, card.slices_per_fold) == ({"x": 2, "y": 3}, {"1": 2, "2": 1, "test": 2})
    with (out / "rejected.csv").open() as lines:
        reasons = {line["what"]: line["reason"] for line in csv.DictReader(lines)}
    assert sorted(reasons) == sorted(f"manifest.csv line {n}" for n in (3, 5, 6, 7, 8, 10))
    assert "'a1' (manifest.csv line 2, fold '1', group 'case:p') and 'a2' (" in reasons["manifest.csv line 3"]
    assert "'b1' (" in reasons["manifest.csv line 7"]
    assert "two labels, 'x' and 'y'; keep the one that is right" in reasons["manifest.csv line 7"]
    assert "'c2' (manifest.csv line 9, fold 'test', group 'case:t') and 'c1' (" in reasons["manifest.csv line 8"]


def test_nothing_is_left_of_pictures_that_contradict_themselves(folder: Path) -> None:
    (folder / "manifest.csv").write_text("image,label\na.png,x\nsame.png,y\n")
    with pytest.raises(DataError, match=r"no slice is left; slices 'a.png' \(.*two labels, 'x' and 'y'"):
        ingest_folder(folder, str(folder.parent / "out"))
    assert not (folder.parent / "out").exists()


def test_the_same_picture_twice_in_the_test_set(folder: Path) -> None:
    """It is never split, so the source may have it twice; strict too."""
    text = "image,label,case,fold\na.png,x,p,test\nsame.png,x,q,test\nb.png,x,r,train\nc.png,x,s,train\n"
    assert ingest(folder, text).num_slices == 4


def test_what_is_not_known_of_a_picture_contradicts_nothing(folder: Path) -> None:
    text = "image,mask,label\na.png,mask.png,\nsame.png,,x\nagain.png,mask.png,x\nb.png,other.png,y\n"
    assert ingest(folder, text).num_slices == 4


def test_blank_slices_may_be_alike(folder: Path) -> None:
    text = "slice_id,image,label,case,fold\ns1,blank.png,x,p,1\ns2,blank.png,y,q,2\ns3,a.png,x,r,2\n"
    assert ingest(folder, text).num_slices == 3


@pytest.mark.parametrize("name", ["deep.png", "deep.tif"])
def test_sixteen_bits_survive(folder: Path, name: str) -> None:
    deep = (GREY.astype(np.uint16) * 17 + 1000).astype(np.uint16)
    Image.fromarray(deep).save(folder / name)
    card = ingest(folder, f"image,label\n{name},x\n")
    out = str(folder.parent / "out")
    assert card.dtype == "uint16"
    np.testing.assert_array_equal(read_images(out, [name])[name][0], deep)
    image = load_table(out, Data(image_size=SIZE)).image_RCHW[0, 0].astype(np.float64)
    np.testing.assert_allclose(image, (deep - 1000) / (deep.max() - 1000.0), atol=1e-3)


def test_formats_and_colour(folder: Path) -> None:
    Image.fromarray(np.stack([GREY] * 3, 2)).save(folder / "grey_in_colour.png")
    Image.fromarray(GREY).convert("RGBA").save(folder / "alpha.png")
    Image.fromarray(GREY).save(folder / "lossy.jpg", quality=95)
    text = "image,mask\na.png,mask.png\ngrey_in_colour.png,mask.png\nalpha.png,mask.png\nlossy.jpg,mask.png\n"
    assert ingest(folder, text).channels == 1
    (folder / "manifest.csv").write_text("image,label\ncolour.png,x\n")
    assert ingest_folder(folder, str(folder.parent / "colour")).channels == 3


def test_masks_may_be_label_maps(folder: Path) -> None:
    labels = np.zeros((SIZE, SIZE), np.uint8)
    labels[:4] = 1
    labels[4:6] = 2
    Image.fromarray(labels).save(folder / "labels.png")
    card = ingest(folder, "image,mask\na.png,labels.png\n")
    assert card.masks == ["tumour", "oedema"]
    np.testing.assert_array_equal(read_masks(str(folder.parent / "out"), ["a.png"])["a.png"], labels)


def test_the_indices_of_a_palette_are_the_labels_of_a_mask(folder: Path) -> None:
    labels = np.zeros((SIZE, SIZE), np.uint8)
    labels[:4], labels[4:6] = 1, 2
    mask = Image.fromarray(labels)
    mask.putpalette([0, 0, 0, 255, 0, 0, 0, 90, 0])
    mask.save(folder / "colours.png")
    ingest(folder, "image,mask\na.png,colours.png\n")
    np.testing.assert_array_equal(read_masks(str(folder.parent / "out"), ["a.png"])["a.png"], labels)
    mask.putpalette([255, 255, 255, 0, 0, 0, 0, 0, 0])  # black on white: 0 may well be the tumour
    mask.save(folder / "colours.png")
    with pytest.raises(DataError, match=r"line 2: mask colours\.png: its palette shows 0"):
        ingest_folder(folder, str(folder.parent / "other"))


def test_an_image_with_a_palette_is_what_it_shows(folder: Path) -> None:
    image = Image.fromarray(GREY)
    image.putpalette([255 - i // 3 for i in range(3 * 256)])
    image.save(folder / "palette.png")
    ingest(folder, "image,label\npalette.png,x\n")
    shown = read_images(str(folder.parent / "out"), ["palette.png"])["palette.png"][0]
    np.testing.assert_array_equal(shown, 255 - GREY)


def test_size_makes_images_alike(folder: Path) -> None:
    text = "image,label,spacing\na.png,x,1\nsmall.png,x,1\n"
    with pytest.raises(DataError, match=r"line 3: .*small\.png is 24×12.*--size"):
        ingest(folder, text)
    card = ingest(folder, text, size=16)
    assert (card.height, card.width) == (16, 16)
    table = load_table(str(folder.parent / "out"), Data(image_size=16))
    np.testing.assert_allclose(table.spacing_R2, [[1.5, 1.5], [0.75, 1.5]])


def test_the_only_csv_is_the_manifest(folder: Path, tmp_path: Path) -> None:
    (folder / "list.csv").write_text("image,label\na.png,x\n")
    assert ingest_folder(folder, str(tmp_path / "one")).num_slices == 1
    (folder / "other.csv").write_text("image,label\na.png,x\n")
    with pytest.raises(DataError, match=r"needs a manifest.csv.*found list.csv, other.csv"):
        ingest_folder(folder, str(tmp_path / "two"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("image,lable\na.png,x\n", "unknown column 'lable'; did you mean 'label'"),
        ("mask,label\nmask.png,x\n", "no column 'image'"),
        ("image,fold\na.png,1\n", "neither a column 'mask' nor 'label'"),
        ("image,label\n", "no slices"),
        ("image,label\na.png,x\nb.png\n", "line 3: has not 2 cells"),
        ("image,label\na.png,x\nb.png,\n", "line 3: neither mask nor label"),
        ("slice_id,image,label\ns,a.png,x\ns,b.png,x\n", "line 3: duplicate slice id 's', as in manifest.csv line 2"),
        ("image,label,fold\na.png,x,1\nb.png,x,../../x\n", "line 3: fold '../../x': expected 1 to 32 letters"),
        ('image,label\na.png,x\nb.png,"x\nc.png,x\n"\n', r"line 5: label 'x\n'...: a line break"),
        ("image,label\na.png,x\nb.png,\x1b[2J\n", r"line 3: label '\x1b'...: a line break or another control"),
        ("image,label\na.png,x\ndeep_colour.png,x\n", "line 3: deep_colour.png has colour or transparency of 16 bit"),
        ("image,label\na.png,x\ndeep_colour.tif,x\n", "line 3: deep_colour.tif has colour or transparency of 16 bit"),
        ("image,mask\na.png,deep_colour.png\n", "line 2: deep_colour.png has colour or transparency of 16 bit"),
        (
            "image,label,fold\na.png,x,1\nb.png,x,1\nsame.png,x,2\nagain.png,x,2\n",
            "'a.png' (manifest.csv line 2, fold '1', group 'fold:1') and 'same.png' (manifest.csv line 4, fold '2', "
            "group 'fold:2') are the same picture, so a model could be scored on what it was trained on; remove one, "
            "or give both the same case and fold; without --strict they are left out and listed (2 such slices in all)",
        ),
        ("image,label,case\na.png,x,p\nsame.png,x,q\n", "group 'case:p') and 'same.png' (manifest.csv line 3, group"),
        (
            "slice_id,image,mask,label,case\nx,a.png,mask.png,a,p\ny,same.png,mask.png,b,p\nz,again.png,,b,p\n",
            "'x' (manifest.csv line 2, group 'case:p') and 'y' (manifest.csv line 3, group 'case:p') are the same "
            "picture with two labels, 'a' and 'b'; keep the one that is right, or correct the other; without --strict "
            "they are left out and listed (3 such slices in all)",
        ),
        (
            "image,mask\na.png,mask.png\nb.png,mask.png\nsame.png,other.png\n",
            "and 'same.png' (manifest.csv line 4, group 'picture:",
        ),
        (
            "image,label,mask\na.png,x,\nsame.png,,mask.png\nagain.png,x,other.png\n",
            "are the same picture with two masks;",
        ),
        ("image,label,case,fold\na.png,x,p,1\nb.png,x,p,2\n", "line 3: case 'p' is in fold '2'"),
        ("image,label,fold\na.png,x,1\nb.png,x,\n", "line 3: no fold"),
        ("image,label\na.png,x\nnone.png,x\n", "line 3: none.png: no such file"),
        ("image,label\na.png,x\n../raw/b.png,x\n../../etc/passwd,x\n", "line 4: ../../etc/passwd leaves the folder"),
        ("image,label\na.png,x\nb\0.png,x\n", r"line 3: image 'b\x00'...: a line break or another"),
        ("image,label\na.png,x\nbroken.png,x\n", "line 3: broken.png does not open"),
        ("image,label\na.png,x\nnotes.png,x\n", "line 3: notes.png does not open: not a PNG, JPEG or TIFF"),
        ("image,label\na.png,x\ntext.png,x\n", "line 3: text.png does not open: Decompressed data too large"),
        (
            "image,label\na.png,x\nhuge.png,x\n",
            "line 3: huge.png does not open: 5000×4000, more than 16,777,216 pixels",
        ),
        ("image,label\na.png,x\ntwo.tif,x\n", "line 3: two.tif holds several pictures"),
        ("image,mask\na.png,float.tif\n", "line 2: float.tif is of mode F; save it as grey of 8 or 16 bit"),
        ("image,mask\na.png,mask.png\nb.png,short.png\n", "line 3: mask short.png is 24×12, its image 24×24"),
        ("image,mask\na.png,grey_mask.png\n", "line 2: mask grey_mask.png has values up to 77"),
        ("image,label\na.png,x\ncolour.png,x\n", "line 3: image colour.png is 24×24, 8 bit, 3 channels"),
        ("image,label,spacing\na.png,x,wide\n", "line 2: spacing: 'wide' is not a number"),
        ("image,label,spacing\na.png,x,0\n", "line 2: spacing: expected mm per pixel above 0"),
    ],
)
def test_bad_manifests_are_one_line_and_leave_nothing(folder: Path, text: str, message: str) -> None:
    with pytest.raises(DataError) as error:
        ingest(folder, text)
    assert message in str(error.value)
    assert "\n" not in str(error.value)
    assert not (folder.parent / "out").exists()


def test_no_folder_and_no_manifest(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such folder"):
        ingest_folder(tmp_path / "none", str(tmp_path / "out"))
    with pytest.raises(DataError, match=r"found no \.csv file"):
        ingest_folder(tmp_path, str(tmp_path / "out"))


@pytest.mark.real
@pytest.mark.slow
def test_real_slices_keep_their_folds(real_data: Path, tmp_path: Path) -> None:
    card = ingest_folder(real_data / "cheng", str(tmp_path / "cheng"))
    assert (card.num_slices, card.num_masks, card.num_cases) == (2400, 2400, None)
    assert card.slices_per_class == {"glioma": 1079, "meningioma": 563, "pituitary": 758}
    table = load_table(str(tmp_path / "cheng"), Data(image_size=64))
    held_out = held_out_folds(table, None, 0)
    assert {name: len(rows) for name, rows in held_out.items()} == {"1": 570, "2": 655, "3": 562, "4": 613}
    for plane, name in ((table.image_RCHW[7, 0], "images/0008.png"), (table.mask_RHW[7] * 255, "masks/0008.png")):
        native = np.asarray(Image.open(real_data / "cheng" / name).convert("L"), np.float64)
        small = native.reshape(64, 4, 64, 4).mean((1, 3))
        assert np.abs(plane - (small if plane.max() < 255 or "images" in name else (small >= 127.5) * 255)).max() <= 1
