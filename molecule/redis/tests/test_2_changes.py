# SPDX-License-Identifier: GPL-3.0-or-later
"""What happens to a tier, and what the next run makes of it."""

from __future__ import annotations

import contextlib
import json
import time

import pytest
from ansible_collections.flotilla.django.plugins.module_utils import _redis_io as redis_io
from redis_tier import DOWN_AFTER, HOSTS, USERS, Tier, Writer, wait_for

from tests.cluster import Recap


def started(tier: Tier, host: str) -> str:
    return tier.lab.ssh(host, "systemctl show redis-server -p ExecMainPID -p ActiveEnterTimestampMonotonic")


def others(host: str) -> list[str]:
    return [name for name in HOSTS if name != host]


@pytest.fixture(autouse=True)
def _whole_before(tier: Tier) -> None:
    wait_for(tier.is_whole, 60)


def test_a_second_run_changes_nothing(tier: Tier) -> None:
    for arguments in ([], ["--check", "--diff"], ["--limit", "cache2"]):
        run = tier.converge(*arguments)
        assert run.returncode == 0, run.output[-3000:]
        assert run.changed == {}, run.changed_tasks


def test_acknowledged_writes_survive_kill_9(tier: Tier) -> None:
    master = tier.master()
    with tier.client(master, "django") as client:
        for number in range(500):
            client.call("SET", f"test:kill:{number}", str(number))
    before = started(tier, master)
    tier.lab.ssh(master, "systemctl kill --signal=KILL redis-server")
    wait_for(lambda: started(tier, master) != before)
    wait_for(lambda: tier.is_whole(master))
    for host in HOSTS:
        with tier.client(host, "django") as client:
            assert [client.call("GET", f"test:kill:{number}") for number in range(500)] == [str(n) for n in range(500)]
    # What it reads from its files is what it had been told while it ran.
    assert tier.converge("--limit", master).changed == {}


def fail_over(tier: Tier, break_it: str, mend_it: str) -> None:
    """Break the host of the master under writes: another one takes over in time, and nothing has to be done."""
    old = tier.master()
    with Writer(tier) as writer:
        broken_at = time.monotonic()
        tier.lab.tool(break_it, old)
        try:
            wait_for(lambda: any(moment > broken_at + 2 for _number, moment in writer.acknowledged), DOWN_AFTER + 10)
            assert writer.gap() <= DOWN_AFTER + 3, "until writes were acknowledged again"
            run = tier.converge("--limit", ",".join(others(old)))
            assert (run.returncode, run.changed) == (0, {}), run.output[-3000:]
        finally:
            tier.lab.tool(mend_it, old)
        wait_for(lambda: tier.is_whole() and tier.master() != old, 60)
    # The last write before may not have reached a replica: replication does not wait.
    assert len(writer.lost()) <= 2, writer.lost()
    new = tier.master()
    run = tier.converge()
    assert (run.returncode, run.changed) == (0, {}), run.changed_tasks
    assert tier.master() == new, "a run moves nothing"


@pytest.mark.full  # in make test the master of the whole cluster dies
@pytest.mark.parametrize(
    ("break_it", "mend_it"),
    [("kill", "start"), ("pause", "unpause"), ("cut", "heal")],
    ids=["dead", "frozen", "cut off"],
)
def test_another_takes_over(tier: Tier, break_it: str, mend_it: str) -> None:
    fail_over(tier, break_it, mend_it)


@pytest.mark.full
def test_a_master_that_thaws_takes_no_writes_that_are_lost_later(tier: Tier) -> None:
    """Its clients still have their connections, and it does not know yet that another one is the master."""
    old = tier.master()
    client = tier.client(old, "django")
    tier.lab.tool("pause", old)
    try:
        time.sleep(DOWN_AFTER + 7)
    finally:
        tier.lab.tool("unpause", old)
    taken = 0
    with contextlib.suppress(OSError, redis_io.ReplyError):
        while True:
            client.call("SET", f"test:thawed:{taken}", "1")
            taken += 1
    wait_for(lambda: tier.is_whole() and tier.master() != old, 60)
    assert taken <= 10, "without min-replicas-to-write it takes writes for ten seconds"


@pytest.mark.full  # in make test the rolling restart moves the master
def test_a_planned_move_loses_nothing(tier: Tier) -> None:
    new = others(tier.master())[0]
    with Writer(tier) as writer:
        run = tier.move(new)
        assert run.returncode == 0, run.output[-3000:]
        wait_for(lambda: len(writer.acknowledged) > 2000, 60)
    assert tier.master() == new
    assert writer.lost() == []
    assert writer.gap() <= 3
    print(f"{len(writer.acknowledged)} writes, the longest gap {writer.gap():.2f} s")
    for arguments in (["cache9"], [new]):
        again = tier.move(*arguments)
        assert (again.returncode == 0) == (arguments == [new])
        assert again.changed == {}
    run = tier.converge()
    assert (run.returncode, run.changed) == (0, {}), run.changed_tasks
    assert tier.master() == new


def renew(tier: Tier, host: str) -> None:
    """As dpkg does when it unpacks a newer package."""
    tier.lab.ssh(
        host, "cd /usr/bin && ln -s redis-check-rdb redis-server.dpkg-new && mv redis-server.dpkg-new redis-server"
    )


def restart(tier: Tier, *arguments: str) -> Recap:
    return tier.lab.playbook("--limit", "cache*", *arguments, playbook="playbooks/restart_redis.yml")


def test_a_rolling_restart_loses_no_write(tier: Tier) -> None:
    """Who runs an older program than what is installed is restarted, the master after it was moved, and nobody else."""
    wait_for(tier.is_whole, 60)
    master = tier.master()
    replica = others(master)[0]
    before = {host: started(tier, host) for host in HOSTS}
    for host in (master, replica):
        renew(tier, host)
    predicted = restart(tier, "--check")
    assert predicted.returncode == 0, predicted.output[-3000:]
    assert {host: started(tier, host) for host in HOSTS} == before
    with Writer(tier) as writer:
        run = restart(tier)
        assert run.returncode == 0, run.output[-3000:]
    after = {host: started(tier, host) for host in HOSTS}
    assert {host for host in HOSTS if after[host] != before[host]} == {master, replica}
    assert tier.is_whole() and tier.master() != master
    assert writer.lost() == []
    assert writer.gap() <= 3
    again = restart(tier)
    assert (again.returncode, again.changed) == (0, {}), again.changed_tasks


@pytest.mark.full
def test_nobody_is_restarted_while_a_member_is_away(tier: Tier) -> None:
    master = tier.master()
    away, other = others(master)
    before = started(tier, other)
    tier.lab.ssh(away, "systemctl stop redis-server")
    try:
        run = restart(tier, "-e", '{"redis_restart_all": true, "redis_wait": 10}')
    finally:
        tier.lab.ssh(away, "systemctl start redis-server")
    assert run.returncode != 0
    assert f"Redis on {away}" in run.output
    assert started(tier, other) == before
    wait_for(lambda: tier.is_whole(master), 60)


def test_a_planned_move_is_refused_while_a_sentinel_is_away(tier: Tier) -> None:
    master = tier.master()
    new, third = others(master)
    tier.lab.ssh(third, "systemctl stop redis-sentinel")
    try:
        run = tier.move(new)
        assert run.returncode != 0
        assert f"the Sentinel on {third} ({tier.address[third]}) is refused" in run.output
        assert "Nothing was changed" in run.output
    finally:
        tier.lab.ssh(third, "systemctl start redis-sentinel")
    assert tier.master() == master


@pytest.mark.full
def test_a_moved_master_is_still_it_after_a_restart(tier: Tier) -> None:
    """Redis itself keeps whom it follows, and no run writes over that, not even when it has something to change."""
    new = others(tier.master())[0]
    assert tier.move(new).returncode == 0
    run = tier.converge("-e", "redis_databases=17")
    assert run.returncode == 0, run.output[-3000:]
    wait_for(lambda: tier.is_whole(new))
    assert [tier.call(host, "CONFIG", "GET", "databases")[1] for host in HOSTS] == ["17"] * 3
    assert tier.converge().returncode == 0


@pytest.mark.full
def test_what_a_sentinel_was_told_by_hand_is_put_back(tier: Tier) -> None:
    before = tier.lab.ssh("cache2", "systemctl show redis-sentinel -p ExecMainPID")
    tier.ask_sentinel("cache2", "SENTINEL", "SET", "flotilla", "quorum", "1")
    tier.ask_sentinel("cache2", "ACL", "SETUSER", "django", "+@all")
    run = tier.converge("-e", "redis_sentinel_down_after_ms=4000")
    assert run.returncode == 0, run.output[-3000:]
    sentinels = tier.sentinels()
    assert [own.settings["quorum"] for own in sentinels.values()] == ["2"] * 3
    assert [own.settings["down-after-milliseconds"] for own in sentinels.values()] == ["4000"] * 3
    with pytest.raises(redis_io.ReplyError, match="NOPERM"):
        tier.ask_sentinel("cache2", "SENTINEL", "RESET", "*", user="django")
    assert tier.lab.ssh("cache2", "systemctl show redis-sentinel -p ExecMainPID") == before, "nothing was restarted"
    assert tier.converge().returncode == 0
    assert tier.converge().changed == {}


@pytest.mark.full
def test_a_copied_id_is_replaced(tier: Tier) -> None:
    path = "/etc/redis/flotilla-sentinel.conf"
    copy = tier.lab.ssh("cache2", f"cat {path}")
    tier.lab.ssh("cache3", f"systemctl stop redis-sentinel; cat > {path}; systemctl start redis-sentinel", copy)
    assert tier.ask_sentinel("cache3", "SENTINEL", "MYID") == tier.ask_sentinel("cache2", "SENTINEL", "MYID")
    run = tier.converge()
    assert run.returncode == 0, run.output[-3000:]
    wait_for(tier.is_whole, 60)
    assert len({own.run_id for own in tier.sentinels().values()}) == 3
    assert tier.converge().changed == {}


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
        assert sorted(tier.call(host, "ACL", "USERS")) == sorted(["default", *USERS])
        assert "+config" not in str(tier.call(host, "ACL", "GETUSER", "django"))
    assert [started(tier, host) for host in HOSTS] == before, "nothing was restarted"
    assert tier.converge().returncode == 0
    assert tier.converge().changed == {}


@pytest.mark.full
def test_new_passwords(tier: Tier) -> None:
    names = ["redis_admin_password", "cluster_redis_password", "redis_replication_password", "redis_sentinel_password"]
    master = tier.master()
    passwords = {name: letter * 32 for name, letter in zip(names, "abcd", strict=True)}
    arguments = [word for name, value in passwords.items() for word in ("-e", f"{name}={value}")]
    run = tier.converge(*arguments)
    assert run.returncode == 0, run.output[-3000:]
    assert not any(value in run.output for value in passwords.values())
    second = tier.converge(*arguments)
    assert (second.returncode, second.changed) == (0, {}), second.changed_tasks
    assert tier.master() == master, "no failover, although the Sentinels got another password"
    run = tier.converge()
    assert run.returncode == 0, run.output[-3000:]
    wait_for(lambda: tier.is_whole(master))


@pytest.mark.full  # make test wipes the master, which asks for more
def test_a_wiped_replica_comes_back(tier: Tier) -> None:
    master = tier.master()
    wiped = others(master)[0]
    tier.call(master, "SET", "test:wiped", "kept", user="django")
    tier.lab.tool("rebuild", wiped)
    run = tier.converge("--limit", wiped)
    assert run.returncode == 0, run.output[-3000:]
    wait_for(lambda: tier.is_whole(master))
    assert tier.call(wiped, "GET", "test:wiped", user="django") == "kept"
    run = tier.converge()
    assert (run.returncode, run.changed) == (0, {}), run.changed_tasks
    assert {own.settings["num-other-sentinels"] for own in tier.sentinels().values()} == {"2"}


def test_a_wiped_master_never_wipes_the_others(tier: Tier) -> None:
    old = tier.master()
    tier.call(old, "SET", "test:master", "kept", user="django")
    assert tier.call(old, "WAIT", "2", "5000") == 2
    tier.lab.tool("rebuild", old)
    run = tier.converge("--limit", old)
    assert run.returncode == 0, run.output[-3000:]
    wait_for(tier.is_whole, 60)
    assert tier.master() != old
    for host in HOSTS:
        assert tier.call(host, "GET", "test:master", user="django") == "kept"
    run = tier.converge()
    assert (run.returncode, run.changed) == (0, {}), run.changed_tasks


@pytest.mark.full
def test_without_a_majority_of_sentinels_nothing_is_lost(tier: Tier) -> None:
    """Two hosts are replaced at once, the master's among them: the one that kept the data becomes the master."""
    old = tier.master()
    left = others(old)[0]
    tier.call(old, "SET", "test:left", "kept", user="django")
    assert tier.call(old, "WAIT", "2", "5000") == 2
    for host in others(left):
        tier.lab.tool("rebuild", host)
    run = tier.converge()
    if run.returncode:  # the Sentinels may need longer than one run to agree
        wait_for(tier.is_whole, 90)
        run = tier.converge()
    assert run.returncode == 0, run.output[-3000:]
    wait_for(tier.is_whole, 60)
    for host in HOSTS:
        assert tier.call(host, "GET", "test:left", user="django") == "kept"
    assert tier.converge().changed == {}


@pytest.mark.full
def test_a_second_master_is_put_back(tier: Tier) -> None:
    master = tier.master()
    second = others(master)[0]
    tier.call(master, "SET", "test:two", "one", user="django")
    tier.call(second, "REPLICAOF", "NO", "ONE")
    run = tier.converge()
    assert run.returncode == 0, run.output[-3000:]
    wait_for(lambda: tier.is_whole(master))
    assert tier.call(second, "GET", "test:two", user="django") == "one"


@pytest.mark.full
def test_an_empty_lone_master_joins(tier: Tier) -> None:
    master = tier.master()
    second = others(master)[0]
    tier.call(master, "SET", "test:lone", "kept", user="django")
    tier.call(second, "REPLICAOF", "NO", "ONE")
    tier.call(second, "CONFIG", "SET", "min-replicas-to-write", "0")
    tier.call(second, "FLUSHALL")
    run = tier.converge()
    assert run.returncode == 0, run.output[-3000:]
    wait_for(lambda: tier.is_whole(master))
    assert tier.call(second, "GET", "test:lone", user="django") == "kept"


@pytest.mark.full
def test_without_sentinel(tier: Tier) -> None:
    run = tier.converge("-e", '{"redis_sentinel": false}')
    assert run.returncode == 0, run.output[-3000:]
    for host in HOSTS:
        assert tier.lab.ssh(host, "systemctl is-active redis-sentinel", check=False).strip() == "inactive"
        assert tier.call(host, "CONFIG", "GET", "min-replicas-to-write")[1] == "0"
        assert "sentinel" not in tier.call(host, "ACL", "USERS")
    run = tier.converge("-e", '{"redis_sentinel": false}')
    assert (run.returncode, run.changed) == (0, {}), run.changed_tasks
    assert tier.converge().returncode == 0
    wait_for(tier.is_whole, 60)
    assert tier.converge().changed == {}
