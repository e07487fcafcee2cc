"""Which worker comes for a waiting trial, asked of Ray's own autoscaler (v2, which `ray up` starts)."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from ray.autoscaler.v2.instance_manager.config import AutoscalingConfig
from ray.autoscaler.v2.instance_manager.instance_manager import InstanceManager
from ray.autoscaler.v2.instance_manager.instance_storage import InstanceStorage
from ray.autoscaler.v2.instance_manager.node_provider import CloudInstance, ICloudInstanceProvider, LaunchNodeError
from ray.autoscaler.v2.instance_manager.reconciler import Reconciler
from ray.autoscaler.v2.instance_manager.storage import InMemoryStorage
from ray.autoscaler.v2.instance_manager.subscribers.cloud_instance_updater import CloudInstanceUpdater
from ray.autoscaler.v2.instance_manager.subscribers.cloud_resource_monitor import CloudResourceMonitor
from ray.autoscaler.v2.scheduler import ResourceDemandScheduler
from ray.autoscaler.v2.utils import ResourceRequestUtil
from ray.core.generated.autoscaler_pb2 import ClusterResourceState, NodeState, NodeStatus
from ray.core.generated.instance_manager_pb2 import NodeKind
from ray_up_files import FILES, prepared, workers

TRIAL = {"CPU": 1.0, "GPU": 1.0}
FOUND_ON_AWS = {
    "l40s": {"memory": 48103633715, "accelerator_type:L40S": 1},
    "l4": {"memory": 24051816857, "accelerator_type:L4": 1},
    "a10g": {"memory": 24051816857, "accelerator_type:A10G": 1},
}
"""What `ray up` adds to the workers of aws.yaml, from what EC2 says of their instance types."""


class Cloud(ICloudInstanceProvider):
    """One that starts machines at once, but of `refused` types says that it has none."""

    def __init__(self, refused: set[str]) -> None:
        self.refused, self.asked, self.errors = refused, Counter[str](), list[LaunchNodeError]()
        self.there = {"head": CloudInstance("head", "head", NodeKind.HEAD, is_running=True)}

    def launch(self, shape: dict[str, int], request_id: str) -> None:
        for kind, count in shape.items():
            self.asked[kind] += 1
            if kind in self.refused:
                self.errors.append(LaunchNodeError(kind, count, request_id, 0))
                continue
            for _ in range(count):
                name = f"machine-{len(self.there)}"
                self.there[name] = CloudInstance(name, kind, NodeKind.WORKER, is_running=True, request_id=request_id)

    def get_non_terminated(self) -> dict[str, CloudInstance]:
        return dict(self.there)

    def terminate(self, ids: list[str], request_id: str) -> None:
        raise AssertionError(f"{ids}: nothing is idle here")

    def poll_errors(self) -> list[LaunchNodeError]:
        errors, self.errors = self.errors, []
        return errors


def grown(config: dict[str, Any], trials: int, refused: tuple[str, ...] = (), rounds: int = 8) -> Cloud:
    """What a cluster grows to in so many rounds of the autoscaler for trials that take a GPU each."""
    cloud, monitor = Cloud(set(refused)), CloudResourceMonitor()
    manager = InstanceManager(InstanceStorage("test", InMemoryStorage()), [CloudInstanceUpdater(cloud), monitor])
    autoscaling = AutoscalingConfig(config, skip_content_hash=True)
    offers = {name: kind.resources for name, kind in autoscaling.get_node_type_configs().items()}
    offers["head"] = {**offers["head"], "node:__internal_head__": 1}
    for _ in range(rounds):
        machines = list(cloud.there.values())
        busy = machines[1 : 1 + trials]
        Reconciler.reconcile(
            instance_manager=manager,
            scheduler=ResourceDemandScheduler(),
            cloud_provider=cloud,
            cloud_resource_monitor=monitor,
            ray_cluster_resource_state=ClusterResourceState(
                node_states=[
                    NodeState(
                        node_id=machine.cloud_instance_id.encode().hex().encode(),
                        instance_id=machine.cloud_instance_id,
                        ray_node_type_name=machine.node_type,
                        total_resources=offers[machine.node_type],
                        available_resources={} if machine in busy else offers[machine.node_type],
                        status=NodeStatus.RUNNING,
                    )
                    for machine in machines
                ],
                pending_resource_requests=ResourceRequestUtil.group_by_count(
                    [ResourceRequestUtil.make(TRIAL)] * (trials - len(busy))
                ),
            ),
            non_terminated_cloud_instances=cloud.get_non_terminated(),
            cloud_provider_errors=cloud.poll_errors(),
            autoscaling_config=autoscaling,
        )
    return cloud


def of_types(cloud: Cloud) -> Counter[str]:
    return Counter(machine.node_type for machine in cloud.there.values() if machine.node_kind == NodeKind.WORKER)


def as_found(name: str) -> dict[str, Any]:
    config = prepared(name)
    for kind, found in (FOUND_ON_AWS if name == "aws.yaml" else {}).items():
        config["available_node_types"][kind]["resources"] = {**found, **workers(config)[kind]["resources"]}
    return config


@pytest.mark.parametrize("name", FILES)
def test_trials_get_the_preferred_type_first_and_the_next_ones_when_that_is_full(name: str) -> None:
    config = as_found(name)
    best, second, last = workers(config)
    assert of_types(grown(config, 3)) == {best: 3}
    assert of_types(grown(config, 6)) == {best: 4, second: 2}
    assert of_types(grown(config, 100)) == {best: 4, second: 4, last: 4}, "max_workers of the whole cluster: 12"


@pytest.mark.parametrize("name", FILES)
def test_it_is_priority_that_decides_and_all_come_in_one_round(name: str) -> None:
    config = as_found(name)
    best, second, *_ = workers(config)
    config["available_node_types"][best]["priority"] = 0
    assert of_types(grown(config, 4, rounds=2)) == {second: 4}


def test_a_type_that_offers_less_would_come_before_a_preferred_one() -> None:
    """Why all workers offer the same."""
    config = as_found("gcp.yaml")
    config["available_node_types"]["h100"]["resources"] = {"CPU": 26, "GPU": 1}
    assert of_types(grown(config, 1)) == {"a100": 1}


@pytest.mark.parametrize("name", FILES)
def test_a_refused_type_is_asked_for_again_and_holds_back_no_more_trials_than_it_could_take(name: str) -> None:
    config = as_found(name)
    best, second, last = workers(config)
    cloud = grown(config, 10, refused=(best,), rounds=12)
    assert of_types(cloud) == {second: 4, last: 2}
    assert cloud.asked[best] > 5
    assert of_types(grown(config, 4, refused=(best,), rounds=12)) == {}, "the comment in the files says so"
    config["available_node_types"][best]["max_workers"] = 0
    assert of_types(grown(config, 4, refused=(best,))) == {second: 4}
