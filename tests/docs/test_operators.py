"""What the pages for operators show is checked by the programs that it is meant for."""

from __future__ import annotations

import getpass
import json
import re
import shutil
import sys

import httpx
import pytest
import yaml
from support.blocks import claim_one
from support.processes import ROOT, need, output, program
from support.service import HELLO

from ws_chat import __main__ as cli

pytestmark = pytest.mark.anyio

NGINX = claim_one("docs/deployment.md", "nginx")
UNIT = claim_one("docs/deployment.md", "ini")
LINE = claim_one("docs/operations.md", "json")
KUBERNETES = claim_one("docs/operations.md", "yaml", "terminationGracePeriodSeconds")
SCRAPE = claim_one("docs/operations.md", "yaml", "scrape_configs")
DASHBOARD = json.loads((ROOT / "examples/grafana.json").read_text())


async def test_nginx_accepts_its_upstream(tmp_path):
    conf = tmp_path / "nginx.conf"
    paths = "".join(f"{name}_temp_path {tmp_path};" for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi"))
    conf.write_text(f"pid {tmp_path}/pid; events {{}} http {{ access_log off; {paths}\n{NGINX} }}")
    status, _, err = await output(need("nginx"), "-t", "-e", "stderr", "-p", str(tmp_path), "-c", str(conf))

    assert status == 0, err.decode()


async def test_systemd_accepts_the_unit_and_the_server_its_command(tmp_path, monkeypatch):
    (command,) = re.findall(r"^ExecStart=/opt/ws-chat/bin/(ws-chat serve .*)$", UNIT, re.MULTILINE)
    ran = []
    monkeypatch.setattr(cli, "run", lambda _, binding: ran.append(binding))
    assert cli.main(command.split()[1:]) == 0
    assert (ran[0].uds, ran[0].forwarded_allow_ips) == ("/run/ws-chat/socket", "*")

    unit = tmp_path / "ws-chat.service"
    here = UNIT.replace("/opt/ws-chat/bin/ws-chat", shutil.which("ws-chat", path=sys.prefix + "/bin"))
    unit.write_text(here.replace("User=ws-chat", f"User={getpass.getuser()}"))
    _, out, err = await output(need("systemd-analyze"), "verify", "--man=no", str(unit))

    # What it says of other units of this machine is not ours.
    assert [line for line in (out + err).decode().splitlines() if "ws-chat" in line] == []


def test_kubernetes_asks_what_there_is():
    spec = yaml.safe_load(KUBERNETES)["spec"]
    (container,) = spec["containers"]
    sleep = int(container["lifecycle"]["preStop"]["exec"]["command"][1])

    assert container["command"][:2] == ["ws-chat", "serve"]
    assert cli._parser().parse_args(container["command"][2:]).host == "0.0.0.0"
    assert {container[f"{kind}Probe"]["httpGet"]["path"] for kind in ("liveness", "readiness")} == {
        "/healthz",
        "/readyz",
    }
    assert spec["terminationGracePeriodSeconds"] >= 25 + 10 + sleep


async def test_the_line_of_the_log_has_the_fields_that_it_has():
    shown = json.loads(LINE)
    async with program("ws-chat", "--port", "0", WS_CHAT_UPSTREAM_TIMEOUT="0.05", WS_CHAT_API_KEYS="k") as server:
        url = f"http://127.0.0.1:{await server.port()}/v1/chat/stream"
        async with httpx.AsyncClient(headers={"Authorization": "Bearer k"}, timeout=None) as client:
            await client.post(url, json={"messages": HELLO, "model": "demo-silent"})
        found = await server.until_logged(r".*upstream_timeout.*")

    logged = json.loads(found[0])
    assert list(logged) == list(shown)
    assert {name: type(value) for name, value in logged.items() if name != "ttft_ms"} == {
        name: type(value) for name, value in shown.items() if name != "ttft_ms"
    }


async def test_prometheus_accepts_the_rules_and_fires_each_on_its_condition(tmp_path):
    promtool = need("promtool")
    for file in (ROOT / "examples/alerts.yml", ROOT / "tests/docs/alerts_test.yml"):
        shutil.copy(file, tmp_path)
    (tmp_path / "prometheus.yml").write_text("rule_files: [alerts.yml]\n" + SCRAPE)
    for command in (("check", "config", "prometheus.yml"), ("test", "rules", "alerts_test.yml")):
        status, out, err = await output(promtool, *command[:2], str(tmp_path / command[2]))
        assert status == 0, (out + err).decode()


def expressions() -> list[str]:
    """Return what the dashboard asks, with what Grafana puts in."""
    asked = [target["expr"] for panel in DASHBOARD["panels"] for target in panel["targets"]]
    return [expr.replace("$__rate_interval", "5m").replace("$instance", ".*") for expr in asked]


async def test_the_dashboard_asks_for_what_there_is(tmp_path, serve):
    """Every metric and label that it or a rule names is on a server that has done everything there is to do."""
    service = await serve(upstream="demo")
    async with httpx.AsyncClient(base_url=service.url, timeout=None) as client:
        for model in ("demo-fast", "demo-error"):
            await client.post("/v1/chat/stream", json={"messages": HELLO, "model": model, "id": model})
        await client.get("/v1/chat/stream/demo-fast")
        await client.get("/v1/chat/stream/none")
        scraped = (await client.get("/metrics")).text

    there: dict[str, set[str]] = {}
    for name, labels in re.findall(r"^(\w+)(?:\{(.*)\})? \S+$", scraped, re.MULTILINE):
        there.setdefault(name, {"instance", "job"}).update(re.findall(r"(\w+)=", labels))
    # It is counted for peers that have stalled, of which there is none here.
    described = re.findall(r"^# TYPE (\w+) counter$", scraped, re.MULTILINE)
    assert "ws_chat_connections_dropped_total" in described
    there["ws_chat_connections_dropped_total"] = {"instance", "door"}
    there["up"] = {"instance", "job"}

    rules = yaml.safe_load((ROOT / "examples/alerts.yml").read_text())["groups"][0]["rules"]
    asked = [*expressions(), *(rule["expr"] for rule in rules)]
    for expr in asked:
        selectors = re.findall(r"\b((?:ws_chat|process)_\w+|up)(?:\{(.*?)\})?", expr)
        assert selectors, expr
        for name, labels in selectors:
            assert name in there, expr
            assert set(re.findall(r"(\w+)=", labels)) <= there[name], expr
        for grouping in re.findall(r"by \((.*?)\)", expr):
            assert set(grouping.split(", ")) <= set.union(*(there[name] for name, _ in selectors)), expr
    (variable,) = [entry for entry in DASHBOARD["templating"]["list"] if entry["type"] == "query"]
    assert re.search(r"\((\w+),", variable["query"]["query"])[1] in there

    parsed = {"groups": [{"name": "g", "rules": [{"record": "r:r", "expr": expr} for expr in expressions()]}]}
    (tmp_path / "rules.yml").write_text(yaml.safe_dump(parsed))
    status, out, err = await output(need("promtool"), "check", "rules", "--lint=none", str(tmp_path / "rules.yml"))
    assert status == 0, (out + err).decode()


def test_the_panels_of_the_dashboard_lie_side_by_side():
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    taken = [
        (column, row)
        for panel in DASHBOARD["panels"]
        for column in range(panel["gridPos"]["x"], panel["gridPos"]["x"] + panel["gridPos"]["w"])
        for row in range(panel["gridPos"]["y"], panel["gridPos"]["y"] + panel["gridPos"]["h"])
    ]

    assert len(set(ids)) == len(ids)
    assert len(set(taken)) == len(taken)
    assert max(column for column, _ in taken) < 24
