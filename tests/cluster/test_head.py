"""A head started as the files of `ray up` start it: with the token, with TLS, and with the jobs that it had."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from ports import free_ports
from ray_up_files import CLUSTER

pytestmark = pytest.mark.ray
CONNECT = "import ray; ray.init(address='{}', log_to_driver=False); print('connected to', len(ray.nodes()))"


class Head:
    """On loopback, with a home, ports and a folder of its own. Started again it is a new one, as after `ray up`."""

    def __init__(self, home: Path) -> None:
        self.home = home
        (home / ".ray").mkdir()
        token = home / ".ray" / "auth_token"
        token.touch(mode=0o600)
        token.write_text(secrets.token_hex(32))
        for script in ("make_ca.sh", "make_certificate.sh"):
            subprocess.run(["bash", CLUSTER / "tls" / script, home / ".braintum-tls"], check=True)
        (home / "braintum-env").symlink_to(sys.prefix)
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        gcs, dashboard, client, agent = free_ports(4)
        self._folder = Path(tempfile.mkdtemp(prefix="ray", dir="/tmp"))
        self.address, self.jobs = f"127.0.0.1:{gcs}", {"RAY_ADDRESS": f"http://127.0.0.1:{dashboard}"}
        command = (
            f". {CLUSTER / 'environment.sh'}; exec ray start --head --num-cpus=0 --port={gcs}"
            f" --dashboard-host=127.0.0.1 --dashboard-port={dashboard} --dashboard-agent-listen-port={agent}"
            f" --ray-client-server-port={client} --temp-dir={self._folder} --object-store-memory=100000000 --block"
        )
        with (self._folder / "head.log").open("wb") as log:
            self._process = subprocess.Popen(["bash", "-c", command], env=self._bare(), stdout=log, stderr=log)
        until = time.monotonic() + 120
        while "--block" not in self.said() or self.run("ray job list", **self.jobs).returncode:  # all is started
            assert time.monotonic() < until, self.said()
            time.sleep(0.5)

    def said(self) -> str:
        return (self._folder / "head.log").read_text()

    def die(self) -> None:
        """As a machine does: nothing is told."""
        if self._process is None:
            return
        own = psutil.Process(self._process.pid)
        processes = [*own.children(recursive=True), own]  # jobs too, which are in sessions of their own
        for process in processes:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        self._process.wait(30)
        psutil.wait_procs(processes, timeout=30)
        self._process = None
        shutil.rmtree(self._folder, ignore_errors=True)

    def run(self, command: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """A command of a login on the head."""
        words = ["bash", "-c", f". {CLUSTER / 'environment.sh'}; {command}"]
        return subprocess.run(words, env={**self._bare(), **environment}, capture_output=True, text=True, check=False)

    def _bare(self) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        return {**kept, "HOME": str(self.home), "RAY_USAGE_STATS_ENABLED": "0"}


@pytest.fixture
def head(tmp_path: Path) -> Iterator[Head]:
    head = Head(tmp_path)
    try:
        head.start()
        yield head
    finally:
        head.die()


def wait_for(what: Path, word: str, head: Head) -> None:
    until = time.monotonic() + 120
    while not what.exists() or word not in what.read_text().split():
        assert time.monotonic() < until, head.run("ray job list", **head.jobs).stdout
        time.sleep(0.2)


def test_nobody_joins_without_the_token_or_a_certificate_of_the_same_authority(head: Head, tmp_path: Path) -> None:
    driver = f'timeout -s KILL 20 python -c "{CONNECT.format(head.address)}"'
    assert "connected to 1" in head.run(driver).stdout
    wrong = {"RAY_AUTH_TOKEN": "0" * 64}
    refused = head.run(driver, **wrong)
    assert refused.returncode != 0
    assert "InvalidAuthToken" in refused.stderr
    assert head.run("ray job list", **head.jobs).returncode == 0
    assert head.run("ray job list", **head.jobs, **wrong).returncode != 0

    for script in ("make_ca.sh", "make_certificate.sh"):
        subprocess.run(["bash", CLUSTER / "tls" / script, tmp_path / "other"], check=True)

    def handshake(*shown: str | Path) -> bool:
        """Whether TLS with the head comes about for who shows a certificate, or none."""
        trusted = tmp_path / ".braintum-tls" / "ca.crt"
        command = [
            "openssl",
            "s_client",
            "-connect",
            head.address,
            "-alpn",
            "h2",
            "-tls1_2",
            "-CAfile",
            trusted,
            *shown,
        ]
        return not subprocess.run(command, input=b"", capture_output=True, check=False, timeout=20).returncode

    assert handshake("-cert", tmp_path / ".braintum-tls" / "node.crt", "-key", tmp_path / ".braintum-tls" / "node.key")
    assert not handshake("-cert", tmp_path / "other" / "node.crt", "-key", tmp_path / "other" / "node.key")
    assert not handshake()
    host, port = head.address.split(":")
    with socket.create_connection((host, int(port)), timeout=20) as plain:
        plain.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0]))
        assert plain.recv(9)[3:4] != bytes([4]), "a server without TLS answers with its settings"


JOB = """
import pathlib, sys, time
log, go = map(pathlib.Path, sys.argv[1:])
with log.open("a") as lines:
    print("started", flush=True, file=lines)
    while not go.exists():
        time.sleep(0.1)
    print("done", file=lines)
"""


@pytest.mark.slow
def test_a_new_head_starts_again_what_the_last_one_was_doing(head: Head, tmp_path: Path) -> None:
    kept, script, go = tmp_path / "kept", tmp_path / "job.py", tmp_path / "go"
    kept.mkdir()
    script.write_text(JOB)
    keep = f"python {CLUSTER / 'kept_jobs.py'}"

    def submit(name: str, *command: str | Path) -> Path:
        words = " ".join(map(str, command)) or f"python {script} {tmp_path / name} {go}"
        done = head.run(f"{keep} submit {kept} {name} {words}", **head.jobs)
        assert done.returncode == 0, done.stderr
        return tmp_path / name

    stopped = submit("stopped")
    wait_for(stopped, "started", head)
    assert head.run("ray job stop stopped", **head.jobs).returncode == 0
    study = submit("study")
    wait_for(study, "started", head)
    assert "is running" in head.run(f"{keep} again {kept}", **head.jobs).stdout
    head.die()
    assert [path.name for path in kept.iterdir()] == ["study"], "what was stopped is not kept"
    head.start()
    again = head.run(f"{keep} again {kept}", **head.jobs)
    assert again.returncode == 0, again.stderr
    go.touch()
    wait_for(study, "done", head)
    assert study.read_text().split() == ["started", "started", "done"]
    until = time.monotonic() + 30
    while list(kept.iterdir()):
        assert time.monotonic() < until, "a job that is done is kept no longer"
        time.sleep(0.2)
    assert stopped.read_text().split() == ["started"]
    submit("failing", "python", "-c", "'raise SystemExit(1)'")
    until = time.monotonic() + 60
    while "FAILED" not in head.run("ray job status failing", **head.jobs).stdout.upper():
        assert time.monotonic() < until
        time.sleep(0.5)
    assert [path.name for path in kept.iterdir()] == ["failing"]
