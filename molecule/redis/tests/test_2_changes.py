# SPDX-License-Identifier: GPL-3.0-or-later
"""What happens to a tier, and what the next run makes of it."""

from __future__ import annotations

import json

import pytest
from redis_tier import HOSTS, Tier, wait_for


def started(tier: Tier, host: str) -> str:
    return tier.lab.ssh(host, "systemctl show redis-server -p ExecMainPID -p ActiveEnterTimestampMonotonic")


def others(host: str) -> list[str]:
    return [name for name in HOSTS if name != host]


def move_master(tier: Tier, new: str) -> None:
    """As an administrator does it by hand."""
    tier.call(new, "REPLICAOF", "NO", "ONE")
    for host in others(new):
        tier.call(host, "REPLICAOF", tier.address[new], "6379")
    wait_for(lambda: tier.shape() == {host: "master" if host == new else new for host in HOSTS})


@pytest.fixture(autouse=True)
def _back_to_cache1(tier: Tier) -> None:
    if tier.shape() != {"cache1": "master", "cache2": "cache1", "cache3": "cache1"}:
        move_master(tier, "cache1")
        for host in HOSTS:
            tier.call(host, "CONFIG", "REWRITE")


def test_a_second_run_changes_nothing(tier: Tier) -> None:
    for arguments in ([], ["--check", "--diff"], ["--limit", "cache2"]):
        run = tier.converge(*arguments)
        assert run.returncode == 0, run.output[-3000:]
        assert run.changed == {}, run.changed_tasks


def test_acknowledged_writes_survive_kill_9(tier: Tier) -> None:
    with tier.client("cache1", "django") as client:
        for number in range(500):
            client.call("SET", f"test:kill:{number}", str(number))
    before = started(tier, "cache1")
    tier.lab.ssh("cache1", "systemctl kill --signal=KILL redis-server")
    wait_for(lambda: started(tier, "cache1") != before)
    wait_for(lambda: tier.shape() == {"cache1": "master", "cache2": "cache1", "cache3": "cache1"})
    for host in HOSTS:
        with tier.client(host, "django") as client:
            assert [client.call("GET", f"test:kill:{number}") for number in range(500)] == [str(n) for n in range(500)]
    # What it reads from its files is what it had been told while it ran.
    assert tier.converge("--limit", "cache1").changed == {}


def test_a_master_moved_by_hand_is_left_alone(tier: Tier) -> None:
    move_master(tier, "cache2")
    run = tier.converge()
    assert run.returncode == 0, run.output[-3000:]
    assert run.changed == {}, run.changed_tasks
    assert tier.shape() == {"cache1": "cache2", "cache2": "master", "cache3": "cache2"}


@pytest.mark.full
def test_a_moved_master_is_still_it_after_a_restart(tier: Tier) -> None:
    """Redis itself keeps whom it follows, and no run writes over that, not even when it has something to change."""
    move_master(tier, "cache2")
    for host in HOSTS:
        tier.call(host, "CONFIG", "REWRITE")
    run = tier.converge("-e", "redis_databases=17")
    assert run.returncode == 0, run.output[-3000:]
    assert tier.shape() == {"cache1": "cache2", "cache2": "master", "cache3": "cache2"}
    assert [tier.call(host, "CONFIG", "GET", "databases")[1] for host in HOSTS] == ["17"] * 3
    assert tier.converge().returncode == 0


def test_settings_and_users_change_without_a_restart(tier: Tier) -> None:
    before = [started(tier, host) for host in HOSTS]
    with tier.client("cache1", "django") as held:
        reader = {"name": "reader", "password": "p", "rules": "~* +get"}
        extra = {"redis_maxmemory_mb": 80, "redis_extra_settings": {"hz": 20}, "redis_extra_users": [reader]}
        run = tier.converge("-e", json.dumps(extra))
        assert run.returncode == 0, run.output[-3000:]
        assert held.call("PING") == "PONG", "the connection of another user was closed"
    for host in HOSTS:
        assert tier.call(host, "CONFIG", "GET", "maxmemory")[1] == str(80 * 2**20)
        assert tier.call(host, "CONFIG", "GET", "hz")[1] == "20"
        assert "reader" in tier.call(host, "ACL", "USERS")
    # By hand, and behind the file's back: the next run repairs it.
    tier.call("cache2", "CONFIG", "SET", "appendonly", "no")
    tier.call("cache2", "ACL", "SETUSER", "django", "+config")
    run = tier.converge("-e", '{"redis_extra_settings": {"hz": 10}}')
    assert run.returncode == 0, run.output[-3000:]
    assert tier.call("cache2", "CONFIG", "GET", "appendonly")[1] == "yes"
    for host in HOSTS:
        assert tier.call(host, "CONFIG", "GET", "maxmemory")[1] == str(64 * 2**20)
        assert sorted(tier.call(host, "ACL", "USERS")) == ["admin", "default", "django", "replication"]
        assert "+config" not in str(tier.call(host, "ACL", "GETUSER", "django"))
    assert [started(tier, host) for host in HOSTS] == before, "nothing was restarted"
    assert tier.converge().returncode == 0
    assert tier.converge().changed == {}


@pytest.mark.full
def test_new_passwords(tier: Tier) -> None:
    names = ["redis_admin_password", "cluster_redis_password", "redis_replication_password"]
    passwords = {name: letter * 32 for name, letter in zip(names, "abc", strict=True)}
    arguments = [word for name, value in passwords.items() for word in ("-e", f"{name}={value}")]
    run = tier.converge(*arguments)
    assert run.returncode == 0, run.output[-3000:]
    assert not any(value in run.output for value in passwords.values())
    second = tier.converge(*arguments)
    assert (second.returncode, second.changed) == (0, {}), second.changed_tasks
    run = tier.converge()
    assert run.returncode == 0, run.output[-3000:]
    assert tier.shape() == {"cache1": "master", "cache2": "cache1", "cache3": "cache1"}


@pytest.mark.parametrize(
    "arguments", [pytest.param([], id="all", marks=pytest.mark.full), pytest.param(["--limit", "cache2"], id="limit")]
)
def test_a_wiped_replica_comes_back(tier: Tier, arguments: list[str]) -> None:
    tier.call("cache1", "SET", "test:wiped", "kept", user="django")
    tier.lab.tool("rebuild", "cache2")
    run = tier.converge(*arguments)
    assert run.returncode == 0, run.output[-3000:]
    assert tier.shape() == {"cache1": "master", "cache2": "cache1", "cache3": "cache1"}
    assert tier.call("cache2", "GET", "test:wiped", user="django") == "kept"
    assert tier.converge().changed == {}


def test_a_wiped_master_never_wipes_the_others(tier: Tier) -> None:
    tier.call("cache1", "SET", "test:master", "kept", user="django")
    assert tier.call("cache1", "WAIT", "2", "5000") == 2
    tier.lab.tool("rebuild", "cache1")

    limited = tier.converge("--limit", "cache1", "-e", "redis_wait=5")
    assert limited.returncode != 0
    assert "Run the play for all Redis hosts" in limited.output
    for host in others("cache1"):
        assert tier.call(host, "GET", "test:master", user="django") == "kept"

    run = tier.converge()
    assert run.returncode == 0, run.output[-3000:]
    shape = tier.shape()
    new = next(host for host in HOSTS if shape[host] == "master")
    assert new != "cache1"
    assert shape == {host: "master" if host == new else new for host in HOSTS}
    for host in HOSTS:
        assert tier.call(host, "GET", "test:master", user="django") == "kept"
    assert tier.converge().changed == {}


@pytest.mark.full
def test_two_masters_are_refused(tier: Tier) -> None:
    tier.call("cache1", "SET", "test:two", "one", user="django")
    tier.call("cache3", "REPLICAOF", "NO", "ONE")
    tier.call("cache3", "SET", "test:two", "other", user="django")
    run = tier.converge("-e", "redis_wait=2")
    assert run.returncode != 0
    assert "2 members say that they are the master" in run.output
    assert tier.call("cache1", "GET", "test:two", user="django") == "one"
    assert tier.call("cache3", "GET", "test:two", user="django") == "other"


@pytest.mark.full
def test_an_empty_lone_master_joins(tier: Tier) -> None:
    tier.call("cache1", "SET", "test:lone", "kept", user="django")
    tier.call("cache3", "REPLICAOF", "NO", "ONE")
    tier.call("cache3", "FLUSHALL")
    run = tier.converge()
    assert run.returncode == 0, run.output[-3000:]
    assert tier.shape() == {"cache1": "master", "cache2": "cache1", "cache3": "cache1"}
    assert tier.call("cache3", "GET", "test:lone", user="django") == "kept"


@pytest.mark.full
def test_replicas_of_a_dead_master_keep_their_data(tier: Tier) -> None:
    tier.call("cache1", "SET", "test:dead", "kept", user="django")
    assert tier.call("cache1", "WAIT", "2", "5000") == 2
    tier.lab.tool("kill", "cache1")
    try:
        run = tier.converge("--limit", "cache2,cache3")
        assert run.returncode == 0, run.output[-3000:]
        assert "keeps its data and waits for its master" in run.output
        for host in others("cache1"):
            assert tier.call(host, "GET", "test:dead", user="django") == "kept"
    finally:
        tier.lab.tool("start", "cache1")
    wait_for(lambda: tier.shape() == {"cache1": "master", "cache2": "cache1", "cache3": "cache1"}, 60)
