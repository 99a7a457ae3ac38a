# SPDX-License-Identifier: GPL-3.0-or-later
"""Planned work tells nobody of the alerts that it is bound to raise, and everybody again when it has ended."""

from __future__ import annotations

import pytest
from monitor import HOST, Monitor, primary

from tests.cluster import Lab, wait_until

AMTOOL = "amtool --alertmanager.url=http://127.0.0.1:9093"


def raise_alert(lab: Lab, name: str, *more: str) -> None:
    """As Prometheus would, until it is not repeated for some minutes."""
    lab.ssh(HOST, " ".join((AMTOOL, "alert add", name, "severity=warning host=web1", *more)))


def end_alert(lab: Lab, name: str) -> None:
    """As Prometheus would: by the time at which it ended."""
    raise_alert(lab, name, '--end="$(date -u +%FT%TZ)"')


@pytest.mark.full  # in make test a move of the primary is silenced
def test_a_deploy_silences_what_it_raises_and_one_that_was_killed_is_ended_by_the_next(
    lab: Lab, monitor: Monitor
) -> None:
    assert monitor.silenced_by() == []
    with lab.background("-e", "django_version=silent", playbook="playbooks/deploy.yml") as deploy:
        deploy.wait_for("TASK [Put on record what is switched]")
        assert monitor.silenced_by() == ["flotilla deploy"]
        deploy.kill()
    for name in ("ReleasesDiffer", "SiteDown"):
        raise_alert(lab, name)
    wait_until(lambda: "SiteDown" in monitor.firing(), 30, "what clients notice is told of", 1)
    assert "ReleasesDiffer" not in monitor.firing()
    run = lab.playbook("-e", "django_version=silent", playbook="playbooks/deploy.yml")
    assert run.returncode == 0, run.output[-3000:]
    assert monitor.silenced_by() == []
    assert "ReleasesDiffer" in monitor.firing()
    for name in ("ReleasesDiffer", "SiteDown"):
        end_alert(lab, name)
    wait_until(lambda: not monitor.firing().keys() & {"ReleasesDiffer", "SiteDown"}, 30, "they are over", 1)
    run = lab.playbook(playbook="playbooks/rollback.yml")
    assert run.returncode == 0, run.output[-3000:]
    assert monitor.silenced_by() == []


def test_a_move_of_the_primary_silences_what_it_raises(lab: Lab, monitor: Monitor) -> None:
    old, new = primary(lab)
    with lab.background("-e", f"postgresql_new_primary={new}", playbook="playbooks/switchover.yml") as move:
        move.wait_for("TASK [Put the primary out of action]")
        assert monitor.silenced_by() == ["flotilla postgresql"]
    assert move.returncode == 0, move.output[-3000:]
    assert monitor.silenced_by() == []
    assert primary(lab) == (new, old)


@pytest.mark.full
def test_a_maintenance_is_silent_until_it_ends(lab: Lab, monitor: Monitor) -> None:
    for state, authors in (("on", ["flotilla maintenance"]), ("off", [])):
        run = lab.playbook("-e", f"maintenance={state}", playbook="playbooks/maintenance.yml")
        assert run.returncode == 0, run.output[-3000:]
        assert monitor.silenced_by() == authors


@pytest.mark.full
def test_a_restart_of_postgresql_ends_its_silences(lab: Lab, monitor: Monitor) -> None:
    run = lab.playbook("-e", "postgresql_restart_all=true", playbook="playbooks/restart_postgresql.yml")
    assert run.returncode == 0, run.output[-3000:]
    assert run.output.count("TASK [Silence the alerts of planned work: postgresql]") == 2
    assert monitor.silenced_by() == []


@pytest.mark.full
@pytest.mark.parametrize(("gone", "back"), [("kill", "start"), ("pause", "unpause")])
def test_a_monitor_that_is_gone_holds_nothing_up(lab: Lab, monitor: Monitor, gone: str, back: str) -> None:
    lab.tool(gone, HOST)
    try:
        run = lab.playbook("-e", "django_version=silent", playbook="playbooks/deploy.yml")
    finally:
        lab.tool(back, HOST)
    assert run.returncode == 0, run.output[-3000:]
    assert "switched" in run.output
    run = lab.playbook(playbook="playbooks/rollback.yml")
    assert run.returncode == 0, run.output[-3000:]
