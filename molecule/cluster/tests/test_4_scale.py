# SPDX-License-Identifier: GPL-3.0-or-later
"""Hosts of every tier come and go under load, and nobody notices."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.cluster import SECRETS, Lab, Recap, inventory_with, served, wait_until
from tests.load.load import running

OUT, IN, WEIGHT = (f"playbooks/{name}.yml" for name in ("scale_out", "scale_in", "weight"))
MIX = {"plain": 3.0, "page": 1.0, "session": 2.0, "post": 1.0, "static": 1.0}


@pytest.fixture(scope="module", autouse=True)
def monitor_takes_part(lab: Lab) -> Iterator[None]:
    """A host that comes is watched and one that goes is forgotten: nothing of that is left out here."""
    skipped = lab.environment.pop("ANSIBLE_SKIP_TAGS")
    yield
    lab.environment["ANSIBLE_SKIP_TAGS"] = skipped


@pytest.fixture
def with_app4(tmp_path: Path) -> Callable[..., Path]:
    """The lab's inventory with the spare machine in some tiers: it is only called like a Django node."""

    def make(*tiers: str) -> Path:
        def add(groups: dict[str, Any]) -> None:
            spare = groups.pop("lab_spare")["hosts"]["app4"]
            for tier in tiers:
                groups[tier]["hosts"]["app4"] = spare

        return inventory_with(tmp_path, "lab", add)

    return make


def scale_out(lab: Lab, host: str, *arguments: str, inventory: Path | None = None) -> Recap:
    run = lab.playbook("-e", f"scale_out_host={host}", *arguments, inventory=inventory, playbook=OUT)
    assert run.returncode == 0, run.output[-5000:]
    return run


def scale_in(lab: Lab, host: str, *arguments: str, inventory: Path | None = None) -> Recap:
    run = lab.playbook("-e", f"scale_in_host={host}", *arguments, inventory=inventory, playbook=IN)
    assert run.returncode == 0, run.output[-5000:]
    assert f"{host} does nothing any more and can be deleted" in run.output
    return run


@contextlib.contextmanager
def nobody_notices(lab: Lab, user: str, at_least: int = 200) -> Iterator[None]:
    """Load during the block, of which no request fails, and at least so many are answered."""
    with running(lab.load(user, rate=20, seconds=900, mix=MIX)) as load:
        yield
    assert load.report["failures"] == []
    assert sum(load.report["served_by"].values()) > at_least, load.report


def servers(lab: Lab, balancer: str, backend: str) -> set[str]:
    state = lab.ssh(balancer, ask_haproxy(f"show servers state {backend}"))
    return {line.split()[3] for line in state.splitlines() if re.match(r"\d+ ", line)}


def ask_haproxy(command: str) -> str:
    return (
        "python3 -c \"import socket; s = socket.socket(socket.AF_UNIX); s.connect('/run/haproxy/admin.sock'); "
        f"s.sendall(b'{command}\\n'); print(b''.join(iter(lambda: s.recv(65536), b'')).decode())\""
    )


def active(lab: Lab, host: str, *units: str) -> list[str]:
    return lab.ssh(host, f"systemctl is-active {' '.join(units)}", check=False).split()


def watched(lab: Lab) -> set[str]:
    """The hosts that the monitor asks."""
    said = lab.ssh("mon1", "promtool query instant http://127.0.0.1:9090 'group by (host) (up)'")
    return set(re.findall(r'host="([^"]+)"', said))


# molecule/prometheus/tests/test_6_scale.py is the daily one, with fewer hosts.
@pytest.mark.full
def test_a_node_comes_and_goes_without_a_failed_request(lab: Lab, user: str, with_app4: Callable[..., Path]) -> None:
    inventory = with_app4("django")
    with nobody_notices(lab, user):
        out = scale_out(lab, "app4", "-vvv", inventory=inventory)
        served_with = served(lab)
        wait_until(lambda: "app4" in watched(lab), 30, "the monitor watches it", 2)
        scale_in(lab, "app4", inventory=inventory)
        served_without = served(lab)
    assert served_with == {"app1", "app2", "app3", "app4"}
    assert served_without == {"app1", "app2", "app3"}
    assert active(lab, "app4", "django") == ["inactive"]
    wait_until(lambda: "app4" not in watched(lab), 30, "the monitor forgets it", 2)
    for name in SECRETS:
        assert lab.variable("app1", name) not in out.output, f"{name} is in the output of -vvv"
    # The databases let in who is a member, and nobody else.
    knock = f"timeout 3 bash -c '</dev/tcp/{lab.address('db1')}/5432'; echo $?"
    assert lab.ssh("app1", knock).strip() == "0"
    assert lab.ssh("app4", knock).strip() != "0"
    # What scale_in.yml left behind is what the inventory without the host says.
    assert lab.playbook().changed == {}


@pytest.mark.full
def test_a_host_of_all_other_tiers_comes_and_goes(lab: Lab, user: str, with_app4: Callable[..., Path]) -> None:
    inventory = with_app4("haproxy", "postgresql", "redis", "nginx_static")
    lab.tool("rebuild", "app4")
    streaming = "SELECT string_agg(application_name, ' ' ORDER BY 1) FROM pg_stat_replication WHERE state = 'streaming'"
    slots = "SELECT string_agg(slot_name, ' ' ORDER BY slot_name) FROM pg_replication_slots"
    units = ("haproxy", "keepalived", "redis-server", "redis-sentinel", "nginx", "postgresql")
    password = lab.variable("cache1", "redis_admin_password")
    ask = f"REDISCLI_AUTH={password} redis-cli --user admin -p 26379 sentinel master flotilla"
    with nobody_notices(lab, user):
        scale_out(lab, "app4", inventory=inventory)
        assert active(lab, "app4", *units) == ["active"] * len(units)
        assert set(lab.sql("db1", streaming).split()) == {"app4", "db2", "db3"}
        assert "num-other-sentinels\n3\n" in lab.ssh("cache1", ask)
        assert servers(lab, "app4", "nginx_static") == {"static1", "static2", "app4"}
        scale_in(lab, "app4", inventory=inventory)
    assert active(lab, "app4", *units) == ["inactive"] * len(units)
    assert lab.ssh("app4", "pgrep -c postgres", check=False).strip() == "0"
    assert set(lab.sql("db1", streaming).split()) == {"db2", "db3"}
    assert lab.sql("db1", slots) == "db2 db3"
    assert lab.sql("db2", slots) == "db1 db3"
    for host in ("cache1", "cache2", "cache3"):
        seen = lab.ssh(host, ask)
        assert "num-other-sentinels\n2\n" in seen, seen
        assert "num-slaves\n2\n" in seen, seen
        assert "quorum\n2\n" in seen, seen
    for balancer in ("lb1", "lb2"):
        assert servers(lab, balancer, "nginx_static") == {"static1", "static2"}
        assert lab.address("app4") not in lab.ssh(balancer, "cat /etc/keepalived/keepalived.conf")
    assert lab.playbook().changed == {}


def holders(lab: Lab, *names: str) -> list[str]:
    shared = lab.shared_address()
    return [name for name in names if f" {shared}/" in lab.ssh(name, "ip -4 -o address show", check=False)]


@pytest.mark.full
def test_the_balancer_that_has_the_address_goes_and_comes_back(lab: Lab, user: str) -> None:
    (holder,) = holders(lab, "lb1", "lb2")
    other = {"lb1": "lb2", "lb2": "lb1"}[holder]
    with nobody_notices(lab, user):
        scale_in(lab, holder)
        assert holders(lab, "lb1", "lb2") == [other]
        assert active(lab, holder, "haproxy", "keepalived") == ["inactive", "inactive"]
        # The last one stays.
        refused = lab.playbook("-e", f"scale_in_host={other}", playbook=IN)
        scale_out(lab, holder)
    assert refused.returncode != 0
    assert f"of the other balancers ({holder}) none can take over" in refused.output.replace("\n", " ")
    assert lab.playbook().changed == {}


@pytest.mark.full
def test_a_dead_host_is_taken_out_and_comes_back(lab: Lab, user: str) -> None:
    lab.tool("kill", "static2")
    try:
        scale_in(lab, "static2")
        assert servers(lab, "lb1", "nginx_static") == {"static1"}
    finally:
        lab.tool("start", "static2")
    scale_out(lab, "static2")
    assert servers(lab, "lb1", "nginx_static") == {"static1", "static2"}
    assert lab.playbook().changed == {}


@pytest.mark.full
@pytest.mark.parametrize(
    ("host", "wanted"),
    [
        ("db1", "db1 is the database primary: playbooks/switchover.yml -e postgresql_new_primary=db2 first"),
        ("cache3", "add a member first, or say -e scale_in_accept=no_failover"),
        ("app9", "scale_in_host: got 'app9', wants a host of the cluster: lb1, lb2, app1"),
    ],
)
def test_what_the_cluster_needs_stays(lab: Lab, host: str, wanted: str) -> None:
    run = lab.playbook("-e", f"scale_in_host={host}", playbook=IN)
    assert run.returncode != 0
    assert wanted in " ".join(run.output.split()), run.output[-3000:]
    assert run.changed == {}


@pytest.mark.full
def test_a_weight_changes_at_once_and_without_a_reload(lab: Lab, user: str) -> None:
    def weights() -> dict[str, str]:
        state = lab.ssh("lb1", ask_haproxy("show servers state django"))
        return {line.split()[3]: line.split()[7] for line in state.splitlines() if re.match(r"\d+ ", line)}

    def workers() -> str:
        return lab.ssh("lb1", "pgrep -x haproxy | sort | tr '\\n' ' '")

    before = workers()
    with nobody_notices(lab, user, at_least=40):
        changed = lab.playbook("-e", "weight_host=app3", "-e", "weight=25", playbook=WEIGHT)
        wait_until(lambda: weights() == {"app1": "100", "app2": "100", "app3": "25"}, 5, "the weight")
        again = lab.playbook("-e", "weight_host=app3", "-e", "weight=25", playbook=WEIGHT)
        back = lab.playbook("-e", "weight_host=app3", "-e", "weight=100%", playbook=WEIGHT)
    assert set(changed.changed) == {"lb1", "lb2"}
    assert again.changed == {}
    assert back.returncode == 0, back.output
    assert weights() == {"app1": "100", "app2": "100", "app3": "100"}
    assert workers() == before
    for arguments, wanted in [
        (("-e", "weight_host=db1", "-e", "weight=25"), "weight_host: got 'db1', wants a host of the group django"),
        (("-e", "weight_host=app3", "-e", "weight=300"), "weight: got '300', wants a number from 1 to 256"),
    ]:
        refused = lab.playbook(*arguments, playbook=WEIGHT)
        assert refused.returncode != 0
        assert wanted in " ".join(refused.output.split())
