# SPDX-License-Identifier: GPL-3.0-or-later
"""A converged tier: each node serves the same project, says how it is, and gives nothing away."""

from __future__ import annotations

import os
import shlex

import httpx
import pytest
from django_tier import HOSTS, Tier, Visitor

UNITS = ["django.service", "django-worker.service"]


@pytest.mark.parametrize("host", HOSTS)
def test_shallow_health_whatever_the_project_thinks_of_the_request(tier: Tier, host: str) -> None:
    status, body = tier.health(host, Host="unknown.example.com")

    assert (status, body) == (200, {"status": "ok", "release": tier.release(host), "node": host})
    page = httpx.get(tier.url(host, "/"), headers={"Host": "unknown.example.com"})
    assert page.status_code == 400, "ALLOWED_HOSTS is not enforced, so the test above proves nothing"


@pytest.mark.parametrize("host", HOSTS)
def test_deep_health_names_every_check_with_its_time(tier: Tier, host: str) -> None:
    status, body = tier.health(host, deep=True)

    assert status == 200, body
    assert body["reasons"] == []
    assert set(body["checks"]) == {"database", "redis", "migrations", "urls"}
    assert all(check["ok"] and check["ms"] > 0 for check in body["checks"].values())


def test_both_nodes_run_the_same_release(tier: Tier) -> None:
    assert tier.health("app1")[1]["release"] == tier.health("app2")[1]["release"] != ""


def test_login_spans_nodes(tier: Tier) -> None:
    """The form from one node, sent to the other, and the session valid on both."""
    visitor = Visitor(tier)

    assert not visitor.is_logged_in("app1")
    answer = visitor.login(page_from="app1", post_to="app2")
    assert answer.status_code == 302, answer.text[:500]
    assert visitor.is_logged_in("app1")
    assert visitor.is_logged_in("app2")
    cookies = answer.headers.get_list("set-cookie")
    assert any(line.startswith("sessionid=") and "Secure" in line for line in cookies), cookies


def test_form_without_https_from_the_balancer_is_refused(tier: Tier) -> None:
    """The origin is checked against what the balancer says: a proof that X-Forwarded-Proto is believed above."""
    page = httpx.get(tier.url("app1", "/accounts/login/"), headers={"Host": "flotilla.test"})
    answer = httpx.post(
        tier.url("app1", "/accounts/login/"),
        headers={"Host": "flotilla.test", "Origin": "https://evil.example.com", "X-Forwarded-Proto": "https"},
        cookies=dict(page.cookies),
        data={"username": "x"},
    )
    assert answer.status_code == 403


def test_session_is_in_redis_and_in_the_database(tier: Tier) -> None:
    visitor = Visitor(tier)
    visitor.login("app1", "app1")
    key = visitor.cookies["sessionid"]

    said = tier.lab.manage(
        "app2",
        "from django.core.cache import caches\n"
        "from django.contrib.sessions.models import Session\n"
        f"key = {key!r}\n"
        "name = caches['sessions'].client.make_pattern('*' + key)\n"
        "print('FOUND', len(list(caches['sessions'].iter_keys('*' + key))), Session.objects.filter(pk=key).count())\n",
    )
    assert "FOUND 1 1" in said, said[-500:]


@pytest.mark.parametrize(("host", "expected"), [("app1", ["beat", "worker"]), ("app2", ["worker"])])
def test_processes_run_where_they_should(tier: Tier, host: str, expected: list[str]) -> None:
    listed = tier.lab.ssh(host, "systemctl list-units --state=active --plain --no-legend 'django-*.service'")

    assert sorted(line.split()[0] for line in listed.splitlines()) == [f"django-{name}.service" for name in expected]


@pytest.mark.parametrize("host", HOSTS)
def test_every_process_shows_its_release(tier: Tier, host: str) -> None:
    release = tier.release(host)
    for unit in UNITS:
        pid = tier.lab.ssh(host, f"systemctl show -p MainPID --value {unit}").strip()
        said = tier.lab.ssh(host, f"readlink /proc/{pid}/cwd; tr '\\0' ' ' < /proc/{pid}/cmdline")
        assert said.count(f"/srv/django/releases/{release}/") == 2, said


@pytest.mark.parametrize("unit", UNITS)
def test_sandbox(tier: Tier, unit: str) -> None:
    overall = tier.lab.ssh("app1", f"systemd-analyze security --no-pager {unit}").strip().splitlines()[-1]
    score = float(overall.split(":")[1].split()[0])
    assert score <= 3.0, overall

    pid = tier.lab.ssh("app1", f"systemctl show -p MainPID --value {unit}").strip()
    status = dict(
        line.split(":\t", 1) for line in tier.lab.ssh("app1", f"cat /proc/{pid}/status").splitlines() if ":\t" in line
    )
    assert status["NoNewPrivs"] == "1"
    assert int(status["CapBnd"], 16) == 0
    assert status["Seccomp"] == "2"
    assert status["Uid"].split()[0] == tier.lab.ssh("app1", "id -u django").strip()
    mounts = tier.lab.ssh("app1", f"cat /proc/{pid}/mountinfo")
    root = next(line for line in mounts.splitlines() if line.split()[4] == "/")
    assert root.split()[5].startswith("ro"), root


@pytest.mark.parametrize("host", HOSTS)
def test_no_secret_where_others_can_read_it(tier: Tier, host: str) -> None:
    for name, secret in tier.secrets().items():
        pattern = shlex.quote(secret)
        # Read from standard input, so that the search itself does not show in ps.
        listed = tier.lab.ssh(
            host,
            'read -r s; ps -eo args | grep -F -- "$s" | grep -v grep; '
            "find /etc /srv /usr/local /var/log /var/cache /run /tmp -xdev -type f -perm -o=r -size -4096k -print0 "
            '2>/dev/null | xargs -0 grep -lF -f <(echo "$s") --; true',
            stdin=secret + "\n",
        )
        assert listed.strip() == "", f"{name} ({len(pattern)} characters) in: {listed}"


def test_environment_file_is_for_the_service_only(tier: Tier) -> None:
    assert tier.lab.ssh("app1", "stat -c '%a %U %G' /etc/django/environment").strip() == "640 root django"
    tier.lab.ssh("app1", "runuser -u nobody -- cat /etc/django/environment 2>&1 | grep -q 'Permission denied'")


def test_quoting_is_the_same_for_systemd_sh_and_django_run(tier: Tier) -> None:
    wanted = 'a "quoted" $HOME `x` \\back % 100'
    pid = tier.lab.ssh("app1", "systemctl show -p MainPID --value django.service").strip()
    by_systemd = tier.lab.ssh("app1", f"tr '\\0' '\\n' < /proc/{pid}/environ | grep ^SCENARIO_QUOTES=").strip()
    by_sh = tier.lab.ssh("app1", "sh -c '. /etc/django/environment; printf %s \"$SCENARIO_QUOTES\"'")
    by_run = tier.lab.ssh("app1", 'django-run python -c \'import os; print(os.environ["SCENARIO_QUOTES"], end="")\'')

    assert by_systemd == f"SCENARIO_QUOTES={wanted}"
    assert by_sh == wanted
    assert by_run == wanted


def test_manage_runs_as_the_service_user_in_the_release(tier: Tier) -> None:
    said = tier.lab.manage(
        "app1", "import os, getpass, django.conf as c; print('AS', os.geteuid(), c.settings.CLUSTER_RELEASE_ID)"
    )

    assert f"AS {tier.lab.ssh('app1', 'id -u django').strip()} {tier.release('app1')}" in said


def test_libpq_knows_the_primary_must_be_writable(tier: Tier) -> None:
    """Also for a project that builds its own connection."""
    said = tier.lab.manage(
        "app1", "import psycopg, os; print('URL', psycopg.connect(os.environ['DATABASE_URL']).info.dbname)"
    )

    assert "URL django" in said


def test_requests_are_in_the_journal_with_their_id(tier: Tier) -> None:
    token = f"id-{os.getpid()}"
    httpx.get(tier.url("app1", "/plain/"), headers={"Host": "flotilla.test", "X-Request-ID": token})

    assert f"id={token}" in tier.lab.ssh("app1", "sleep 0.5; journalctl -u django -n 50 -o cat")
