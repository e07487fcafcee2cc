"""Which cluster is joined, and which is refused; tasks are ended without the process that asked for them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

END_AS_THEY_END = """
import os, random, sys, time
import ray
from braintum.connect import end_tasks, start_local

@ray.remote
def write(path):
    time.sleep(0.02)
    open(path, "w").close()

start_local(num_cpus=2)
for number in range(100):
    path = os.path.join(sys.argv[1], str(number))
    tasks = [write.remote(path), write.remote(path + "-too")]
    while not os.path.exists(path):
        pass
    time.sleep(random.random() * 0.003)
    end_tasks(tasks)

@ray.remote
def wait():
    time.sleep(600)

waiting = wait.remote()
end_tasks([waiting])
try:
    ray.get(waiting)
except ray.exceptions.RayError as error:
    print(type(error).__name__)
"""


@pytest.mark.ray
def test_a_task_that_ends_while_it_is_ended_takes_nobody_with_it(tmp_path: Path) -> None:
    """A driver of Ray 2.60 that cancels them at once is gone after a few of these (1 instead of 0, without a word)."""
    command = [sys.executable, "-c", END_AS_THEY_END, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, "TaskCancelledError"), done.stderr[-2000:]


OPEN = """
import sys, tempfile, ray
folder = tempfile.TemporaryDirectory(prefix="ray", dir="/tmp", ignore_cleanup_errors=True)
ray.init(address="local", num_cpus=1, include_dashboard=False, log_to_driver=False, _temp_dir=folder.name)
print(ray.get_runtime_context().gcs_address, flush=True)
sys.stdin.read()
"""


def doctor(address: str, **environment: str) -> subprocess.CompletedProcess[str]:
    without = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    command = [sys.executable, "-m", "braintum", "cluster", "doctor", address, "--json"]
    return subprocess.run(command, env={**without, **environment}, capture_output=True, text=True, check=False)


@pytest.mark.ray
def test_a_cluster_that_asks_for_no_token_is_refused() -> None:
    head = subprocess.Popen(
        [sys.executable, "-c", OPEN],
        env={**os.environ, "RAY_AUTH_MODE": "disabled"}, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert head.stdout is not None
    try:
        address = head.stdout.readline().strip()
        done = doctor(address)
        assert (done.returncode, done.stdout) == (2, "")
        assert f"the Ray cluster at {address}: who reaches its ports runs code on it" in done.stderr
        done = doctor(address, RAY_AUTH_MODE="disabled")
        assert done.returncode == 1, done.stderr
        assert "no token" in json.loads(done.stdout)["problems"][0]["what"]
    finally:
        head.communicate(timeout=60)


def test_an_address_where_nobody_listens_is_said_at_once() -> None:
    done = doctor("127.0.0.1:1")
    assert (done.returncode, done.stderr) == (2, "braintum: RAY_ADDRESS: 127.0.0.1:1: no cluster answers there\n")
