"""The Ray cluster that a command uses: one that is there, or one of its own on this machine."""

from __future__ import annotations

import atexit
import contextlib
import logging
import os
import re
import secrets
import shutil
import signal
import socket
import tempfile
import threading
from collections.abc import Callable, Collection
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import ray
from ray._private.services import find_bootstrap_address
from ray._raylet import AuthenticationTokenLoader, Config  # type: ignore[attr-defined]

from braintum.settings import ConfigError

ENVIRONMENT = {
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",  # a report reaches the controller in 20 ms instead of up to 2 s
    "RAY_TRAIN_COLLECTIVE_TIMEOUT_S": "600",  # without it, a rank that dies between reports hangs the others for ever
    "RAY_TRAIN_METRICS_ENABLED": "0",
    "RAY_TRAIN_ENABLE_STATE_TRACKING": "1",  # Ray's dashboard shows what Ray Train trains
    # Ray Train trains in a thread, whose own arena glibc would give back whatever `keep_freed_memory` says.
    "MALLOC_ARENA_MAX": "1",
    # Threads of torch that wait give the core to others after a fifth of a millisecond, and not after ten.
    "GOMP_SPINCOUNT": "10000",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # braintum writes history.parquet and TensorBoard itself
    "RAY_AIR_NEW_OUTPUT": "0",  # the progress table is ours
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # nothing of Tune's own state is needed: an interrupt ends at once
}
ENDING_SECONDS = 0.5
ANSWER_SECONDS = 5.0
_QUIET: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
_SOCKETS = "/tmp"  # noqa: S108 - paths of sockets must be short


def connect(say: Callable[[str], None]) -> None:
    """Joins the cluster that RAY_ADDRESS or `ray start` gives, or starts one on this machine. Raises ConfigError.

    `say` gets a line about a cluster that was joined. Ray's own "auto" would also join a Ray that another process has
    started for itself, and that ends with it.
    """
    _set_environment()
    if ray.is_initialized():
        return
    address = os.environ.get("RAY_ADDRESS", "auto")
    if address.startswith(("http://", "https://")):
        raise ConfigError(f"RAY_ADDRESS: {address}: is for `ray job`; unset it, or give HOST:6379, auto or local")
    if address != "local" and (address != "auto" or find_bootstrap_address(None) is not None):
        if re.fullmatch(r"[^/]+:\d+", address) and not answers(address):  # Ray would try for minutes
            raise ConfigError(f"RAY_ADDRESS: {address}: no cluster answers there")
        _use_token()
        inside_job = "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ  # its runtime_env is set by `ray job submit`
        try:
            _init(  # None: what `ray start` wrote down, with its token
                address=None if address == "auto" else address,
                runtime_env=None if inside_job else {"env_vars": ENVIRONMENT},
            )
            place = ray.get_runtime_context().gcs_address
            if os.environ.get("RAY_AUTH_MODE", "").lower() != "disabled" and answers_anybody(place):
                ray.shutdown()
                raise ConfigError(
                    f"the Ray cluster at {place}: who reaches its ports runs code on it. Start it with a token (`ray "
                    "get-auth-token --generate`, then RAY_AUTH_MODE=token), or set RAY_AUTH_MODE=disabled here"
                )
            say(f"on the Ray cluster at {place}")
            return
        except ConnectionError as error:
            if "InvalidAuthToken" in f"{error.__cause__}":
                raise ConfigError(
                    f"RAY_ADDRESS: {address}: the cluster asks for another token; set RAY_AUTH_MODE=token, and put its "
                    "token into ~/.ray/auth_token or RAY_AUTH_TOKEN"
                ) from error
            if address != "auto":
                raise ConfigError(f"RAY_ADDRESS: {address}: no cluster answers there") from error
        except ValueError as error:
            if address == "auto":
                raise
            raise ConfigError(f"RAY_ADDRESS: {address!r}: {error}; give HOST:6379, auto or local") from error
    start_local()


def start_local(**options: Any) -> None:
    """Starts a Ray on this machine, which ends with this process; `options` are those of `ray.init`.

    Its folder and the address of its dashboard are its own and known to its workers. By Ray's defaults they look for
    the machine's cluster, and where that is another or a dead one, the workers of a stopped trial are not found and
    keep their cores.
    """
    _set_environment()
    secure()
    folder = tempfile.mkdtemp(prefix="ray", dir=_SOCKETS)
    atexit.register(_leave, folder)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    dashboard = {"RAY_API_SERVER_ADDRESS": f"http://127.0.0.1:{port}"}
    _init(
        address="local",
        include_dashboard=True,
        dashboard_port=port,
        runtime_env={"env_vars": {**ENVIRONMENT, **dashboard}},
        _temp_dir=folder,
        _system_config={"worker_niceness": 0},  # by default 15, so that any other process takes the core from training
        **options,
    )


def answers(address: str) -> bool:
    """Whether somebody listens at HOST:PORT."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), ANSWER_SECONDS).close()
    except OSError:
        return False
    return True


def answers_anybody(address: str) -> bool:
    """Whether the head of the Ray cluster at HOST:PORT answers who has no token. One with TLS answers nobody here."""
    with grpc.insecure_channel(address) as channel:
        ask: Any = channel.unary_unary("/ray.rpc.NodeInfoGcsService/CheckAlive")
        try:
            ask(b"", timeout=ANSWER_SECONDS)
        except grpc.RpcError:
            return False
    return True


def secure() -> None:
    """Sees to it that a Ray that is started here asks for a token, which only this user can read.

    It is where Ray looks for it: in RAY_AUTH_TOKEN, in the file that RAY_AUTH_TOKEN_PATH names, or in
    ~/.ray/auth_token, which is made where there is none. Raises ConfigError where RAY_AUTH_MODE says that everybody
    may come in.
    """
    mode = os.environ.get("RAY_AUTH_MODE", "token")
    if mode.lower() != "token":
        raise ConfigError(
            f"RAY_AUTH_MODE: {mode}: who reaches the ports of a Ray without a token runs code on this machine; unset it"
        )
    if os.environ.get("RAY_AUTH_TOKEN"):
        return
    file = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token")
    file.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(FileExistsError), open(file, "x", opener=partial(os.open, mode=0o600)) as new:
        new.write(secrets.token_hex(32))
    if file.stat().st_mode & 0o077:
        file.chmod(0o600)  # Ray makes one that everybody may read


def end_tasks(tasks: Collection[ray.ObjectRef[Any]]) -> None:
    """Ends tasks and the processes that run them; what ends by itself in the next moment does so.

    Ray 2.60 aborts a driver that cancels a task while its answer arrives (`Tried to complete task that was not
    pending`), as it does where ^C follows upon a file that the task has just written.
    """
    running = list(tasks)
    if running:
        _, running = ray.wait(running, num_returns=len(running), timeout=ENDING_SECONDS, fetch_local=False)
    for task in running:
        ray.cancel(task, force=True)


def _use_token() -> None:
    """Shows this user's token, if there is one and RAY_AUTH_MODE says nothing; Ray does where it has no address."""
    if "RAY_AUTH_MODE" not in os.environ and AuthenticationTokenLoader.instance().has_token(ignore_auth_mode=True):
        os.environ["RAY_AUTH_MODE"] = "token"
        Config.initialize("")  # it has read the environment when it was imported


def _set_environment() -> None:
    """Sets ENVIRONMENT for this process; what is set already stays."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)


def _init(**options: Any) -> None:
    """`ray.init`, after which SIGTERM does what it did before: Ray's own handlers abort the process (134)."""
    before = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(**_QUIET, **options)
    except SystemExit:  # what one of them raises
        raise KeyboardInterrupt from None
    finally:
        if callable(before) and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, before)


def _leave(folder: str) -> None:
    ray.shutdown()
    shutil.rmtree(folder, ignore_errors=True)
