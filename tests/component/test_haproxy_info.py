# SPDX-License-Identifier: GPL-3.0-or-later
"""haproxy_info against a real HAProxy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from haproxy_process import App, Balancer, wait_for


def test_what_a_balancer_says(run_module: Callable[..., dict[str, Any]]) -> None:
    apps = [App("app1"), App("app2")]
    lb = Balancer(apps)
    try:
        for app in apps:
            app.start()
        lb.start()
        apps[1].stop()
        wait_for("app2 to be down", lambda: lb.masks()["app2"][0] == 0)
        lb.say("set server plain/app1 state drain")
        assert [lb.get()[0] for _ in range(3)] == [200] * 3
        arguments = {"sockets": [lb.operator], "master_socket": lb.master}
        with lb.tunnel("app1"):
            found = run_module("haproxy_info", arguments, check=True)
            lb.reload()
            later = run_module("haproxy_info", arguments)
            only = run_module("haproxy_info", {**arguments, "backends": ["django"], "servers": ["*2"]})
        assert not found["failed"] and not found["changed"] and found["notes"] == []
        [balancer] = found["balancers"]
        assert balancer["version"][:2] in ("2.", "3.")
        servers = {(row["backend"], row["server"]): row for row in balancer["servers"]}
        up, down, drained = servers["django", "app1"], servers["django", "app2"], servers["plain", "app1"]
        assert (up["admin"], up["operational"], up["check_status"], up["weight"]) == ("ready", "up", "L7OK", 10)
        assert (up["address"], up["port"], up["sessions"]) == ("127.0.0.1", apps[0].port, 1)
        assert up["counters"]["2xx"] == 3 and up["counters"]["sessions"] == 4
        assert (down["operational"], down["check_status"]) == ("down", "L4CON")
        assert "connection problem" in down["check_description"]
        assert (drained["admin"], drained["checked"]) == ("drain", False)
        [frontend] = balancer["frontends"]
        assert frontend["frontend"] == "site" and frontend["counters"]["requests"] == 4
        assert balancer["old_workers"] == []
        assert later["balancers"][0]["pid"] != balancer["pid"]
        assert later["balancers"][0]["old_workers"] == [
            {
                "pid": balancer["pid"],
                "sessions": 1,
                "servers": [{"backend": "django", "server": "app1", "sessions": 1}],
            }
        ]
        assert [(row["backend"], row["server"]) for row in only["balancers"][0]["servers"]] == [("django", "app2")]
        typo = run_module("haproxy_info", {**arguments, "servers": ["app3"]})
        assert typo["failed"] and "no server 'app3'" in typo["msg"]
    finally:
        lb.remove()
        for app in apps:
            app.stop()
