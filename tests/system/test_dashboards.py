"""Every query of the dashboards and every alert, by a real Prometheus that scrapes the server's real exposition."""

from __future__ import annotations

import importlib.resources
import json
import re
import shutil
import socket
import subprocess
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from busy_metrics import STREAMS, BusyServer
from server_process import wait_for

from server.metrics.metrics import CONTENT_TYPE

pytestmark = pytest.mark.system

DEPLOY = Path(str(importlib.resources.files("configs"))) / "deploy"
DASHBOARDS = sorted((DEPLOY / "grafana" / "dashboards").glob("*.json"))
SCRAPES = 6
"""Rates need some; the window below holds them."""
VARIABLES = {"$__rate_interval": "30s", "$__range": "30s", "$instance": ".*"}


@pytest.fixture(scope="module")
def prometheus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    """Debian's, on loopback, with our rules; it has scraped a busy server some times."""
    if shutil.which("prometheus") is None:
        pytest.skip("the package prometheus is not installed")
    folder, busy = tmp_path_factory.mktemp("prometheus"), BusyServer()

    class Exposition(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            content = busy.render()
            self.send_response(200)
            self.send_header("Content-Type", CONTENT_TYPE)
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Exposition)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    config = yaml.safe_load((DEPLOY / "prometheus" / "prometheus.yml").read_text())
    config["global"] = {"scrape_interval": "200ms", "scrape_timeout": "200ms", "evaluation_interval": "200ms"}
    (job,) = config["scrape_configs"]
    del job["authorization"]
    job["static_configs"] = [{"targets": [f"127.0.0.1:{server.server_port}"]}]
    config["rule_files"] = [str(DEPLOY / "prometheus" / "rules.yml")]
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = f"127.0.0.1:{free.getsockname()[1]}"
    command = ["prometheus", f"--config.file={folder}/prometheus.yml", f"--storage.tsdb.path={folder}/data",
               f"--web.listen-address={address}", "--log.level=warn"]  # fmt: skip
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        with httpx.Client(base_url=f"http://{address}", timeout=10) as client:
            wait_for(lambda: _scrapes(client) >= SCRAPES, 60, "Prometheus to scrape")
            yield client
    finally:
        process.terminate()
        process.wait(20)
        server.shutdown()
        server.server_close()


def _scrapes(client: httpx.Client) -> int:
    try:
        answer = client.get("/api/v1/query", params={"query": 'count_over_time(up{job="yolov9"}[1m])'})
    except httpx.HTTPError:
        return 0
    if answer.status_code == 503:  # it listens, and reads its data still
        return 0
    found = answer.json()
    return int(found["data"]["result"][0]["value"][1]) if found["data"]["result"] else 0


def panels(dashboard: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    for panel in dashboard["panels"]:
        for target in panel.get("targets", []):
            yield f"{dashboard['title']}: {panel['title']}", target


@pytest.mark.parametrize("path", DASHBOARDS, ids=lambda path: path.stem)
def test_every_query_gives_what_its_panel_shows(path: Path, prometheus: httpx.Client) -> None:
    dashboard = json.loads(path.read_text())
    for panel, target in panels(dashboard):
        result = query(prometheus, target["expr"].replace("$stream", one_or_all(dashboard)), panel)
        assert result, f"{panel}: nothing for {target['expr']}"
        wanted = set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"]))
        for series in result:
            assert wanted <= set(series["metric"]), (
                f"{panel}: no {wanted - set(series['metric'])} in {series['metric']}"
            )
            assert series["value"][1] not in ("NaN", "+Inf"), f"{panel}: {series}"
        if wanted:
            assert len({tuple(series["metric"].get(name) for name in wanted) for series in result}) == len(result)


@pytest.mark.parametrize("path", DASHBOARDS, ids=lambda path: path.stem)
def test_every_variable_and_annotation_finds_its_values(path: Path, prometheus: httpx.Client) -> None:
    dashboard = json.loads(path.read_text())
    for variable in dashboard["templating"]["list"]:
        if variable["type"] != "query":
            continue
        match = re.fullmatch(r"label_values\((.+), (\w+)\)", variable["query"]["query"])
        assert match, variable
        result = query(prometheus, match[1], variable["name"])
        assert result, variable
        assert all(match[2] in series["metric"] for series in result)
    for annotation in dashboard["annotations"]["list"]:
        query(prometheus, annotation["expr"], annotation["name"])


def one_or_all(dashboard: dict[str, Any]) -> str:
    """What the dashboard's choice of a camera begins with."""
    choices = [v for v in dashboard["templating"]["list"] if v["name"] == "stream"]
    return ".*" if not choices or choices[0]["includeAll"] else STREAMS[0]


def query(client: httpx.Client, expression: str, what: str) -> list[dict[str, Any]]:
    for name, value in VARIABLES.items():
        expression = expression.replace(name, value)
    assert "$" not in expression, f"{what}: a variable that nothing fills: {expression}"
    answer = client.get("/api/v1/query", params={"query": expression}).json()
    assert answer["status"] == "success", f"{what}: {answer}"
    result: list[dict[str, Any]] = answer["data"]["result"]
    return result


def test_alerts_are_evaluated_without_an_error(prometheus: httpx.Client) -> None:
    def rules() -> list[dict[str, Any]]:
        groups = prometheus.get("/api/v1/rules").json()["data"]["groups"]
        return [rule for group in groups for rule in group["rules"]]

    wait_for(lambda: all(rule["health"] != "unknown" for rule in rules()), 20, "the first evaluation")
    assert {rule["name"]: rule.get("lastError") for rule in rules() if rule["health"] != "ok"} == {}
    pending = {rule["name"] for rule in rules() if rule["state"] != "inactive"}
    assert {"Yolov9CameraDown", "Yolov9InferenceFailing", "Yolov9SwapFailed"} <= pending
    assert "Yolov9NotReady" not in pending


def test_grafana_would_load_the_dashboards() -> None:
    uids = set()
    for path in DASHBOARDS:
        dashboard = json.loads(path.read_text())
        uids.add(dashboard["uid"])
        ids = [panel["id"] for panel in dashboard["panels"]]
        assert len(ids) == len(set(ids))
        known = {variable["name"] for variable in dashboard["templating"]["list"]} | {
            "__rate_interval",
            "__range",
            "__all",
        }
        text = json.dumps(dashboard)
        assert set(re.findall(r"\$\{?(\w+)", text)) <= known
        for panel in dashboard["panels"]:
            place = panel["gridPos"]
            assert 0 <= place["x"] < place["x"] + place["w"] <= 24
            assert panel["type"] == "row" or panel["datasource"]["uid"] == "${datasource}"
        for link in dashboard["links"]:
            assert link["url"].startswith("/d/yolov9-")
    assert len(uids) == len(DASHBOARDS) >= 3
    linked = {link["url"].removeprefix("/d/") for p in DASHBOARDS for link in json.loads(p.read_text())["links"]}
    assert linked == uids
