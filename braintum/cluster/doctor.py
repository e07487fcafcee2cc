"""What is wrong with a cluster, each problem in one line with its remedy."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from braintum.cluster.node_facts import NodeFacts, clock, facts_of_this_node
from braintum.connect import answers_anybody

ANSWER_SECONDS = 120.0
PROBE_MB = 64
"""What every node gets from the driver's, to measure the network."""
SKEW_SECONDS = 1.0
"""Clocks that differ by more: requests to object stores are refused, and times of trials mislead."""
SLOW_MB_S = 20.0
"""Under it, network or storage take longer than the training of small slices."""
DISK_FREE = 0.1
"""Of Ray's disk. At 0.05 Ray starts nothing more there."""


@dataclass(frozen=True)
class Problem:
    """`where`: a node, or the cluster; what is wrong there, and what to do."""

    where: str
    what: str
    remedy: str


@dataclass(frozen=True)
class Checked:
    """What the nodes say of themselves, and by node: seconds that its clock is `ahead` of the driver's, the GPUs that
    Ray was told of, megabytes a second from the driver's node. `silent`: why others did not answer. `open`: the head
    answers who has no token.
    """

    nodes: Sequence[NodeFacts]
    ahead: dict[str, float]
    gpus: dict[str, float]
    mb_s: dict[str, float]
    silent: dict[str, str]
    open: bool

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "problems": [asdict(problem) for problem in problems(self)]}


def check(storage_url: str | None) -> Checked:
    """Asks every node of the cluster that was joined (`braintum.connect.connect`). Nodes need no free cores for it."""
    probe = ray.put(os.urandom(PROBE_MB * 10**6))
    said: dict[str, _Said] = {}
    silent = {}
    for number, node in enumerate(_alive()):
        name = f"node {number} ({node['NodeManagerAddress']})"
        try:
            said[name] = _ask(node, name, probe, storage_url)
        except ray.exceptions.RayError as error:
            if node["NodeID"] in {there["NodeID"] for there in _alive()}:  # else it has just gone, for want of work
                silent[name] = type(error).__name__
    return Checked(
        nodes=[of.facts for of in said.values()],
        ahead={name: of.ahead for name, of in said.items()},
        gpus={name: of.gpus for name, of in said.items()},
        mb_s={name: of.mb_s for name, of in said.items()},
        silent=silent,
        open=answers_anybody(ray.get_runtime_context().gcs_address),
    )


class _Said(NamedTuple):
    facts: NodeFacts
    ahead: float
    gpus: float
    mb_s: float


def _alive() -> list[dict[str, Any]]:
    return [node for node in ray.nodes() if node["Alive"]]


def _ask(node: dict[str, Any], name: str, probe: ray.ObjectRef[bytes], storage_url: str | None) -> _Said:
    there: dict[str, Any] = {
        "num_cpus": 0, "scheduling_strategy": NodeAffinitySchedulingStrategy(node["NodeID"], soft=False),
    }  # fmt: skip
    ask: Any = ray.remote(clock).options(**there)
    ray.get(ask.remote(None), timeout=ANSWER_SECONDS)  # starts a worker
    asked = time.time()
    said = ray.get(ask.remote(None), timeout=ANSWER_SECONDS)
    ahead = said - (asked + time.time()) / 2
    began = time.perf_counter()
    ray.get(ask.remote(probe), timeout=ANSWER_SECONDS)
    mb_s = PROBE_MB / (time.perf_counter() - began)
    look = ray.remote(facts_of_this_node).options(**there)
    facts: NodeFacts = ray.get(look.remote(name, storage_url), timeout=ANSWER_SECONDS)
    return _Said(facts, ahead, node["Resources"].get("GPU", 0.0), mb_s)


def problems(checked: Checked) -> list[Problem]:
    """What is wrong, the worst first."""
    each = (_open_to_anybody, _silent, _unlike, _gpus, _storage, _clocks, _disks, _slow)
    return [problem for find in each for problem in find(checked)]


def _open_to_anybody(checked: Checked) -> Iterator[Problem]:
    if checked.open:
        yield Problem(
            "cluster", "the head answers who has no token, and so runs anybody's code",
            "`ray get-auth-token --generate`, the file to every node, RAY_AUTH_MODE=token, and start it anew",
        )  # fmt: skip
    for node in checked.nodes:
        for kind, ports in node.open_ports.items():
            if node.public:
                yield Problem(
                    node.name,
                    f"its {kind} listens on the public address {node.public[0]}, port {', '.join(map(str, ports))}",
                    "let a firewall take nothing in but SSH, and reach it by a tunnel",
                )
            elif kind == "dashboard":
                yield Problem(
                    node.name, f"its dashboard listens beyond loopback, port {', '.join(map(str, ports))}",
                    "start it with --dashboard-host=127.0.0.1, and reach it by a tunnel",
                )  # fmt: skip


def _silent(checked: Checked) -> Iterator[Problem]:
    for name, error in checked.silent.items():
        yield Problem(name, f"does not answer ({error})", "look into the logs of its raylet, or end it")


def _unlike(checked: Checked) -> Iterator[Problem]:
    for package in checked.nodes[0].versions:
        found: dict[str, list[str]] = {}
        for node in checked.nodes:
            found.setdefault(node.versions[package], []).append(node.name)
        if len(found) > 1:
            said = "; ".join(f"{version} on {', '.join(names)}" for version, names in found.items())
            yield Problem(
                "cluster", f"{package} is not the same everywhere: {said}", "install by constraints.txt on every node"
            )


def _gpus(checked: Checked) -> Iterator[Problem]:
    for node in checked.nodes:
        told = checked.gpus[node.name]
        if told > node.gpus:
            yield Problem(
                node.name, f"Ray was told of {told:g} GPUs, torch sees {node.gpus}",
                "install NVIDIA's driver and a CUDA build of torch there, or start it with the --num-gpus that it has",
            )  # fmt: skip
        elif told < node.gpus:
            yield Problem(
                node.name, f"torch sees {node.gpus} GPUs, and Ray gives out {told:g}", "start it with --num-gpus"
            )


def _storage(checked: Checked) -> Iterator[Problem]:
    for node in checked.nodes:
        if node.storage_error:
            yield Problem(
                node.name, f"the storage cannot be used: {node.storage_error}",
                "give every node the same credentials and endpoint (a machine's role, or ~/.aws), or mount the folder",
            )  # fmt: skip
        slow = [f"{what}s {speed:.3g} MB/s" for what, speed in node.storage_mb_s.items() if speed < SLOW_MB_S]
        if slow:
            yield Problem(node.name, f"the storage is slow: {', '.join(slow)}", "use a bucket of the same region")


def _clocks(checked: Checked) -> Iterator[Problem]:
    for name, seconds in checked.ahead.items():
        if abs(seconds) > SKEW_SECONDS:
            side = "ahead of" if seconds > 0 else "behind"
            yield Problem(
                name,
                f"its clock is {abs(seconds):.1f} s {side} the driver's",
                "let chrony or systemd-timesyncd run there",
            )


def _disks(checked: Checked) -> Iterator[Problem]:
    for node in checked.nodes:
        if node.disk_free < DISK_FREE:
            yield Problem(
                node.name, f"{node.disk_free:.0%} of the disk of {node.disk} are free",
                "make room, or start Ray with --temp-dir on a larger one",
            )  # fmt: skip


def _slow(checked: Checked) -> Iterator[Problem]:
    for name, speed in checked.mb_s.items():
        if speed < SLOW_MB_S:
            yield Problem(
                name,
                f"gets {speed:.3g} MB/s from the driver's node",
                "put the nodes into one zone, on a faster network",
            )
