# SPDX-License-Identifier: GPL-3.0-or-later
"""Django nodes die under load: clients lose at most the requests that were in flight on them."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from typing import Any

from tests.cluster import PASSWORD, Browser, Lab, broken, wait_until
from tests.load.load import running

# gunicorn's worker threads on a node of the lab: as many requests as can be in flight on it.
THREADS = 8
# A frozen node still accepts connections: its kernel lives. Until HAProxy's checks have failed three times, a second
# apart, requests go to it, and those are in flight on it when it is found out.
UNTIL_FOUND_OUT = 6.0
RATE = 40.0
MIX = {"plain": 4.0, "page": 2.0, "session": 3.0, "post": 2.0, "static": 1.0}


def under_load(lab: Lab, user: str, break_it: Callable[[], Any]) -> tuple[dict[str, Any], float]:
    """The report of a load during which something was broken, and when that was."""
    with running(lab.load(user, rate=RATE, seconds=60, mix=MIX, deadline=8)) as load:
        time.sleep(4)
        broken_at = time.time()
        break_it()
        time.sleep(8)
    assert sum(load.report["served_by"].values()) > 200, load.report
    return load.report, broken_at


def serves(lab: Lab, app: str) -> bool:
    browser = Browser(lab, "lb1")
    return app in Counter(browser.get("/plain/").headers["X-Served-By"] for _ in range(30))


def test_a_login_outlives_its_node(lab: Lab, user: str, browser: Browser) -> None:
    browser.login(user, PASSWORD)
    assert browser.where()["user"] == user
    with broken(lab, ("stop", "app1"), ("start", "app1")):
        seen = [browser.where() for _ in range(6)]
    assert {page["user"] for page in seen} == {user}
    assert {page["node"] for page in seen} <= {"app2", "app3"}
    wait_until(lambda: serves(lab, "app1"), 30, "app1 serves again")


def test_gunicorn_killed_under_load(lab: Lab, user: str) -> None:
    report, _ = under_load(lab, user, lambda: lab.ssh("app2", "systemctl kill --signal=KILL django.service"))
    assert len(report["failures"]) <= THREADS, report["failures"]
    wait_until(lambda: serves(lab, "app2"), 30, "app2 serves again")


def test_a_frozen_node_under_load(lab: Lab, user: str) -> None:
    def freeze() -> None:
        with broken(lab, ("pause", "app3"), ("unpause", "app3")):
            time.sleep(14)

    report, frozen_at = under_load(lab, user, freeze)
    late = [failure for failure in report["failures"] if failure["at"] > frozen_at + UNTIL_FOUND_OUT]
    assert late == [], "requests were sent to a node that is known to be frozen"
    assert len(report["failures"]) <= RATE / 3 * UNTIL_FOUND_OUT, report["failures"]
    wait_until(lambda: serves(lab, "app3"), 30, "app3 serves again")
