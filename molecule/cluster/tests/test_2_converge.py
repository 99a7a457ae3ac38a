# SPDX-License-Identifier: GPL-3.0-or-later
"""site.yml on a cluster that is as it should be: nothing changes, in whole, in part or in check mode."""

from __future__ import annotations

from tests.cluster import Lab


def test_check_mode_reports_no_change_and_no_error(lab: Lab) -> None:
    run = lab.playbook("--check", "--diff")
    assert run.returncode == 0, run.output[-5000:]
    assert run.changed == {}, run.changed_tasks


def test_one_host_alone(lab: Lab) -> None:
    run = lab.playbook("--limit", "app2")
    assert run.returncode == 0, run.output[-5000:]
    assert run.changed == {}, run.changed_tasks
    assert set(run.hosts) <= {"app2", "localhost"}


def test_apt_installed_everything_in_one_run(lab: Lab) -> None:
    """Each further run costs a new host seconds."""
    for host in ("lb1", "app1", "app3", "db1", "cache1", "static1", "mon1"):
        runs = lab.ssh(host, "grep -c '^Commandline: .* install ' /var/log/apt/history.log || true")
        assert int(runs) <= 1, host
