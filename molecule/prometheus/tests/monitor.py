# SPDX-License-Identifier: GPL-3.0-or-later
"""The monitor as people see it: through its login."""

from __future__ import annotations

import json
from functools import cached_property
from typing import Any

import httpx

from tests.cluster import Lab

HOST = "mon1"
# Keeps what is posted to it, one line for each alert, and hands it out.
RECEIVER = r"""
import http.server, json

told = []

class Handler(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        sent = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        for alert in sent.get("alerts") or [{"slack": sent}]:
            told.append({"path": self.path, **alert})
        self.answer(b"ok")

    def do_GET(self):
        self.answer(json.dumps(told).encode())

    def answer(self, body):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *arguments):
        pass

http.server.ThreadingHTTPServer(("127.0.0.1", 9999), Handler).serve_forever()
"""


def primary(lab: Lab) -> tuple[str, str]:
    """The primary and the replica."""
    first = "data1" if lab.sql("data1", "SELECT pg_is_in_recovery()") == "f" else "data2"
    return first, "data2" if first == "data1" else "data1"


class Monitor:
    """A monitor's pages, and the receiver on the same host that its alerts go to."""

    def __init__(self, lab: Lab, host: str = HOST) -> None:
        self.lab = lab
        self.host = host
        self.url = f"http://{lab.address(host)}:9095"

    @cached_property
    def password(self) -> str:
        return str(self.lab.variable(HOST, "prometheus_password")).strip()

    @cached_property
    def client(self) -> httpx.Client:
        return httpx.Client(base_url=self.url, auth=("admin", self.password), timeout=20, trust_env=False)

    def get(self, path: str, **params: str) -> Any:
        answer = self.client.get(path, params=params)
        assert answer.status_code == 200, f"{path}: {answer.status_code} {answer.text[:300]}"
        return answer.json()

    def query(self, expression: str) -> dict[str, float]:
        """Instance (or what else the labels say) -> value."""
        found = self.get("/prometheus/api/v1/query", query=expression)["data"]["result"]
        return {
            item["metric"].get("instance") or json.dumps(item["metric"], sort_keys=True): float(item["value"][1])
            for item in found
        }

    def targets(self) -> list[dict[str, Any]]:
        return list(self.get("/prometheus/api/v1/targets", state="active")["data"]["activeTargets"])

    def firing(self) -> dict[str, list[dict[str, Any]]]:
        """What Alertmanager tells of, by the alerts' names."""
        found: dict[str, list[dict[str, Any]]] = {}
        for alert in self.get("/alertmanager/api/v2/alerts", active="true", silenced="false", inhibited="false"):
            found.setdefault(alert["labels"]["alertname"], []).append(alert)
        return found

    def silenced_by(self) -> list[str]:
        """Who has silenced something that is silent now."""
        found = self.get("/alertmanager/api/v2/silences")
        return [one["createdBy"] for one in found if one["status"]["state"] == "active"]

    def start_receiver(self) -> None:
        self.lab.ssh(self.host, "cat > /run/receiver.py", RECEIVER)
        self.lab.ssh(
            self.host,
            "systemctl reset-failed receiver 2>/dev/null; systemctl is-active -q receiver || "
            "systemd-run -q --unit receiver --property DynamicUser=true python3 /run/receiver.py",
        )

    def told(self) -> list[dict[str, Any]]:
        return list(
            json.loads(
                self.lab.ssh(
                    self.host,
                    "python3 -c \"import urllib.request as u; print(u.urlopen('http://127.0.0.1:9999').read().decode())\"",
                )
            )
        )
