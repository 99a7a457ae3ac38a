# SPDX-License-Identifier: GPL-3.0-or-later
"""A converged tier: it replicates, keeps what it is given, and lets nobody do more than he needs."""

from __future__ import annotations

import pytest
from ansible_collections.flotilla.django.plugins.module_utils import _redis_io as redis_io
from redis_tier import HOSTS, USERS, Tier, wait_for

# What django-redis, Channels and Celery use
ALLOWED = """
SET k v EX 60
GET k
MGET k l
INCR test:n
EXPIRE k 30
PEXPIRE k 30000
PERSIST k
TTL k
PTTL k
EXISTS k
SCAN 0 MATCH test:* COUNT 10
TYPE k
DEL k
UNLINK k
HSET test:h a 1
LPUSH test:l a
BLPOP test:l 1
SADD test:s a
ZADD test:z 1 a
MULTI
PING
SELECT 1
ROLE
INFO replication
INFO
CLIENT SETINFO LIB-NAME redis-py
CLIENT SETNAME django
CLIENT ID
PUBLISH c m
SUBSCRIBE c
EVAL return(1) 0
SCRIPT EXISTS 0000000000000000000000000000000000000000
FLUSHDB ASYNC
""".strip().splitlines()

# What can stop, empty, move or slow down the whole server
FORBIDDEN = """
CONFIG GET maxmemory
CONFIG SET maxmemory 1
CONFIG REWRITE
ACL LIST
ACL SETUSER x on
ACL WHOAMI
FLUSHALL
KEYS *
SHUTDOWN
REPLICAOF NO ONE
DEBUG SLEEP 0
MONITOR
CLIENT LIST
CLIENT KILL ID 1
CLIENT PAUSE 1
MIGRATE h 1 k 0 1
SAVE
BGSAVE
BGREWRITEAOF
MODULE LIST
SLOWLOG GET
SWAPDB 0 1
PSYNC ? -1
REPLCONF capa eof
SCRIPT FLUSH
FUNCTION FLUSH
FUNCTION LIST
LATENCY LATEST
RESTORE k 0 v
FAILOVER
CLUSTER INFO
""".strip().splitlines()


def test_one_master_and_two_replicas(tier: Tier) -> None:
    master = tier.master()
    assert tier.shape() == {host: "master" if host == master else master for host in HOSTS}


def test_the_sentinels_agree(tier: Tier) -> None:
    wait_for(tier.is_whole)
    sentinels = tier.sentinels()
    assert {own.master_address for own in sentinels.values()} == {tier.address[tier.master()]}
    assert len({own.run_id for own in sentinels.values()}) == 3, "each has an id of its own"
    for host, own in sentinels.items():
        assert {name: own.settings[name] for name in ("quorum", "down-after-milliseconds", "num-other-sentinels")} == {
            "quorum": "2",
            "down-after-milliseconds": "5000",
            "num-other-sentinels": "2",
        }
        assert {peer.address for peer in own.peers} == {tier.address[other] for other in HOSTS if other != host}
        assert tier.ask_sentinel(host, "SENTINEL", "CKQUORUM", "flotilla").startswith("OK 3 usable Sentinels")


def test_a_key_is_on_every_member(tier: Tier) -> None:
    tier.call(tier.master(), "SET", "test:everywhere", "yes", user="django")
    for host in HOSTS:
        wait_for(lambda host=host: tier.call(host, "GET", "test:everywhere", user="django") == "yes", 5)


def test_a_replica_takes_no_writes(tier: Tier) -> None:
    replica = next(host for host in HOSTS if host != tier.master())
    with pytest.raises(redis_io.ReplyError, match="READONLY"):
        tier.call(replica, "SET", "test:replica", "no", user="django")


@pytest.mark.parametrize("host", HOSTS)
def test_settings(tier: Tier, host: str) -> None:
    wanted = {
        "appendonly": "yes",
        "appendfsync": "everysec",
        "maxmemory": str(64 * 2**20),
        "maxmemory-policy": "noeviction",
        "bind": f"{tier.address[host]} 127.0.0.1",
        "protected-mode": "yes",
        "min-replicas-to-write": "1",
    }
    assert redis_io.pairs(tier.call(host, "CONFIG", "GET", *wanted)) == wanted


@pytest.mark.parametrize("host", HOSTS)
def test_listens_nowhere_else(tier: Tier, host: str) -> None:
    for port in (6379, 26379):
        listening = tier.lab.ssh(host, f"ss -Hltn 'sport = :{port}'").splitlines()
        wanted = [f"{tier.address[host]}:{port}", f"127.0.0.1:{port}"]
        assert sorted(line.split()[3] for line in listening) == sorted(wanted)


@pytest.mark.parametrize("command", ALLOWED)
def test_what_the_application_may(tier: Tier, command: str) -> None:
    if "CLIENT SETINFO" in command and "redis_version:7.0" in tier.call("cache1", "INFO", "server"):
        pytest.skip("CLIENT SETINFO came with Redis 7.2; redis-py does without it")
    with tier.client(tier.master(), "django") as client:
        if command == "FLUSHDB ASYNC":
            client.call("SELECT", "15")
        client.call(*command.split())


@pytest.mark.parametrize("command", FORBIDDEN)
def test_what_the_application_may_not(tier: Tier, command: str) -> None:
    with pytest.raises(redis_io.ReplyError, match=r"NOPERM|DEBUG command not allowed"):
        tier.call("cache1", *command.split(), user="django")


@pytest.mark.parametrize("command", ["GET k", "SET k v", "CONFIG GET masterauth", "INFO", "FLUSHALL"])
def test_what_a_replica_may_not(tier: Tier, command: str) -> None:
    with pytest.raises(redis_io.ReplyError, match="NOPERM"):
        tier.call("cache1", *command.split(), user="replication")


@pytest.mark.parametrize(
    "command", ["GET k", "SET k v", "CONFIG GET masterauth", "CONFIG SET hz 1", "FLUSHALL", "KEYS *"]
)
def test_what_a_sentinel_may_not(tier: Tier, command: str) -> None:
    with pytest.raises(redis_io.ReplyError, match="NOPERM"):
        tier.call("cache1", *command.split(), user="sentinel")


@pytest.mark.parametrize("host", HOSTS)
def test_the_sentinels_let_nobody_do_more_than_he_needs(tier: Tier, host: str) -> None:
    said = tier.lab.ssh(host, "for c in PING 'SENTINEL MASTERS' 'AUTH x'; do redis-cli -p 26379 $c; done").splitlines()
    assert [line.split()[0] for line in said if line] == ["NOAUTH", "NOAUTH", "WRONGPASS"]
    for command in ("GET-MASTER-ADDR-BY-NAME flotilla", "MASTERS", "SENTINELS flotilla", "REPLICAS flotilla"):
        assert tier.ask_sentinel(host, "SENTINEL", *command.split(), user="django")
    for user in ("django", "sentinel"):
        for command in ("FAILOVER flotilla", "SET flotilla quorum 1", "RESET *", "REMOVE flotilla", "CONFIG GET *"):
            with pytest.raises(redis_io.ReplyError, match="NOPERM"):
                tier.ask_sentinel(host, "SENTINEL", *command.split(), user=user)


@pytest.mark.parametrize("host", HOSTS)
def test_nobody_gets_in_without_a_password(tier: Tier, host: str) -> None:
    for address in (tier.address[host], "127.0.0.1"):
        said = tier.lab.ssh(host, f"for c in 'GET k' PING 'AUTH x'; do redis-cli -h {address} $c; done")
        lines = [line for line in said.splitlines() if line]
        assert [line.split()[0] for line in lines] == ["NOAUTH", "NOAUTH", "WRONGPASS"], lines
    for user in ("default", "django", "admin"):
        for password in ("", "wrong"):
            with pytest.raises(redis_io.ReplyError, match="WRONGPASS"):
                redis_io.Client(tier.address[host], 6379, user, password)


@pytest.mark.parametrize("host", HOSTS)
def test_no_password_is_readable_for_others(tier: Tier, host: str) -> None:
    patterns = "\n".join(tier.password(user) for user in USERS)
    where = "/etc /var/lib/redis /var/log /run /tmp /usr/local /root /home"
    found = tier.lab.ssh(host, f"grep -rlsFf - --devices=skip {where}", patterns + "\n", check=False).splitlines()
    assert "/etc/redis/flotilla-masterauth.conf" in found, "the search itself works"
    readable = tier.lab.ssh(host, f"find {' '.join(found)} -perm /007").splitlines()
    assert readable == []
    acl = tier.lab.ssh(host, "cat /etc/redis/flotilla-users.acl; stat -c %a:%U:%G /etc/redis/flotilla-users.acl")
    assert not any(tier.password(user) in acl for user in USERS)
    assert acl.endswith("640:root:redis\n")
    processes = tier.lab.ssh(host, "ps -eo args; cat /proc/[0-9]*/environ | tr '\\0' '\\n'")
    assert not any(tier.password(user) in processes for user in USERS)


@pytest.mark.parametrize("host", HOSTS)
def test_the_daemon_is_still_in_debians_sandbox(tier: Tier, host: str) -> None:
    for unit in ("redis-server", "redis-sentinel"):
        shown = tier.lab.ssh(host, f"systemctl show {unit} -p User -p ProtectSystem -p NoExecPaths -p UnitFileState")
        assert set(shown.split()) == {"User=redis", "ProtectSystem=strict", "NoExecPaths=/", "UnitFileState=enabled"}
