"""What a node of a cluster says of itself, in a Ray task that runs there."""

from __future__ import annotations

import os
import platform
import shutil
import time
import uuid
from contextlib import suppress
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from ipaddress import ip_address

import psutil
import ray

from braintum import storage

PACKAGES = ("braintum", "ray", "torch", "numpy", "pyarrow", "optuna")
PROBE_MB = 16
"""What is written to the storage and read again to measure it."""


_KINDS = {"dashboard": "dashboard/dashboard.py", "client server": "ray.util.client.server", "GCS": "gcs/gcs_server"}
"""What starts jobs for who reaches it, by a part of its command."""


@dataclass(frozen=True)
class NodeFacts:
    """`versions` by package, "-" where one is missing; `gpus` that torch sees; `public` addresses; `open_ports` beyond
    loopback, by what of Ray listens there; `disk`: Ray's folder, on a disk of which the share `disk_free` is free;
    `storage_error`, or `storage_mb_s`: megabytes a second of writing and reading there.
    """

    name: str
    versions: dict[str, str]
    gpus: int
    public: list[str]
    open_ports: dict[str, list[int]]
    disk: str
    disk_free: float
    storage_error: str = ""
    storage_mb_s: dict[str, float] = field(default_factory=dict)


def facts_of_this_node(name: str, storage_url: str | None) -> NodeFacts:
    """`storage_url`: where results go; None: it is not tried."""
    folder = ray.get_runtime_context().get_temp_dir()
    usage = shutil.disk_usage(folder)
    error, speeds = ("", {}) if storage_url is None else _try_storage(storage_url)
    return NodeFacts(
        name=name,
        versions={"python": platform.python_version(), **{package: _version(package) for package in PACKAGES}},
        gpus=_gpus(),
        public=_public_addresses(),
        open_ports=_open_ports(),
        disk=folder,
        disk_free=usage.free / usage.total,
        storage_error=error,
        storage_mb_s=speeds,
    )


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "-"


def _gpus() -> int:
    import torch

    return torch.cuda.device_count()


def _public_addresses() -> list[str]:
    every = (address.address.split("%")[0] for found in psutil.net_if_addrs().values() for address in found)
    public = []
    for address in every:
        with suppress(ValueError):  # of another kind, as a network card's own
            if ip_address(address).is_global:
                public.append(address)
    return public


def _open_ports() -> dict[str, list[int]]:
    """What this user's processes of Ray were told to listen on, and do beyond loopback; not where they give metrics."""
    found: dict[str, list[int]] = {}
    for process in psutil.process_iter(["name", "cmdline"]):
        command = " ".join(process.info["cmdline"] or ())
        kind = next((kind for kind, words in _KINDS.items() if words in command), None)
        if kind is None:
            continue
        with suppress(psutil.Error):
            for connection in process.net_connections("inet"):
                if connection.status == psutil.CONN_LISTEN:
                    ip, port = connection.laddr
                    if f"={port}" in command and not ip_address(ip).is_loopback:
                        found.setdefault(kind, []).append(port)
    return {kind: sorted(set(ports)) for kind, ports in found.items()}


def _try_storage(url: str) -> tuple[str, dict[str, float]]:
    """Writes, reads and removes a file there: the error, and megabytes a second."""
    place, content = storage.join(url, f".doctor-{uuid.uuid4().hex}"), os.urandom(PROBE_MB * 10**6)
    speeds: dict[str, float] = {}
    try:
        began = time.perf_counter()
        storage.write_bytes(place, content)
        speeds["write"] = PROBE_MB / (time.perf_counter() - began)
        began = time.perf_counter()
        same = storage.read_bytes(place) == content
        speeds["read"] = PROBE_MB / (time.perf_counter() - began)
        storage.remove(place)
    except Exception as error:  # noqa: BLE001 - whatever it is, it is the answer; object stores raise their own kinds
        return f"{type(error).__name__}: {error}".splitlines()[0], speeds
    return "" if same else "what was read is not what was written", speeds


def clock(data: bytes | None) -> float:
    """The node's clock, once it has got what it was asked with."""
    return time.time()
