# SPDX-License-Identifier: GPL-3.0-or-later
"""Redis and Sentinel behind TLS, after test_tls.py has turned it on: who is refused, and what still works."""

from __future__ import annotations

import contextlib
import shlex
from collections.abc import Iterator

import pytest

from tests.cluster import Lab, wait_until

MEMBERS, NODES = ("data1", "data2"), ("web1", "web2")
CA = "/etc/redis/flotilla-ca.pem"
REDIS, SENTINEL = 6379, 26379
VERIFIED = f"--tls --cacert {CA}"
OTHER = "openssl req -x509 -newkey rsa:2048 -nodes -keyout /dev/null -subj /CN=other -days 1 2>/dev/null"
# What the project's sessions are kept in, asked past django-redis, which would hide an error.
PING = "from django.core.cache import caches; print('answered', caches['sessions'].client.get_client().ping())"


def call(lab: Lab, host: str, port: int, *words: str, how: str = VERIFIED) -> str:
    """Ask Redis or Sentinel on the host itself, as its administrator, who may do everything."""
    password = (lab.directory / "secrets" / "redis_admin_password").read_text(encoding="ascii").strip()
    command = (
        f"redis-cli {how} -h {lab.address(host)} -p {port} --user admin --no-auth-warning {shlex.join(words)} 2>&1"
    )
    return lab.ssh(host, f"read -r REDISCLI_AUTH; export REDISCLI_AUTH; {command} || true", stdin=password + "\n")


def info(lab: Lab, host: str, section: str = "replication") -> dict[str, str]:
    said = call(lab, host, REDIS, "INFO", section)
    return dict(line.strip().split(":", 1) for line in said.splitlines() if ":" in line)


def master(lab: Lab) -> str:
    (found,) = [host for host in MEMBERS if info(lab, host).get("role") == "master"]
    return found


def replica(lab: Lab) -> str:
    return next(host for host in MEMBERS if host != master(lab))


def seen_master(lab: Lab, host: str, how: str = VERIFIED) -> dict[str, str]:
    """What a Sentinel says about the master: a name and a value in turn, which may be empty."""
    lines = call(lab, host, SENTINEL, "SENTINEL", "MASTER", "flotilla", how=how).splitlines()
    return dict(zip(lines[::2], lines[1::2], strict=False))


def is_whole(lab: Lab) -> bool:
    """A master, a replica in step, and Sentinels that see that master up and each other."""
    at = lab.address(master(lab))
    if info(lab, replica(lab)).get("master_link_status") != "up":
        return False
    for host in MEMBERS:
        seen = seen_master(lab, host)
        if (seen["ip"], seen["flags"]) != (at, "master"):
            return False
        if "OK 2 usable" not in call(lab, host, SENTINEL, "SENTINEL", "CKQUORUM", "flotilla"):
            return False
    return True


def clients(lab: Lab, host: str) -> list[dict[str, str]]:
    lines = call(lab, host, REDIS, "CLIENT", "LIST").splitlines()
    return [dict(word.split("=", 1) for word in line.split()) for line in lines if line.startswith("id=")]


@contextlib.contextmanager
def believing_another(lab: Lab, host: str, path: str) -> Iterator[None]:
    """A host that trusts another authority than the one that signed everybody's certificates."""
    lab.ssh(host, f"cp -p {path} /root/kept.pem; {OTHER} -out /root/other.pem; cat /root/other.pem >{path}")
    try:
        yield
    finally:
        lab.ssh(host, f"cat /root/kept.pem >{path}")


def read_again(lab: Lab, host: str) -> None:
    assert "OK" in call(lab, host, REDIS, "CONFIG", "SET", "tls-ca-cert-file", CA, how="--tls --insecure")


@pytest.mark.parametrize("port", [REDIS, SENTINEL])
@pytest.mark.parametrize("host", MEMBERS)
def test_a_member_refuses_who_does_not_speak_tls(lab: Lab, host: str, port: int) -> None:
    assert "PONG" in call(lab, host, port, "PING")
    said = call(lab, host, port, "PING", how="")
    assert "PONG" not in said
    assert "onnection" in said, said


def test_everybody_has_come_back_with_tls(lab: Lab) -> None:
    """Those from before were ended just before the file was written; a replica's would be as old as the replica."""
    wait_until(lambda: is_whole(lab), 60, "Redis to be in order")
    for host in MEMBERS:
        since = int(lab.ssh(host, "echo $(( $(date +%s) - $(stat -c %Y /etc/redis/flotilla-tls-only) ))"))
        # A replica counts its link to the master on from the first one; the master counts it anew.
        found = [item for item in clients(lab, host) if item["flags"] != "M"]
        assert all(int(item["age"]) <= since + 60 for item in found), found
    assert {item["user"] for item in clients(lab, master(lab))} >= {"replication", "sentinel"}
    assert all("answered True" in lab.ssh(host, f'django-manage shell -c "{PING}"') for host in NODES)


@pytest.mark.parametrize("host", NODES)
def test_a_node_does_not_believe_another_authority(lab: Lab, host: str) -> None:
    """It must not go on unverified, and not without TLS."""
    with believing_another(lab, host, "/etc/django/redis-ca.pem"):
        said = lab.ssh(host, f'django-manage shell -c "{PING}" 2>&1 || true')
    assert "certificate verify failed" in said, said
    assert "answered True" in lab.ssh(host, f'django-manage shell -c "{PING}"')


def test_a_replica_does_not_follow_a_master_of_another_authority(lab: Lab) -> None:
    host = replica(lab)
    unsure = "--tls --insecure"
    try:
        with believing_another(lab, host, CA):
            read_again(lab, host)
            call(lab, host, REDIS, "CLIENT", "KILL", "TYPE", "master", how=unsure)
            said = lab.ssh(host, "sleep 3; tail -n 20 /var/log/redis/redis-server.log")
            assert "certificate verify failed" in said, said
            assert "master_link_status:down" in call(lab, host, REDIS, "INFO", "replication", how=unsure)
    finally:
        read_again(lab, host)
    wait_until(lambda: is_whole(lab), 60, "the replica to follow again")


def test_a_sentinel_does_not_believe_another_authority(lab: Lab) -> None:
    host = replica(lab)

    unsure = "--tls --insecure"
    try:
        with believing_another(lab, host, CA):
            lab.ssh(host, "systemctl restart redis-sentinel")
            wait_until(lambda: "s_down" in seen_master(lab, host, unsure)["flags"], 30, "the master to count as down")
            assert "disconnected" in seen_master(lab, host, unsure)["flags"]
    finally:
        lab.ssh(host, "systemctl restart redis-sentinel")
    wait_until(lambda: is_whole(lab), 60, "the Sentinels to agree again")


def test_sentinel_replaces_a_master_that_is_gone(lab: Lab) -> None:
    old, new = master(lab), replica(lab)
    lab.ssh(old, "systemctl stop redis-server")
    try:
        wait_until(lambda: info(lab, new).get("role") == "master", 30, "the replica to become the master")
        for host in NODES:
            wait_until(lambda host=host: "answered True" in lab.ssh(host, f'django-manage shell -c "{PING}"'), 10, host)
    finally:
        lab.ssh(old, "systemctl start redis-server")
    wait_until(lambda: is_whole(lab), 60, "the former master to follow")
    assert master(lab) == new


def test_the_master_moves_and_all_are_restarted(lab: Lab) -> None:
    new = replica(lab)
    moved = lab.playbook("-e", f"redis_new_master={new}", playbook="playbooks/redis_switchover.yml")
    assert moved.returncode == 0, moved.output[-4000:]
    assert master(lab) == new
    before = {host: info(lab, host, "server")["run_id"] for host in MEMBERS}
    restarted = lab.playbook("-e", "redis_restart_all=true", playbook="playbooks/restart_redis.yml")
    assert restarted.returncode == 0, restarted.output[-4000:]
    wait_until(lambda: is_whole(lab), 60, "Redis to be in order")
    assert all(info(lab, host, "server")["run_id"] != before[host] for host in MEMBERS)
    assert all("onnection" in call(lab, host, REDIS, "PING", how="") for host in MEMBERS)


def test_the_status_and_the_monitor_find_nothing_wrong_with_redis(lab: Lab) -> None:
    result = lab.playbook(playbook="playbooks/status.yml")
    assert result.returncode == 0, result.output[-4000:]
    assert "could not be asked" not in result.output
    assert "is not well" not in result.output
    for host in MEMBERS:
        exporter = f"http://{lab.address(host)}:9121"
        assert "\nredis_up 1\n" in lab.ssh(host, f"curl -s {exporter}/metrics")
        target = f"{exporter}/scrape?target=rediss://{lab.address(host)}:{SENTINEL}"
        assert "\nredis_sentinel_masters 1\n" in lab.ssh(host, f"curl -s '{target}'")


def test_redis_reads_a_new_certificate_while_it_runs(lab: Lab) -> None:
    shown = "openssl s_client -connect 127.0.0.1:{} </dev/null 2>/dev/null | openssl x509 -noout -serial"
    host = replica(lab)
    before = info(lab, host, "server")["run_id"], lab.ssh(host, shown.format(REDIS))
    (lab.directory / "tls" / f"host-{host}.pem").unlink()
    result = lab.playbook("--tags", "redis")
    assert result.returncode == 0, result.output[-4000:]
    wait_until(lambda: is_whole(lab), 60, "Redis to be in order")
    after = info(lab, host, "server")["run_id"], lab.ssh(host, shown.format(REDIS))
    assert after[0] == before[0], "Redis was restarted"
    assert after[1] != before[1]
    assert lab.ssh(host, shown.format(SENTINEL)) == after[1]
