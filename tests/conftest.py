"""Fixtures that several folders of tests use: the real slices, S3 and PostgreSQL servers, a Ray cluster."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from postgres_server import PostgresServer
from s3_server import S3Server


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
def aws_files(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder of the files in which AWS's tools look for an endpoint, a region and credentials.

    Ray's workers know the environment of before the server was there; files they read when they need them.
    """
    folder = tmp_path_factory.mktemp("aws")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_CONFIG_FILE", str(folder / "config"))
        patch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(folder / "credentials"))
        yield folder


@pytest.fixture(scope="session")
def s3_server(aws_files: Path) -> Iterator[S3Server]:
    """One for all tests of a session, which is never killed."""
    server = S3Server()
    server.write_settings(aws_files)
    yield server
    server.remove()


@pytest.fixture
def s3(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> str:
    """An S3 URL to write under, and the environment with which a user would reach it."""
    return reach(s3_server, monkeypatch)


@pytest.fixture
def mortal_s3(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[S3Server, str]]:
    """A server of the test's own, to kill, and what `s3` gives for it."""
    server = S3Server()
    yield server, reach(server, monkeypatch)
    server.remove()


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[PostgresServer]:
    """One for all tests of a session, which is never stopped."""
    server = PostgresServer()
    yield server
    server.remove()


@pytest.fixture
def postgres(postgres_server: PostgresServer, monkeypatch: pytest.MonkeyPatch) -> PostgresServer:
    """A PostgreSQL server, and an environment that knows no password of it."""
    for name in ("PGPASSWORD", "PGPASSFILE"):
        monkeypatch.delenv(name, raising=False)
    return postgres_server


@pytest.fixture
def mortal_postgres() -> Iterator[PostgresServer]:
    """A server of the test's own, to stop."""
    server = PostgresServer()
    yield server
    server.remove()


def reach(server: S3Server, monkeypatch: pytest.MonkeyPatch) -> str:
    import s3fs

    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    s3fs.S3FileSystem.clear_instance_cache()  # it remembers the environment of its first use
    return "s3://braintum"


@pytest.fixture(scope="session")
def ray_cluster(aws_files: Path) -> Iterator[None]:
    """One local Ray of two CPUs for all tests of a session. Its workers reach the server of `s3`, and no other."""
    import ray

    from braintum.connect import start_local

    start_local(num_cpus=2, object_store_memory=500 * 2**20)
    yield
    ray.shutdown()
