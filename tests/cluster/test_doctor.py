"""What the doctor makes of what nodes say: every problem names its node and its remedy."""

from __future__ import annotations

from dataclasses import replace

import pytest

from braintum.cluster.doctor import Checked, problems
from braintum.cluster.node_facts import NodeFacts

WELL = NodeFacts(
    name="node 0", versions={"python": "3.11.9", "ray": "2.60.0"}, gpus=1, public=[], open_ports={"GCS": [6379]},
    disk="/tmp/ray", disk_free=0.5, storage_mb_s={"write": 90.0, "read": 200.0},
)  # fmt: skip


def checked(*others: NodeFacts, **changes: object) -> Checked:
    nodes = [WELL, *others]
    names = [node.name for node in nodes]
    ahead, gpus, mb_s = (dict.fromkeys(names, value) for value in (0.0, 1.0, 500.0))
    healthy = Checked(nodes, ahead, gpus, mb_s, silent={}, open=False)
    return replace(healthy, **changes)  # type: ignore[arg-type]


def test_a_cluster_that_is_well_has_no_problems() -> None:
    assert problems(checked(replace(WELL, name="node 1"))) == []


SICK = {
    "versions": (replace(WELL, name="node 1", versions={"python": "3.11.9", "ray": "2.59.0"}), "ray is not the same"),
    "no gpu": (replace(WELL, name="node 1", gpus=0), "Ray was told of 1 GPUs, torch sees 0"),
    "idle gpu": (replace(WELL, name="node 1", gpus=2), "torch sees 2 GPUs, and Ray gives out 1"),
    "storage": (replace(WELL, name="node 1", storage_error="PermissionError: x"), "cannot be used: PermissionError: x"),
    "slow storage": (replace(WELL, name="node 1", storage_mb_s={"write": 3.0}), "the storage is slow: writes 3 MB/s"),
    "disk": (replace(WELL, name="node 1", disk_free=0.04), "4% of the disk of /tmp/ray are free"),
    "dashboard": (replace(WELL, name="node 1", open_ports={"dashboard": [8265]}), "its dashboard listens beyond"),
    "public": (replace(WELL, name="node 1", public=["8.8.8.8"]), "its GCS listens on the public address 8.8.8.8"),
}


@pytest.mark.parametrize("name", SICK)
def test_a_node_that_is_not_well_is_named(name: str) -> None:
    node, what = SICK[name]
    (problem,) = problems(checked(node))
    assert what in problem.what
    assert "node 1" in problem.where + problem.what
    assert problem.remedy


def test_what_concerns_the_driver_and_all() -> None:
    (ahead,) = problems(checked(ahead={"node 0": -3.0}))
    assert (ahead.where, "3.0 s behind" in ahead.what) == ("node 0", True)
    (slow,) = problems(checked(mb_s={"node 0": 2.0}))
    assert "2 MB/s" in slow.what
    (silent,) = problems(checked(silent={"node 7": "GetTimeoutError"}))
    assert (silent.where, silent.what) == ("node 7", "does not answer (GetTimeoutError)")
    (everybody,) = problems(checked(open=True))
    assert "token" in everybody.remedy
