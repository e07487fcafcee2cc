"""A dataset in memory, at the size that is trained on: decoded once, indexed ever after. Imports neither torch nor Ray.

Shapes: R rows of the table, C channels, H W height and width.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from braintum.data.images import Box, box_around, pack_mask, unpack_mask
from braintum.data.schema import MASKS, TUMOUR, Card, DataError, Shard, refuse_names
from braintum.data.shards import read_card, read_shard
from braintum.data.stream import Fetch, Streamed
from braintum.data.view import View, view
from braintum.parts import Data


@dataclass(frozen=True, eq=False)
class Facts:
    """All but the pixels of rows of a dataset, as `data.region` shows them. The order is the dataset's.

    has_tumour_R: whether the slice, cut or not, has a pixel of tumour at image_size. shown_R: false where
    `data.region` leaves no pixel of it: such rows are there so that folds are the same whatever the region, and are
    neither trained on nor scored (`braintum.data.folds`). label_R: int64 index into the classes, -1 for none.
    low_RC, high_RC: float32, least and greatest value of the image, before pixels outside of a region were hidden.
    spacing_R2: float32, y and x in mm of the original pixels, NaN where unknown. native_tumour: uint8, the tumours at
    the source's own size, packed (`pack_mask`), one after another; native_bytes_R: int64, how many bytes are each
    row's, 0 without a mask. group_R: the shards', or what the card's `merged_groups` make of them. picture_R: SHA-256
    of the source's pixels; perceptual_hash_R: see `images`.
    """

    has_mask_R: NDArray[np.bool_]
    has_tumour_R: NDArray[np.bool_]
    shown_R: NDArray[np.bool_]
    label_R: NDArray[np.int64]
    low_RC: NDArray[np.float32]
    high_RC: NDArray[np.float32]
    spacing_R2: NDArray[np.float32]
    native_tumour: NDArray[np.uint8]
    native_bytes_R: NDArray[np.int64]
    slice_id_R: list[str]
    case_id_R: list[str | None]
    group_R: list[str]
    source_fold_R: list[str | None]
    picture_R: list[str]
    perceptual_hash_R: NDArray[np.uint64]

    def __len__(self) -> int:
        return len(self.slice_id_R)


@dataclass(frozen=True, eq=False)
class Slices(Facts):
    """Rows of a dataset, decoded and resized.

    image_RCHW: uint8 as stored, or float16 in [0, 1] for 16-bit sources: min-max per slice and channel, or as the card
    says that whole volumes were scaled.
    mask_RHW: uint8 label map, zero where has_mask_R is false.
    """

    image_RCHW: NDArray[np.uint8] | NDArray[np.float16]
    mask_RHW: NDArray[np.uint8]

    @property
    def facts(self) -> Facts:
        return Facts(**{field.name: getattr(self, field.name) for field in fields(Facts)})


@dataclass(frozen=True, eq=False)
class SliceTable(Facts):
    """A whole dataset seen through `data` of an Experiment.

    image_RCHW, mask_RHW: as of `Slices`, or fetched when asked for. part_ends: for each part (a shard's rows), the row
    behind its last. height, width: pixels of the original slices. digest: the dataset's, from its card.
    scaled_by_volume: a batch takes images as they are, instead of each from its least to its greatest value.
    """

    image_RCHW: NDArray[np.uint8] | NDArray[np.float16] | Streamed
    mask_RHW: NDArray[np.uint8] | Streamed
    part_ends: NDArray[np.int64]

    classes: tuple[str, ...]
    masks: tuple[str, ...]
    height: int
    width: int
    digest: str
    scaled_by_volume: bool = False

    def native_tumour_HW(self, row: int) -> NDArray[np.bool_] | None:
        """Where a slice has tumour, at the source's own size; None for one without a mask."""
        if not self.has_mask_R[row]:
            return None
        start = int(self.native_bytes_R[:row].sum())
        packed = self.native_tumour[start : start + int(self.native_bytes_R[row])]
        return unpack_mask(packed.tobytes(), self.height, self.width)

    def native_tumours(self) -> Iterator[tuple[int, NDArray[np.bool_]]]:
        """(row, where it has tumour at the source's own size) of every row with a mask."""
        ends = np.cumsum(self.native_bytes_R)
        for row in np.flatnonzero(self.has_mask_R):
            packed = self.native_tumour[ends[row] - self.native_bytes_R[row] : ends[row]]
            yield int(row), unpack_mask(packed.tobytes(), self.height, self.width)


def load_table(url: str, data: Data, boxes: Mapping[str, Box] | None = None) -> SliceTable:
    """Reads a dataset into memory in this process.

    `boxes`: what to cut out of which slice, instead of a crop around its true tumour; other slices are left out.
    Raises DataError (no card, damaged shard, unknown label, a region that the dataset does not have).
    """
    card = read_card(url)
    index = class_index(card, data, url)
    return assemble(card, data, url, (decode_shard(url, card, shard, data, index, boxes) for shard in card.shards))


def class_index(card: Card, data: Data, url: str) -> dict[str, int]:
    """Label → index of its class. Raises DataError for a label or a region that the dataset does not have."""
    region = "tumour" if data.region == "crop" else data.region
    if region != "whole" and not (card.num_masks and region in card.masks):
        masks = f"its masks: {', '.join(card.masks)}" if card.num_masks else "it has no masks"
        raise DataError(f"data.region: {data.region!r} needs a mask of the {region}, which {url} lacks; {masks}")
    classes = _classes(card, data)
    index = {label: i for i, labels in enumerate(classes.values()) for label in labels}
    for label in index:
        if label not in card.classes:
            known = ", ".join(card.classes) or "none"
            raise DataError(f"data.classes: {label!r} is no label of {url}; its labels: {known}")
    return index


def class_names(card: Card, data: Data) -> tuple[str, ...]:
    """The classes, in the order of their indices."""
    return tuple(_classes(card, data))


def _classes(card: Card, data: Data) -> Mapping[str, tuple[str, ...]]:
    return data.classes if data.classes is not None else {label: (label,) for label in card.classes}


def decode_shard(
    url: str,
    card: Card,
    shard: Shard,
    data: Data,
    index: Mapping[str, int],
    boxes: Mapping[str, Box] | None = None,
) -> Slices:
    """The rows of one shard that `data` selects: those whose label is in `index`, and those with a mask alone, less
    those that the card excludes.

    `boxes`: see `load_table`.
    """
    rows = read_shard(url, shard)
    label_R: list[str | None] = rows["label"].to_pylist()
    name_R: list[str] = rows["slice_id"].to_pylist()
    has_mask_R = rows["mask"].is_valid().to_numpy()
    images = pixels(rows["image"], (card.channels, card.height, card.width), card.dtype)
    masks = pixels(rows["mask"], (card.height, card.width), "uint8")
    excluded = set(card.excluded)

    def seen(row: int) -> View | None:
        label, mask_HW, box = label_R[row], masks[row] if has_mask_R[row] else None, None
        if name_R[row] in excluded or not (has_mask_R[row] if label is None else label in index):
            return None
        if boxes is not None:
            if name_R[row] not in boxes:
                return None
            box = boxes[name_R[row]]
        elif data.margin is not None and mask_HW is not None:
            box = box_around(mask_HW == TUMOUR, data.margin)
        return view(images[row], mask_HW, data, box, scaled=scaled_by_volume(card))

    views = {row: found for row in range(len(rows)) if (found := seen(row)) is not None}
    kept = list(views)
    side = data.image_size
    image_RCHW = np.empty((len(kept), card.channels, side, side), stored_dtype(card))
    mask_RHW = np.empty((len(kept), side, side), np.uint8)
    for i, found in enumerate(views.values()):
        image_RCHW[i], mask_RHW[i] = found.image_CHW, found.mask_HW
    native = [pack_mask(masks[row] == TUMOUR) if has_mask_R[row] else b"" for row in kept]

    def column(name: str) -> list[Any]:
        values = rows[name].to_pylist()
        return [values[row] for row in kept]

    names = (column(name) for name in ("source_fold", "slice_id", "case_id", "label"))
    for fold, slice_id, case, label in zip(*names, strict=True):
        refuse_names(f"{url}/{shard.file}", fold, slice_id=slice_id, case=case, label=label)
    spacing = [[np.nan if mm is None else mm for mm in column(f"spacing_{axis}_mm")] for axis in "yx"]
    return Slices(
        image_RCHW=image_RCHW,
        mask_RHW=mask_RHW,
        has_mask_R=has_mask_R[kept],
        has_tumour_R=np.array([found.has_tumour for found in views.values()], bool),
        shown_R=np.array([found.shown for found in views.values()], bool),
        label_R=np.array([-1 if label is None else index[label] for label in column("label")], np.int64),
        low_RC=np.array([found.low_C for found in views.values()], np.float32).reshape(-1, card.channels),
        high_RC=np.array([found.high_C for found in views.values()], np.float32).reshape(-1, card.channels),
        spacing_R2=np.array(spacing, np.float32).T.reshape(-1, 2),
        native_tumour=np.frombuffer(b"".join(native), np.uint8),
        native_bytes_R=np.array([len(packed) for packed in native], np.int64),
        slice_id_R=column("slice_id"),
        case_id_R=column("case_id"),
        group_R=[card.merged_groups.get(group, group) for group in column("group")],
        source_fold_R=column("source_fold"),
        picture_R=column("image_sha256"),
        perceptual_hash_R=np.array(column("perceptual_hash"), np.uint64),
    )


def assemble(card: Card, data: Data, url: str, parts: Iterable[Slices]) -> SliceTable:
    """One contiguous table of the shards' rows, in order.

    Raises DataError when no rows are left, or none that show the region, of a class or at all.
    """
    parts = list(parts)
    image_RCHW = np.concatenate([part.image_RCHW for part in parts])
    mask_RHW = np.concatenate([part.mask_RHW for part in parts])
    return _table(card, data, url, parts, image_RCHW=image_RCHW, mask_RHW=mask_RHW)


def assemble_streamed(
    card: Card, data: Data, url: str, parts: Sequence[Facts], fetch_image: Fetch, fetch_mask: Fetch
) -> SliceTable:
    """A table of the shards' rows whose pixels stay where they are. Raises DataError as `assemble` does."""
    ends, side = _ends(parts), data.image_size
    count, dtype = int(ends[-1]), stored_dtype(card)
    return _table(
        card, data, url, parts,
        image_RCHW=Streamed(fetch_image, ends, (count, card.channels, side, side), dtype),
        mask_RHW=Streamed(fetch_mask, ends, (count, side, side), np.dtype(np.uint8)),
    )  # fmt: skip


def _table(card: Card, data: Data, url: str, parts: Sequence[Facts], **pixels: Any) -> SliceTable:
    regional = data.region in MASKS
    if not any(part.shown_R.any() for part in parts):
        shows = f" that shows {data.region} at {data.image_size} pixels" if regional else ""
        raise DataError(f"{url}: no slice{shows} has one of the labels in data.classes, or a mask")
    joined: dict[str, Any] = {}
    for field in fields(Facts):
        columns = [getattr(part, field.name) for part in parts]
        is_array = isinstance(columns[0], np.ndarray)
        joined[field.name] = np.concatenate(columns) if is_array else [value for c in columns for value in c]
    classes = class_names(card, data)
    unseen = [name for i, name in enumerate(classes) if i not in joined["label_R"][joined["shown_R"]]]
    if regional and unseen:
        raise DataError(
            f"data.region: no slice of class {unseen[0]!r} shows {data.region} at {data.image_size} pixels; "
            "list the classes that do in data.classes"
        )
    return SliceTable(
        **joined,
        **pixels,
        part_ends=_ends(parts),
        classes=classes,
        masks=tuple(card.masks),
        height=card.height,
        width=card.width,
        digest=card.digest,
        scaled_by_volume=scaled_by_volume(card),
    )


def _ends(parts: Sequence[Facts]) -> NDArray[np.int64]:
    return np.cumsum([len(part) for part in parts], dtype=np.int64)


def scaled_by_volume(card: Card) -> bool:
    """Whether a source brought each volume to [0, 1] as a whole: how bright a slice of it is then says something."""
    return "intensity" in card.options


def table_bytes(card: Card, data: Data) -> int:
    """What the pixels of a table take in memory, at most."""
    pixels = sum(shard.rows for shard in card.shards) * data.image_size**2
    return pixels * (card.channels * stored_dtype(card).itemsize + 1)


def stored_dtype(card: Card) -> np.dtype[Any]:
    """The type of a table's images."""
    return np.dtype(np.uint8 if card.dtype == "uint8" else np.float16)


def read_masks(url: str, slice_ids: Sequence[str]) -> dict[str, NDArray[np.uint8] | None]:
    """Label maps at the source's own size, None where a slice has none. Raises DataError for an unknown slice."""
    return {name: mask for name, (mask,) in _read(url, slice_ids, ["mask"]).items()}


def read_images(url: str, slice_ids: Sequence[str]) -> dict[str, NDArray[Any]]:
    """Images C,H,W at the source's own size and in its dtype. Raises DataError for an unknown slice."""
    return {name: image for name, (image,) in _read(url, slice_ids, ["image"]).items()}


def _read(url: str, slice_ids: Sequence[str], columns: list[str]) -> dict[str, list[Any]]:
    card = read_card(url)
    wanted = set(slice_ids)
    found: dict[str, list[Any]] = {}
    shapes = {
        "image": ((card.channels, card.height, card.width), card.dtype),
        "mask": ((card.height, card.width), "uint8"),
    }
    for shard in card.shards:
        rows = read_shard(url, shard, ["slice_id", *columns])
        arrays = [(pixels(rows[name], *shapes[name]), rows[name].is_valid().to_numpy()) for name in columns]
        for i, slice_id in enumerate(rows["slice_id"].to_pylist()):
            if slice_id in wanted:
                found[slice_id] = [values[i].copy() if valid[i] else None for values, valid in arrays]
    missing = wanted - set(found)
    if missing:
        raise DataError(f"{url}: no slice {min(missing)!r}; are these results of another dataset?")
    return {slice_id: found[slice_id] for slice_id in slice_ids}


def pixels(column: pa.ChunkedArray, shape: tuple[int, ...], dtype: str) -> NDArray[Any]:
    """A fixed-size binary column as an array [rows, *shape], without copying; nulls hold anything."""
    array = column.combine_chunks()
    if isinstance(array, pa.ChunkedArray):  # pyarrow keeps chunks that would not fit one array
        return np.concatenate([pixels(pa.chunked_array([chunk]), shape, dtype) for chunk in array.chunks])
    count = len(array) * int(np.prod(shape))
    start = array.offset * int(np.prod(shape)) * np.dtype(dtype).itemsize
    return np.frombuffer(array.buffers()[1], dtype, count, start).reshape(len(array), *shape)
