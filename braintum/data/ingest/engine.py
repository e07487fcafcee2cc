"""How any source becomes a dataset: item by item, in parallel where it pays, going on where it was stopped.

A source's items (a line of a manifest, a volume, a patient) are cut into chunks of about a shard each. A chunk is read
and written by one process, in this one or as a Ray task, and leaves beside its shard what the ledger must know of it
(`OUT/ingesting/`). A second start with the same --out skips chunks whose shard is there and whose files have not
changed. The card comes last, and the notes go then.
"""

from __future__ import annotations

import contextlib
import csv
import hashlib
import io
import json
import os
import re
import time
from collections.abc import Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeVar

from braintum import __version__, storage
from braintum.data.ingest.bar import Bar
from braintum.data.ledger import Facts, Ledger, refuse_left_out
from braintum.data.schema import CARD, Card, DataError, Row
from braintum.data.shards import SHARD_BYTES, filesystem, row_bytes, write_card, write_shard

NOTES = "ingesting"
BEGUN = f"{NOTES}/begun.json"
"""Its first file: makes a folder known as an unfinished dataset."""
REJECTED = "rejected.csv"
OURS = re.compile(r"(slices-\d+\.parquet|rejected\.csv|card\.json)(\.\w+\.part)?")
FEW = 16
"""Chunks up to which everything is read in this process: Ray would take longer to start."""
FEW_ON_A_CLUSTER = 2
LONG_SECONDS = 20.0
"""Fewer chunks too are read in parallel where reading would take longer, as of volumes, judged by the second item."""

Item = TypeVar("Item", contravariant=True)


class Source(Protocol[Item]):
    """What reads items, in any process: it is pickled. Its `repr` must say all that decides what an item becomes."""

    def where(self, item: Item) -> str:
        """How errors and rejected.csv name the item."""
        ...

    def files(self, item: Item) -> Iterable[Path]:
        """What is read for it: another size or time of change means that it has changed."""
        ...

    def read(self, item: Item) -> list[Row]:
        """Its slices. Raises DataError for what cannot be read."""
        ...


class About(NamedTuple):
    """What the card says beside what is counted. `options`: the choices that made slices of what was read."""

    name: str
    provenance: str
    licence: str | None = None
    options: Mapping[str, Any] = {}


@dataclass(frozen=True)
class Written:
    """What became of a chunk: its shard's facts (None where nothing could be read), and what could not be read, why."""

    facts: Facts | None
    rejected: list[tuple[str, str]]


def ingest(source: Source[Any], items: Sequence[Any], out: str, about: About, *, strict: bool = False) -> Card:
    """Writes a dataset of all slices of all items, in their order, at `out`; returns its card.

    What cannot be read or used (`Ledger.left_out`: one picture with two labels, or on two sides of a split) is left out
    and listed with its reason in OUT/rejected.csv; with `strict` it is an error. Raises DataError for that, for an
    output that exists and is no unfinished dataset of this function's, for what `write_shard` and `Ledger`
    refuse, and where nothing at all could be read.
    """
    refuse_other(out)
    out = storage.resolve(out)
    if not items:
        raise DataError(f"{about.provenance}: no slices")
    length, seconds = _chunk_length(source, items)
    chunks = [items[start : start + length] for start in range(0, len(items), length)]
    cluster = "RAY_ADDRESS" in os.environ or "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ
    many = len(chunks) > (FEW_ON_A_CLUSTER if cluster else FEW)
    parallel = many or (len(chunks) > 1 and seconds * len(items) > LONG_SECONDS)
    try:
        # before any shard: one that was killed behind its first shard and before its note must be known as unfinished
        storage.write_json(storage.join(out, BEGUN), {"name": about.name, "provenance": about.provenance})
        card, rejected = _write_all(source, chunks, out, about, strict, parallel)
    except (DataError, OSError):
        if not parallel and "://" not in out:  # read again in moments; what took longer is kept for the next try
            storage.remove(out)
        raise
    _finish(out, card, rejected)
    return card


def refuse_other(out: str) -> None:
    """Raises DataError if there is anything at `out` but a dataset that `ingest` has not finished."""
    filesystem(out)  # refuses an unknown protocol
    files = storage.files_under(out)
    if CARD in files and BEGUN in files:  # killed behind the card
        storage.remove(storage.join(out, NOTES))
    if files and (CARD in files or BEGUN not in files):
        raise DataError(f"{out}: exists; choose another --out")


def _chunk_length(source: Source[Any], items: Sequence[Any]) -> tuple[int, float]:
    """Items whose slices fill a shard, by the first that can be read; all items where none has a slice.

    And the seconds that reading one takes, by the second: the first waits for imports.
    """
    length = None
    for item in items:
        began = time.perf_counter()
        try:
            size = sum(map(row_bytes, source.read(item)))
        except DataError:
            continue
        if size and length is not None:
            return length, time.perf_counter() - began
        if size:
            length = max(1, SHARD_BYTES // size)
    return length or len(items), 0.0


def _write_all(
    source: Source[Any], chunks: Sequence[Sequence[Any]], out: str, about: About, strict: bool, parallel: bool
) -> tuple[Card, list[tuple[str, str]]]:
    """The card of all chunks' shards, and what was rejected. Raises DataError as `ingest` does."""
    num_items = sum(map(len, chunks))
    ledger, rejected = Ledger(), list[tuple[str, str]]()
    outcomes = _in_order(source, chunks, out, strict, parallel)
    with Bar(about.name, num_items) as bar, contextlib.closing(outcomes):
        for chunk, written in zip(chunks, outcomes, strict=True):
            rejected += written.rejected
            if written.facts is not None:
                ledger.add(written.facts)
            bar.advance(len(chunk), len(rejected))
    if len(rejected) == num_items:
        where, reason = rejected[0]
        raise DataError(f"{where}: {reason} (and so none of {num_items} could be read)")
    left_out = ledger.left_out()
    if strict:
        refuse_left_out(left_out, "; without --strict they are left out and listed")
    rejected += [(found.row.where or found.row.slice_id, found.reason) for found in left_out]
    said = (about.name, about.provenance, about.licence, dict(about.options))
    return ledger.card(*said, left_out, len(rejected)), rejected


def _in_order(
    source: Source[Any], chunks: Sequence[Sequence[Any]], out: str, strict: bool, parallel: bool
) -> Generator[Written, None, None]:
    """Every chunk's outcome, in order."""
    if parallel:
        from braintum.data.ingest.parallel import in_order

        yield from in_order(source, chunks, out, strict)
    else:
        for index, chunk in enumerate(chunks):
            yield write_chunk(source, chunk, out, index, strict)


def write_chunk(source: Source[Any], items: Sequence[Any], out: str, index: int, strict: bool) -> Written:
    """Reads items and writes their shard, unless that was done before and nothing has changed since."""
    key = _key(source, items, strict)
    note = storage.join(out, NOTES, f"{index:05d}.json")
    known = _known(note, out, key)
    if known is not None:
        return known
    rows: list[Row] = []
    rejected: list[tuple[str, str]] = []
    for item in items:
        try:
            rows += source.read(item)
        except DataError as error:
            if strict:
                raise
            where = source.where(item)
            rejected.append((where, str(error).removeprefix(f"{where}: ")))
    written = Written(write_shard(out, index, rows) if rows else None, rejected)
    facts = None if written.facts is None else written.facts.to_json()
    storage.write_json(note, {"key": key, "facts": facts, "rejected": rejected})
    return written


def _key(source: Source[Any], items: Sequence[Any], strict: bool) -> str:
    """Names what goes into a chunk: source, items, size and time of change of their files, and who reads them."""
    stamps = {}
    for item in items:
        for file in source.files(item):
            if file not in stamps:  # an archive holds many items
                try:
                    stat = file.stat()
                    stamps[file] = (str(file), stat.st_size, stat.st_mtime_ns)
                except OSError:
                    stamps[file] = (str(file), -1, -1)
    said = [__version__, repr(source), [repr(item) for item in items], list(stamps.values()), strict]
    return hashlib.sha256(json.dumps(said).encode()).hexdigest()


def _known(note: str, out: str, key: str) -> Written | None:
    """What a note of an earlier start says, if it is of the same chunk and its shard is there."""
    try:
        noted = storage.read_json(note)
        if noted["key"] != key:
            return None
        facts = None if noted["facts"] is None else Facts.from_json(noted["facts"])
        rejected = [(where, reason) for where, reason in noted["rejected"]]
    except (FileNotFoundError, ValueError, TypeError, KeyError):  # none, or damaged
        return None
    if facts is not None and storage.size(storage.join(out, facts.shard.file)) != facts.shard.bytes:
        return None
    return Written(facts, rejected)


def _finish(out: str, card: Card, rejected: Sequence[tuple[str, str]]) -> None:
    """Removes what an earlier start left that is none of this one's; then rejected.csv, the card, and off the notes."""
    known = {shard.file for shard in card.shards}
    for file in storage.files_under(out):
        if OURS.fullmatch(file) and file not in known:
            storage.remove(storage.join(out, file))
    if rejected:
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows([("what", "reason"), *rejected])
        storage.write_bytes(storage.join(out, REJECTED), text.getvalue().encode())
    write_card(out, card)
    storage.remove(storage.join(out, NOTES))
