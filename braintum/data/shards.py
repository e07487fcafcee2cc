"""Datasets as Parquet shards with a card, on any fsspec URL. Imports neither torch nor Ray.

A shard is written under a temporary name and renamed (object stores: a put is atomic), and the card comes last: a
dataset is there whole or not at all. `braintum.data.ledger` compares the rows of all shards and makes the card.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import ValidationError

from braintum.data.images import perceptual_hash
from braintum.data.ledger import Facts, Known, Ledger, RowFacts, counts, digest_of, refuse_left_out, refuse_unlike
from braintum.data.schema import (
    CARD,
    DTYPES,
    FORMAT_VERSION,
    MASKS,
    PLANES,
    Card,
    DataError,
    Row,
    Shard,
    arrow_schema,
    refuse_names,
)  # fmt: skip
from braintum.storage import StorageError, files_under, join, read_bytes, remove, write_bytes

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
    filesystem(url)  # refuses an unknown protocol
    if files_under(url):
        raise DataError(f"{url}: exists; choose another --out")


def write_dataset(
    rows: Iterable[Row], out: str, *, name: str, provenance: str, licence: str | None, shard_bytes: int = SHARD_BYTES
) -> Card:
    """Writes slices as a dataset at `out`, in the order given, and returns its card.

    All slices must have one shape and dtype. Raises DataError (naming the row by `Row.where`) for an output that
    exists, for what `write_shard` and `Ledger` refuse, for what `Ledger` would leave out, and for no rows at all; then
    nothing is left at `out`.
    """
    refuse_existing(out)
    ledger, wrote = Ledger(), False
    finished = False
    try:
        for index, part in enumerate(_parts(rows, shard_bytes)):
            facts = write_shard(out, index, part)
            wrote = True
            ledger.add(facts)
        refuse_left_out(ledger.left_out())
        card = ledger.card(name, provenance, licence)
        write_card(out, card)
        finished = True
    finally:
        if not finished and wrote:
            remove(out)
    return card


def _parts(rows: Iterable[Row], shard_bytes: int) -> Iterator[list[Row]]:
    part: list[Row] = []
    size = 0
    for row in rows:
        part.append(row)
        size += row_bytes(row)
        if size >= shard_bytes:
            yield part
            part, size = [], 0
    if part:
        yield part


def row_bytes(row: Row) -> int:
    """What a row's pixels take in a shard, before compression."""
    return row.image_CHW.nbytes + int(np.prod(row.image_CHW.shape[1:]))


def write_shard(out: str, index: int, rows: Sequence[Row]) -> Facts:
    """Writes rows as one shard of the dataset at `out`; what the ledger must know of them.

    Raises DataError for an image that is no C,H,W of a known type, a mask of another size or with unknown values,
    images of several sizes, an unknown plane, and names that `refuse_names` refuses.
    """
    first = rows[0]
    columns, facts = [], []
    for row in rows:
        _check(row, first)
        image = row.image_CHW.tobytes()
        mask = None if row.mask_HW is None else row.mask_HW.tobytes()
        digest = hashlib.sha256(image).hexdigest()
        spacing_y_mm, spacing_x_mm = row.spacing_yx_mm or (None, None)
        columns.append(
            {
                "slice_id": row.slice_id, "case_id": row.case_id, "group": row.group, "source_fold": row.source_fold,
                "plane": row.plane, "position": row.position, "label": row.label, "image": image, "mask": mask,
                "spacing_y_mm": spacing_y_mm, "spacing_x_mm": spacing_x_mm, "age_years": row.age_years,
                "sex": row.sex, "image_sha256": digest,
                "perceptual_hash": perceptual_hash(row.image_CHW),
            }
        )  # fmt: skip
        facts.append(
            RowFacts(
                row.slice_id, row.group, row.case_id, row.source_fold, row.plane, row.label, digest,
                blank=bool((row.image_CHW == row.image_CHW[:, :1, :1]).all()),
                mask=None if mask is None else hashlib.sha256(mask).hexdigest(),
                num_mask_values=0 if row.mask_HW is None else int(row.mask_HW.max()), where=row.where,
            )
        )  # fmt: skip
    channels, height, width = first.image_CHW.shape
    dtype = str(first.image_CHW.dtype)
    table = pa.Table.from_pylist(columns, schema=arrow_schema(channels, height, width, dtype))
    sink = pa.BufferOutputStream()
    # pixels hardly repeat: a dictionary would only cost
    pq.write_table(table, sink, compression="zstd", use_dictionary=["group", "source_fold", "plane", "label"])
    content = sink.getvalue()
    file = f"slices-{index:05d}.parquet"
    write_bytes(join(out, file), content)
    shard = Shard(file=file, rows=len(rows), bytes=content.size, sha256=hashlib.sha256(content).hexdigest())
    return Facts(shard, (channels, height, width), dtype, facts)


def write_card(out: str, card: Card) -> None:
    """The last file of a dataset."""
    write_bytes(join(out, CARD), card.model_dump_json(indent=2).encode())


def merge_groups(url: str, merged: Mapping[str, str]) -> Card:
    """Writes into a dataset's card that groups belong together: splits keep them so. Its digest is another then."""
    card = read_card(url)
    known = {group: merged.get(into, into) for group, into in card.merged_groups.items()} | dict(merged)
    card = card.model_copy(update={"merged_groups": known, "digest": digest_of(card.shards, known, card.excluded)})
    write_card(url, card)
    return card


def exclude_slices(url: str, slice_ids: Iterable[str]) -> Card:
    """Writes into a dataset's card that slices of it are never used: they stay stored. Its digest is another then.

    Raises DataError for a slice that it does not have, and where none would be left.
    """
    card, wanted = read_card(url), set(slice_ids)
    known: dict[str, Known] = {}
    for shard in card.shards:
        rows = read_shard(url, shard)
        has_mask = rows["mask"].is_valid().to_pylist()
        for row, masked in zip(rows.drop_columns(["image", "mask"]).to_pylist(), has_mask, strict=True):
            # the first datasets had no planes
            names = (row["label"], row["case_id"], row["source_fold"], row.get("plane"))
            known[row["slice_id"]] = Known(*names, masked)
    missing = sorted(wanted - known.keys())
    if missing:
        raise DataError(
            f"{url}: no slice {missing[0]!r} to exclude ({len(missing)} such in all); is it another's list?"
        )
    excluded = wanted.union(card.excluded)
    left = [of for slice_id, of in known.items() if slice_id not in excluded]
    if not left:
        raise DataError(f"{url}: with all of its slices excluded nothing is left; exclude fewer")
    digest = digest_of(card.shards, card.merged_groups, excluded)
    card = card.model_copy(update={**counts(left), "excluded": sorted(excluded), "digest": digest})
    write_card(url, card)
    return card


def _check(row: Row, first: Row) -> None:
    where = f"{row.where}: " if row.where else ""
    refuse_names(row.where or "a row", row.source_fold, slice_id=row.slice_id, case=row.case_id, label=row.label)
    if row.plane is not None and row.plane not in PLANES:
        raise DataError(f"{where}{row.slice_id}: plane {row.plane!r}; known: {', '.join(PLANES)}")
    image, mask, other = row.image_CHW, row.mask_HW, first.image_CHW
    if image.ndim != 3 or image.dtype not in DTYPES:
        raise DataError(f"{where}{row.slice_id}: image is {image.dtype} {image.shape}; expected C,H,W, 8 or 16 bit")
    if (image.shape, image.dtype) != (other.shape, other.dtype):  # names of dtypes take longer than all else here
        refuse_unlike(row.slice_id, row.where, (image.shape, str(image.dtype)), (other.shape, str(other.dtype)))
    if mask is not None and mask.dtype != np.uint8:
        raise DataError(f"{where}mask of {row.slice_id} is {mask.dtype}; expected uint8")
    if mask is not None and mask.shape != image.shape[1:]:
        raise DataError(
            f"{where}mask of {row.slice_id} is {mask.shape[1]}×{mask.shape[0]}, its image "
            f"{image.shape[2]}×{image.shape[1]}; they must be of one size"
        )
    if mask is not None and int(mask.max()) > len(MASKS):
        raise DataError(f"{where}mask of {row.slice_id} has the value {mask.max()}; known: 0 to {len(MASKS)}")


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
    try:
        content = read_bytes(join(url, shard.file))
    except FileNotFoundError:
        raise DataError(f"{url}/{shard.file}: missing; ingest the data again") from None
    found = hashlib.sha256(content).hexdigest()
    if found != shard.sha256:
        raise DataError(
            f"{url}/{shard.file}: damaged: expected SHA-256 {shard.sha256}, found {found}; ingest the data again"
        )
    return pq.read_table(pa.BufferReader(content), columns=columns)
