# SPDX-License-Identifier: GPL-3.0-or-later
"""Machines that are replaced. Those that are added and taken away: test_4_scale."""

from __future__ import annotations

import pytest

from tests.cluster import Browser, Lab, served


@pytest.mark.full
def test_replaced_machines_come_back(lab: Lab) -> None:
    for host in ["app2", "db3", "cache3", "static2"]:
        lab.tool("rebuild", host)
    run = lab.playbook()
    assert run.returncode == 0, run.output[-5000:]
    assert {host for host in run.changed if host != "localhost"} <= {
        "app2",
        "db3",
        "cache3",
        "static2",
        "app1",
        "db1",
    }, run.changed_tasks

    assert served(lab) == {"app1", "app2", "app3"}
    assert lab.sql("db1", "SELECT count(*) FROM pg_stat_replication WHERE state = 'streaming'") == "2"
    assert Browser(lab, "static2", port=8080).get("/-/health").status_code == 200
