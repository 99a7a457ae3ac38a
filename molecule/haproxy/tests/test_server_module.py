# SPDX-License-Identifier: GPL-3.0-or-later
"""The modules haproxy_server and haproxy_info with the role's configuration, run as a playbook runs them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

from balancer import LAB_NAME, ROOT, Answer, Load, all_up, ask, on, servers, wait_for


def module(name: str, *options: str, **arguments: Any) -> dict[str, Any]:
    """The result of one run of a module on lb1."""
    command = [str(Path(sys.executable).parent / "ansible"), "-i", "inventories/lab", "lb1", "--become", "--one-line"]
    command += ["-m", f"flotilla.django.{name}", "-a", json.dumps(arguments), *options]
    environment = os.environ | {
        "LAB_NAME": LAB_NAME,
        "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"),
        "ANSIBLE_NOCOLOR": "1",
    }
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=120)
    line = next(line for line in done.stdout.splitlines() if line.startswith("lb1 | "))
    result: dict[str, Any] = json.loads(line.partition(" => ")[2])
    return {"failed": " FAILED! " in line.partition(" => ")[0] + " ", **result}


def app1(state: str, **arguments: Any) -> dict[str, Any]:
    return module("haproxy_server", servers=["app1"], state=state, **arguments)


class Slow(threading.Thread):
    """One slow request for each server."""

    def __init__(self, seconds: float) -> None:
        super().__init__(daemon=True)
        self.seconds = seconds
        self.answer: Answer | None = None
        self.ended = 0.0
        self.start()

    def run(self) -> None:
        self.answer = ask(f"/slow?{self.seconds}", timeout=30)
        self.ended = time.monotonic()


def at_all_servers(seconds: float) -> list[Slow]:
    requests = [Slow(seconds) for _server in range(3)]
    wait_for("a slow request at each server", lambda: all(row["scur"] == "1" for row in servers().values()))
    return requests


def test_node_is_restarted_under_load_without_a_failed_request() -> None:
    counters = ("econ", "eresp", "wretr", "wredis", "hrsp_5xx")
    before = {name: {what: row[what] for what in counters} for name, row in servers().items()}
    with Load().running() as fresh, Load(keep=True).running() as kept:
        time.sleep(0.5)
        out = app1("maint")
        gone = time.monotonic()
        on("app1", "systemctl restart backend")
        back = time.monotonic()
        ready = app1("ready")
        wait_for("app1 serves", lambda: any(at > back and who == "app1" for at, who in fresh.answers))
    assert not out["failed"] and not ready["failed"], (out, ready)
    assert fresh.failures == kept.failures == []
    assert not [who for at, who in fresh.answers + kept.answers if gone < at < back and who == "app1"]
    assert {name: {what: row[what] for what in counters} for name, row in servers().items()} == before
    # Of the 8 seconds that a node may cost, so little is the balancer's.
    assert out["seconds"] + ready["seconds"] < 4


def reload_when_drained() -> None:
    wait_for("app1 drains", lambda: servers()["app1"]["status"].startswith("DRAIN"))
    on("lb1", "systemctl reload haproxy")


def test_reload_during_a_drain_is_survived() -> None:
    requests = at_all_servers(8)
    started = time.monotonic()
    reload = threading.Thread(target=reload_when_drained, daemon=True)
    reload.start()
    try:
        out = app1("maint")
        ended = time.monotonic()
        reload.join()
        for request in requests:
            request.join()
        assert not out["failed"], out
        assert any("reloaded while waiting" in note for note in out["notes"]), out
        [slow] = [one for one in requests if one.answer and one.answer.server == "app1"]
        assert slow.answer and slow.answer.status == 200
        assert started < slow.ended <= ended
        assert servers()["app1"]["status"] == "MAINT"
        found = module("haproxy_info", backends=["django"])
        assert {row["server"]: row["admin"] for row in found["balancers"][0]["servers"]}["app1"] == "maint"
    finally:
        assert not app1("ready")["failed"]


def test_broken_node_stays_out_of_service() -> None:
    assert app1("maint")["changed"]
    on("app1", "systemctl stop backend")
    try:
        failed = app1("ready", ready_timeout=2)
        assert failed["failed"] and "L4CON" in failed["msg"], failed
        assert failed["servers"][0]["after"]["admin"] == "drain"
        assert {ask("/").server for _request in range(6)} == {"app2", "app3"}
    finally:
        on("app1", "systemctl start backend")
    assert not app1("ready")["failed"]
    wait_for("all servers are up", all_up)


def test_check_mode_tells_and_does_nothing() -> None:
    told = module("haproxy_server", "--check", "--diff", servers=["app1"], state="maint")
    assert told["changed"] and told["servers"][0]["after"]["admin"] == "maint"
    assert all_up()
    refused = module("haproxy_server", servers=["app*"], state="drain")
    assert refused["failed"] and "min_healthy" in refused["msg"]
    same = app1("ready")
    assert not same["changed"] and same["seconds"] < 0.2
