"""What lies in the folder of a download, links to other folders included."""

from __future__ import annotations

import os
from pathlib import Path

from braintum.data.schema import DataError


def local(path: str | Path) -> Path:
    """A source's path. Raises DataError for a URL: what is ingested is read from this machine's disks."""
    if "://" in str(path):
        raise DataError(f"{path}: a source is a local path, and only --out may be a URL: copy it here first")
    return Path(path)


def files_below(root: Path) -> list[Path]:
    """All files under a folder, sorted by their paths. A folder that links lead to twice is listed once.

    Raises OSError for a folder that cannot be listed.
    """

    def refuse(error: OSError) -> None:
        raise error

    seen: set[tuple[int, int]] = set()
    found: list[Path] = []
    for place, folders, names in os.walk(root, onerror=refuse, followlinks=True):
        stat = os.stat(place)
        if (stat.st_dev, stat.st_ino) in seen:
            folders.clear()
            continue
        seen.add((stat.st_dev, stat.st_ino))
        folders.sort()
        found += [Path(place) / name for name in names]
    return sorted(found)
