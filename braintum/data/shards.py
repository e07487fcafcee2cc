"""Datasets as Parquet shards with a card, on any fsspec URL. Imports neither torch nor Ray.

A shard is written under a temporary name and renamed (object stores: a put is atomic), the card comes last, and what
was written is removed again when anything fails: a dataset is there whole or not at all.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable
from typing import Any, NamedTuple

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import ValidationError

from braintum.data.images import perceptual_hash
from braintum.data.schema import (
    CARD,
    FORMAT_VERSION,
    MASKS,
    TEST,
    Card,
    DataError,
    Row,
    Shard,
    arrow_schema,
    refuse_names,
)
from braintum.storage import StorageError, join, read_bytes, remove, write_bytes

SHARD_BYTES = 48 * 2**20
"""Pixels a shard holds, before compression: small enough that a dataset of thousands of slices is read in parallel."""


def filesystem(url: str) -> tuple[fsspec.AbstractFileSystem, str]:
    """The file system and path of a URL. Raises DataError for an unknown protocol or a missing package."""
    try:
        fs, path = fsspec.core.url_to_fs(str(url))
    except (ValueError, ImportError) as error:
        raise DataError(f"{url}: {error}") from None
    return fs, str(path)


def refuse_existing(url: str) -> None:
    """Raises DataError if there is a file at `url` or under it (empty folders are nothing)."""
    fs, path = filesystem(url)
    fs.invalidate_cache()
    # some object stores list a folder that was emptied, as a file without a name in itself
    if fs.isfile(path) or any(name for _, _, names in fs.walk(path) for name in names):
        raise DataError(f"{url}: exists; choose another --out")


def write_dataset(
    rows: Iterable[Row], out: str, *, name: str, provenance: str, licence: str | None, shard_bytes: int = SHARD_BYTES
) -> Card:
    """Writes slices as a dataset at `out`, in the order given, and returns its card.

    All slices must have one shape and dtype. Raises DataError (naming the row by `Row.where`) for an output that
    exists, a duplicate slice id, a mask of another size or with unknown values, images of several sizes, one case in
    two source folds, one picture (that is not of a single value) with two labels or masks or where a split could part
    it from itself, names that `refuse_names` refuses, and no rows at all; then nothing is left at `out`.
    """
    refuse_existing(out)
    writer = _Writer(out, shard_bytes)
    finished = False
    try:
        for row in rows:
            writer.add(row)
        card = writer.card(name, provenance, licence)
        write_bytes(join(out, CARD), card.model_dump_json(indent=2).encode())
        finished = True
    finally:
        if not finished and writer.wrote:
            remove(out)
    return card


def read_card(url: str) -> Card:
    """The card of a dataset. Raises DataError where there is none or it cannot be used."""
    try:
        text = read_bytes(join(url, CARD))
    except StorageError as error:
        raise DataError(str(error)) from None
    except (FileNotFoundError, NotADirectoryError):
        raise DataError(
            f"{url}: no {CARD}: no dataset, or one never finished; make it with `braintum ingest`"
        ) from None
    except PermissionError as error:
        raise DataError(f"{url}: access refused ({error})") from None
    try:
        card = Card.model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"]))
        raise DataError(f"{url}/{CARD}: {field}: {first['msg']}; ingest the data again") from None
    if card.format_version != FORMAT_VERSION:
        raise DataError(f"{url}: format {card.format_version}, this braintum reads {FORMAT_VERSION}; ingest again")
    return card


def read_shard(url: str, shard: Shard, columns: list[str] | None = None) -> pa.Table:
    """The rows of one shard. Raises DataError when it is missing or its digest is not the card's."""
    fs, root = filesystem(url)
    try:
        content = fs.cat_file(f"{root}/{shard.file}")
    except FileNotFoundError:
        raise DataError(f"{url}/{shard.file}: missing; ingest the data again") from None
    found = hashlib.sha256(content).hexdigest()
    if found != shard.sha256:
        raise DataError(
            f"{url}/{shard.file}: damaged: expected SHA-256 {shard.sha256}, found {found}; ingest the data again"
        )
    return pq.read_table(pa.BufferReader(content), columns=columns)


class _Seen(NamedTuple):
    """A slice as far as it is compared with later ones of the same pixels."""

    slice_id: str
    fold: str | None
    group: str
    where: str

    def __str__(self) -> str:
        fold = "" if self.fold is None else f"fold {self.fold!r}"
        return f"{self.slice_id!r} ({', '.join(filter(None, (self.where, fold, f'group {self.group!r}')))})"


class _Writer:
    """Checks rows, gathers them into shards and counts them for the card."""

    def __init__(self, out: str, shard_bytes: int) -> None:
        self._out, self._shard_bytes = out, shard_bytes
        self._pending: list[dict[str, Any]] = []
        self._pending_bytes = 0
        self._first: Row | None = None
        self._where: dict[str, str] = {}
        self._fold_of_case: dict[str, str | None] = {}
        self._labels: Counter[str] = Counter()
        self._folds: Counter[str] = Counter()
        self._num_masks = 0
        self._num_mask_values = 1
        self._cases_known = True
        self._seen: dict[str, _Seen] = {}
        self._again: list[tuple[_Seen, _Seen]] = []
        self._said: dict[tuple[str, str], tuple[str, _Seen]] = {}
        self._contradictions: list[str] = []
        self._shards: list[Shard] = []
        self.wrote = False

    def add(self, row: Row) -> None:
        self._check(row)
        self._where[row.slice_id] = row.where
        self._cases_known &= row.case_id is not None
        if row.label is not None:
            self._labels[row.label] += 1
        if row.source_fold is not None:
            self._folds[row.source_fold] += 1
        if row.mask_HW is not None:
            self._num_masks += 1
            self._num_mask_values = max(self._num_mask_values, int(row.mask_HW.max()))
        image = np.ascontiguousarray(row.image_CHW).tobytes()
        digest = hashlib.sha256(image).hexdigest()
        slice_ = _Seen(row.slice_id, row.source_fold, row.group, row.where)
        first = self._seen.setdefault(digest, slice_)
        mask = None if row.mask_HW is None else np.ascontiguousarray(row.mask_HW).tobytes()
        if (row.image_CHW != row.image_CHW[:, :1, :1]).any():  # blank slices may be alike
            if first is not slice_:
                self._again.append((first, slice_))
            self._compare(digest, slice_, row.label, mask)
        spacing_y_mm, spacing_x_mm = row.spacing_yx_mm or (None, None)
        self._pending.append(
            {
                "slice_id": row.slice_id,
                "case_id": row.case_id,
                "group": row.group,
                "source_fold": row.source_fold,
                "position": row.position,
                "label": row.label,
                "image": image,
                "mask": mask,
                "spacing_y_mm": spacing_y_mm,
                "spacing_x_mm": spacing_x_mm,
                "image_sha256": digest,
                "perceptual_hash": perceptual_hash(row.image_CHW),
            }
        )
        self._pending_bytes += len(image) + row.image_CHW[0].size
        if self._pending_bytes >= self._shard_bytes:
            self._flush()

    def card(self, name: str, provenance: str, licence: str | None) -> Card:
        if self._first is None:
            raise DataError(f"{provenance}: no slices")
        self._refuse_contradictions()
        self._refuse_parted()
        if self._pending:
            self._flush()
        channels, height, width = self._first.image_CHW.shape
        return Card.model_validate(
            {
                "name": name,
                "height": height,
                "width": width,
                "channels": channels,
                "dtype": str(self._first.image_CHW.dtype),
                "classes": sorted(self._labels),
                "masks": list(MASKS[: self._num_mask_values]),
                "num_slices": len(self._where),
                "num_masks": self._num_masks,
                "num_cases": len(self._fold_of_case) if self._cases_known else None,
                "slices_per_class": dict(sorted(self._labels.items())),
                "slices_per_fold": dict(sorted(self._folds.items())),
                "provenance": provenance,
                "licence": licence,
                "shards": self._shards,
                "digest": hashlib.sha256("".join(shard.sha256 for shard in self._shards).encode()).hexdigest(),
            }
        )

    def _check(self, row: Row) -> None:
        where = f"{row.where}: " if row.where else ""
        refuse_names(row.where or "a row", row.source_fold, slice_id=row.slice_id, case=row.case_id, label=row.label)
        image, mask, first = row.image_CHW, row.mask_HW, self._first or row
        if image.ndim != 3 or image.dtype not in (np.uint8, np.uint16):
            raise DataError(f"{where}{row.slice_id}: image is {image.dtype} {image.shape}; expected C,H,W, 8 or 16 bit")
        if row.slice_id in self._where:
            other = f", as in {self._where[row.slice_id]}" if self._where[row.slice_id] else ""
            raise DataError(f"{where}duplicate slice id {row.slice_id!r}{other}; give every slice its own")
        if (image.shape, image.dtype) != (first.image_CHW.shape, first.image_CHW.dtype):
            raise DataError(
                f"{where}image {row.slice_id} is {_shape(row)}, the first is {_shape(first)}; all must be alike: "
                "give one size with --size, and convert what differs in depth or colour"
            )
        if mask is not None and mask.shape != image.shape[1:]:
            raise DataError(
                f"{where}mask of {row.slice_id} is {mask.shape[1]}×{mask.shape[0]}, its image "
                f"{image.shape[2]}×{image.shape[1]}; they must be of one size"
            )
        if mask is not None and int(mask.max()) > len(MASKS):
            raise DataError(f"{where}mask of {row.slice_id} has the value {mask.max()}; known: 0 to {len(MASKS)}")
        if row.case_id is not None:
            fold = self._fold_of_case.setdefault(row.case_id, row.source_fold)
            if fold != row.source_fold:
                raise DataError(
                    f"{where}case {row.case_id!r} is in the folds {fold!r} and {row.source_fold!r}; "
                    "keep a case in one fold"
                )
        self._first = first

    def _compare(self, picture: str, slice_: _Seen, label: str | None, mask: bytes | None) -> None:
        """Notes what else was said of the same picture before; what is not known contradicts nothing."""
        masked = None if mask is None else hashlib.sha256(mask).hexdigest()
        for what, value in (("label", label), ("mask", masked)):
            if value is None:
                continue
            known, first = self._said.setdefault((picture, what), (value, slice_))
            if known != value:
                which = f", {known!r} and {value!r}" if what == "label" else ""
                self._contradictions.append(f"slices {first} and {slice_} are the same picture with two {what}s{which}")
                break

    def _refuse_contradictions(self) -> None:
        """Raises DataError for a picture with two labels or two masks: no model can learn both."""
        if self._contradictions:
            more = f" (and {len(self._contradictions) - 1} more such slices)" * (len(self._contradictions) > 1)
            raise DataError(f"{self._contradictions[0]}{more}; keep the one that is right, or correct the other")

    def _refuse_parted(self) -> None:
        """Raises DataError for a picture in two folds or, where folds are yet to be cut, in two groups."""
        cut_by_group = len(set(self._folds) - {TEST}) < 2
        parted = [(a, b) for a, b in self._again if a.fold != b.fold or (cut_by_group and a.group != b.group)]
        if parted:
            first, again = parted[0]
            more = f" (and {len(parted) - 1} more such pairs)" * (len(parted) > 1)
            raise DataError(
                f"slices {first} and {again} are the same picture{more}, so a model could be scored on what it was "
                "trained on; remove one, or give both the same case and fold"
            )

    def _flush(self) -> None:
        assert self._first is not None
        channels, height, width = self._first.image_CHW.shape
        schema = arrow_schema(channels, height, width, str(self._first.image_CHW.dtype))
        sink = pa.BufferOutputStream()
        table = pa.Table.from_pylist(self._pending, schema=schema)
        # pixels hardly repeat: a dictionary would only cost
        pq.write_table(table, sink, compression="zstd", use_dictionary=["group", "source_fold", "label"])
        content = sink.getvalue().to_pybytes()
        file = f"slices-{len(self._shards):05d}.parquet"
        self.wrote = True
        write_bytes(join(self._out, file), content)
        self._shards.append(
            Shard(file=file, rows=len(self._pending), bytes=len(content), sha256=hashlib.sha256(content).hexdigest())
        )
        self._pending, self._pending_bytes = [], 0


def _shape(row: Row) -> str:
    channels, height, width = row.image_CHW.shape
    return f"{width}×{height}, {row.image_CHW.dtype.itemsize * 8} bit, {channels} channel{'s' * (channels > 1)}"
