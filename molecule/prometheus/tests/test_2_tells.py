# SPDX-License-Identifier: GPL-3.0-or-later
"""Alerts that really fire, and reach somebody. The times of the alerts are those of the role."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator

import pytest
from monitor import HOST, Monitor

from tests.cluster import Lab, Recap, wait_until

RECEIVER = "http://127.0.0.1:9999"
# A mail server that wants TLS and a password, with Debian's aiosmtpd; its mails go to its standard output.
MAIL_SERVER = """
import ssl, sys, time
from aiosmtpd.controller import Controller
from aiosmtpd.smtp import AuthResult

class Mails:
    async def handle_DATA(self, server, session, envelope):
        print("FROM", envelope.mail_from, "TO", *envelope.rcpt_tos, "TLS", bool(session.ssl), flush=True)
        print(envelope.content.decode(), flush=True)
        return "250 OK"

def right(server, session, envelope, mechanism, data):
    return AuthResult(success=(data.login, data.password) == (b"alerts", b"swordfish"))

context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
context.load_cert_chain("/run/mail.pem", "/run/mail.key")
Controller(Mails(), "127.0.0.1", 2525, tls_context=context, require_starttls=True,
           authenticator=right, auth_required=True, auth_exclude_mechanism=["LOGIN"]).start()
time.sleep(1200)
"""
TRUSTED = "/usr/local/share/ca-certificates/mail.crt"
TOLD = {
    "prometheus_receiver": {"webhook_configs": [{"url": f"{RECEIVER}/people"}]},
    "prometheus_slack_url": f"{RECEIVER}/slack",
    "prometheus_watchdog_url": f"{RECEIVER}/watchdog",
    "prometheus_group_seconds": 1,
}


def converge(lab: Lab, *more: str, **variables: object) -> Recap:
    return lab.playbook("--tags", "prometheus", "--limit", HOST, "-e", json.dumps(variables), *more)


@pytest.fixture(scope="module")
def told(lab: Lab, monitor: Monitor) -> Iterator[Monitor]:
    """The monitor tells a program on its own host."""
    monitor.start_receiver()
    run = converge(lab, **TOLD)
    assert run.returncode == 0, run.output[-3000:]
    yield monitor
    run = converge(lab)
    assert run.returncode == 0, run.output[-3000:]


def messages(monitor: Monitor, path: str, **labels: str) -> list[str]:
    """The states that the receiver was told of these alerts, one after the other."""
    return [
        item["status"]
        for item in monitor.told()
        if item["path"] == path and labels.items() <= item.get("labels", {}).items()
    ]


def in_slack(monitor: Monitor) -> int:
    """How many messages the other receiver got."""
    return sum(item["path"] == "/slack" for item in monitor.told())


def test_the_receivers_secrets_are_in_files_that_only_the_daemon_can_read(lab: Lab, told: Monitor) -> None:
    shown = lab.ssh(HOST, "stat -c '%n %a %U:%G' /etc/prometheus/flotilla-*").splitlines()
    modes = {line.split()[0].rsplit("/", 1)[1]: line.split(maxsplit=1)[1] for line in shown if "rules" not in line}
    for name in ("flotilla-password", "flotilla-slack-url", "flotilla-alertmanager.yml"):
        assert modes[name] == "640 root:prometheus", name


def test_the_watchdog_is_heard(told: Monitor) -> None:
    wait_until(lambda: messages(told, "/watchdog", alertname="Watchdog"), 60, "the watchdog is heard", 2)
    assert not messages(told, "/people", alertname="Watchdog")


# Five minutes of waiting for the times of the role's own alerts; make test has the rule below, which fires at once.
@pytest.mark.full
def test_a_host_and_an_exporter_that_stop_are_told_of_and_their_return_too(lab: Lab, told: Monitor) -> None:
    """One wait for both: a host that dies, an exporter that is stopped, and what follows from them."""
    exporter = {"alertname": "ExporterDown", "host": "data1", "job": "redis"}
    host = {"alertname": "HostDown", "host": "web2"}
    began = time.monotonic()
    lab.ssh("data1", "systemctl stop prometheus-redis-exporter")
    lab.tool("kill", "web2")
    try:
        wait_until(lambda: messages(told, "/people", **host) == ["firing"], 240, "somebody hears of the host", 3)
        assert time.monotonic() - began > 100, "not before its time"
        wait_until(lambda: messages(told, "/people", **exporter) == ["firing"], 300, "... and of the exporter", 3)
        # Of what else is wrong with a host that is gone nobody is told.
        firing = told.get("/prometheus/api/v1/alerts")["data"]["alerts"]
        assert not [alert for alert in firing if alert["labels"].get("host") == "web2" and alert["state"] == "firing"
                    and alert["labels"]["alertname"] in ("NodeUnhealthy", "ExporterDown")]  # fmt: skip
        wait_until(
            lambda: messages(told, "/people", alertname="ServerDown", server="web2") == ["firing"],
            240,
            "the balancer",
            3,
        )
        assert any(item["path"] == "/slack" for item in told.told()), "the other receiver hears it, too"
    finally:
        lab.tool("start", "web2")
        lab.ssh("data1", "systemctl start prometheus-redis-exporter")
    for what in (host, exporter):
        wait_until(lambda what=what: messages(told, "/people", **what)[-1] == "resolved", 240, f"{what} is over", 3)


def test_a_configuration_that_is_refused_changes_nothing(lab: Lab, told: Monitor) -> None:
    files = "sha256sum /etc/prometheus/flotilla* /etc/prometheus/flotilla-rules/* 2>/dev/null"
    before = lab.ssh(HOST, files, check=False)
    for wrong, said in (
        ({"prometheus_receiver": {"no_such_configs": [{}]}}, "no_such_configs"),
        ({"prometheus_extra_rules": [{"name": "x", "rules": [{"alert": "X", "expr": "sum("}]}]}, "promtool"),
        ({"prometheus_extra_jobs": [{"job_name": "node"}]}, "promtool"),
    ):
        run = converge(lab, **{**TOLD, **wrong})
        assert run.returncode != 0, wrong
        assert said in run.output or "flotilla" in run.output
        assert lab.ssh(HOST, files, check=False) == before
    assert told.query('prometheus_config_last_reload_successful{job="prometheus"}') == {"mon1": 1}


def test_a_rule_of_ones_own_is_in_force_without_a_restart_and_people_hear_of_it(lab: Lab, told: Monitor) -> None:
    pid = lab.ssh(HOST, "systemctl show -P MainPID prometheus")
    mine = {
        "alert": "Mine",
        "expr": 'up{job="redis", instance="data1"} == 0',
        "labels": {"severity": "warning"},
        "annotations": {"summary": "an exporter is gone"},
    }
    run = converge(lab, **TOLD, prometheus_extra_rules=[{"name": "mine", "rules": [mine]}])
    assert run.returncode == 0, run.output[-3000:]
    assert lab.ssh(HOST, "systemctl show -P MainPID prometheus") == pid
    assert not messages(told, "/people", alertname="Mine")
    before = in_slack(told)
    lab.ssh("data1", "systemctl stop prometheus-redis-exporter")
    try:
        # After a reload Prometheus knows no Alertmanager for up to five seconds; it repeats itself in a minute.
        wait_until(lambda: messages(told, "/people", alertname="Mine") == ["firing"], 150, "somebody hears of it", 2)
        wait_until(lambda: in_slack(told) > before, 60, "the other receiver hears it, too", 2)
    finally:
        lab.ssh("data1", "systemctl start prometheus-redis-exporter")
    wait_until(lambda: messages(told, "/people", alertname="Mine")[-1] == "resolved", 150, "somebody hears its end", 2)
    run = converge(lab, **TOLD)
    assert run.returncode == 0, run.output[-3000:]
    assert lab.ssh(HOST, "ls /etc/prometheus/flotilla-rules").split() == ["alerts.yml", "cluster.yml"]


@pytest.mark.full
def test_an_email_is_sent_with_tls_and_a_password(lab: Lab, told: Monitor) -> None:
    lab.ssh(
        HOST,
        "apt-get -qq update && apt-get -qqy install python3-aiosmtpd >/dev/null 2>&1 && cat > /run/mail.py",
        MAIL_SERVER,
    )
    lab.ssh(
        HOST,
        "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=localhost -addext subjectAltName=DNS:localhost"
        f" -keyout /run/mail.key -out /run/mail.pem 2>/dev/null && cp /run/mail.pem {TRUSTED}"
        " && update-ca-certificates >/dev/null && systemctl restart prometheus-alertmanager"
        " && systemd-run -q --unit mails python3 /run/mail.py",
    )
    try:
        run = converge(
            lab,
            **TOLD,
            prometheus_email_to=["ops@example.com", "night@example.com"],
            prometheus_email_server="localhost:2525",
            prometheus_email_user="alerts",
            prometheus_email_password="swordfish",
            prometheus_extra_rules=[{"name": "mine", "rules": [
                {"alert": "Posted", "expr": "vector(1)", "labels": {"severity": "warning"}}]}],
        )  # fmt: skip
        assert run.returncode == 0, run.output[-3000:]
        assert "swordfish" not in run.output
        wait_until(lambda: "Posted" in lab.ssh(HOST, "journalctl -u mails -o cat"), 120, "the mail is there", 2)
        mail = lab.ssh(HOST, "journalctl -u mails -o cat")
        assert "TO ops@example.com night@example.com TLS True" in mail, mail[:2000]
        assert "FROM alerts@" in mail
    finally:
        lab.ssh(HOST, f"systemctl stop mails; rm -f {TRUSTED} /run/mail.*; update-ca-certificates --fresh >/dev/null")
    # Alertmanager goes on with an alert whose rule is gone until it has heard nothing of it for minutes.
    assert converge(lab, **TOLD).returncode == 0
    wait_until(lambda: "Posted" not in told.firing(), 600, "the alert is over", 5)
