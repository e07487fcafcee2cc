"""TensorBoard's events of a training, in a folder at any URL."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams

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
        self.close()

    def close(self) -> None:
        self._writer.close()
        if self._folder is not None:
            self._folder.cleanup()

    def write(self, epoch: int, metrics: Mapping[str, float]) -> None:
        self.add(epoch, metrics)
        self.put()

    def add(self, epoch: int, metrics: Mapping[str, float]) -> None:
        """Without `put` it stands nowhere yet."""
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, global_step=epoch)

    def add_settings(self, settings: Mapping[str, Any], metric: str) -> None:
        """What TensorBoard's table of hyperparameters shows of a training, beside its last value of `metric`."""
        plain = {name: value if type(value) in (int, float) else str(value) for name, value in settings.items()}
        for summary in hparams(plain, {metric: None}):
            self._writer._get_file_writer().add_summary(summary)

    def put(self) -> None:
        self._writer.flush()
        if self._folder is not None:
            for file in Path(self._folder.name).iterdir():
                storage.write_bytes(storage.join(self._url, file.name), file.read_bytes())
