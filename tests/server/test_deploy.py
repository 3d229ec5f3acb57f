"""What configs/deploy ships is true of this server: commands, paths, alerts, limits."""

from __future__ import annotations

import importlib.resources
import importlib.util
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from busy_metrics import BusyServer
from prometheus_client.parser import text_string_to_metric_families

from server.cli import parser
from server.delivery.permissions import PROBES
from server.inference.client import ENGINE_ERROR, HUNG, WORKER_LOST
from server.ingest.source import Reason
from server.ingest.wire import DecodeErrorKind, DropReason
from server.metrics.metrics import STAGES, STATES
from server.settings import load_settings

ROOT = Path(__file__).parents[2]
DEPLOY = Path(str(importlib.resources.files("configs"))) / "deploy"
RULES = DEPLOY / "prometheus" / "rules.yml"
ALERT_TESTS = Path(__file__).parent / "alerts.yml"
COMPOSE: dict[str, Any] = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
UNIT = (DEPLOY / "yolov9-server.service").read_text()


def run(*command: str) -> str:
    """What the command says; skips if it is not installed."""
    if shutil.which(command[0]) is None:
        pytest.skip(f"{command[0]} is not installed")
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


# Prometheus


def alerts() -> list[dict[str, Any]]:
    (group,) = yaml.safe_load(RULES.read_text())["groups"]
    rules: list[dict[str, Any]] = group["rules"]
    return rules


def test_alerts_fire_when_they_should_and_only_then(tmp_path: Path) -> None:
    tests = tmp_path / "alerts.yml"
    tests.write_text(ALERT_TESTS.read_text().replace("RULES", str(RULES)))
    assert "SUCCESS" in run("promtool", "test", "rules", str(tests))


def test_every_alert_is_tested_and_says_what_to_know() -> None:
    text = ALERT_TESTS.read_text()
    for rule in alerts():
        assert f"alertname: {rule['alert']}\n" in text, f"{rule['alert']} is never expected to fire"
        assert rule["labels"]["severity"] in ("critical", "warning", "info")
        assert set(rule["annotations"]) == {"summary", "description"}


def test_prometheus_takes_its_configuration() -> None:
    run("promtool", "check", "config", "--syntax-only", str(DEPLOY / "prometheus" / "prometheus.yml"))


# systemd


def test_the_unit_starts_this_server(tmp_path: Path) -> None:
    (command,) = re.findall(r"^ExecStart=(.+)$", UNIT, re.M)
    python, module, name, *arguments = command.split()
    assert (Path(python).name, module, name) == ("python", "-m", "server")
    options = parser().parse_args([a.replace("%S", "/var/lib") for a in arguments])
    assert options.data == Path("/var/lib/yolov9-server")
    unit = tmp_path / "yolov9-server.service"
    unit.write_text(UNIT.replace(python, sys.executable))
    said = run("systemd-analyze", "verify", "--man=no", str(unit))
    assert "yolov9-server" not in said, said


def test_the_unit_is_locked_down() -> None:
    said = run("systemd-analyze", "security", "--offline=true", str(DEPLOY / "yolov9-server.service"))
    (exposure,) = re.findall(r"Overall exposure level for \S+: ([\d.]+)", said)
    assert float(exposure) <= 2.0


def test_the_unit_gives_the_drain_its_time() -> None:
    """5 s are promised; the rest is for a machine that has much else to do."""
    (stop,) = re.findall(r"^TimeoutStopSec=(\d+)$", UNIT, re.M)
    assert int(stop) >= 10
    assert "KillMode=mixed" in UNIT, "SIGTERM to cameras and engine would cut off the frames that are to be answered"


# Compose


@pytest.mark.parametrize("name", COMPOSE["services"])
def test_a_service_is_locked_down_and_watched(name: str) -> None:
    service = COMPOSE["services"][name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert {"test", "interval", "timeout", "retries"} <= set(service["healthcheck"])
    for volume in service.get("volumes", []):
        source, _, _ = volume.partition(":")
        if source.startswith("."):
            assert (DEPLOY / source).exists(), volume
        else:
            assert source in COMPOSE["volumes"]
    for other in service.get("depends_on", {}):
        assert "healthcheck" in COMPOSE["services"][other]
    if "build" in service:
        # In the tree: whoever has the package alone takes an image.
        assert (ROOT / "configs" / "deploy" / service["build"]["context"]).resolve() == ROOT
        assert re.search(rf" AS {service['build']['target']}$", (ROOT / "Dockerfile").read_text(), re.M)


def test_the_commands_of_our_images_are_commands_of_ours() -> None:
    server = COMPOSE["services"]["server"]
    options = parser().parse_args(server["command"])
    assert len(options.stream) == 2
    hosts = {re.match(r"rtsp://([\w-]+):8554/", url)[1] for url in options.stream}  # type: ignore[index]
    assert hosts <= set(COMPOSE["services"])
    assert importlib.util.find_spec(server["healthcheck"]["test"][-1]) is not None
    for name in hosts:
        _, python, flag, code = COMPOSE["services"][name]["healthcheck"]["test"]
        assert (python, flag) == ("python", "-c")
        compile(code, name, "exec")
    for name in hosts:
        (command,) = COMPOSE["services"][name]["command"]
        words = command.replace("$$", "$").split("$(")[0]
        known = subprocess.run(
            [sys.executable, "-m", "server.testing.camera", "--help"], capture_output=True, text=True, check=True
        ).stdout
        for option in re.findall(r"--[a-z]+", words):
            assert option in known


def test_compose_is_as_its_schema_says() -> None:
    if not (Path(sys.executable).parent / "check-jsonschema").exists():
        pytest.skip("check-jsonschema is not installed")
    run(str(Path(sys.executable).parent / "check-jsonschema"), "--builtin-schema", "vendor.compose-spec",
        str(DEPLOY / "compose.yaml"))  # fmt: skip


def test_compose_holds_no_secret() -> None:
    token = COMPOSE["services"]["server"]["environment"]["YOLOV9_TOKEN"]
    assert token.startswith("${YOLOV9_TOKEN:?")
    assert COMPOSE["secrets"] == {"metrics_token": {"environment": "YOLOV9_TOKEN"}}


# Kubernetes

MANIFESTS = sorted((DEPLOY / "kubernetes").glob("*.yaml"))


def manifest(name: str) -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((DEPLOY / "kubernetes" / f"{name}.yaml").read_text())
    return loaded


@pytest.mark.parametrize("path", [p for p in MANIFESTS if p.stem != "kustomization"], ids=lambda p: p.stem)
def test_manifests_are_as_their_schemas_say(path: Path) -> None:
    validator = pytest.importorskip("kubernetes_validate", reason="kubernetes-validate is not installed")
    validator.validate(yaml.safe_load(path.read_text()), "1.30", strict=True)


def test_manifests_fit_together() -> None:
    assert {f"{p.stem}.yaml" for p in MANIFESTS} == {"kustomization.yaml", *manifest("kustomization")["resources"]}
    spec = manifest("deployment")["spec"]
    labels = spec["template"]["metadata"]["labels"]
    assert spec["selector"]["matchLabels"] == labels
    assert manifest("service")["spec"]["selector"].items() <= labels.items()
    pod = spec["template"]["spec"]
    (container,) = pod["containers"]
    for kind in ("startupProbe", "readinessProbe", "livenessProbe"):
        probe = container[kind]["httpGet"]
        assert probe["path"] in PROBES
        assert probe["port"] in {port["name"] for port in container["ports"]}
    assert container["livenessProbe"]["httpGet"]["path"] == "/healthz", "a failing engine is no reason to kill all"
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    assert {mount["name"] for mount in container["volumeMounts"]} == set(volumes)
    assert volumes["data"]["persistentVolumeClaim"]["claimName"] == manifest("storage")["metadata"]["name"]
    assert parser().parse_args(container["args"]).config == Path("/etc/yolov9-server/server.yaml")


def test_the_settings_of_the_manifest_are_settings(tmp_path: Path) -> None:
    file = tmp_path / "server.yaml"
    file.write_text(manifest("settings")["data"]["server.yaml"])
    assert load_settings(file).log_format == "json"


# The page of metrics

METRICS_PAGE = (ROOT / "docs" / "metrics.md").read_text()


def documented() -> dict[str, tuple[str, set[str]]]:
    """metric -> (type, labels), of the tables."""
    rows = re.findall(r"^\| (`\w+`(?:, `\w+`)*) \| (counter|gauge|histogram) \|([^|]*)\|", METRICS_PAGE, re.M)
    return {
        name: (kind, set(re.findall(r"`(\w+)`", labels)))
        for names, kind, labels in rows
        for name in re.findall(r"`(\w+)`", names)
    }


def test_the_page_describes_every_metric_and_no_other() -> None:
    page = documented()
    shown: dict[str, tuple[str, set[str]]] = {}
    for family in text_string_to_metric_families(BusyServer().render().decode()):
        name = f"{family.name}_total" if family.type == "counter" else family.name
        labels = {label for sample in family.samples for label in sample.labels} - {"le"}
        shown[name] = (family.type, labels)
    assert set(page) == set(shown), "docs/metrics.md and /metrics name different metrics"
    assert {name: page[name] for name in shown} == shown


def test_the_page_knows_every_label_value() -> None:
    known = set(re.findall(r"`(\w+)`", METRICS_PAGE))
    values = {reason.name.lower() for reason in DropReason} | {kind.name.lower() for kind in DecodeErrorKind}
    values |= {str(reason) for reason in Reason} | set(STATES) | set(STAGES)
    values |= {"replaced", "stale", "stopped", ENGINE_ERROR, HUNG, WORKER_LOST}
    assert values - known == set()


def test_the_page_lists_every_alert_and_no_other() -> None:
    assert set(re.findall(r"`(Yolov9\w+)`", METRICS_PAGE)) == {rule["alert"] for rule in alerts()}
