"""What tests that train have in common: networks as small as they come, waiting, and finding Ray's workers."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
from ray._private.worker import get_dashboard_url

from braintum.training.progress import Progress

TINY: dict[str, Any] = {
    "data.image_size": 32,
    "model.width": 2,
    "model.depth": 2,
    "model.norm": "instance",
    "training.device": "cpu",
}
"""Overrides of a U-Net; the name of another model goes before them."""


def quiet() -> Progress:
    return Progress("test", quiet=True)


def wait_for(happened: Callable[[], bool], seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < end, "it never happened"
        time.sleep(0.02)


@contextlib.contextmanager
def interrupted_when(happened: Callable[[], bool]) -> Iterator[None]:
    """Interrupts the body (^C) as soon as that is so."""

    def watch() -> None:
        wait_for(happened)
        os.kill(os.getpid(), signal.SIGINT)

    with ThreadPoolExecutor(1) as pool:
        watching = pool.submit(watch)
        yield
    watching.result()


def workers_of(kind: str) -> list[psutil.Process]:
    """Living Ray workers below this process whose title says `kind`."""
    found = []
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):  # it has just ended
            if kind in " ".join(process.cmdline()):
                found.append(process)
    return found


def train_runs() -> dict[str, str]:
    """What Ray's dashboard shows of Ray Train: the state of each run by its name."""
    token = Path.home() / ".ray" / "auth_token"  # where there is one, Ray asks for it
    headers = {"Authorization": f"Bearer {token.read_text().strip()}"} if token.exists() else {}
    question = urllib.request.Request(f"http://{get_dashboard_url()}/api/train/v2/runs/v1", headers=headers)
    with urllib.request.urlopen(question, timeout=60) as answer:
        return {run["name"]: run["status"] for run in json.load(answer)["train_runs"]}


@contextlib.contextmanager
def dying(kind: str, when: Callable[[], bool] = lambda: True) -> Iterator[None]:
    """Kills (-9) every Ray worker of a kind, again and again, while the body runs and `when` says so."""
    ended = threading.Event()

    def kill() -> None:
        while not ended.wait(0.1):
            for worker in workers_of(kind) if when() else []:
                with contextlib.suppress(psutil.Error):
                    worker.kill()

    with ThreadPoolExecutor(1) as pool:
        killing = pool.submit(kill)
        try:
            yield
        finally:
            ended.set()
    killing.result()
