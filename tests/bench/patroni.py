# SPDX-License-Identifier: GPL-3.0-or-later
"""The same moves of the primary with Patroni and etcd, on the same hosts, with the same clients.

Patroni fails over by itself, failover.yml waits for its operator; what the table compares is what Django sees from the
death on, when the operator starts the playbook at once.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterator
from typing import Any

import httpx

from tests.bench.switchover import (
    DEAD,
    KILLED,
    MEMBERS,
    SWITCHOVER,
    Measured,
    Moves,
    Results,
    all_stream,
    breaks,
    others,
    play,
)
from tests.cluster import Lab, wait_until
from tests.writes import writing

# What Patroni and etcd need between the database hosts, beside what Flotilla's servers do.
PORTS = [
    {"name": "patroni", "ports": [8008], "from": ["postgresql", "admin"]},
    {"name": "etcd", "ports": ["2379-2380"], "from": ["postgresql"]},
]
FIREWALL = ("--tags", "firewall", "--limit", "postgresql")

CTL = "patronictl -c /etc/patroni/config.yml"

# Patroni's defaults, written out; then the least that it documents for each, and a failover in place of a restart.
# Its rule: loop_wait + 2 * retry_timeout <= ttl.
DEFAULT = {"ttl": 30, "loop_wait": 10, "retry_timeout": 10, "primary_start_timeout": 300}
QUICKEST = {"ttl": 20, "loop_wait": 1, "retry_timeout": 3, "primary_start_timeout": 0}

# How quick it is does not change what is lost: the long waits of the defaults are measured in one way only. By default
# a server that was killed is started again in its place.
CASES = [
    ("default", DEFAULT, 0, [SWITCHOVER]),
    ("default", DEFAULT, 1, [SWITCHOVER, KILLED, DEAD]),
    ("quickest", QUICKEST, 0, [SWITCHOVER, KILLED, DEAD]),
    ("quickest", QUICKEST, 1, [SWITCHOVER, KILLED, DEAD]),
]


def members(lab: Lab, host: str) -> dict[str, dict[str, Any]]:
    """The members by name, as Patroni on one host sees them."""
    answer = httpx.get(f"http://{lab.address(host)}:8008/cluster", timeout=5)
    return {member["name"]: member for member in answer.json()["members"]}


def leader(lab: Lab, host: str) -> str:
    return next((name for name, member in members(lab, host).items() if member["role"] == "leader"), "")


def settled(lab: Lab, standbys: int) -> bool:
    """Whether all members are well, for Patroni and for PostgreSQL, and commits wait for as many as they should."""
    seen = members(lab, MEMBERS[0])
    states = sorted(member["state"] for member in seen.values())
    waits = sum(member["role"] == "sync_standby" for member in seen.values())
    query = "SELECT count(*) FROM pg_stat_replication WHERE sync_state = 'sync'"
    return (
        states == ["running", "streaming", "streaming"] and waits == standbys and all_stream(lab)
        and lab.sql(leader(lab, MEMBERS[0]), query) == str(standbys)
    )  # fmt: skip


def configure(lab: Lab, settings: dict[str, int], standbys: int) -> None:
    """Tell the running Patroni how quick it is and whether commits wait for a standby."""
    before = httpx.get(f"http://{lab.address(MEMBERS[0])}:8008/config", timeout=5).json()
    words = {**settings, "synchronous_mode": str(bool(standbys)).lower()}
    arguments = " ".join(f"-s {name}={value}" for name, value in words.items())
    lab.ssh(MEMBERS[0], f"{CTL} edit-config flotilla --force --quiet {arguments}")
    time.sleep(before.get("loop_wait", DEFAULT["loop_wait"]) + 1)  # all have read it
    wait_until(lambda: settled(lab, standbys), 120, "Patroni's members are well")


@contextlib.contextmanager
def running(lab: Lab) -> Iterator[None]:
    """Patroni in the place of Flotilla's servers for the length of a with block."""
    version = lab.sql(MEMBERS[0], "SHOW server_version_num")[:2]
    password = lab.variable(MEMBERS[0], "cluster_database_password")
    try:
        play(lab, *FIREWALL, "-e", json.dumps({"firewall_extra_rules": PORTS}))
        play(lab, "-e", f"patroni_postgresql_version={version}", playbook="tests/bench/patroni.yml")
        wait_until(lambda: settled(lab, 0), 120, "Patroni's members are well")
        first = leader(lab, MEMBERS[0])
        lab.sql(first, f"CREATE ROLE django LOGIN PASSWORD '{password}'")
        lab.sql(first, "CREATE DATABASE django OWNER django")
        yield
    finally:
        for name in MEMBERS:
            lab.ssh(
                name,
                "systemctl disable --now patroni etcd;"
                " DEBIAN_FRONTEND=noninteractive apt-get purge -qy patroni python3-etcd etcd-server;"
                " rm -rf /var/lib/postgresql/patroni* /var/lib/etcd /etc/default/etcd /etc/patroni;"
                f" systemctl unmask postgresql@{version}-main; systemctl start postgresql@{version}-main",
            )
        play(lab, *FIREWALL)
        wait_until(lambda: all_stream(lab), 60, "Flotilla's members stream again")


def move(lab: Lab, kind: str, standbys: int, measured: Measured) -> None:
    """Let the primary move once, and wait until all are well again."""
    old = leader(lab, MEMBERS[0])
    witness = others(old)[0]
    with writing(lab, f"patroni-{time.time()}") as writes:
        if kind == SWITCHOVER:
            # With commits that wait, only the one that they wait for may be promoted.
            chosen = [name for name, member in members(lab, old).items() if member["role"] == "sync_standby"]
            new = (chosen or others(old))[0]
            lab.ssh(old, f"{CTL} switchover flotilla --leader {old} --candidate {new} --force")
        else:
            breaks(lab, kind, old)
            time.sleep(1)  # what it had answered has arrived
        if kind == DEAD:
            wait_until(lambda: leader(lab, witness) not in {"", old}, 120, "another one leads")
    measured.add(lab, writes, leader(lab, witness))
    if kind == DEAD:
        lab.tool("start", old)
    wait_until(lambda: settled(lab, standbys), 180, "Patroni's members are well")


def patroni(lab: Lab, results: Results, ours: Moves, rounds: int) -> None:
    """Print for each move what Django saw with ours and with Patroni, and what it lost."""
    with running(lab):
        for name, settings, standbys, kinds in CASES:
            configure(lab, settings, standbys)
            for kind in kinds:
                measured = Measured()
                for _ in range(1 if kind == DEAD else rounds):
                    move(lab, kind, standbys, measured)
                own = ours.get((kind, standbys))
                results.add(
                    f"{kind}, Patroni {name}, {standbys} synchronous, {measured.lost} lost",
                    f"{f'{own.gap:.2f} s / ' if own else ''}{measured}",
                    f"{own.gap / measured.gap:.2f}" if own else "-",
                    kind != SWITCHOVER or own is None or own.gap <= measured.gap,
                )  # fmt: skip
