# SPDX-License-Identifier: GPL-3.0-or-later
"""Clients that ask too much: the balancers count together, and only what goes to Django."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator

import pytest

from tests.cluster import Browser, Lab, Recap, wait_until

BALANCERS = ("lb1", "lb2")
LIMIT = 20
PERIOD = 10


def converge(lab: Lab, **variables: int) -> Recap:
    run = lab.playbook("--limit", "haproxy", "--tags", "haproxy,firewall", "-e", json.dumps(variables))
    assert run.returncode == 0, run.output[-5000:]
    return run


@pytest.fixture
def limited(lab: Lab) -> Iterator[None]:
    converge(lab, haproxy_rate_limit=LIMIT, haproxy_rate_limit_period=PERIOD)
    yield
    converge(lab)


@pytest.mark.full
def test_both_balancers_count_together(lab: Lab, limited: None) -> None:
    first, second = (Browser(lab, name) for name in BALANCERS)

    def connected() -> bool:
        tell = (
            "echo 'show peers' | timeout 2 python3 -c \""
            + (
                "import socket,sys; s=socket.socket(socket.AF_UNIX); s.connect('/run/haproxy/admin.sock'); "
                "s.sendall(sys.stdin.buffer.read()); print(s.makefile().read())"
            )
            + '"'
        )
        return all("last_status=ESTA" in lab.ssh(name, tell) for name in BALANCERS)

    wait_until(connected, 20, "the balancers speak to each other")
    answers = [first.get("/plain/").status_code for _ in range(LIMIT // 2)]
    time.sleep(1)
    answers += [second.get("/plain/").status_code for _ in range(LIMIT // 2 + 5)]
    assert answers == [200] * LIMIT + [429] * 5
    time.sleep(1)
    refused = first.get("/plain/")
    assert refused.status_code == 429, "counted by the other balancer"
    assert refused.headers["Retry-After"] == str(PERIOD)
    assert first.get("/static/nothing.css").status_code == 404, "only what goes to Django counts"
    time.sleep(2 * PERIOD)
    assert [browser.get("/plain/").status_code for browser in (first, second)] == [200, 200], "who pauses may ask again"
