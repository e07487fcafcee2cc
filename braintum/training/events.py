"""TensorBoard's events of a run, in a folder at any URL."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

from torch.utils.tensorboard import SummaryWriter

from braintum import storage


class Events:
    """`with Events(url, first_epoch=1) as events: events.write(1, metrics)`; `first_epoch`: later ones are forgotten.

    What was written stands at `url` when `write` returns. Nothing can be appended to an object, and TensorBoard would
    read and put the whole file again for every value: elsewhere than on local disk it is put once an epoch.
    """

    def __init__(self, url: str, *, first_epoch: int) -> None:
        self._url = url
        self._folder = tempfile.TemporaryDirectory(prefix="braintum-events-") if "://" in url else None
        self._writer = SummaryWriter(self._folder.name if self._folder else url, purge_step=first_epoch)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._writer.close()
        if self._folder is not None:
            self._folder.cleanup()

    def write(self, epoch: int, metrics: Mapping[str, float]) -> None:
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, global_step=epoch)
        self._writer.flush()
        if self._folder is not None:
            for file in Path(self._folder.name).iterdir():
                storage.write_bytes(storage.join(self._url, file.name), file.read_bytes())
