# SPDX-License-Identifier: GPL-3.0-or-later
"""TLS between the tiers, turned on while the site is used, and what is refused from then on. In this order."""

from __future__ import annotations

import json
import ssl
from typing import Any

import httpx
import pytest

from tests.cluster import Browser, Lab, served, wait_until
from tests.load.load import running

NODES, DATABASES = ("web1", "web2"), ("data1", "data2")
HEALTH = "/-/health"
SHOW = """
import socket
asked = socket.socket(socket.AF_UNIX)
asked.connect("/run/haproxy/admin.sock")
asked.sendall(b"show stat\\n")
print(asked.makefile().read())
"""
# A database connection of Django's, as the project makes it.
CONNECT = "from django.db import connection; connection.ensure_connection(); print('connected')"


def authority(lab: Lab) -> str:
    return str(lab.certificate)  # the lab's authority signs for the site and for the tiers


def sessions(lab: Lab, host: str) -> list[dict[str, Any]]:
    """Everybody who is connected to a database by TCP, and whether by TLS."""
    query = (
        "SELECT coalesce(json_agg(x), '[]') FROM (SELECT usename, client_addr::text, ssl FROM pg_stat_ssl"
        " JOIN pg_stat_activity USING (pid) WHERE client_addr IS NOT NULL) x"
    )
    found: list[dict[str, Any]] = json.loads(lab.sql(host, query))
    return found


def primary(lab: Lab) -> str:
    (found,) = [host for host in DATABASES if lab.sql(host, "SELECT pg_is_in_recovery()").strip() == "f"]
    return found


def streams(lab: Lab) -> bool:
    return lab.sql(primary(lab), "SELECT count(*) FROM pg_stat_replication WHERE state = 'streaming'").strip() == "1"


def assert_follows_over_tls(lab: Lab, new: str) -> None:
    """After a move: the other database follows the new primary, the site answers, and all of it by TLS."""
    assert primary(lab) == new
    wait_until(lambda: streams(lab), 60, "the former primary to follow")
    assert served(lab) == set(NODES)
    assert all(item["ssl"] for item in sessions(lab, new))


def test_it_is_turned_on_without_a_failed_request(lab: Lab) -> None:
    with running(lab.load(rate=5, seconds=1500, mix={"plain": 4, "page": 2, "session": 3})) as load:
        load.wait_until_sending()
        result = lab.playbook()
        load.stop()
    assert result.returncode == 0, result.output[-6000:]
    bad = [outcome for outcome in load.outcomes if outcome.reason]
    assert not bad, bad[:5]
    again = lab.playbook()
    assert (again.returncode, again.changed) == (0, {}), again.changed_tasks
    check = lab.playbook("--check", "--diff")
    assert (check.returncode, check.changed) == (0, {}), check.changed_tasks


def test_everybody_at_the_databases_speaks_tls(lab: Lab) -> None:
    assert served(lab) == set(NODES)
    # Django gives a connection up that it has kept for a minute, so there need not be one by now.
    browser = Browser(lab, lab.shared_address())
    assert {browser.get("/where/").headers["X-Served-By"] for _ in range(8)} == set(NODES)
    found = sessions(lab, primary(lab))
    assert {item["usename"] for item in found} >= {"django", "replication"}
    assert all(item["ssl"] for item in found), found


def test_a_database_refuses_who_does_not_speak_tls(lab: Lab) -> None:
    login = "user='django', dbname='django', password=os.environ['CLUSTER_DATABASE_PASSWORD']"
    connect = f"import os, psycopg; psycopg.connect(host='{{}}', sslmode='{{}}', {login})"
    command = f'django-run python -c "{connect}" 2>&1 || true'
    address = lab.address(primary(lab))
    said = lab.ssh("web1", command.format(address, "disable"))
    assert "no encryption" in said, said
    assert "Error" not in lab.ssh("web1", command.format(address, "verify-full"))


@pytest.mark.parametrize("host", NODES)
def test_a_node_refuses_who_does_not_speak_tls(lab: Lab, host: str) -> None:
    address = lab.address(host)
    with pytest.raises(httpx.TransportError):
        httpx.get(f"http://{address}:8000{HEALTH}", trust_env=False, timeout=5)
    verified = ssl.create_default_context(cafile=authority(lab))
    headers = {"Host": "flotilla.test", "X-Forwarded-Proto": "https"}
    answer = httpx.get(f"https://{address}:8000{HEALTH}", headers=headers, verify=verified, trust_env=False)
    assert answer.status_code == 200
    assert Browser(lab, "web1").get("/").status_code == 200


def test_a_database_of_another_authority_is_not_believed(lab: Lab) -> None:
    """Only what this node trusts is replaced: it must not go on unverified, and not without TLS."""
    other = "openssl req -x509 -newkey rsa:2048 -nodes -keyout /dev/null -subj /CN=other -days 1 2>/dev/null"
    lab.ssh("web2", f"cp -p /etc/django/database-ca.pem /root/kept.pem; {other} -out /etc/django/database-ca.pem")
    try:
        said = lab.ssh("web2", f'django-manage shell -c "{CONNECT}" 2>&1 || true')
    finally:
        lab.ssh("web2", "cp -p /root/kept.pem /etc/django/database-ca.pem")
    assert "certificate verify failed" in said, said
    assert "connected" in lab.ssh("web2", f'django-manage shell -c "{CONNECT}"')


def test_a_primary_of_another_authority_is_not_followed(lab: Lab) -> None:
    standby = next(host for host in DATABASES if host != primary(lab))
    directory = lab.ssh(standby, "echo /etc/postgresql/*/main").strip()
    other = "openssl req -x509 -newkey rsa:2048 -nodes -keyout /dev/null -subj /CN=other -days 1 2>/dev/null"
    end = "SELECT pg_terminate_backend(pid) FROM pg_stat_replication"
    lab.ssh(standby, f"cp -p {directory}/ca.pem /root/kept.pem; {other} -out {directory}/ca.pem")
    try:
        lab.sql(primary(lab), end)
        wait_until(lambda: not streams(lab), 10, "the replication to end")
        said = lab.ssh(standby, "sleep 2; tail -n 50 /var/log/postgresql/*.log")
        assert "certificate verify failed" in said, said
        assert not streams(lab)
    finally:
        lab.ssh(standby, f"cp -p /root/kept.pem {directory}/ca.pem")
    wait_until(lambda: streams(lab), 60, "the replication to go on")


def test_a_balancer_sends_nothing_to_a_node_of_another_authority(lab: Lab) -> None:
    other = "openssl req -x509 -newkey rsa:2048 -nodes -keyout /dev/null -subj /CN=other -days 1 2>/dev/null"
    ca = "/etc/haproxy/django-ca.pem"
    lab.ssh("web2", f"cp -p {ca} /root/kept.pem; {other} -out {ca}; systemctl reload haproxy")

    def nodes() -> set[str]:
        rows = [line.split(",") for line in lab.ssh("web2", "python3 -", stdin=SHOW).splitlines()]
        return {row[17].split()[0] for row in rows if row[0] == "django" and row[1] in NODES}

    try:
        wait_until(lambda: nodes() == {"DOWN"}, 30, "the balancer to give up both nodes")
        assert Browser(lab, "web2").get("/").status_code == 503
    finally:
        lab.ssh("web2", f"cp -p /root/kept.pem {ca}; systemctl reload haproxy")
    wait_until(lambda: nodes() == {"UP"}, 30, "the balancer to find both nodes")


def test_the_primary_moves(lab: Lab) -> None:
    old = primary(lab)
    new = next(host for host in DATABASES if host != old)
    result = lab.playbook("-e", f"postgresql_new_primary={new}", playbook="playbooks/switchover.yml")
    assert result.returncode == 0, result.output[-6000:]
    assert_follows_over_tls(lab, new)


def test_a_release_goes_out_and_a_dead_primary_comes_back(lab: Lab) -> None:
    done = lab.playbook("-e", "django_version=over-tls", playbook="playbooks/deploy.yml")
    assert done.returncode == 0, done.output[-6000:]
    old = primary(lab)
    new = next(host for host in DATABASES if host != old)
    lab.tool("kill", old)
    try:
        done = lab.playbook(playbook="playbooks/failover.yml")
        assert done.returncode == 0, done.output[-6000:]
    finally:
        lab.tool("start", old)
    done = lab.playbook("-e", f"postgresql_member={old}", playbook="playbooks/rejoin.yml")
    assert done.returncode == 0, done.output[-6000:]
    assert_follows_over_tls(lab, new)
