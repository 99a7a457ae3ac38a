# SPDX-License-Identifier: GPL-3.0-or-later
"""Two monitors: both watch everything, people are told once, and one of them is enough."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from typing import Any

import pytest
from monitor import HOST, Monitor

from tests.cluster import Lab, Recap, inventory_with, wait_until

pytestmark = pytest.mark.full

OTHER = "mon2"
# Another one in each run: what people know from the one before they are not told again.
MINE = f"Mine{os.getpid()}"
RULES = [{"name": "mine", "rules": [{"alert": MINE, "expr": "vector(1)", "labels": {"severity": "warning"}}]}]
# Each tells the receiver on its own host, so that what the two send can be counted apart.
TOLD = {
    "prometheus_receiver": {"webhook_configs": [{"url": "http://127.0.0.1:9999/people"}]},
    "prometheus_group_seconds": 1,
    "prometheus_extra_rules": RULES,
}


def converge(lab: Lab, *more: str, **variables: Any) -> Recap:
    run = lab.playbook(*more, "-e", json.dumps(variables))
    assert run.returncode == 0, run.output[-3000:]
    return run


@pytest.fixture(scope="module")
def pair(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """The lab with a second monitor, which is gone in the end."""

    def add(groups: dict[str, Any]) -> None:
        groups["prometheus"]["hosts"][OTHER] = {"lab_address_suffix": 62}

    pair = Lab(lab.name, str(inventory_with(tmp_path_factory.mktemp("pair"), "lab_watched", add)))
    pair.tool("up", OTHER)
    yield pair
    pair.tool("kill", OTHER)
    converge(lab)
    assert converge(lab).changed == {}


@pytest.fixture(scope="module")
def monitors(pair: Lab) -> list[Monitor]:
    found = [Monitor(pair, name) for name in (HOST, OTHER)]
    for monitor in found:
        monitor.start_receiver()
    converge(pair, **TOLD)
    return found


def told(monitors: list[Monitor], **labels: str) -> list[str]:
    """The states that people were told of, whoever of the two told them."""
    return [
        item["status"]
        for monitor in monitors
        for item in monitor.told()
        if labels.items() <= item.get("labels", {}).items()
    ]


def test_people_are_told_once(monitors: list[Monitor]) -> None:
    for monitor in monitors:
        wait_until(lambda monitor=monitor: MINE in monitor.firing(), 120, f"{monitor.host} knows it", 2)
    wait_until(lambda: told(monitors, alertname=MINE), 120, "somebody is told", 2)
    # The second one waits 15 s for the first one's word that people know.
    with pytest.raises(AssertionError, match="not within"):
        wait_until(lambda: len(told(monitors, alertname=MINE)) > 1, 45, "somebody is told twice", 3)


def test_a_second_run_changes_nothing(pair: Lab, monitors: list[Monitor]) -> None:
    run = converge(pair, **TOLD)
    assert run.changed == {}, run.changed_tasks


def test_both_watch_everything_and_know_each_other(monitors: list[Monitor]) -> None:
    watched = []
    for monitor in monitors:
        wait_until(lambda monitor=monitor: all(t["health"] == "up" for t in monitor.targets()), 60, monitor.host, 2)
        watched.append({(t["scrapePool"], t["scrapeUrl"]) for t in monitor.targets()})
        assert len(monitor.get("/alertmanager/api/v2/status")["cluster"]["peers"]) == 2
    addresses = {url.split("/")[2].split(":")[0] for _job, url in watched[0] | watched[1]}
    assert {monitor.url.split("/")[2].split(":")[0] for monitor in monitors} <= addresses
    assert len(watched[0]) == len(watched[1])


def test_what_is_silenced_on_one_is_silent_on_both(pair: Lab, monitors: list[Monitor]) -> None:
    tool = "amtool --alertmanager.url=http://127.0.0.1:9093 silence"
    name = pair.ssh(OTHER, f"{tool} add alertname={MINE} --duration=10m --author=test --comment=test").strip()
    try:
        for monitor in monitors:
            wait_until(lambda monitor=monitor: MINE not in monitor.firing(), 30, f"{monitor.host} is silent", 1)
    finally:
        pair.ssh(HOST, f"{tool} expire {name}")
    for monitor in monitors:
        wait_until(lambda monitor=monitor: MINE in monitor.firing(), 30, f"{monitor.host} tells again", 1)


def test_status_counts_an_alert_once(pair: Lab, monitors: list[Monitor]) -> None:
    run = pair.playbook("-e", "status_format=json", playbook="playbooks/status.yml")
    report = json.loads(next(line for line in run.output.splitlines() if line.startswith("{")))
    assert [alert["alert"] for alert in report["alerts"]["firing"]] == [MINE]


def test_one_that_is_dead_is_told_of_by_the_other(pair: Lab, monitors: list[Monitor]) -> None:
    dead = {"alertname": "HostDown", "host": HOST}
    pair.tool("kill", HOST)
    try:
        wait_until(lambda: told(monitors[1:], **dead) == ["firing"], 240, "people hear of it", 3)
        for state, silenced_by in (("on", ["flotilla maintenance"]), ("off", [])):
            run = pair.playbook("-e", f"maintenance={state}", playbook="playbooks/maintenance.yml")
            assert run.returncode == 0, run.output[-3000:]
            assert monitors[1].silenced_by() == silenced_by
    finally:
        pair.tool("start", HOST)
    wait_until(lambda: told(monitors[1:], **dead)[-1] == "resolved", 240, "it is over", 3)
    wait_until(lambda: len(monitors[0].get("/alertmanager/api/v2/status")["cluster"]["peers"]) == 2, 60, "together", 2)
