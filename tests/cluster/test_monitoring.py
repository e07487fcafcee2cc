"""Alerts and dashboard: every expression parses and asks for metrics that exist; a real study is seen as it is."""

from __future__ import annotations

import json
import re
import time
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import promql_parser
import pytest
import ray
import yaml
from prometheus_client.parser import text_string_to_metric_families
from ray.dashboard.modules.reporter.reporter_agent import METRICS_GAUGES
from tiny import TINY, quiet, wait_for, workers_of

from braintum.training.metrics import Metrics
from braintum.training.worker import train
from braintum.tuning.metrics import StudyMetrics
from braintum.tuning.space import SearchSpace
from braintum.tuning.study import search

MONITORING = Path(__file__).parents[2] / "cluster" / "monitoring"
OWN = {f"ray_{name}" for name in StudyMetrics.GAUGES}
OF_NODES = {f"ray_{name}" for name in METRICS_GAUGES}
SPACE: dict[str, Any] = {
    "name": "watched",
    "architectures": ["unet", "joint_unet"],
    "base": "fast",
    "overrides": {**TINY, "training.epochs": 120},
    "folds": 2,
    "trials": 4,
    "budget": {"price_per_node_hour": 3.0},
    "scheduler": {"name": "asha", "grace_epochs": 1, "reduction": 2},
    "parameters": {"optim.lr": {"log_uniform": [1e-5, 1e-2]}},
}
OF_GPUS = {name for name in OF_NODES if "_gpus_" in name or "_gram_" in name}
DEATHS = "ray_node_manager_unexpected_worker_failure_total"

Sample = tuple[str, dict[str, str], float]


def alerts() -> list[dict[str, Any]]:
    groups = yaml.safe_load((MONITORING / "alerts.yml").read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


def dashboard() -> dict[str, Any]:
    shown: dict[str, Any] = json.loads((MONITORING / "grafana" / "braintum.json").read_text())
    return shown


def expressions() -> dict[str, str]:
    """By who asks; what Grafana replaces is replaced."""
    found = {rule["alert"]: rule["expr"] for rule in alerts()}
    for panel in dashboard()["panels"]:
        for target in panel.get("targets", []):
            found[f"{panel['title']} {target['refId']} ({panel['type']})"] = target["expr"]
    return {who: text.replace("$__rate_interval", "40s").replace("$study", ".*") for who, text in found.items()}


def metrics_of(expression: str) -> set[str]:
    """The metrics that an expression selects. Raises ValueError where it is none."""
    names: list[str] = []

    def visit(node: Any) -> None:
        if isinstance(node, promql_parser.VectorSelector):
            names.append(node.name)

    promql_parser.walk(promql_parser.parse(expression), visit)
    return set(names)


def asked() -> set[str]:
    return {name for text in expressions().values() for name in metrics_of(text)} - {"ALERTS"}


@pytest.mark.parametrize("who", expressions())
def test_an_expression_is_valid_and_of_metrics_that_exist(who: str) -> None:
    found = metrics_of(expressions()[who])
    assert found, "it asks for something"
    assert found <= OWN | OF_NODES | {DEATHS, "ALERTS"}


def test_all_own_metrics_are_shown_or_watched() -> None:
    assert asked() >= OWN


def test_an_alert_says_what_to_do() -> None:
    readme = (MONITORING / "README.md").read_text()
    for rule in alerts():
        assert rule["annotations"].keys() == {"summary", "remedy"}
        assert rule["labels"]["severity"] in ("warning", "critical")
        assert rule["alert"] in readme


def test_the_dashboard_chooses_a_study_and_finds_prometheus() -> None:
    shown = dashboard()
    variables = {variable["name"]: variable for variable in shown["templating"]["list"]}
    metric, label = re.fullmatch(r"label_values\((\w+), (\w+)\)", variables["study"]["query"]["query"]).groups()
    assert metric in OWN
    for who, text in expressions().items():
        for own in re.findall(r"ray_braintum_\w+({[^}]*})?", text) if who.endswith(")") else []:
            assert f'{label}=~".*"' in own, who
    used = {panel["datasource"]["uid"] for panel in shown["panels"] if "datasource" in panel}
    assert used == {"${datasource}"}
    assert len({panel["id"] for panel in shown["panels"]}) == len(shown["panels"])


def test_what_runs_beside_a_head_is_on_loopback_and_asks_for_a_password() -> None:
    composed = yaml.safe_load((MONITORING / "compose.yaml").read_text())
    prometheus, grafana = composed["services"]["prometheus"], composed["services"]["grafana"]
    assert "--web.listen-address=127.0.0.1:9090" in prometheus["command"]
    assert grafana["environment"]["GF_SERVER_HTTP_ADDR"] == "127.0.0.1"
    inside = {place.split(":")[1] for service in (prometheus, grafana) for place in mounted(service)}
    inside |= {config["target"] for config in prometheus["configs"]}
    told = [option.split("=")[1] for option in prometheus["command"] if ".config.file" in option or ".file=" in option]
    assert set(told) <= inside
    users = yaml.safe_load(composed["configs"]["web"]["content"])["basic_auth_users"]
    (source,) = yaml.safe_load((MONITORING / "grafana" / "datasource.yaml").read_text())["datasources"]
    assert source["basicAuthUser"] in users
    assert source["secureJsonData"]["basicAuthPassword"].lstrip("$") in grafana["environment"]
    for service in (prometheus, grafana):
        assert all((MONITORING / place.split(":")[0]).is_file() for place in mounted(service) if place.startswith("."))


def mounted(service: dict[str, Any]) -> list[str]:
    return [place for place in service["volumes"] if isinstance(place, str)]


def space(folder: Path) -> SearchSpace:
    file = folder / "space.yaml"
    file.write_text(yaml.safe_dump(SPACE))
    return SearchSpace.load(file)


def scrape() -> list[Sample]:
    """What Prometheus would read of this machine's node now."""
    (node,) = ray.nodes()
    url = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
    with urllib.request.urlopen(url, timeout=60) as answer:
        families = text_string_to_metric_families(answer.read().decode())
        return [(sample.name, sample.labels, sample.value) for family in families for sample in family.samples]


def of(samples: list[Sample], name: str, out: Path) -> Iterator[tuple[dict[str, str], float]]:
    return ((labels, value) for found, labels, value in samples if found == name and labels.get("out") == str(out))


def value(samples: list[Sample], name: str, out: Path, **labels: str) -> float | None:
    wanted = labels.items()
    return next((number for has, number in of(samples, name, out) if wanted <= has.items()), None)


def scraped_when(out: Path, name: str, is_so: Callable[[float], bool]) -> list[Sample]:
    """What is told when that is so of a metric. Ray hands on what drivers tell every ten seconds."""
    for _ in range(240):
        samples = scrape()
        now = value(samples, name, out)
        if now is not None and is_so(now):
            return samples
        time.sleep(0.5)
    raise AssertionError(f"{name} was never so")


@pytest.mark.usefixtures("ray_cluster")
def test_a_study_is_seen_as_it_is(tiny_phantom: str, tmp_path: Path) -> None:
    """While it runs, as a worker dies, and when it has ended; with all that alerts and dashboard ask for."""
    out = tmp_path / "study"

    def kill_and_look() -> list[Sample]:
        wait_for(lambda: (out / "trials" / "unet-0" / "history.json").exists())
        workers_of("OneWorkerTrial")[0].kill()
        return scraped_when(out, "ray_braintum_slices_per_second", lambda speed: speed > 0)

    with ThreadPoolExecutor(1) as pool:
        looking = pool.submit(kill_and_look)
        summary = search(space(tmp_path), tiny_phantom, str(out), progress=quiet())
    running = looking.result()
    assert value(running, "ray_braintum_running", out) == 1
    assert sum(count for _, count in of(running, "ray_braintum_trials", out)) <= SPACE["trials"]
    assert 0 < (value(running, "ray_braintum_longest_epoch_seconds", out) or 0) < summary["seconds"]
    ended = scraped_when(out, "ray_braintum_running", lambda runs: runs == 0)
    states = {labels["state"]: count for labels, count in of(ended, "ray_braintum_trials", out)}
    assert states == {"running": 0, **summary["trials"]}
    scores = {labels["architecture"]: score for labels, score in of(ended, "ray_braintum_best_score", out)}
    assert scores == {name: pytest.approx(best["score"]) for name, best in summary["best"].items()}
    assert value(ended, "ray_braintum_slices_per_second", out) == 0
    assert value(ended, "ray_braintum_trial_restarts", out) == 1
    assert value(ended, "ray_braintum_start_seconds", out) == pytest.approx(sum(summary["start_seconds"]))
    hours, cost = value(ended, "ray_braintum_spent_hours", out), value(ended, "ray_braintum_spent_cost", out)
    assert hours == pytest.approx(summary["spent"]["hours"], rel=0.1)
    assert cost == pytest.approx(3.0 * (hours or 0.0))
    assert asked() - OF_GPUS <= {name for name, _, _ in ended}


@pytest.mark.usefixtures("ray_cluster")
def test_a_training_is_seen_too(tiny_phantom: str, tmp_path: Path) -> None:
    out = tmp_path / "run"
    experiment = space(tmp_path).experiment("unet", {}).with_overrides({"training.epochs": 2})
    train(experiment, tiny_phantom, str(out), progress=quiet())
    ended = scraped_when(out, "ray_braintum_running", lambda runs: runs == 0)
    seen = {name for name, labels, _ in ended if labels.get("out") == str(out)}
    assert seen == {f"ray_{name}" for name in Metrics.GAUGES}
