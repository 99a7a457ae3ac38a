# SPDX-License-Identifier: GPL-3.0-or-later
"""Machines that are replaced, added and taken away."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from tests.cluster import ROOT, SECRETS, Browser, Lab
from tests.load.load import running


@pytest.fixture
def inventory_with_app4(tmp_path: Path) -> Path:
    """The lab's inventory with the spare machine among the Django nodes."""
    hosts = yaml.safe_load((ROOT / "inventories/lab/hosts.yml").read_text())
    children = hosts["all"]["children"]
    children["django"]["hosts"]["app4"] = children.pop("lab_spare")["hosts"]["app4"]
    (tmp_path / "hosts.yml").write_text(yaml.safe_dump(hosts))
    # The group variables find the lab's directory and the example from the inventory's own place.
    variables = (ROOT / "inventories/lab/group_vars/all").glob("*.yml")
    target = tmp_path / "group_vars" / "all"
    target.mkdir(parents=True)
    for file in variables:
        (target / file.name).write_text(file.read_text().replace("{{ inventory_dir }}/../..", str(ROOT)))
    return tmp_path


def served(lab: Lab) -> set[str]:
    """The nodes that answer. A node that has just joined gets its full share only after HAProxy's slow start."""
    browser = Browser(lab, "lb1")
    return {browser.get("/plain/").headers["X-Served-By"] for _ in range(120)}


def test_replaced_machines_come_back_and_no_secret_is_shown(lab: Lab) -> None:
    for host in ["app2", "db3", "cache3", "static2"]:
        lab.tool("rebuild", host)
    run = lab.playbook("-vvv")
    assert run.returncode == 0, run.output[-5000:]
    assert {host for host in run.changed if host != "localhost"} <= {
        "app2",
        "db3",
        "cache3",
        "static2",
        "app1",
        "db1",
    }, run.changed_tasks

    for name in SECRETS:
        secret = lab.variable("app1", name)
        assert secret not in run.output, f"{name} is in the output of -vvv"

    assert served(lab) == {"app1", "app2", "app3"}
    assert lab.sql("db1", "SELECT count(*) FROM pg_stat_replication WHERE state = 'streaming'") == "2"
    assert Browser(lab, "static2", port=8080).get("/-/health").status_code == 200


def test_a_node_joins_and_leaves_without_a_failed_request(lab: Lab, user: str, inventory_with_app4: Path) -> None:
    with running(lab.load(user, rate=20, seconds=900, mix={"plain": 3, "session": 2, "post": 1, "static": 1})) as load:
        joined = lab.playbook(inventory=inventory_with_app4)
        served_with = served(lab)
        left = lab.playbook()
        served_without = served(lab)
    assert joined.returncode == 0, joined.output[-5000:]
    assert left.returncode == 0, left.output[-5000:]
    assert served_with == {"app1", "app2", "app3", "app4"}
    assert served_without == {"app1", "app2", "app3"}
    assert load.report["failures"] == []
    assert lab.playbook().changed == {}
