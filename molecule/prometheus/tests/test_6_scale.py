# SPDX-License-Identifier: GPL-3.0-or-later
"""A host of two tiers leaves and comes back under load; the cluster scenario does it with all tiers, one by one."""

from __future__ import annotations

from monitor import HOST, Monitor

from tests.cluster import Lab, wait_until
from tests.load.load import running

LEAVES = "web2"


def watched(monitor: Monitor) -> set[str]:
    """The hosts that the monitor asks."""
    return {target["labels"].get("host", "") for target in monitor.targets()}


def nodes(lab: Lab) -> set[str]:
    """The nodes among which web1 shares requests out."""
    program = (
        "import socket; s = socket.socket(socket.AF_UNIX); s.connect('/run/haproxy/admin.sock');"
        " s.sendall(b'show servers state django\\n'); print(s.makefile().read())"
    )
    rows = [line.split() for line in lab.ssh("web1", "python3 -", program).splitlines()]
    return {row[3] for row in rows if len(row) > 6 and row[0].isdigit()}


def enters(lab: Lab, host: str) -> bool:
    """Whether a database's firewall lets the host in."""
    return lab.ssh(host, f"timeout 3 bash -c '</dev/tcp/{lab.address('data1')}/5432'; echo $?").strip() == "0"


def test_a_node_that_is_a_balancer_too_leaves_and_comes_back_without_a_failed_request(
    lab: Lab, monitor: Monitor
) -> None:
    assert (nodes(lab), enters(lab, LEAVES)) == ({"web1", LEAVES}, True)
    with running(lab.load(rate=15, seconds=900)) as load:
        run = lab.playbook("-e", f"scale_in_host={LEAVES}", playbook="playbooks/scale_in.yml")
        assert run.returncode == 0, run.output[-5000:]
        assert f"{LEAVES} does nothing any more and can be deleted" in run.output
        assert (nodes(lab), enters(lab, LEAVES)) == ({"web1"}, False)
        assert lab.ssh(LEAVES, "systemctl is-active django haproxy keepalived", check=False).split() == ["inactive"] * 3
        wait_until(lambda: LEAVES not in watched(monitor), 30, "the monitor forgets it", 2)
        run = lab.playbook("-e", f"scale_out_host={LEAVES}", playbook="playbooks/scale_out.yml")
        assert run.returncode == 0, run.output[-5000:]
    assert load.report["failures"] == []
    assert load.report["sent"] > 500, load.report
    assert (nodes(lab), enters(lab, LEAVES)) == ({"web1", LEAVES}, True)
    wait_until(lambda: LEAVES in watched(monitor), 30, f"{HOST} watches it again", 2)
    # Nothing is left to do of what the inventory says.
    assert lab.playbook().changed == {}
