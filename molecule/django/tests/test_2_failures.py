# SPDX-License-Identifier: GPL-3.0-or-later
"""What breaks, and what a node says and does about it. Every test leaves the tier as it found it."""

from __future__ import annotations

import json
import subprocess
import time

import httpx
import pytest
from django_tier import CONVERGE, HOSTS, Tier, Visitor

from tests.cluster import wait_until

MIGRATE = "django-run python /etc/django/cluster_migrate.py --lock-wait 60"


@pytest.fixture(autouse=True)
def _leaves_it_healthy(tier: Tier):
    yield
    for host in HOSTS:
        wait_until(lambda host=host: tier.health(host, deep=True)[0] == 200, 30, f"{host} healthy after the test")


def test_redis_down_is_not_the_end(tier: Tier) -> None:
    """Deep health fails and says why; the balancer keeps the node; who is logged in stays so, on every node."""
    visitor = Visitor(tier)
    visitor.login("app1", "app1")
    assert visitor.is_logged_in("app2")
    tier.lab.ssh("cache1", "systemctl stop redis-server")
    try:
        status, body = tier.health("app1", deep=True)
        assert status == 503
        assert [reason.split(":")[0] for reason in body["reasons"]] == ["redis"]
        assert not any(secret in json.dumps(body) for secret in tier.secrets().values())
        assert tier.health("app1")[0] == 200
        for host in HOSTS:
            assert visitor.is_logged_in(host)
        other = Visitor(tier)
        other.login("app1", "app2")
        assert other.is_logged_in("app1"), "a login made while Redis is away"
        begun = time.monotonic()
        for _ in range(20):
            assert visitor.is_logged_in("app1")
        assert time.monotonic() - begun < 10, "requests wait for Redis"
    finally:
        tier.lab.ssh("cache1", "systemctl start redis-server")
    wait_until(lambda: tier.health("app1", deep=True)[0] == 200, 15, "Redis is used again")
    assert visitor.is_logged_in("app1")


@pytest.mark.full
def test_redis_frozen_costs_each_process_a_second_now_and_then(tier: Tier) -> None:
    visitor = Visitor(tier)
    visitor.login("app1", "app1")
    tier.lab.tool("pause", "cache1")
    try:
        times = []
        for _ in range(20):
            begun = time.monotonic()
            assert visitor.is_logged_in("app1")
            times.append(time.monotonic() - begun)
        assert max(times) < 6
        assert sorted(times)[10] < 0.5, times
    finally:
        tier.lab.tool("unpause", "cache1")


def test_read_only_database(tier: Tier) -> None:
    """Every server refuses writes: no connection is accepted as the primary's."""
    tier.lab.sql("db1", "ALTER SYSTEM SET default_transaction_read_only = on; ")
    tier.lab.sql("db1", "SELECT pg_reload_conf()")
    try:
        wait_until(lambda: tier.health("app1", deep=True)[0] == 503, 10, "deep health notices")
        _, body = tier.health("app1", deep=True)
        assert any("read-only" in reason and reason.startswith("database") for reason in body["reasons"]), body
        assert tier.health("app1")[0] == 200
    finally:
        tier.lab.sql("db1", "SET default_transaction_read_only = off; ALTER SYSTEM RESET default_transaction_read_only")
        tier.lab.sql("db1", "SELECT pg_reload_conf()")


@pytest.mark.full
def test_database_frozen_does_not_hang_the_health_address(tier: Tier) -> None:
    tier.lab.tool("pause", "db1")
    try:
        begun = time.monotonic()
        status, body = tier.health("app1", deep=True)
        assert status == 503
        assert time.monotonic() - begun < 8
        assert any(reason.startswith("database") for reason in body["reasons"]), body
        assert tier.health("app1")[0] == 200
    finally:
        tier.lab.tool("unpause", "db1")


def test_drain_file(tier: Tier) -> None:
    tier.lab.ssh("app2", "touch /srv/django/drain")
    try:
        assert tier.health("app2") == (503, {"status": "draining", "release": tier.release("app2"), "node": "app2"})
        status, body = tier.health("app2", deep=True)
        assert (status, body["draining"]) == (200, True)
        assert httpx.get(tier.url("app2", "/plain/"), headers={"Host": "flotilla.test"}).status_code == 200
        assert tier.health("app1")[0] == 200
    finally:
        tier.lab.ssh("app2", "rm /srv/django/drain")


@pytest.mark.full
def test_node_comes_back_after_a_power_cut(tier: Tier) -> None:
    visitor = Visitor(tier)
    visitor.login("app1", "app2")
    tier.lab.tool("kill", "app2")
    try:
        assert visitor.is_logged_in("app1")
    finally:
        tier.lab.tool("start", "app2")
    wait_until(lambda: tier.health("app2", deep=True)[0] == 200, 60, "app2 serves again")
    assert visitor.is_logged_in("app2")
    assert tier.lab.ssh("app2", "systemctl is-active django-worker").strip() == "active"


@pytest.mark.full
def test_master_process_killed(tier: Tier) -> None:
    tier.lab.ssh("app2", "kill -9 $(systemctl show -p MainPID --value django.service)")
    wait_until(lambda: tier.health("app2")[0] == 200, 20, "systemd starts it again")


@pytest.mark.full
def test_stop_lets_requests_finish(tier: Tier) -> None:
    """A request of three seconds that is under way when the service is stopped gets its answer."""
    command = ["curl", "-s", "-o", "/dev/null", "-w", "%{http_code}", "-H", "Host: flotilla.test"]
    with subprocess.Popen([*command, tier.url("app2", "/slow/?seconds=3")], stdout=subprocess.PIPE, text=True) as slow:
        time.sleep(0.7)
        tier.lab.ssh("app2", "systemctl restart django")
        assert slow.communicate(timeout=30)[0] == "200"


def test_unapplied_migration_is_a_reason_and_is_applied_once(tier: Tier) -> None:
    """Two nodes at the same moment: one applies, the other waits, finds nothing left and says so."""
    tier.lab.ssh("app1", "django-manage migrate guestbook zero")
    try:
        status, body = tier.health("app2", deep=True)
        assert status == 503
        assert "unapplied" in body["reasons"][0]
        running = [
            subprocess.Popen(
                ["ssh", "-F", str(tier.lab.directory / "ssh_config"), host, MIGRATE], stdout=subprocess.PIPE, text=True
            )
            for host in HOSTS
        ]
        said = [json.loads(process.communicate(timeout=90)[0].splitlines()[-1]) for process in running]
    finally:
        tier.lab.ssh("app1", MIGRATE)
    assert sorted(item["changed"] for item in said) == [False, True], said
    assert json.loads(tier.lab.ssh("app1", f"{MIGRATE} --check").splitlines()[-1]) == {
        "changed": False,
        "migrations": [],
    }


def test_migration_waits_for_the_lock_and_gives_up_in_time(tier: Tier) -> None:
    tier.lab.ssh("app1", "django-manage migrate guestbook zero")
    holder = subprocess.Popen(
        ["ssh", "-F", str(tier.lab.directory / "ssh_config"), "db1",
         f"runuser -u postgres -- psql -q django -c 'SELECT pg_advisory_lock({0x464C4F54}), pg_sleep(8)'"],
        stdout=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        time.sleep(1)
        said = tier.lab.ssh("app1", "django-run python /etc/django/cluster_migrate.py --lock-wait 1", check=False)
        assert "another migration held the lock" in json.loads(said.splitlines()[-1]).get("error", ""), said
    finally:
        applied = json.loads(tier.lab.ssh("app1", MIGRATE).splitlines()[-1])
        holder.wait(timeout=30)
    assert applied["changed"], applied


@pytest.mark.full
def test_migration_gives_way_to_a_busy_table(tier: Tier) -> None:
    """A table that is locked for five seconds: migrate gives up after two, lets the queries through and comes back."""
    tier.lab.ssh("app1", "django-manage migrate guestbook zero")
    try:
        blocker = subprocess.Popen(
            ["ssh", "-F", str(tier.lab.directory / "ssh_config"), "db1",
             "runuser -u postgres -- psql -q django -c 'BEGIN; LOCK TABLE auth_user IN ACCESS SHARE MODE; "
             "LOCK TABLE auth_user IN ROW EXCLUSIVE MODE; SELECT pg_sleep(5); COMMIT'"],
        )  # fmt: skip
        time.sleep(1)
        said = tier.lab.ssh("app1", f"{MIGRATE} 2>&1")
        blocker.wait(timeout=30)
    finally:
        tier.lab.ssh("app1", MIGRATE)
    assert "locked for more than 2s" in said
    assert json.loads(said.splitlines()[-1])["changed"] is True


def broken_release(tier: Tier, host: str, name: str, wsgi: str) -> str:
    """A copy of the running release whose wsgi.py is another."""
    current = tier.release(host)
    tier.lab.ssh(
        host,
        f"cd /srv/django/releases && rm -rf {name} && cp -a --reflink=auto {current} {name} && "
        # Compiled modules are not compared with their source.
        f"find {name}/source -name __pycache__ -prune -exec rm -r {{}} + && "
        f"sed -i 's/{current}/{name}/g' {name}/release.json && cat > {name}/source/lighthouse/wsgi.py",
        stdin=wsgi,
    )
    return name


@pytest.mark.parametrize(
    ("name", "wsgi", "expected"),
    [
        ("does-not-start", "raise RuntimeError('deliberately broken')\n", "deliberately broken"),
        pytest.param("hangs", "import time\ntime.sleep(600)\n", "did not become healthy", marks=pytest.mark.full),
    ],
)
def test_broken_release_is_taken_back(tier: Tier, name: str, wsgi: str, expected: str) -> None:
    former = tier.release("app2")
    previous = tier.lab.ssh("app2", "readlink /srv/django/previous || true")
    broken_release(tier, "app2", name, wsgi)
    try:
        result = tier.runtime("app2", name)

        assert "msg" in result and not result["changed"], result
        assert expected in result["msg"]
        assert f"Release {former} was put back and runs" in result["msg"]
        assert tier.release("app2") == former == tier.health("app2")[1]["release"]
        assert tier.lab.ssh("app2", "readlink /srv/django/previous || true") == previous
        assert tier.lab.ssh("app2", "systemctl is-active django-worker").strip() == "active"
    finally:
        tier.lab.ssh("app2", f"rm -rf /srv/django/releases/{name}")


@pytest.mark.full
def test_switch_and_back(tier: Tier) -> None:
    former = tier.release("app2")
    wsgi = tier.lab.ssh("app2", "cat /srv/django/current/source/lighthouse/wsgi.py")
    other = broken_release(tier, "app2", "another", wsgi)
    try:
        there = tier.runtime("app2", other)
        assert there["changed"], there
        assert (there["release"], there["previous"]) == (other, former)
        assert tier.health("app2", deep=True)[1]["release"] == other
        assert tier.lab.ssh("app2", "readlink /srv/django/previous").strip() == f"releases/{former}"
        assert not tier.runtime("app2", other)["changed"]
    finally:
        back = tier.runtime("app2", former)
        tier.lab.ssh("app2", "rm -rf /srv/django/releases/another /srv/django/previous")
    assert back["changed"]


@pytest.mark.full
def test_interrupted_activation_is_finished(tier: Tier) -> None:
    """The link is switched and the run is killed before the restart: the process still runs the former release."""
    release = tier.release("app2")
    wsgi = tier.lab.ssh("app2", "cat /srv/django/current/source/lighthouse/wsgi.py")
    other = broken_release(tier, "app2", "halfway", wsgi)
    try:
        tier.lab.ssh("app2", f"ln -sfn releases/{other} /srv/django/current")
        asked = tier.runtime("app2", other, "--check")
        assert asked["activation"]
        assert any(f"runs release {release}" in reason for reason in asked["reasons"]), asked["reasons"]
        assert tier.runtime("app2", other)["changed"]
        assert tier.health("app2")[1]["release"] == other
    finally:
        tier.runtime("app2", release)
        tier.lab.ssh("app2", "rm -rf /srv/django/releases/halfway /srv/django/previous")


def test_newer_environment_means_a_restart(tier: Tier) -> None:
    release = tier.release("app1")
    assert not tier.runtime("app1", release, "--check")["changed"]
    tier.lab.ssh("app1", "touch /etc/django/environment")

    asked = tier.runtime("app1", release, "--check")
    assert asked["restarted"] == ["django.service", "django-worker.service", "django-beat.service"]
    assert tier.runtime("app1", release)["changed"]
    assert not tier.runtime("app1", release)["changed"]


def test_removed_process_is_stopped_and_removed_and_nobody_elses(tier: Tier) -> None:
    unit = "[Service]\nExecStart=/bin/sleep 1000\n[Install]\nWantedBy=multi-user.target\n"
    tier.lab.ssh("app2", "cat > /etc/systemd/system/django-old.service", stdin=unit + "[X-Flotilla]\nProcess=old\n")
    tier.lab.ssh("app2", "cat > /etc/systemd/system/django-foreign.service", stdin=unit)
    tier.lab.ssh("app2", "systemctl daemon-reload; systemctl enable --now django-old django-foreign")
    try:
        result = tier.runtime("app2", tier.release("app2"))
        assert result["changed"]
        assert not result["activation"], "the web service need not stop for this"
        left = tier.lab.ssh("app2", "ls /etc/systemd/system; systemctl is-active django-old django-foreign || true")
        assert "django-old.service" not in left
        assert left.split()[-2:] == ["inactive", "active"]
    finally:
        tier.lab.ssh("app2", "systemctl disable --now django-foreign; rm -f /etc/systemd/system/django-foreign.service")
        tier.lab.ssh("app2", "systemctl daemon-reload")


def test_check_mode_and_limit_change_nothing(tier: Tier) -> None:
    recap = tier.lab.playbook("--check", "--diff", "--limit", "app2", playbook=CONVERGE)

    assert recap.returncode == 0, recap.output[-3000:]
    assert recap.changed == {}, recap.changed_tasks
