# SPDX-License-Identifier: GPL-3.0-or-later
"""A new machine becomes a node and stops being one, under load; the cluster scenario does it with every tier."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from monitor import HOST, Monitor

from tests.cluster import SECRETS, Lab, inventory_with, served, wait_until
from tests.load.load import running

NEW = "web3"


@pytest.fixture
def larger(lab: Lab, tmp_path: Path) -> Iterator[Lab]:
    """The lab with one machine more, which is no member of the cluster yet."""

    def add(groups: dict[str, Any]) -> None:
        groups["django"]["hosts"][NEW] = {"lab_address_suffix": 115}

    larger = Lab(lab.name, str(inventory_with(tmp_path, "lab_watched", add)))
    larger.tool("up", NEW)
    yield larger
    larger.tool("kill", NEW)


def watched(monitor: Monitor) -> set[str]:
    """The hosts that the monitor asks."""
    return {target["labels"].get("host", "") for target in monitor.targets()}


def enters(lab: Lab) -> bool:
    """Whether a database's firewall lets the machine in."""
    return lab.ssh(NEW, f"timeout 3 bash -c '</dev/tcp/{lab.address('data1')}/5432'; echo $?").strip() == "0"


def test_a_node_comes_and_goes_without_a_failed_request(lab: Lab, larger: Lab, monitor: Monitor) -> None:
    assert NEW not in watched(monitor)
    with running(lab.load(rate=15, seconds=900)) as load:
        out = larger.playbook("-e", f"scale_out_host={NEW}", "-vvv", playbook="playbooks/scale_out.yml")
        assert out.returncode == 0, out.output[-5000:]
        served_with, entered = served(lab), enters(larger)
        wait_until(lambda: NEW in watched(monitor), 30, f"{HOST} watches it", 2)
        run = larger.playbook("-e", f"scale_in_host={NEW}", playbook="playbooks/scale_in.yml")
        assert run.returncode == 0, run.output[-5000:]
        served_without = served(lab)
    assert load.report["failures"] == []
    assert load.report["sent"] > 500, load.report
    assert f"{NEW} does nothing any more and can be deleted" in run.output
    assert served_with == {"web1", "web2", NEW}
    assert served_without == {"web1", "web2"}
    assert larger.ssh(NEW, "systemctl is-active django", check=False).strip() == "inactive"
    wait_until(lambda: NEW not in watched(monitor), 30, f"{HOST} forgets it", 2)
    # The databases let in who is a member, and nobody else.
    assert (entered, enters(larger)) == (True, False)
    for name in SECRETS:
        assert lab.variable("web1", name) not in out.output, f"{name} is in the output of -vvv"
    # What scale_in.yml left behind is what the inventory without the host says.
    assert lab.playbook().changed == {}
