"""The files of `ray up` as Ray reads them, and the scripts that they run. No cloud is asked."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from ray.autoscaler._private.util import validate_config
from ray_up_files import CLUSTER, FILES, prepared, workers

REPOSITORY = CLUSTER.parent
SECRETS = (
    "BEGIN [A-Z ]*PRIVATE KEY",
    r"\bAKIA[0-9A-Z]{16}",
    r"\bAIza",
    r"\b[0-9a-f]{32,}\b",
    r"(?i)(token|secret|password)=[\"']?(?=[\w+/-]*\d)[\w+/-]{8,}",
)


@pytest.fixture(params=FILES)
def config(request: pytest.FixtureRequest) -> dict[str, Any]:
    return prepared(request.param)


def starts(config: dict[str, Any]) -> list[str]:
    """The commands that start Ray."""
    commands = config["head_start_ray_commands"] + config["worker_start_ray_commands"]
    return [command for command in commands if "ray start" in command]


def test_passes_rays_own_schema(config: dict[str, Any]) -> None:
    validate_config(config)
    config["available_node_types"]["head"]["spot"] = True
    with pytest.raises(Exception, match="Additional properties"):
        validate_config(config)


def test_head_drives_and_workers_come_from_none_and_go(config: dict[str, Any]) -> None:
    head = config["available_node_types"][config["head_node_type"]]
    assert head["resources"] == {"CPU": 0}
    assert len(workers(config)) >= 3
    for kind in workers(config).values():
        assert kind["min_workers"] == 0
        assert kind["resources"] == {"CPU": 8, "GPU": 1}
    assert len({kind["priority"] for kind in workers(config).values()}) == len(workers(config))
    assert 0 < config["idle_timeout_minutes"] <= 10
    assert config["upscaling_speed"] >= config["max_workers"], "the cluster grows at once"


def is_spot(node: dict[str, Any]) -> bool:
    on_aws = node.get("InstanceMarketOptions", {}).get("MarketType") == "spot"
    return on_aws or node.get("scheduling", {}).get("provisioningModel") == "SPOT"


def test_workers_are_spot_and_the_head_is_not(config: dict[str, Any]) -> None:
    assert not is_spot(config["available_node_types"]["head"]["node_config"])
    assert all(is_spot(kind["node_config"]) for kind in workers(config).values())


def test_images_are_named_and_not_numbered() -> None:
    for kind in prepared("aws.yaml")["available_node_types"].values():
        assert kind["node_config"]["ImageId"].startswith("resolve:ssm:/aws/service/")
        assert kind["node_config"]["MetadataOptions"] == {"HttpTokens": "required"}
    for kind in prepared("gcp.yaml")["available_node_types"].values():
        (disk,) = kind["node_config"]["disks"]
        assert "/global/images/family/" in disk["initializeParams"]["sourceImage"]


def test_every_ray_starts_with_the_token_and_tls_and_its_dashboard_on_loopback(config: dict[str, Any]) -> None:
    assert len(starts(config)) == 2
    for command in starts(config):
        assert command.startswith(". ~/braintum/cluster/environment.sh; ")
    assert "--dashboard-host=127.0.0.1" in starts(config)[0]
    assert "0.0.0.0" not in yaml.safe_dump(config)


def test_the_environment_turns_the_token_and_tls_on(tmp_path: Path) -> None:
    command = ["bash", "-c", f". {CLUSTER / 'environment.sh'} && env"]
    environment = {"HOME": str(tmp_path), "PATH": os.environ["PATH"]}
    said = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
    told = dict(line.split("=", 1) for line in said.splitlines())
    assert told["RAY_AUTH_MODE"] == "token"
    assert told["RAY_USE_TLS"] == "1"
    mounted = {str(tmp_path / ".braintum-tls" / name) for name in ("ca.crt", "node.crt", "node.key")}
    assert {told[f"RAY_TLS_{part}"] for part in ("CA_CERT", "SERVER_CERT", "SERVER_KEY")} == mounted


def test_no_secret_stands_in_a_file_and_those_that_are_brought_are_closed(config: dict[str, Any]) -> None:
    for path in [path for path in CLUSTER.rglob("*") if path.suffix in (".yaml", ".sh", ".json", ".py", ".md")]:
        assert not [secret for secret in SECRETS if re.search(secret, path.read_text())], path
    assert config["file_mounts"]["~/.ray/auth_token"] == "~/.ray/auth_token"
    assert "chmod 600 ~/.ray/auth_token ~/.braintum-tls/ca.key" in config["setup_commands"][0]


def test_what_is_mounted_from_the_repository_is_there(config: dict[str, Any]) -> None:
    ours = [local for local in config["file_mounts"].values() if not local.startswith("~")]
    assert {"braintum", "jobs", "constraints.txt"} < set(ours)
    assert all((REPOSITORY / local).exists() for local in ours)
    commands = " ".join(config[key] if isinstance(config[key], str) else " ".join(config[key])
                        for key in config if key.endswith("commands"))  # fmt: skip
    scripts = set(re.findall(r"~/braintum/(cluster/[\w/.]+)", commands))
    assert {"cluster/environment.sh", "cluster/kept_jobs.py", "cluster/start_again.sh"} < scripts
    assert all((REPOSITORY / script).is_file() for script in scripts)


@pytest.mark.parametrize("name", FILES)
def test_after_a_reboot_the_head_runs_what_ray_up_ran_with_what_it_had_set(name: str, tmp_path: Path) -> None:
    first, *_ = prepared(name)["head_start_ray_commands"]
    (tmp_path / ".ray").mkdir()
    (tmp_path / "braintum").symlink_to(REPOSITORY)
    (tmp_path / "braintum-env").symlink_to(sys.prefix)
    commands = ["false || echo $RAY_OVERRIDE_RESOURCES $RAY_USE_TLS > told", "cat > /dev/null; echo second >> told"]
    (tmp_path / "ray_bootstrap_config.yaml").write_text(json.dumps({"head_start_ray_commands": commands}))
    set_by_ray = {"HOME": str(tmp_path), "PATH": os.environ["PATH"], "RAY_OVERRIDE_RESOURCES": '{"CPU":0}'}
    subprocess.run(["bash", "-c", first], env=set_by_ray, check=True)
    by_cron = {"HOME": str(tmp_path), "PATH": "/usr/bin:/bin"}
    script = CLUSTER / "start_again.sh"
    subprocess.run(["bash", script], env=by_cron, cwd=tmp_path, stdin=subprocess.DEVNULL, check=True)
    assert (tmp_path / "told").read_text().splitlines() == ['{"CPU":0} 1', "second"]


def openssl(*arguments: str | Path) -> str:
    return subprocess.run(["openssl", *map(str, arguments)], capture_output=True, text=True, check=True).stdout


def test_certificates_are_for_one_node_and_verify_against_their_authority(tmp_path: Path) -> None:
    mine, other = tmp_path / "mine", tmp_path / "other"
    for folder in (mine, other):
        subprocess.run(["bash", CLUSTER / "tls" / "make_ca.sh", folder], check=True)
        subprocess.run(["bash", CLUSTER / "tls" / "make_certificate.sh", folder, "10.0.0.7"], check=True)
        assert folder.stat().st_mode & 0o777 == 0o700
        assert all(path.stat().st_mode & 0o777 == 0o600 for path in folder.iterdir())
    verify = ["verify", "-x509_strict", "-purpose", "sslserver", "-CAfile", mine / "ca.crt"]
    assert "OK" in openssl(*verify, "-verify_ip", "10.0.0.7", mine / "node.crt")
    assert "OK" in openssl(*verify, "-verify_ip", "127.0.0.1", mine / "node.crt")
    with pytest.raises(subprocess.CalledProcessError):
        openssl(*verify, "-verify_ip", "10.0.0.8", mine / "node.crt")
    with pytest.raises(subprocess.CalledProcessError):
        openssl(*verify, other / "node.crt")


def test_an_authority_is_not_replaced_by_a_second_one(tmp_path: Path) -> None:
    command = ["bash", CLUSTER / "tls" / "make_ca.sh", tmp_path / "tls"]
    subprocess.run(command, check=True)
    before = (tmp_path / "tls" / "ca.key").read_bytes()
    again = subprocess.run(command, capture_output=True, text=True, check=False)
    assert again.returncode == 1
    assert "is there already" in again.stderr
    assert (tmp_path / "tls" / "ca.key").read_bytes() == before
