# SPDX-License-Identifier: GPL-3.0-or-later
"""status.yml tells in seconds how the cluster is, and what to do about what is wrong."""

from __future__ import annotations

import contextlib
import json
import re
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster import Lab, Recap, served, wait_until

STATUS = "playbooks/status.yml"
HOSTS = {f"{kind}{number}" for kind, most in {"lb": 2, "app": 3, "db": 3, "cache": 3, "static": 2}.items()
         for number in range(1, most + 1)} | {"mon1"}  # fmt: skip


def status(lab: Lab, *arguments: str) -> Recap:
    return lab.playbook(*arguments, playbook=STATUS)


def problems(run: Recap) -> str:
    """The end of the screen, each problem with its advice on one line."""
    assert run.returncode != 0, run.output
    found = re.search(r"^\d+ PROBLEMS?\n(.*?)\n\n", run.output, re.MULTILINE | re.DOTALL)
    assert found, run.output
    return re.sub(r"\n +", " ", found[1])


@contextlib.contextmanager
def stopped(lab: Lab, host: str, unit: str) -> Iterator[None]:
    lab.ssh(host, f"systemctl stop {unit}")
    try:
        yield
    finally:
        lab.ssh(host, f"systemctl start {unit}")


@contextlib.contextmanager
def in_maintenance(lab: Lab, server: str) -> Iterator[None]:
    def say(state: str) -> None:
        script = (
            "import socket; s = socket.socket(socket.AF_UNIX); s.connect('/run/haproxy/admin.sock'); "
            f"s.sendall(b'set server {server} state {state}\\n'); s.recv(99)"
        )
        for balancer in ("lb1", "lb2"):
            lab.ssh(balancer, f'python3 -c "{script}"')

    say("maint")
    try:
        yield
    finally:
        say("ready")


def postgresql(lab: Lab, host: str) -> str:
    return lab.ssh(host, "ls -d /etc/postgresql/*/main").strip().split("/")[3].join(["postgresql@", "-main"])


@pytest.fixture(autouse=True)
def all_well(lab: Lab) -> None:
    """Each test begins with a cluster that is well, whatever the one before has left to heal."""
    wait_until(lambda: served(lab) == {"app1", "app2", "app3"}, 60, "all nodes serve")
    # The monitor looks every 15 seconds, and at the errors of the last five minutes.
    wait_until(lambda: status(lab).returncode == 0, 400, "all is well, and no alert fires")


def test_well_and_with_three_things_broken(lab: Lab, tmp_path: Path) -> None:
    took = []
    while not took or (took[-1] > 10 and len(took) < 3):  # the machine that all hosts share has slow moments
        began = time.monotonic()
        well = status(lab)
        took.append(time.monotonic() - began)
    assert well.returncode == 0, well.output
    assert "Everything is well." in well.output
    assert well.changed == {}
    assert set(well.hosts) == HOSTS
    assert took[-1] < 10, took

    file = tmp_path / "status.json"
    broken = (
        stopped(lab, "app2", "django"),
        in_maintenance(lab, "django/app3"),
        stopped(lab, "db3", postgresql(lab, "db3")),
    )
    with contextlib.ExitStack() as stack:
        for one in broken:
            stack.enter_context(one)
        run = status(lab, "--check", "-e", "status_format=json", "-e", f"status_output={file}")
    assert run.returncode != 0
    assert run.changed == {}
    (line,) = [line for line in run.output.splitlines() if line.startswith("{")]
    report = json.loads(line)
    assert report == json.loads(file.read_text())
    found = {tuple(item["where"]): f"{item['what']} -> {item['todo']}" for item in report["problems"]}
    assert set(found) == {("app2",), ("app3",), ("db3",)}, report["problems"]
    assert re.search(r"django\.service is inactive -> playbooks/site\.yml --limit app2", found[("app2",)])
    assert re.search(r"in state maint on lb1, lb2 -> playbooks/undrain\.yml -e drain_host=app3", found[("app3",)])
    assert re.search(r"is stopped -> playbooks/rejoin\.yml -e postgresql_member=db3", found[("db3",)])


@pytest.mark.full
@pytest.mark.parametrize(
    ("host", "fault", "mend"),
    [("app2", "kill", "start"), ("db2", "cut", "heal"), ("cache3", "pause", "unpause"), ("lb1", "kill", "start")],
)
def test_a_host_that_is_gone_is_a_line_and_a_problem(lab: Lab, host: str, fault: str, mend: str) -> None:
    lab.tool(fault, host)
    try:
        time.sleep(8)  # until the others have noticed
        began = time.monotonic()
        run = status(lab)
        took = time.monotonic() - began
    finally:
        lab.tool(mend, host)
    assert f"{host}: " in problems(run)
    assert re.search(rf"^{host} .*unreachable", run.output, re.MULTILINE), run.output
    assert took < 25, f"{took:.1f} s"


@pytest.mark.full
def test_what_it_advises_helps(lab: Lab) -> None:
    lab.ssh("app2", "systemctl stop django")
    lab.ssh("db3", f"systemctl stop {postgresql(lab, 'db3')}")
    lab.ssh("cache3", "systemctl stop redis-server")
    lab.ssh("static2", "systemctl stop nginx")
    drained = lab.playbook("-e", "drain_host=app3", playbook="playbooks/drain.yml")
    assert drained.returncode == 0, drained.output
    time.sleep(3)
    report = json.loads(
        next(line for line in status(lab, "-e", "status_format=json").output.splitlines() if line.startswith("{"))
    )
    assert len(report["problems"]) >= 5, report["problems"]
    for problem in report["problems"]:
        playbook, arguments = re.match(
            r"(playbooks/\w+\.yml)((?: (?:-e|--limit|--tags) [\w=,:!']+)*)", problem["todo"]
        ).groups()
        run = lab.playbook(*arguments.split(), playbook=playbook)
        assert run.returncode == 0, f"{problem}: {run.output[-3000:]}"


@pytest.mark.full
@pytest.mark.parametrize(
    ("host", "unit", "wanted"),
    [
        ("lb2", "haproxy", r"lb2: HAProxy does not answer.* -> playbooks/site\.yml --limit lb2"),
        ("lb2", "keepalived", r"lb2: keepalived\.service is inactive.* -> playbooks/site\.yml --limit lb2"),
        ("cache3", "redis-sentinel", r"cache3: its Sentinel is refused -> playbooks/site\.yml --limit cache3"),
        ("static1", "nginx", r"static1: nginx\.service is inactive -> playbooks/site\.yml --limit static1"),
    ],
)
def test_a_stopped_service_is_named(lab: Lab, host: str, unit: str, wanted: str) -> None:
    with stopped(lab, host, unit):
        found = problems(status(lab))
    assert re.search(wanted, found), found


@pytest.mark.full
def test_the_primary_that_stopped(lab: Lab) -> None:
    with stopped(lab, "db1", postgresql(lab, "db1")):
        found = problems(status(lab))
    assert re.search(r"URGENT: db1: was the primary and is stopped.*--tags postgresql.*failover\.yml", found), found


@pytest.mark.full
def test_a_limit_asks_some_hosts_only(lab: Lab) -> None:
    run = status(lab, "--limit", "app2,db2")
    assert run.returncode == 0, run.output
    assert set(run.hosts) == {"app2", "db2"}
    assert "Everything that was asked is well." in run.output


@pytest.mark.full
def test_bad_input_is_named(lab: Lab) -> None:
    run = status(lab, "-e", "status_format=xml", "-e", "status_disk_percent=200")
    assert run.returncode != 0
    assert "status_format: got 'xml', wants table or json" in " ".join(run.output.split())
    assert "status_disk_percent: got '200', wants a percentage from 1 to 100" in " ".join(run.output.split())
