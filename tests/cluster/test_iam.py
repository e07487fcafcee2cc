"""What the nodes may do, held against what Ray's providers call."""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path
from typing import Any

import botocore.session
import pytest
import ray.autoscaler
from botocore import xform_name
from ray_up_files import CLUSTER, prepared, workers

IAM = CLUSTER / "iam"
PROVIDERS = Path(ray.autoscaler.__file__).parent / "_private"
RESOURCES = {
    "create_instances": "RunInstances", "instances": "DescribeInstances", "terminate": "TerminateInstances",
    "stop": "StopInstances", "key_pairs": "DescribeKeyPairs", "subnets": "DescribeSubnets",
    "security_groups": "DescribeSecurityGroups", "authorize_ingress": "AuthorizeSecurityGroupIngress",
}  # fmt: skip
"""Which operation of EC2 stands behind a name of boto3's resources."""
NEVER = {
    "StartInstances": "cache_stopped_nodes is false",
    "StopInstances": "cache_stopped_nodes is false",
    "DescribeImages": "no CloudWatch agent is asked for",
    "CreateSecurityGroup": "every node type names its groups",
    "AuthorizeSecurityGroupIngress": "every node type names its groups",
    "DescribeLaunchTemplateVersions": "no node type has a template",
}
READS = "Describe"


def statements(name: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((IAM / name).read_text())["Statement"]
    return found


def as_list(value: str | list[str]) -> list[str]:
    return [value] if isinstance(value, str) else value


def allowed(name: str) -> set[str]:
    actions = {action for statement in statements(name) for action in as_list(statement["Action"])}
    return {action.removeprefix("ec2:") for action in actions if action.startswith("ec2:")}


def called(path: Path) -> set[str]:
    """The operations of EC2 that a file of Ray's provider calls."""
    operations = {
        xform_name(name): name for name in botocore.session.get_session().get_service_model("ec2").operation_names
    }
    names = {node.attr for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Attribute)}
    return {(operations | RESOURCES)[name] for name in names if name in operations | RESOURCES}


def test_rays_provider_calls_what_the_policies_allow_and_no_more_is_allowed() -> None:
    head, person = allowed("aws-autoscaler.json"), allowed("aws-launcher.json")
    of_nodes, of_setup = (called(PROVIDERS / "aws" / f"{name}.py") for name in ("node_provider", "config"))
    assert {"RunInstances", "TerminateInstances", "CreateTags", "DescribeInstances"} <= of_nodes
    assert {"DescribeSubnets", "DescribeSecurityGroups", "CreateKeyPair"} <= of_setup
    assert (of_nodes | of_setup) - NEVER.keys() == person
    assert of_nodes - NEVER.keys() - {"DescribeInstanceTypes"} == head, "types are looked up by `ray up` alone"


def test_what_is_never_called_is_so_by_the_file() -> None:
    config = prepared("aws.yaml")
    assert config["provider"]["cache_stopped_nodes"] is False
    assert "cloudwatch" not in config["provider"]
    for kind in config["available_node_types"].values():
        assert kind["node_config"].keys() >= {"SecurityGroupIds", "IamInstanceProfile"}
        assert "LaunchTemplate" not in kind["node_config"]


@pytest.mark.parametrize("name", ["aws-autoscaler.json", "aws-launcher.json", "aws-data.json"])
def test_only_reading_is_allowed_on_everything(name: str) -> None:
    for statement in statements(name):
        assert statement["Effect"] == "Allow"
        if "*" in as_list(statement["Resource"]):
            assert all(action.startswith(f"ec2:{READS}") for action in as_list(statement["Action"]))
        assert not any("*" in action for action in as_list(statement["Action"]))


@pytest.mark.parametrize(("name", "role"), [("aws-autoscaler.json", "worker"), ("aws-launcher.json", "head")])
def test_only_instances_of_this_cluster_are_started_tagged_and_ended(name: str, role: str) -> None:
    cluster = prepared("aws.yaml")["cluster_name"]
    by_sid = {statement["Sid"]: statement for statement in statements(name)}
    started, ended = by_sid["StartInstancesOfThisCluster"], by_sid["TagAndEndThoseOfThisCluster"]
    assert started["Condition"] == {"StringEquals": {"aws:RequestTag/ray-cluster-name": cluster}}
    assert ended["Condition"] == {"StringEquals": {"aws:ResourceTag/ray-cluster-name": cluster}}
    assert "ec2:TerminateInstances" in ended["Action"]
    others = [statement for statement in by_sid.values() if "ec2:RunInstances" in as_list(statement["Action"])]
    without = [each for statement in others if statement is not started for each in statement["Resource"]]
    assert not any(":instance/" in each for each in without)
    passed = by_sid["GiveThemTheirRole"]
    assert passed["Resource"] == f"arn:aws:iam::ACCOUNT:role/braintum-{role}"
    assert passed["Condition"] == {"StringEquals": {"iam:PassedToService": "ec2.amazonaws.com"}}


def test_data_are_those_of_one_bucket_and_that_is_all_a_worker_has() -> None:
    for statement in statements("aws-data.json"):
        assert all(action.startswith("s3:") for action in as_list(statement["Action"]))
        assert as_list(statement["Resource"])[0].removesuffix("/*") == "arn:aws:s3:::BUCKET"
    for kind in workers(prepared("aws.yaml")).values():
        assert kind["node_config"]["IamInstanceProfile"] == {"Name": "braintum-worker"}


def test_only_ssh_from_one_address_is_let_in() -> None:
    for name, rule in (("aws.sh", r"^allow .*--cidr.*$"), ("gcp.sh", r"firewall-rules create \S+ (?:.*\\\n)*.*$")):
        rules = re.findall(rule, (IAM / name).read_text(), re.M)
        outside = [each for each in rules if "--cidr" in each or "--source-ranges" in each]
        assert len(outside) == 1
        assert re.search(r"--port 22 |--allow=tcp:22 ", outside[0])
        assert "/32" in outside[0]


def test_the_head_on_google_may_call_what_rays_provider_calls() -> None:
    script = (IAM / "gcp.sh").read_text()
    granted = set(re.findall(r"compute\.\w+\.\w+", ",".join(re.findall(r"^permissions.*$", script, re.M))))
    source = (PROVIDERS / "gcp" / "node.py").read_text()
    compute = source[source.index("class GCPCompute(") : source.index("class GCPTPU(")]
    calls = set(re.findall(r"self\.resource\.(\w+)\(\)\s*\.(\w+)\(", compute))
    assert ("instances", "insert") in calls
    stopped = {("instances", "stop"), ("instances", "start")}  # with cache_stopped_nodes, which is off by default
    needed = {f"compute.{kind}.{'create' if verb == 'insert' else verb}" for kind, verb in calls - stopped}
    assert needed <= granted
    to_insert = {f"compute.instances.set{what}" for what in ("Labels", "Metadata", "ServiceAccount", "Tags")}
    of_insert = {"compute.disks.create", "compute.subnetworks.use", "compute.subnetworks.useExternalIp"}
    assert granted == needed | to_insert | of_insert
    config = prepared("gcp.yaml")
    assert f"/instances/ray-{config['cluster_name']}-'" in script
    for name, kind in config["available_node_types"].items():
        account = "braintum-head" if name == "head" else "braintum-worker"
        assert [each["email"].split("@")[0] for each in kind["node_config"]["serviceAccounts"]] == [account]
        assert kind["node_config"]["tags"] == {"items": [account]}
